//! Tickets and the limit on new sessions by plain commands.
//!
//! A session that ended leaves a mark under the key that it has where there is server-side code; nothing else lies there.

use std::collections::HashMap;

use fred::types::Value;

use crate::redis::begin::LimitArg;
use crate::redis::begin::LimitKind;
use crate::redis::begin::NewSessions;
use crate::redis::begin::SessionArg;
use crate::redis::begin::SessionReply;
use crate::redis::begin::TicketArg;
use crate::redis::caller::Caller;
use crate::redis::commit::Reply;
use crate::redis::error::Error;
use crate::redis::keys;
use crate::redis::plain::command;
use crate::redis::plain::limits::decide;
use crate::redis::plain::number;
use crate::redis::plain::sessions::Session;
use crate::redis::plain::sessions::create;
use crate::redis::plain::sessions::id;
use crate::redis::plain::sessions::read;
use crate::redis::plain::text;
use crate::redis::plain::time_ms;
use crate::redis::sessions::term_ms;

/// The session that a ticket names; it is made if it is not there, and did not end before the ticket.
///
/// The view that was counted with the ticket is stored by the first request that brings the ticket, and each adds its own,
/// so that requests that come at the same moment are all counted.
pub(super) async fn of_ticket(
    caller: &Caller,
    arg: &SessionArg,
    ticket: &TicketArg,
) -> Result<SessionReply, Error> {
    match read(caller, arg).await? {
        SessionReply::Gone => {}
        found => return Ok(found),
    }
    let look = vec![command("TIME", []), command("GET", [text(&arg.key)])];
    let answers = caller.together(look).await?.into_iter().collect::<Result<Vec<_>, _>>()?;
    let now = time_ms(answers.first().unwrap_or(&Value::Null))?;
    let is_good = now < ticket.issued_ms.saturating_add(ticket.term_ms)
        && ticket.issued_ms <= now.saturating_add(ticket.term_ms);
    if !is_good || answers.get(1).is_some_and(|mark| *mark != Value::Null) {
        return Ok(SessionReply::Gone);
    }
    if !ticket.makes {
        return Ok(SessionReply::Ticket);
    }
    let session = Session {
        created_ms: ticket.issued_ms,
        idle_ms: arg.idle_ms,
        absolute_ms: arg.absolute_ms,
        fields: HashMap::new(),
    };
    let left = match has_room(caller, ticket.limit.as_ref()).await? {
        None => session.left_ms(now),
        Some(_) => session.left_ms(now).min(ticket.term_ms),
    };
    match create(caller, &arg.key, &session, (u64::from(ticket.viewed), left), now).await? {
        // Another request with the same ticket may have made it at the same moment.
        Reply::Committed { .. } | Reply::Exists => read(caller, arg).await,
        _ => Ok(SessionReply::Gone),
    }
}

/// When the client may have one session more, ms from now; `None`: it may now, and is charged.
pub(super) async fn has_room(caller: &Caller, limit: Option<&NewSessions>) -> Result<Option<u64>, Error> {
    let Some(limit) = limit else { return Ok(None) };
    let (interval_us, tolerance_us) = (limit.interval_us, limit.tolerance_us);
    let kind = LimitKind::Rate { interval_us, tolerance_us };
    let arg = LimitArg { key: limit.key.clone(), kind, shadow: false, cost: 1 };
    let (granted, replies) = decide(caller, &[arg]).await?;
    let retry_us = replies.first().and_then(|reply| reply.retry_after_us).unwrap_or(1_000_000);
    Ok((!granted).then_some(retry_us.div_ceil(1000)))
}

/// Ends a session, and leaves a mark by which no ticket makes it anew; whether there was one.
pub(in crate::redis) async fn end(caller: &Caller, key: &str) -> Result<bool, Error> {
    let names = [id(key).to_string(), keys::views(key)];
    let answers = caller.together(names.iter().map(|name| command("DEL", [text(name)])).collect()).await?;
    let answers = answers.into_iter().collect::<Result<Vec<_>, _>>()?;
    let ended = answers.first().and_then(Value::as_u64) == Some(1);
    if ended {
        caller.send("SET", vec![text(key), text("ended"), text("PX"), number(term_ms())]).await?;
    }
    Ok(ended)
}
