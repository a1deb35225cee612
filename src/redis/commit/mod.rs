//! What a request changed in its session, and the answer: plain data and its wire form.
//!
//! Only changed and removed fields travel, so requests that change different fields never undo each other.

pub mod batch;

use bytes::Bytes;
use fred::types::Value;

use crate::redis::begin::stored_field;
use crate::redis::error::Error;

/// A session's changes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Request<'a> {
    /// Key of the session's hash.
    pub key: &'a str,
    /// Makes the session; `None` changes an existing one and never makes one.
    pub create: Option<Create>,
    /// Fields that must still have this value, or still be absent; otherwise nothing is changed.
    pub expect: &'a [(String, Option<Bytes>)],
    /// Fields to set.
    pub set: &'a [(String, Bytes)],
    /// Fields to add to; one that is absent begins at 0.
    pub add: &'a [(String, i64)],
    /// Fields to remove.
    pub remove: &'a [String],
    /// Most fields the session may have afterwards.
    pub max_fields: u64,
    /// Most bytes of names and values afterwards; 0: not looked at, because they are far below.
    pub max_bytes: u64,
}

/// A session that is made by a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Create {
    /// Creation time to keep when an id is replaced, ms since 1970; `None`: now.
    pub created_ms: Option<u64>,
    /// Views to begin with.
    pub views: u64,
    /// Lifetime without use, ms.
    pub idle_ms: u64,
    /// Lifetime in all, ms.
    pub absolute_ms: u64,
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The changes are stored.
    Committed {
        /// What the fields that were added to have now, in their order.
        sums: Vec<i64>,
    },
    /// The session is not there (any more); nothing was made.
    Gone,
    /// The session has another id now; nothing was changed.
    Rotated,
    /// A session to be made is there already; nothing was changed.
    Exists,
    /// It would have more fields or bytes than allowed; nothing was changed.
    Full,
    /// A field is not as it was expected to be; nothing was changed.
    Conflict,
    /// A field to add to is no integer, or the sum would leave the range of 64-bit integers; nothing was changed.
    NoSum,
}

/// Arguments of a call of its own, in wire order: the entry's name, the number of keys, the key, arguments.
pub(super) fn encode(request: &Request<'_>, entry: Value) -> Vec<Value> {
    let mut args = Vec::with_capacity(13 + request.values());
    args.extend([entry, Value::Integer(1), Value::from(request.key)]);
    args.push(Value::Integer(i64::from(request.create.is_some())));
    args.extend(request.create.into_iter().flat_map(Create::values));
    args.push(number(request.max_fields));
    args.push(number(request.max_bytes));
    args.push(number(request.expect.len() as u64));
    args.extend(request.expected());
    args.push(number(request.set.len() as u64));
    args.extend(request.assigned());
    args.push(number(request.add.len() as u64));
    args.extend(request.added());
    args.extend(request.removed());
    args
}

impl Request<'_> {
    /// How many arguments its fields are.
    fn values(&self) -> usize {
        3 * self.expect.len() + 2 * (self.set.len() + self.add.len()) + self.remove.len()
    }

    fn expected(&self) -> impl Iterator<Item = Value> {
        self.expect.iter().flat_map(|(name, value)| {
            let there = Value::Integer(i64::from(value.is_some()));
            [Value::from(stored_field(name)), there, Value::Bytes(value.clone().unwrap_or_default())]
        })
    }

    fn assigned(&self) -> impl Iterator<Item = Value> {
        self.set
            .iter()
            .flat_map(|(name, value)| [Value::from(stored_field(name)), Value::Bytes(value.clone())])
    }

    fn added(&self) -> impl Iterator<Item = Value> {
        self.add.iter().flat_map(|(name, by)| [Value::from(stored_field(name)), Value::Integer(*by)])
    }

    fn removed(&self) -> impl Iterator<Item = Value> {
        self.remove.iter().map(|name| Value::from(stored_field(name)))
    }
}

impl Create {
    fn values(self) -> [Value; 4] {
        [self.created_ms.unwrap_or(0), self.views, self.idle_ms, self.absolute_ms].map(number)
    }
}

fn number(value: u64) -> Value {
    Value::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

/// Reads the reply to what [`encode`] sent.
///
/// # Errors
/// `Protocol` when the server's answer has another form.
pub(super) fn decode(reply: &Value) -> Result<Reply, Error> {
    if let Value::Array(parts) = reply {
        let sums = parts.iter().skip(1).map(Value::as_i64).collect::<Option<Vec<_>>>();
        let sums = sums.ok_or_else(|| Error::protocol("commit answered with a sum that is no number"))?;
        return Ok(Reply::Committed { sums });
    }
    match reply.as_i64() {
        Some(1) => Ok(Reply::Committed { sums: Vec::new() }),
        Some(0) => Ok(Reply::Gone),
        Some(-1) => Ok(Reply::Exists),
        Some(-2) => Ok(Reply::Full),
        Some(-3) => Ok(Reply::Conflict),
        Some(-4) => Ok(Reply::NoSum),
        Some(-5) => Ok(Reply::Rotated),
        _ => Err(Error::protocol("commit did not answer with a number it knows")),
    }
}
