//! The shared state by plain commands, for servers and users that allow no server-side code.
//!
//! The same questions and answers as `begin` and `commit`, and fewer
//! promises: what the scripts do in one step takes several here, and other workers' commands come between them.
//! Kept are: a limit never admits more than its burst in one window, counters and views are exact, a session that is
//! gone is never brought back, its id is hashed, and all times are Redis's. Lost are: of two requests that change one
//! session at the same moment the later one may undo the earlier one's change; a limit counts in fixed windows, so
//! twice the burst may come around a window's end; a request that is denied is counted for a moment; a step that is
//! cut off in the middle leaves what it did. What cannot be kept at all is refused (`Unsupported`), never half done.

pub(super) mod fleet;
mod limits;
mod moves;
mod sessions;
mod tickets;

use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use fred::types::Value;

use crate::config::schema::Mode;
use crate::redis::Inner;
use crate::redis::Redis;
use crate::redis::begin;
use crate::redis::begin::CounterArg;
use crate::redis::begin::SessionArg;
use crate::redis::begin::SessionReply;
use crate::redis::caller::Caller;
use crate::redis::error::Error;
use crate::redis::lanes::Kind;
use crate::redis::library::Form;
use crate::redis::standing::Gate;
pub(super) use limits::give_back;
pub(super) use limits::look;
pub(super) use limits::merge;
pub(super) use limits::reset;
pub(super) use moves::move_to;
pub(super) use sessions::commit;
pub(super) use sessions::delete;
pub(super) use sessions::peek;
pub(super) use sessions::quarantine;
pub(super) use tickets::end;

impl Redis {
    /// Whether this server or user allows no server-side code, and plain commands do what they can.
    pub fn is_plain(&self) -> bool {
        // Asked by every request: the connection is looked at and not copied.
        match &*self.inner.gate.borrow() {
            Gate::Open(live) => live.form == Form::Plain,
            // While it is away it is what it was.
            Gate::Held { .. } | Gate::Shut(_) => {
                self.inner.mode == Mode::Plain || self.inner.warned.load(Relaxed)
            }
        }
    }

    /// Several commands that together are one call, made once.
    pub(super) async fn plainly<T>(
        &self,
        kind: Kind,
        work: impl AsyncFnOnce(&Caller) -> Result<T, Error>,
    ) -> Result<T, Error> {
        // Boxed, because every request's future would have room for it otherwise.
        self.guard_once(kind, async |live| Box::pin(work(&live.caller)).await).await
    }
}

impl Inner {
    /// Tells once what is lost where no server-side code is allowed.
    pub(super) fn warn_of_form(&self, form: Form) {
        if form == Form::Plain && !self.warned.swap(true, Relaxed) {
            tracing::warn!(
                "the shared state is kept by plain commands (redis.mode plain), because server-side code is not used \
                 or not allowed: changes to one session at the same moment may undo each other, limits count in fixed \
                 windows, and what needs server-side code is answered with 501"
            );
        }
    }
}

/// One command of several that are sent together.
pub(super) type Command = (&'static str, Vec<Value>);

fn command<const N: usize>(name: &'static str, args: [Value; N]) -> Command {
    (name, args.into())
}

fn text(text: &str) -> Value {
    Value::from(text)
}

/// Whole numbers travel as text; one that Redis could not hold would be refused there.
fn number(number: u64) -> Value {
    Value::Integer(i64::try_from(number).unwrap_or(i64::MAX))
}

fn integer(answer: &Value) -> Result<i64, Error> {
    answer.as_i64().ok_or_else(|| Error::protocol("a number was expected, and something else came"))
}

/// Redis's clock, ms since 1970, out of the answer to TIME.
fn time_ms(answer: &Value) -> Result<u64, Error> {
    let Value::Array(parts) = answer else { return Err(Error::protocol("TIME did not answer with a list")) };
    let part = |index: usize| parts.get(index).and_then(Value::as_u64).unwrap_or(0);
    Ok(part(0) * 1000 + part(1) / 1000)
}

/// Decides the limits; if all allow, reads the session, counts its view and adds to the counters.
///
/// # Errors
/// `Unsupported` for what needs server-side code; otherwise as a call of that code.
pub(super) async fn begin(caller: &Caller, request: &begin::Request<'_>) -> Result<begin::Reply, Error> {
    let (granted, limits) = limits::decide(caller, request.limits).await?;
    if !granted {
        return Ok(begin::Reply::Denied { limits });
    }
    let (counters, mut now_ms) = match count(caller, request.counters).await {
        Ok(counted) => counted,
        Err(error) => {
            limits::refund(caller, request.limits).await?;
            return Err(error);
        }
    };
    let session = match request.session {
        None => SessionReply::None,
        Some(arg @ SessionArg { ticket: Some(ticket), .. }) => {
            tickets::of_ticket(caller, arg, ticket).await?
        }
        Some(arg) => sessions::read(caller, arg).await?,
    };
    if let SessionReply::Live { .. } = session {
        now_ms = 0;
    }
    Ok(begin::Reply::Granted { limits, session, counters, now_ms })
}

/// Adds to every counter or, as far as that can be undone, to none; what time it is besides, if there are any.
async fn count(caller: &Caller, counters: &[CounterArg]) -> Result<(Vec<i64>, u64), Error> {
    if counters.is_empty() {
        return Ok((Vec::new(), 0));
    }
    let add = |counter: &CounterArg| match counter.by {
        0 => command("GET", [text(&counter.key)]),
        by => command("INCRBY", [text(&counter.key), Value::Integer(by)]),
    };
    let mut commands: Vec<Command> = counters.iter().map(add).collect();
    commands.push(command("TIME", []));
    let mut answers = caller.together(commands).await?;
    let now_ms = time_ms(&answers.pop().unwrap_or(Ok(Value::Null))?)?;
    let sum = |answer: &Result<Value, Error>| match answer {
        Ok(Value::Null) => Ok(0),
        Ok(answer) => integer(answer),
        Err(error) => Err(error.clone()),
    };
    let sums: Vec<Result<i64, Error>> = answers.iter().map(sum).collect();
    if sums.iter().any(Result::is_err) {
        let added = counters.iter().zip(&sums).filter(|(counter, sum)| counter.by != 0 && sum.is_ok());
        let undo = |(counter, _): (&CounterArg, _)| {
            command("DECRBY", [text(&counter.key), Value::Integer(counter.by)])
        };
        caller.together(added.map(undo).collect()).await?;
    }
    Ok((sums.into_iter().collect::<Result<_, _>>()?, now_ms))
}

/// Bytes as a value of the store's records, which are JSON inside.
fn stored(bytes: &Bytes) -> serde_json::Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => bytes.to_vec().into(),
    }
}

/// The bytes again.
fn restored(value: &serde_json::Value) -> Option<Bytes> {
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
            assert_eq!(restored(&stored(&bytes)), Some(bytes));
        }
        assert_eq!(restored(&serde_json::json!([300])), None);
        assert_eq!(restored(&serde_json::json!({})), None);
    }
}
