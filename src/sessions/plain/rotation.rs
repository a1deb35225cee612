//! New session ids by plain commands.

use std::collections::HashMap;

use crate::redis::wire::time_ms;
use crate::redis::{RedisError, RedisTransport};
use crate::sessions::commands::{RotateFrom, RotateOutcome, RotateSession, provisional_ttl_ms};
use crate::sessions::commit::CommitOutcome;
use crate::sessions::keys;
use crate::sessions::plain::provisional::{destroy_session, new_session_retry_after_ms};
use crate::sessions::plain::record::{PlainLookup, PlainRecord, create_session, load, record_id};

/// Gives a session another id, or creates one. The old one ends after the new one exists, and leaves a mark that keeps
/// a provisional id from creating it again.
///
/// # Errors
/// `Unsupported` for a login: the index of a user's sessions needs server-side code.
pub async fn rotate_session(
    transport: &RedisTransport,
    request: &RotateSession<'_>,
) -> Result<RotateOutcome, RedisError> {
    if request.login || request.user.is_some() {
        return Err(RedisError::Unsupported { what: "a login" });
    }
    let new = keys::session(request.prefix, request.new);
    let old = match request.from {
        RotateFrom::Nothing => None,
        RotateFrom::Session(old) | RotateFrom::SessionIfPresent(old) => {
            Some(keys::session(request.prefix, old))
        }
    };
    let now = time_ms(&transport.call("TIME", []).await?)?;
    let (mut session, mut views) = (
        PlainRecord {
            created_ms: if request.initial.created_ms == 0 { now } else { request.initial.created_ms },
            idle_ms: request.idle_ms,
            absolute_ms: request.absolute_ms,
            fields: HashMap::new(),
        },
        request.initial.views,
    );
    if let Some(old) = &old {
        let PlainLookup::Record(found) = load(transport, record_id(old)).await? else {
            return Ok(RotateOutcome::Gone);
        };
        (session.created_ms, session.fields) = (found.created_ms, found.fields);
        views = transport.call("GET", [&keys::session_views(old)]).await?.as_u64().unwrap_or(0);
    }
    if request.expect.iter().any(|(name, value)| session.fields.get(name) != Some(value)) {
        return Ok(RotateOutcome::Conflict);
    }
    session.fields.extend(request.set.iter().cloned());
    session.fields.retain(|name, _| !request.remove.contains(name));
    if session.exceeds(request.max_fields, request.max_bytes) {
        return Ok(RotateOutcome::TooLarge);
    }
    let mut left = session.left_ms(now);
    if old.is_none() {
        if let Some(retry_after_ms) = new_session_retry_after_ms(transport, request.limit).await? {
            return Ok(RotateOutcome::RateLimited { retry_after_ms });
        }
        // The cookie of a new session may never come back.
        left = left.min(provisional_ttl_ms());
    }
    match create_session(transport, &new, &session, (views, left), now).await? {
        CommitOutcome::Committed { .. } => {}
        CommitOutcome::Exists => return Ok(RotateOutcome::IdInUse),
        _ => return Ok(RotateOutcome::Gone),
    }
    if let Some(old) = &old {
        destroy_session(transport, old).await?;
    }
    Ok(RotateOutcome::Done { created_ms: session.created_ms, sessions: 0 })
}
