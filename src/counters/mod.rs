//! Shared counters of four kinds: exact, batched, bounded and distinct.
//!
//! Guarantees that only well-formed names reach Redis and that an overflow is an error, never a wrong number. Redis
//! adds to exact counters, request by request; an exact and a batched counter of one name are one number. The room
//! must not know HTTP; batched counters keep their increments in the scoreboard.

pub mod batched;
pub mod bounded;
pub mod commands;
pub mod distinct;
pub mod keys;

use std::fmt;

use crate::counters::commands::CounterIncrement;
use crate::redis::{RedisClient, RedisError};

/// Longest name, bytes.
pub const NAME_MAX: usize = 64;

/// Why a counter could not be changed or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CounterError {
    /// The name is not allowed: a mistake of the caller.
    #[error("a counter's name has 1 to 64 of A-Z a-z 0-9 _ - . :")]
    InvalidName,
    /// The value would leave the range of 64-bit integers; nothing was changed.
    #[error("the counter would leave the range of 64-bit integers")]
    Overflow,
    /// An amount to take or to give back is 0, or more than 2^53.
    #[error("how much must be from 1 to 2^53")]
    InvalidAmount,
    /// A token is empty, too long or not printable: a mistake of the caller.
    #[error("a token has 1 to 128 printable ASCII characters")]
    InvalidToken,
    /// Redis failed or did not reply.
    #[error("the counter is not reachable")]
    Redis(#[source] RedisError),
}

impl From<RedisError> for CounterError {
    fn from(error: RedisError) -> Self {
        match error {
            RedisError::Overflow => Self::Overflow,
            other => Self::Redis(other),
        }
    }
}

/// A counter's name: 1 to 64 of `A–Z a–z 0–9 _ - . :`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CounterName(String);

impl CounterName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`CounterError::InvalidName`] when it is empty, too long or has another character.
    pub fn parse(text: &str) -> Result<Self, CounterError> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte);
        if text.is_empty() || text.len() > NAME_MAX || !text.bytes().all(fits) {
            return Err(CounterError::InvalidName);
        }
        Ok(Self(text.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// This counter as part of a request's begin; an increment by 0 only reads.
    pub fn increment(&self, prefix: &str, by: i64) -> CounterIncrement {
        CounterIncrement { key: keys::counter(prefix, &self.0), by }
    }
}

impl fmt::Display for CounterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads a counter outside a request's begin; a counter without increments is 0.
///
/// # Errors
/// [`CounterError::Redis`].
pub async fn value(redis: &RedisClient, prefix: &str, name: &CounterName) -> Result<i64, CounterError> {
    Ok(redis.read_counter(&keys::counter(prefix, name.as_str())).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_key_space_are_rejected() {
        let long = "x".repeat(NAME_MAX + 1);
        for bad in ["", "a b", "a/b", "ä", "a\r\n", "{a}", "*", &long] {
            assert_eq!(CounterName::parse(bad), Err(CounterError::InvalidName), "{bad:?}");
        }
        for good in ["a", "page:home", "A-Z_0.9", &long[1..]] {
            assert_eq!(CounterName::parse(good).map(|name| name.to_string()), Ok(good.to_owned()));
        }
    }
}
