//! What one request asks of Redis at its start, and the reply.

use crate::counters::commands::CounterIncrement;
use crate::limiter::commands::{RateLimitCheck, RateLimitDecision};
use crate::redis::RedisError;
use crate::redis::wire::{ReplyReader, Value, to_f64};
use crate::sessions::query::{self, SessionLookup, SessionQuery};

/// Everything one request needs, decided and done in one step.
#[derive(Debug, Clone, Copy, Default)]
pub struct BeginRequest<'a> {
    /// Rate limits; all of them must allow, or nothing is done.
    pub limits: &'a [RateLimitCheck],
    /// The client's session, if there is one to read or to create.
    pub session: Option<&'a SessionQuery>,
    /// Shared counters to add to or read.
    pub counters: &'a [CounterIncrement],
    /// Identifies this request in concurrency limits; unique among all requests under way if there are such limits.
    pub token: &'a str,
}

impl BeginRequest<'_> {
    /// Whether it changes anything if it is granted, apart from when a session was last used.
    pub fn changes(&self) -> bool {
        self.session.is_some_and(SessionQuery::changes)
            || self.limits.iter().any(|limit| limit.cost > 0)
            || self.counters.iter().any(|counter| counter.by != 0)
    }
}

/// The reply to a [`BeginRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BeginReply {
    /// A limit refused; nothing was charged, counted, read or created.
    Denied {
        /// One entry for each limit of the request, in its order.
        limits: Vec<RateLimitDecision>,
    },
    /// Everything was done.
    Granted {
        /// One entry for each limit of the request, in its order.
        limits: Vec<RateLimitDecision>,
        /// The session, if the request names one.
        session: SessionLookup,
        /// The counters' values after the addition, in their order.
        counters: Vec<i64>,
        /// Redis's clock, ms since 1970; 0 in replies that do not have it, which are those with a live session.
        now_ms: u64,
    },
}

/// Flags of a call.
pub(super) const HAS_GENERATION: u64 = 1;
const HAS_SESSION_LIMIT: u64 = 16;
const VIEW_COUNTED: u64 = 32;

/// The arguments in wire order: function, number of keys, keys, arguments.
pub fn encode(request: &BeginRequest<'_>, entry: Value) -> Vec<Value> {
    let BeginRequest { limits, session, counters, token } = *request;
    let generation = session.and_then(|session| session.generation.as_deref());
    let provisional = session.and_then(|session| session.provisional.as_ref());
    let new = provisional.and_then(|provisional| provisional.limit.as_ref());
    let keys = limits.len()
        + usize::from(session.is_some())
        + usize::from(generation.is_some())
        + usize::from(new.is_some())
        + counters.len();
    let mut args = Vec::with_capacity(2 + keys + 3 + counters.len());
    args.push(entry);
    args.push(Value::Integer(i64::try_from(keys).unwrap_or(i64::MAX)));
    args.extend(limits.iter().map(|limit| Value::from(limit.key.as_str())));
    args.extend(session.iter().map(|session| Value::from(session.key.as_str())));
    args.extend(generation.map(Value::from));
    args.extend(new.map(|new| Value::from(new.key.as_str())));
    args.extend(counters.iter().map(|counter| Value::from(counter.key.as_str())));
    args.push(Value::from_static_str(session.map_or("-", SessionQuery::mode_code)));
    let mut numbers = Vec::with_capacity((7 + 4 * limits.len()) * size_of::<f64>());
    let lifetimes = session.map_or([0, 0], |session| [session.idle_ms, session.absolute_ms]);
    let mut flags = if generation.is_some() { HAS_GENERATION } else { 0 };
    if new.is_some() {
        flags |= HAS_SESSION_LIMIT;
    }
    if provisional.is_some_and(|provisional| provisional.view_counted) {
        flags |= VIEW_COUNTED;
    }
    let provisional_numbers = provisional.map(|provisional| {
        let [interval_us, tolerance_us] = new.map_or([1, 1], |new| [new.interval_us, new.tolerance_us]);
        [provisional.issued_ms, provisional.ttl_ms, interval_us, tolerance_us]
    });
    let limits = limits.iter().flat_map(RateLimitCheck::to_wire);
    for number in
        lifetimes.into_iter().chain([flags]).chain(limits).chain(provisional_numbers.into_iter().flatten())
    {
        numbers.extend_from_slice(&to_f64(number).to_le_bytes());
    }
    args.push(Value::Bytes(numbers.into()));
    args.push(Value::from(token));
    args.extend(counters.iter().map(|counter| Value::Integer(counter.by)));
    args
}

/// Reads the reply to what [`encode`] sent.
///
/// # Errors
/// `Protocol` when the server's answer has another form.
pub fn decode(request: &BeginRequest<'_>, reply: Value) -> Result<BeginReply, RedisError> {
    decode_expected(ExpectedReply::for_request(request), reply)
}

/// The parts of the reply to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ExpectedReply {
    pub(super) limits: usize,
    pub(super) session: bool,
    pub(super) counters: usize,
}

impl ExpectedReply {
    pub(super) fn for_request(request: &BeginRequest<'_>) -> Self {
        let BeginRequest { limits, session, counters, .. } = request;
        Self { limits: limits.len(), session: session.is_some(), counters: counters.len() }
    }
}

pub(super) fn decode_expected(expects: ExpectedReply, reply: Value) -> Result<BeginReply, RedisError> {
    let (packed, fields) = match reply {
        Value::Array(parts) => {
            let mut parts = parts.into_iter();
            (parts.next(), parts.next())
        }
        packed => (Some(packed), None),
    };
    let packed = packed
        .and_then(Value::into_bytes)
        .ok_or_else(|| RedisError::protocol("begin did not answer with numbers"))?;
    let mut numbers = ReplyReader::new(&packed);
    let granted = numbers.signed()? == 1;
    let limits =
        (0..expects.limits).map(|_| RateLimitDecision::read(&mut numbers)).collect::<Result<Vec<_>, _>>()?;
    if !granted {
        return Ok(BeginReply::Denied { limits });
    }
    let counters = (0..expects.counters).map(|_| numbers.signed()).collect::<Result<Vec<_>, _>>()?;
    let session = match expects.session {
        false => SessionLookup::NotRequested,
        true => query::decode(&mut numbers, fields)?,
    };
    let now_ms = match session {
        SessionLookup::Found { .. } => 0,
        _ => numbers.unsigned()?,
    };
    Ok(BeginReply::Granted { limits, session, counters, now_ms })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sessions::query::SessionAccess;

    #[test]
    fn a_reply_of_another_form_is_an_error_not_a_panic() {
        let session = SessionQuery {
            key: "k".into(),
            generation: None,
            access: SessionAccess::Read,
            provisional: None,
            idle_ms: 1,
            absolute_ms: 1,
        };
        let request = BeginRequest { limits: &[], session: Some(&session), counters: &[], token: "" };
        let short = Value::from(1f64.to_le_bytes().as_slice());
        for reply in [Value::Null, Value::Array(vec![]), Value::Array(vec![Value::Integer(1)]), short] {
            assert!(decode(&request, reply).is_err());
        }
    }
}
