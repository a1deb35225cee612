//! Provisional sessions and the limit on new sessions by plain commands.
//!
//! A session that ended leaves a mark under the key that it has with server-side code; nothing else is stored there.

use std::collections::HashMap;

use crate::fixed_window::{self, FixedWindow};
use crate::redis::wire::{Value, command, number, text, time_ms};
use crate::redis::{RedisError, RedisTransport};
use crate::sessions::commands::provisional_ttl_ms;
use crate::sessions::commit::CommitOutcome;
use crate::sessions::keys;
use crate::sessions::plain::record::{PlainRecord, create_session, lookup_and_count, record_id};
use crate::sessions::query::{NewSessionLimit, ProvisionalSessionQuery, SessionLookup, SessionQuery};

/// The session of a provisional id; it is created if it is missing and did not end before.
///
/// The view that was counted for the first request is stored by the first request that brings the id, and each adds its
/// own, so that simultaneous requests are all counted.
pub async fn lookup_or_create(
    transport: &RedisTransport,
    query: &SessionQuery,
    provisional: &ProvisionalSessionQuery,
) -> Result<SessionLookup, RedisError> {
    match lookup_and_count(transport, query).await? {
        SessionLookup::Gone => {}
        found => return Ok(found),
    }
    let commands = vec![command("TIME", []), command("GET", [text(&query.key)])];
    let replies = transport.pipeline(commands).await?.into_iter().collect::<Result<Vec<_>, _>>()?;
    let now = time_ms(replies.first().unwrap_or(&Value::Null))?;
    let is_good = now < provisional.issued_ms.saturating_add(provisional.ttl_ms)
        && provisional.issued_ms <= now.saturating_add(provisional.ttl_ms);
    if !is_good || replies.get(1).is_some_and(|mark| *mark != Value::Null) {
        return Ok(SessionLookup::Gone);
    }
    if !provisional.creates {
        return Ok(SessionLookup::Provisional);
    }
    let session = PlainRecord {
        created_ms: provisional.issued_ms,
        idle_ms: query.idle_ms,
        absolute_ms: query.absolute_ms,
        fields: HashMap::new(),
    };
    let left = match new_session_retry_after_ms(transport, provisional.limit.as_ref()).await? {
        None => session.left_ms(now),
        Some(_) => session.left_ms(now).min(provisional.ttl_ms),
    };
    match create_session(transport, &query.key, &session, (u64::from(provisional.view_counted), left), now)
        .await?
    {
        // Another request with the same id may have created it at the same moment.
        CommitOutcome::Committed { .. } | CommitOutcome::Exists => lookup_and_count(transport, query).await,
        _ => Ok(SessionLookup::Gone),
    }
}

/// When the client may create one session more, ms from now; `None`: it may now, and is charged.
pub(super) async fn new_session_retry_after_ms(
    transport: &RedisTransport,
    limit: Option<&NewSessionLimit>,
) -> Result<Option<u64>, RedisError> {
    let Some(limit) = limit else { return Ok(None) };
    let key = keys::new_session_window(&limit.key);
    let window = FixedWindow::new(key, limit.interval_us, limit.tolerance_us, 1);
    let (granted, decisions) = fixed_window::check(transport, &[window], |_| false).await?;
    let retry_us = decisions.first().and_then(|decision| decision.retry_after_us).unwrap_or(1_000_000);
    Ok((!granted).then_some(retry_us.div_ceil(1000)))
}

/// Ends a session and leaves a mark that keeps a provisional id from creating it again; returns whether there was one.
pub async fn destroy_session(transport: &RedisTransport, key: &str) -> Result<bool, RedisError> {
    let names = [record_id(key).to_string(), keys::session_views(key)];
    let replies = transport.pipeline(names.iter().map(|name| command("DEL", [text(name)])).collect()).await?;
    let replies = replies.into_iter().collect::<Result<Vec<_>, _>>()?;
    let destroyed = replies.first().and_then(Value::as_u64) == Some(1);
    if destroyed {
        transport
            .send("SET", vec![text(key), text("ended"), text("PX"), number(provisional_ttl_ms())])
            .await?;
    }
    Ok(destroyed)
}
