//! What a request changed in its session, and the reply.
//!
//! Only changed and removed fields are sent, so requests that change different fields never undo each other.

use bytes::Bytes;

use crate::redis::RedisError;
use crate::redis::wire::{Value, number};
use crate::sessions::query::stored_name;

/// A session's changes.
#[derive(Debug, Clone, Copy, Default)]
pub struct CommitSession<'a> {
    /// Key of the session's hash.
    pub key: &'a str,
    /// Creates the session; `None` changes an existing one and never creates one.
    pub create: Option<NewSession>,
    /// Fields that must still have this value, or still be absent; otherwise nothing is changed.
    pub expect: &'a [(String, Option<Bytes>)],
    /// Fields to set.
    pub set: &'a [(String, Bytes)],
    /// Fields to add to; a missing field counts as 0.
    pub add: &'a [(String, i64)],
    /// Fields to remove.
    pub remove: &'a [String],
    /// Most fields the session may have afterwards.
    pub max_fields: u64,
    /// Most bytes of names and values afterwards; 0: not checked, because the session is far below the bound.
    pub max_bytes: u64,
}

/// A session that is created by a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewSession {
    /// Creation time to keep when an id is replaced, ms since 1970; `None`: now.
    pub created_ms: Option<u64>,
    /// Initial number of views.
    pub views: u64,
    /// Lifetime without use, ms.
    pub idle_ms: u64,
    /// Lifetime in all, ms.
    pub absolute_ms: u64,
}

/// The reply to a [`CommitSession`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommitOutcome {
    /// The changes are stored.
    Committed {
        /// The new values of the fields that were added to, in their order.
        sums: Vec<i64>,
    },
    /// The session does not exist (any more); nothing was created.
    Gone,
    /// The session has another id now; nothing was changed.
    Rotated,
    /// The session that was to be created exists; nothing was changed.
    Exists,
    /// It would have more fields or bytes than allowed; nothing was changed.
    TooLarge,
    /// A field does not have its expected value; nothing was changed.
    Conflict,
    /// A field to add to is no integer, or the sum would leave the range of 64-bit integers; nothing was changed.
    NotANumber,
}

/// The arguments of a separate call in wire order: function, number of keys, the key, arguments.
pub fn encode(request: &CommitSession<'_>, entry: Value) -> Vec<Value> {
    let mut args = Vec::with_capacity(13 + request.argument_count());
    args.extend([entry, Value::Integer(1), Value::from(request.key)]);
    args.push(Value::Integer(i64::from(request.create.is_some())));
    args.extend(request.create.into_iter().flat_map(NewSession::to_args));
    args.push(number(request.max_fields));
    args.push(number(request.max_bytes));
    args.push(number(request.expect.len() as u64));
    args.extend(request.expected_args());
    args.push(number(request.set.len() as u64));
    args.extend(request.set_args());
    args.push(number(request.add.len() as u64));
    args.extend(request.add_args());
    args.extend(request.remove_args());
    args
}

impl CommitSession<'_> {
    /// The number of arguments for its fields.
    pub fn argument_count(&self) -> usize {
        3 * self.expect.len() + 2 * (self.set.len() + self.add.len()) + self.remove.len()
    }

    /// Names, presence and values of the fields that must be unchanged.
    pub fn expected_args(&self) -> impl Iterator<Item = Value> {
        self.expect.iter().flat_map(|(name, value)| {
            let there = Value::Integer(i64::from(value.is_some()));
            [Value::from(stored_name(name)), there, Value::Bytes(value.clone().unwrap_or_default())]
        })
    }

    /// Names and values of the fields to set.
    pub fn set_args(&self) -> impl Iterator<Item = Value> {
        self.set
            .iter()
            .flat_map(|(name, value)| [Value::from(stored_name(name)), Value::Bytes(value.clone())])
    }

    /// Names and amounts of the fields to add to.
    pub fn add_args(&self) -> impl Iterator<Item = Value> {
        self.add.iter().flat_map(|(name, by)| [Value::from(stored_name(name)), Value::Integer(*by)])
    }

    /// Names of the fields to remove.
    pub fn remove_args(&self) -> impl Iterator<Item = Value> {
        self.remove.iter().map(|name| Value::from(stored_name(name)))
    }
}

impl NewSession {
    /// Its numbers in wire order.
    pub fn to_args(self) -> [Value; 4] {
        [self.created_ms.unwrap_or(0), self.views, self.idle_ms, self.absolute_ms].map(number)
    }
}

/// Reads the reply to what [`encode`] sent.
///
/// # Errors
/// `Protocol` when the server's answer has another form.
pub fn decode(reply: &Value) -> Result<CommitOutcome, RedisError> {
    if let Value::Array(parts) = reply {
        let sums = parts.iter().skip(1).map(Value::as_i64).collect::<Option<Vec<_>>>();
        let sums =
            sums.ok_or_else(|| RedisError::protocol("commit answered with a sum that is no number"))?;
        return Ok(CommitOutcome::Committed { sums });
    }
    match reply.as_i64() {
        Some(1) => Ok(CommitOutcome::Committed { sums: Vec::new() }),
        Some(0) => Ok(CommitOutcome::Gone),
        Some(-1) => Ok(CommitOutcome::Exists),
        Some(-2) => Ok(CommitOutcome::TooLarge),
        Some(-3) => Ok(CommitOutcome::Conflict),
        Some(-4) => Ok(CommitOutcome::NotANumber),
        Some(-5) => Ok(CommitOutcome::Rotated),
        _ => Err(RedisError::protocol("commit did not answer with a number it knows")),
    }
}
