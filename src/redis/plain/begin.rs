//! A request's begin by plain commands.

use fred::types::Value;

use crate::redis::{
    begin::{BeginReply, BeginRequest, CounterIncrement, SessionLookup, SessionQuery},
    error::RedisError,
    plain::{limits, provisional, sessions},
    transport::RedisTransport,
    wire::{PipelinedCommand, command, integer, text, time_ms},
};

/// Decides the limits; if all allow, reads the session, counts its view and adds to the counters.
///
/// # Errors
/// `Unsupported` for what needs server-side code; otherwise as the function call.
pub(in crate::redis) async fn begin(
    caller: &RedisTransport,
    request: &BeginRequest<'_>,
) -> Result<BeginReply, RedisError> {
    let (granted, limits) = limits::check_limits(caller, request.limits).await?;
    if !granted {
        return Ok(BeginReply::Denied { limits });
    }
    let (counters, mut now_ms) = match add_to_counters(caller, request.counters).await {
        Ok(counted) => counted,
        Err(error) => {
            limits::refund_checks(caller, request.limits).await?;
            return Err(error);
        }
    };
    let session = match request.session {
        None => SessionLookup::NotRequested,
        Some(arg @ SessionQuery { provisional: Some(ticket), .. }) => {
            provisional::lookup_or_create(caller, arg, ticket).await?
        }
        Some(arg) => sessions::lookup_and_count(caller, arg).await?,
    };
    if let SessionLookup::Found { .. } = session {
        now_ms = 0;
    }
    Ok(BeginReply::Granted { limits, session, counters, now_ms })
}

/// Adds to every counter or, as far as that can be undone, to none; also returns the time if there are any.
async fn add_to_counters(
    caller: &RedisTransport,
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
    let mut answers = caller.pipeline(commands).await?;
    let now_ms = time_ms(&answers.pop().unwrap_or(Ok(Value::Null))?)?;
    let sum = |answer: &Result<Value, RedisError>| match answer {
        Ok(Value::Null) => Ok(0),
        Ok(answer) => integer(answer),
        Err(error) => Err(error.clone()),
    };
    let sums: Vec<Result<i64, RedisError>> = answers.iter().map(sum).collect();
    if sums.iter().any(Result::is_err) {
        let added = counters.iter().zip(&sums).filter(|(counter, sum)| counter.by != 0 && sum.is_ok());
        let undo = |(counter, _): (&CounterIncrement, _)| {
            command("DECRBY", [text(&counter.key), Value::Integer(counter.by)])
        };
        caller.pipeline(added.map(undo).collect()).await?;
    }
    Ok((sums.into_iter().collect::<Result<_, _>>()?, now_ms))
}
