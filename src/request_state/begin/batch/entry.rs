//! One request of a batch, with everything that the request borrows copied.

use std::borrow::Cow;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::counters::commands as counter_commands;
use crate::limiter::commands;
use crate::limiter::commands::LimitParameters;
use crate::redis::RedisError;
use crate::redis::wire::{Value, to_f64};
use crate::request_state::begin::request;
use crate::request_state::begin::request::{BeginReply, BeginRequest, ExpectedReply};
use crate::sessions::query::SessionAccess;

/// One request as it waits to be sent.
#[derive(Debug)]
pub struct BeginEntry {
    pub(super) shape: EntryShape,
    bytes: usize,
}

/// Its wire form.
#[derive(Debug)]
pub(super) enum EntryShape {
    Compact(CompactEntry),
    Standalone(StandaloneEntry),
}

/// The usual request: a session that is read, rate limits that count, and counters. Its keys are in one allocation,
/// because every request has one.
#[derive(Debug)]
pub(super) struct CompactEntry {
    text: Box<[u8]>,
    pub(super) session: Option<CompactSession>,
    pub(super) limits: SmallVec<[CompactLimit; 2]>,
    pub(super) counters: SmallVec<[CompactCounter; 2]>,
}

/// The position of a key in an entry's text.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeyRange {
    start: u32,
    end: u32,
}

#[derive(Debug)]
pub(super) struct CompactSession {
    pub(super) key: KeyRange,
    /// Key of its user's generation.
    pub(super) generation: Option<KeyRange>,
    pub(super) view: bool,
    pub(super) idle_ms: u64,
    pub(super) absolute_ms: u64,
}

#[derive(Debug)]
pub(super) struct CompactLimit {
    pub(super) key: KeyRange,
    pub(super) interval_us: u64,
    pub(super) tolerance_us: u64,
    pub(super) cost: u8,
}

#[derive(Debug)]
pub(super) struct CompactCounter {
    pub(super) key: KeyRange,
    pub(super) by: u8,
}

/// Any other request: it travels in the form of a separate call, and is executed as one.
#[derive(Debug)]
pub(super) struct StandaloneEntry {
    keys: Vec<Value>,
    args: Vec<Value>,
    pub(super) expected: ExpectedReply,
}

/// Keys and arguments of a separate call, without a ledger.
#[derive(Debug)]
pub struct EncodedCall<'a> {
    /// Its keys.
    pub keys: Cow<'a, [Value]>,
    /// Its arguments.
    pub args: Cow<'a, [Value]>,
}

impl BeginEntry {
    /// Copies what the request borrows.
    pub fn new(request: &BeginRequest<'_>) -> Self {
        match CompactEntry::from_request(request) {
            Some((plain, bytes)) => Self { shape: EntryShape::Compact(plain), bytes },
            None => {
                let rare = StandaloneEntry::from_request(request);
                let bytes = rare.keys.iter().chain(&rare.args).map(wire_size).sum();
                Self { shape: EntryShape::Standalone(rare), bytes }
            }
        }
    }

    /// About how many bytes it has on the wire.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Reads the reply to [`BeginEntry::call`].
    ///
    /// # Errors
    /// `Protocol` when the server's reply has another form.
    pub fn decode(&self, reply: Value) -> Result<BeginReply, RedisError> {
        request::decode_expected(self.expected_reply(), reply)
    }

    fn expected_reply(&self) -> ExpectedReply {
        match &self.shape {
            EntryShape::Compact(plain) => ExpectedReply {
                limits: plain.limits.len(),
                session: plain.session.is_some(),
                counters: plain.counters.len(),
            },
            EntryShape::Standalone(rare) => rare.expected,
        }
    }

    /// The entry as a separate call.
    pub fn call(&self) -> EncodedCall<'_> {
        match &self.shape {
            EntryShape::Compact(plain) => plain.call(),
            EntryShape::Standalone(StandaloneEntry { keys, args, .. }) => {
                EncodedCall { keys: keys.into(), args: args.into() }
            }
        }
    }
}

/// About how many bytes a value has on the wire: a length before it and line ends included.
fn wire_size(value: &Value) -> usize {
    10 + value.as_bytes().map_or(10, <[u8]>::len)
}

impl StandaloneEntry {
    fn from_request(request: &BeginRequest<'_>) -> Self {
        let mut keys = request::encode(request, Value::Null);
        let count = keys.get(1).and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok());
        let args = keys.split_off(2 + count.unwrap_or(0));
        keys.drain(..2);
        Self { keys, args, expected: ExpectedReply::for_request(request) }
    }
}

impl CompactEntry {
    /// With its approximate bytes; `None` if the request needs a separate call.
    fn from_request(request: &BeginRequest<'_>) -> Option<(Self, usize)> {
        let BeginRequest { limits, session, counters, token: _ } = request;
        if session.is_some_and(|session| session.provisional.is_some()) {
            return None;
        }
        // A key that is named twice is decided, or added to, twice, which a plan cannot express.
        let twice = limits
            .iter()
            .enumerate()
            .any(|(at, one)| limits[..at].iter().any(|it| it.key == one.key))
            || counters.iter().enumerate().any(|(at, one)| counters[..at].iter().any(|it| it.key == one.key));
        let byte = |number: u64| u8::try_from(number).ok();
        if twice || limits.len() > 32 || counters.len() > 32 {
            return None;
        }
        let names = limits.iter().map(|limit| limit.key.as_str());
        let names = names.chain(counters.iter().map(|counter| counter.key.as_str()));
        let generation = session.and_then(|session| session.generation.as_deref());
        let names = session.iter().map(|session| session.key.as_str()).chain(generation).chain(names);
        let length = names.map(str::len).sum::<usize>();
        u32::try_from(length).ok()?;
        let mut text = Vec::with_capacity(length);
        let mut key = |name: &str| {
            let at = |text: &Vec<u8>| u32::try_from(text.len()).unwrap_or(u32::MAX);
            let start = at(&text);
            text.extend_from_slice(name.as_bytes());
            KeyRange { start, end: at(&text) }
        };
        let session = session.map(|session| CompactSession {
            key: key(&session.key),
            generation: session.generation.as_deref().map(&mut key),
            view: session.access == SessionAccess::CountView,
            idle_ms: session.idle_ms,
            absolute_ms: session.absolute_ms,
        });
        let limit = |limit: &commands::RateLimitCheck| {
            let LimitParameters::Rate { interval_us, tolerance_us } = limit.parameters else { return None };
            let cost = byte(limit.cost).filter(|_| !limit.shadow)?;
            Some(CompactLimit { key: key(&limit.key), interval_us, tolerance_us, cost })
        };
        let limits = limits.iter().map(limit).collect::<Option<SmallVec<[_; 2]>>>()?;
        let counter = |counter: &counter_commands::CounterIncrement| {
            let by = u8::try_from(counter.by).ok()?;
            Some(CompactCounter { key: key(&counter.key), by })
        };
        let counters = counters.iter().map(counter).collect::<Option<SmallVec<[_; 2]>>>()?;
        let bytes = length + 12 * (limits.len() + counters.len() + 1 + usize::from(generation.is_some()));
        Some((Self { text: text.into(), session, limits, counters }, bytes))
    }

    /// A key of this entry.
    pub(super) fn key(&self, key: KeyRange) -> &[u8] {
        self.text.get(key.start as usize..key.end as usize).unwrap_or_default()
    }

    /// The entry as a separate call.
    fn call(&self) -> EncodedCall<'static> {
        let session = self.session.as_ref();
        let generation = session.and_then(|session| session.generation);
        let keys = self.limits.iter().map(|limit| limit.key);
        let keys = keys.chain(session.map(|session| session.key)).chain(generation);
        let keys = keys.chain(self.counters.iter().map(|counter| counter.key));
        let keys = keys.map(|key| Value::Bytes(Bytes::copy_from_slice(self.key(key))));
        let how = session.map_or("-", |session| if session.view { "v" } else { "r" });
        let lifetimes = session.map_or([0, 0], |session| [session.idle_ms, session.absolute_ms]);
        let limits = self.limits.iter();
        let limits = limits.flat_map(|it| [0, it.interval_us, it.tolerance_us, u64::from(it.cost)]);
        let flags = if generation.is_some() { request::HAS_GENERATION } else { 0 };
        let numbers = lifetimes.into_iter().chain([flags]).chain(limits);
        let packed: Vec<u8> = numbers.flat_map(|number| to_f64(number).to_le_bytes()).collect();
        let mut args =
            vec![Value::from_static_str(how), Value::Bytes(packed.into()), Value::from_static_str("")];
        args.extend(self.counters.iter().map(|counter| Value::Integer(i64::from(counter.by))));
        EncodedCall { keys: keys.collect(), args: args.into() }
    }
}
