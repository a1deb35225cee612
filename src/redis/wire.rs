//! The forms in which arguments and replies travel: one set of readers and writers for every command. No I/O.

use std::time::Duration;

/// An argument or a reply.
pub use fred::types::Value;

use crate::redis::error::RedisError;

/// Integers below this are exact in a reply of doubles.
pub const MAX_EXACT_INTEGER: u64 = 1 << 53;

/// One command of a pipeline: its name and its arguments.
pub type PipelinedCommand = (&'static str, Vec<Value>);

/// A command of a pipeline.
pub fn command<const N: usize>(name: &'static str, args: [Value; N]) -> PipelinedCommand {
    (name, args.into())
}

/// A text as an argument.
pub fn text(text: &str) -> Value {
    Value::from(text)
}

/// A whole number as an argument. One above `i64::MAX` is sent as `i64::MAX`, which Redis refuses where it matters.
pub fn number(number: u64) -> Value {
    Value::Integer(i64::try_from(number).unwrap_or(i64::MAX))
}

/// A duration as an argument, ms.
pub fn millis(time: Duration) -> Value {
    number(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// The start of a function call: its name, the number of keys, the keys.
pub fn with_keys(function: Value, keys: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<Value> {
    let mut args = vec![function, Value::Integer(0)];
    args.extend(keys.into_iter().map(|key| Value::from(key.as_ref())));
    args[1] = number((args.len() - 2) as u64);
    args
}

/// A whole function call: its name, the number of keys, the keys, the arguments.
pub fn call_args(
    function: Value,
    keys: impl IntoIterator<Item = impl AsRef<str>>,
    args: impl IntoIterator<Item = Value>,
) -> Vec<Value> {
    let mut all = with_keys(function, keys);
    all.extend(args);
    all
}

/// The parts of a reply that has at least `min_parts`.
///
/// # Errors
/// `Protocol` when the reply has another form.
pub fn list(reply: Value, min_parts: usize) -> Result<impl Iterator<Item = Value>, RedisError> {
    match reply {
        Value::Array(parts) if parts.len() >= min_parts => Ok(parts.into_iter()),
        _ => Err(RedisError::protocol("a function did not answer with the list it has")),
    }
}

/// A whole number of a reply.
///
/// # Errors
/// `Protocol` when it is missing or something else.
pub fn signed(part: Option<Value>) -> Result<i64, RedisError> {
    let number = part.and_then(|part| part.as_i64());
    number.ok_or_else(|| RedisError::protocol("a number is missing in the reply"))
}

/// As [`signed`]; a negative number reads as 0.
///
/// # Errors
/// As [`signed`].
pub fn unsigned(part: Option<Value>) -> Result<u64, RedisError> {
    Ok(u64::try_from(signed(part)?).unwrap_or(0))
}

/// A reply that is a whole number.
///
/// # Errors
/// `Protocol` when it is something else.
pub fn integer(reply: &Value) -> Result<i64, RedisError> {
    reply.as_i64().ok_or_else(|| RedisError::protocol("a number was expected, and something else came"))
}

/// Redis's clock in the reply to `TIME`, ms since 1970.
///
/// # Errors
/// `Protocol` when the reply has another form.
pub fn time_ms(reply: &Value) -> Result<u64, RedisError> {
    let Value::Array(parts) = reply else {
        return Err(RedisError::protocol("TIME did not answer with a list"));
    };
    let part = |index: usize| parts.get(index).and_then(Value::as_u64).unwrap_or(0);
    Ok(part(0) * 1000 + part(1) / 1000)
}

/// A number as Lua has it.
#[allow(clippy::cast_precision_loss, reason = "times and lifetimes are far below 2^53")]
pub fn to_f64(number: u64) -> f64 {
    number as f64
}

/// Reads packed little-endian doubles, which hold integers below 2^53 exactly.
#[derive(Debug)]
pub struct ReplyReader<'a>(std::slice::ChunksExact<'a, u8>);

impl<'a> ReplyReader<'a> {
    /// Reads from the start of these bytes.
    pub fn new(packed: &'a [u8]) -> Self {
        Self(packed.chunks_exact(size_of::<f64>()))
    }

    /// The next number.
    ///
    /// # Errors
    /// `Protocol` when there is none.
    #[allow(
        clippy::cast_possible_truncation,
        reason = "a counter beyond 2^53 saturates; its reader reads it again with GET"
    )]
    pub fn signed(&mut self) -> Result<i64, RedisError> {
        let chunk = self.0.next().and_then(|chunk| <[u8; 8]>::try_from(chunk).ok());
        chunk
            .map(|bytes| f64::from_le_bytes(bytes) as i64)
            .ok_or_else(|| RedisError::protocol("a number is missing in the reply"))
    }

    /// As [`ReplyReader::signed`]; a negative number reads as 0.
    ///
    /// # Errors
    /// As [`ReplyReader::signed`].
    pub fn unsigned(&mut self) -> Result<u64, RedisError> {
        Ok(u64::try_from(self.signed()?).unwrap_or(0))
    }
}
