//! What a request changed in its session, and the answer: plain data and its wire form.
//!
//! Only changed and removed fields travel, so requests that change different fields never undo each other.

use bytes::Bytes;
use fred::types::Value;

use crate::redis::begin::stored_field;
use crate::redis::error::Error;

/// A session's changes.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Key of the session's hash.
    pub key: &'a str,
    /// Makes the session; `None` changes an existing one and never makes one.
    pub create: Option<Create>,
    /// Fields to set.
    pub set: &'a [(String, Bytes)],
    /// Fields to remove.
    pub remove: &'a [String],
    /// Most fields the session may have afterwards.
    pub max_fields: u64,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// The changes are stored.
    Committed,
    /// The session is not there (any more); nothing was made.
    Gone,
    /// A session to be made is there already; nothing was changed.
    Exists,
    /// It would have more fields than allowed; nothing was changed.
    Full,
}

/// The call's arguments in wire order: the entry's name, the number of keys, the key, arguments.
pub(super) fn encode(request: &Request<'_>, entry: Value) -> Vec<Value> {
    let mut args = Vec::with_capacity(10 + 2 * request.set.len() + request.remove.len());
    args.extend([entry, Value::Integer(1), Value::from(request.key)]);
    match request.create {
        None => args.push(Value::Integer(0)),
        Some(create) => {
            args.push(Value::Integer(1));
            let created_ms = create.created_ms.unwrap_or(0);
            args.extend([created_ms, create.views, create.idle_ms, create.absolute_ms].map(number));
        }
    }
    args.push(number(request.max_fields));
    args.push(number(request.set.len() as u64));
    for (name, value) in request.set {
        args.push(Value::from(stored_field(name)));
        args.push(Value::Bytes(value.clone()));
    }
    args.extend(request.remove.iter().map(|name| Value::from(stored_field(name))));
    args
}

fn number(value: u64) -> Value {
    Value::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

/// Reads the reply to what [`encode`] sent.
///
/// # Errors
/// `Protocol` when the server's answer has another form.
pub(super) fn decode(reply: &Value) -> Result<Reply, Error> {
    match reply.as_i64() {
        Some(1) => Ok(Reply::Committed),
        Some(0) => Ok(Reply::Gone),
        Some(-1) => Ok(Reply::Exists),
        Some(-2) => Ok(Reply::Full),
        _ => Err(Error::protocol("commit did not answer with a number it knows")),
    }
}
