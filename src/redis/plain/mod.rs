//! The shared state by plain commands, for servers and users that allow no server-side code.
//!
//! The same questions and answers as `begin` and `commit`, and fewer
//! promises: what the scripts do in one step takes several here, and other workers' commands come between them.
//! Kept are: a limit never admits more than its burst in one window, counters and views are exact, a session that is
//! gone is never brought back, its id is hashed, and all times are Redis's. Lost are: of two requests that change one
//! session at the same moment the later one may undo the earlier one's change; a limit counts in fixed windows, so
//! twice the burst may come around a window's end; a request that is denied is counted for a moment; a step that is
//! cut off in the middle leaves what it did. What cannot be kept at all is refused (`Unsupported`), never half done.

mod limits;
mod provisional;
pub(super) mod registry;
mod rotation;
mod sessions;

use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use fred::types::Value;
pub(super) use limits::{apply_deferred_charge, limit_status, refund_limit, reset_limit};
pub(super) use provisional::destroy_session;
pub(super) use rotation::rotate_session;
pub(super) use sessions::{commit_session, delete_session, lookup_session, quarantine_session};

use crate::config::settings::ScriptingMode;
use crate::redis::availability::RedisAvailability;
use crate::redis::begin::{CounterIncrement, SessionLookup, SessionQuery};
use crate::redis::breakers::CallKind;
use crate::redis::error::RedisError;
use crate::redis::functions::InvocationMode;
use crate::redis::transport::RedisTransport;
use crate::redis::{ClientInner, RedisClient, begin};

impl RedisClient {
    /// Whether this server or user allows no server-side code, and plain commands do what they can.
    pub fn is_plain(&self) -> bool {
        // Asked by every request: the connection is looked at and not copied.
        match &*self.inner.availability.borrow() {
            RedisAvailability::Available(live) => live.mode == InvocationMode::Plain,
            // While it is away it is what it was.
            RedisAvailability::Waiting { .. } | RedisAvailability::Unavailable(_) => {
                self.inner.mode == ScriptingMode::Plain || self.inner.plain_mode_warned.load(Relaxed)
            }
        }
    }

    /// Several commands that together are one call, made once.
    pub(super) async fn call_plain<T>(
        &self,
        kind: CallKind,
        work: impl AsyncFnOnce(&RedisTransport) -> Result<T, RedisError>,
    ) -> Result<T, RedisError> {
        // Boxed, because every request's future would have room for it otherwise.
        self.send_once(kind, async |live| Box::pin(work(&live.transport)).await).await
    }
}

impl ClientInner {
    /// Tells once what is lost where no server-side code is allowed.
    pub(super) fn warn_plain_mode(&self, form: InvocationMode) {
        if form == InvocationMode::Plain && !self.plain_mode_warned.swap(true, Relaxed) {
            tracing::warn!(
                "the shared state is kept by plain commands (redis.mode plain), because server-side code is not used \
                 or not allowed: changes to one session at the same moment may undo each other, limits count in fixed \
                 windows, and what needs server-side code is answered with 501"
            );
        }
    }
}

/// One command of several that are sent together.
pub(super) type PipelinedCommand = (&'static str, Vec<Value>);

fn command<const N: usize>(name: &'static str, args: [Value; N]) -> PipelinedCommand {
    (name, args.into())
}

fn text(text: &str) -> Value {
    Value::from(text)
}

/// Whole numbers travel as text; one that Redis could not hold would be refused there.
fn number(number: u64) -> Value {
    Value::Integer(i64::try_from(number).unwrap_or(i64::MAX))
}

fn integer(answer: &Value) -> Result<i64, RedisError> {
    answer.as_i64().ok_or_else(|| RedisError::protocol("a number was expected, and something else came"))
}

/// Redis's clock, ms since 1970, out of the answer to TIME.
fn time_ms(answer: &Value) -> Result<u64, RedisError> {
    let Value::Array(parts) = answer else {
        return Err(RedisError::protocol("TIME did not answer with a list"));
    };
    let part = |index: usize| parts.get(index).and_then(Value::as_u64).unwrap_or(0);
    Ok(part(0) * 1000 + part(1) / 1000)
}

/// Decides the limits; if all allow, reads the session, counts its view and adds to the counters.
///
/// # Errors
/// `Unsupported` for what needs server-side code; otherwise as a call of that code.
pub(super) async fn begin(
    caller: &RedisTransport,
    request: &begin::BeginRequest<'_>,
) -> Result<begin::BeginReply, RedisError> {
    let (granted, limits) = limits::check_limits(caller, request.limits).await?;
    if !granted {
        return Ok(begin::BeginReply::Denied { limits });
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
    Ok(begin::BeginReply::Granted { limits, session, counters, now_ms })
}

/// Adds to every counter or, as far as that can be undone, to none; what time it is besides, if there are any.
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

/// Bytes as a value of the store's records, which are JSON inside.
fn to_json(bytes: &Bytes) -> serde_json::Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => bytes.to_vec().into(),
    }
}

/// The bytes again.
fn from_json(value: &serde_json::Value) -> Option<Bytes> {
    if let Some(text) = value.as_str() {
        return Some(text.to_owned().into());
    }
    let numbers = value.as_array()?.iter();
    numbers
        .map(|it| it.as_u64().and_then(|it| u8::try_from(it).ok()))
        .collect::<Option<Vec<u8>>>()
        .map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_the_way_through_a_record() {
        for bytes in [&b""[..], b"[1,2]", b"\"caf\xc3\xa9\"", b"\x00\xff\xfe"] {
            let bytes = Bytes::from_static(bytes);
            assert_eq!(from_json(&to_json(&bytes)), Some(bytes));
        }
        assert_eq!(from_json(&serde_json::json!([300])), None);
        assert_eq!(from_json(&serde_json::json!({})), None);
    }
}
