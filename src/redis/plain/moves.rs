//! New ids, and sessions that are made, by plain commands.

use std::collections::HashMap;

use crate::redis::caller::Caller;
use crate::redis::commit::Reply;
use crate::redis::error::Error;
use crate::redis::keys;
use crate::redis::plain::sessions::Found;
use crate::redis::plain::sessions::Session;
use crate::redis::plain::sessions::create;
use crate::redis::plain::sessions::id;
use crate::redis::plain::sessions::load;
use crate::redis::plain::tickets::end;
use crate::redis::plain::tickets::has_room;
use crate::redis::plain::time_ms;
use crate::redis::sessions::Move;
use crate::redis::sessions::Moved;
use crate::redis::sessions::Source;
use crate::redis::sessions::term_ms;

/// Gives a session another id, or makes one; the old one ends after the new one is there, and leaves a mark, so that no
/// ticket makes it anew.
///
/// # Errors
/// `Unsupported` for a login: the list of a user's sessions needs server-side code.
pub(in crate::redis) async fn move_to(caller: &Caller, request: &Move<'_>) -> Result<Moved, Error> {
    if request.login || request.user.is_some() {
        return Err(Error::Unsupported { what: "a login" });
    }
    let new = keys::session(request.prefix, request.new);
    let old = match request.from {
        Source::Nothing => None,
        Source::Session(old) | Source::SessionIfThere(old) => Some(keys::session(request.prefix, old)),
    };
    let now = time_ms(&caller.call("TIME", []).await?)?;
    let (mut session, mut views) = (
        Session {
            created_ms: if request.made.created_ms == 0 { now } else { request.made.created_ms },
            idle_ms: request.idle_ms,
            absolute_ms: request.absolute_ms,
            fields: HashMap::new(),
        },
        request.made.views,
    );
    if let Some(old) = &old {
        let Found::Session(found) = load(caller, id(old)).await? else { return Ok(Moved::Gone) };
        (session.created_ms, session.fields) = (found.created_ms, found.fields);
        views = caller.call("GET", [&keys::views(old)]).await?.as_u64().unwrap_or(0);
    }
    if request.expect.iter().any(|(name, value)| session.fields.get(name) != Some(value)) {
        return Ok(Moved::Conflict);
    }
    session.fields.extend(request.set.iter().cloned());
    session.fields.retain(|name, _| !request.remove.contains(name));
    if session.exceeds(request.max_fields, request.max_bytes) {
        return Ok(Moved::Full);
    }
    let mut left = session.left_ms(now);
    if old.is_none() {
        if let Some(retry_after_ms) = has_room(caller, request.limit).await? {
            return Ok(Moved::Limited { retry_after_ms });
        }
        // Its cookie may never come back.
        left = left.min(term_ms());
    }
    match create(caller, &new, &session, (views, left), now).await? {
        Reply::Committed { .. } => {}
        Reply::Exists => return Ok(Moved::Taken),
        _ => return Ok(Moved::Gone),
    }
    if let Some(old) = &old {
        end(caller, old).await?;
    }
    Ok(Moved::Done { created_ms: session.created_ms, sessions: 0 })
}
