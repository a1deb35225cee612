//! A request's begin by plain commands.

use crate::counters::commands::CounterIncrement;
use crate::limiter::plain as limits;
use crate::redis::wire::{PipelinedCommand, Value, command, integer, text, time_ms};
use crate::redis::{RedisError, RedisTransport};
use crate::request_state::begin::{BeginReply, BeginRequest};
use crate::sessions::plain as sessions;
use crate::sessions::query::{SessionLookup, SessionQuery};

/// Decides the limits; if all allow, reads the session, counts its view and adds to the counters.
///
/// # Errors
/// `Unsupported` for what needs server-side code; otherwise as the function call.
pub(super) async fn begin(
    transport: &RedisTransport,
    request: &BeginRequest<'_>,
) -> Result<BeginReply, RedisError> {
    let (granted, limits) = limits::check_limits(transport, request.limits).await?;
    if !granted {
        return Ok(BeginReply::Denied { limits });
    }
    let (counters, mut now_ms) = match add_to_counters(transport, request.counters).await {
        Ok(counted) => counted,
        Err(error) => {
            limits::refund_checks(transport, request.limits).await?;
            return Err(error);
        }
    };
    let session = match request.session {
        None => SessionLookup::NotRequested,
        Some(query @ SessionQuery { provisional: Some(new), .. }) => {
            sessions::lookup_or_create(transport, query, new).await?
        }
        Some(query) => sessions::lookup_and_count(transport, query).await?,
    };
    if let SessionLookup::Found { .. } = session {
        now_ms = 0;
    }
    Ok(BeginReply::Granted { limits, session, counters, now_ms })
}

/// Adds to every counter or, as far as that can be undone, to none; also returns the time if there are any.
async fn add_to_counters(
    transport: &RedisTransport,
    counters: &[CounterIncrement],
) -> Result<(Vec<i64>, u64), RedisError> {
    if counters.is_empty() {
        return Ok((Vec::new(), 0));
    }
    let add = |counter: &CounterIncrement| match counter.by {
        0 => command("GET", [text(&counter.key)]),
        by => command("INCRBY", [text(&counter.key), Value::Integer(by)]),
    };
    let mut commands: Vec<PipelinedCommand> = counters.iter().map(add).collect();
    commands.push(command("TIME", []));
    let mut replies = transport.pipeline(commands).await?;
    let now_ms = time_ms(&replies.pop().unwrap_or(Ok(Value::Null))?)?;
    let sum = |reply: &Result<Value, RedisError>| match reply {
        Ok(Value::Null) => Ok(0),
        Ok(reply) => integer(reply),
        Err(error) => Err(error.clone()),
    };
    let sums: Vec<Result<i64, RedisError>> = replies.iter().map(sum).collect();
    if sums.iter().any(Result::is_err) {
        let added = counters.iter().zip(&sums).filter(|(counter, sum)| counter.by != 0 && sum.is_ok());
        let undo = |(counter, _): (&CounterIncrement, _)| {
            command("DECRBY", [text(&counter.key), Value::Integer(counter.by)])
        };
        transport.pipeline(added.map(undo).collect()).await?;
    }
    Ok((sums.into_iter().collect::<Result<_, _>>()?, now_ms))
}
