//! One request of a batch, without what it was made of.

use std::borrow::Cow;

use bytes::Bytes;
use fred::types::Value;
use smallvec::SmallVec;

use crate::redis::begin;
use crate::redis::begin::Expects;
use crate::redis::begin::LimitKind;
use crate::redis::begin::Reply;
use crate::redis::begin::Request;
use crate::redis::begin::SessionMode;
use crate::redis::begin::double;
use crate::redis::error::Error;

/// One request as it waits to be sent.
#[derive(Debug)]
pub struct Entry {
    pub(super) shape: Shape,
    bytes: usize,
}

/// How it travels.
#[derive(Debug)]
pub(super) enum Shape {
    Plain(Plain),
    Rare(Rare),
}

/// The usual request: a session that is read, limits on rate that count, and counters. It lies in one allocation, its
/// keys one behind the other, because every request is one.
#[derive(Debug)]
pub(super) struct Plain {
    text: Box<[u8]>,
    pub(super) session: Option<PlainSession>,
    pub(super) limits: SmallVec<[PlainLimit; 2]>,
    pub(super) counters: SmallVec<[PlainCounter; 2]>,
}

/// Where in an entry's text a key is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    start: u32,
    end: u32,
}

#[derive(Debug)]
pub(super) struct PlainSession {
    pub(super) key: Key,
    /// Key of its user's generation.
    pub(super) generation: Option<Key>,
    pub(super) view: bool,
    pub(super) idle_ms: u64,
    pub(super) absolute_ms: u64,
}

#[derive(Debug)]
pub(super) struct PlainLimit {
    pub(super) key: Key,
    pub(super) interval_us: u64,
    pub(super) tolerance_us: u64,
    pub(super) cost: u8,
}

#[derive(Debug)]
pub(super) struct PlainCounter {
    pub(super) key: Key,
    pub(super) by: u8,
}

/// Anything else: it travels in the form of a call of its own, and is executed as one.
#[derive(Debug)]
pub(super) struct Rare {
    keys: Vec<Value>,
    args: Vec<Value>,
    pub(super) expects: Expects,
}

/// Keys and arguments of a call of its own, without a ledger.
#[derive(Debug)]
pub struct Call<'a> {
    /// Its keys.
    pub keys: Cow<'a, [Value]>,
    /// Its arguments.
    pub args: Cow<'a, [Value]>,
}

impl Entry {
    /// Takes what the request borrows.
    pub fn new(request: &Request<'_>) -> Self {
        match Plain::of(request) {
            Some((plain, bytes)) => Self { shape: Shape::Plain(plain), bytes },
            None => {
                let rare = Rare::of(request);
                let bytes = rare.keys.iter().chain(&rare.args).map(size).sum();
                Self { shape: Shape::Rare(rare), bytes }
            }
        }
    }

    /// About how much of it travels.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Reads the reply to [`Entry::call`].
    ///
    /// # Errors
    /// `Protocol` when the server's answer has another form.
    pub fn decode(&self, reply: Value) -> Result<Reply, Error> {
        begin::decode_parts(self.expects(), reply)
    }

    fn expects(&self) -> Expects {
        match &self.shape {
            Shape::Plain(plain) => Expects {
                limits: plain.limits.len(),
                session: plain.session.is_some(),
                counters: plain.counters.len(),
            },
            Shape::Rare(rare) => rare.expects,
        }
    }

    /// It as a call of its own.
    pub fn call(&self) -> Call<'_> {
        match &self.shape {
            Shape::Plain(plain) => plain.call(),
            Shape::Rare(Rare { keys, args, .. }) => Call { keys: keys.into(), args: args.into() },
        }
    }
}

/// A length in front of each, and its line ends, included.
fn size(value: &Value) -> usize {
    10 + value.as_bytes().map_or(10, <[u8]>::len)
}

impl Rare {
    fn of(request: &Request<'_>) -> Self {
        let mut keys = begin::encode(request, Value::Null);
        let count = keys.get(1).and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok());
        let args = keys.split_off(2 + count.unwrap_or(0));
        keys.drain(..2);
        Self { keys, args, expects: Expects::of(request) }
    }
}

impl Plain {
    /// With about how many bytes it travels; `None` if the request needs a call of its own.
    fn of(request: &Request<'_>) -> Option<(Self, usize)> {
        let Request { limits, session, counters, token: _ } = request;
        if session.is_some_and(|session| session.ticket.is_some()) {
            return None;
        }
        // The same key twice is decided, or added to, twice at one time: that is not what the plan says.
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
            Key { start, end: at(&text) }
        };
        let session = session.map(|session| PlainSession {
            key: key(&session.key),
            generation: session.generation.as_deref().map(&mut key),
            view: session.mode == SessionMode::Visit,
            idle_ms: session.idle_ms,
            absolute_ms: session.absolute_ms,
        });
        let limit = |limit: &begin::LimitArg| {
            let LimitKind::Rate { interval_us, tolerance_us } = limit.kind else { return None };
            let cost = byte(limit.cost).filter(|_| !limit.shadow)?;
            Some(PlainLimit { key: key(&limit.key), interval_us, tolerance_us, cost })
        };
        let limits = limits.iter().map(limit).collect::<Option<SmallVec<[_; 2]>>>()?;
        let counter = |counter: &begin::CounterArg| {
            let by = u8::try_from(counter.by).ok()?;
            Some(PlainCounter { key: key(&counter.key), by })
        };
        let counters = counters.iter().map(counter).collect::<Option<SmallVec<[_; 2]>>>()?;
        let bytes = length + 12 * (limits.len() + counters.len() + 1 + usize::from(generation.is_some()));
        Some((Self { text: text.into(), session, limits, counters }, bytes))
    }

    /// A key of this entry.
    pub(super) fn key(&self, key: Key) -> &[u8] {
        self.text.get(key.start as usize..key.end as usize).unwrap_or_default()
    }

    /// It as a call of its own.
    fn call(&self) -> Call<'static> {
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
        let flags = if generation.is_some() { begin::GENERATION } else { 0 };
        let numbers = lifetimes.into_iter().chain([flags]).chain(limits);
        let packed: Vec<u8> = numbers.flat_map(|number| double(number).to_le_bytes()).collect();
        let mut args =
            vec![Value::from_static_str(how), Value::Bytes(packed.into()), Value::from_static_str("")];
        args.extend(self.counters.iter().map(|counter| Value::Integer(i64::from(counter.by))));
        Call { keys: keys.collect(), args: args.into() }
    }
}
