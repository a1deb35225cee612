//! Bounded counters: of a limited stock, never more is taken than there is.

use ring::digest;

use crate::counters::commands::{BoundedChange, BoundedOutcome};
use crate::counters::{CounterError, CounterName, keys};
use crate::redis::RedisClient;

/// Largest bound and amount: above it Lua's numbers are not exact.
pub const AMOUNT_MAX: u64 = 1 << 53;

/// Longest token, bytes.
pub const TOKEN_MAX: usize = 128;

/// A change of the stock, done at most once under its token.
#[derive(Debug, Clone, Copy)]
pub struct BoundedRequest<'a> {
    /// From 1 to [`AMOUNT_MAX`].
    pub count: u64,
    /// Valid for a day, for this counter and this direction.
    pub token: Option<&'a str>,
}

/// Takes units, all or none; `max` is the size of the stock.
///
/// # Errors
///
/// [`CounterError::InvalidAmount`], [`CounterError::InvalidToken`], or [`CounterError::Redis`]; after a timeout they
/// may have been taken, and a repetition with the same token is safe.
///
/// # Cancel safety
/// Dropping the future leaves it unknown whether they were taken.
pub async fn take(
    redis: &RedisClient,
    prefix: &str,
    name: &CounterName,
    max: u64,
    request: BoundedRequest<'_>,
) -> Result<BoundedOutcome, CounterError> {
    if max > AMOUNT_MAX {
        return Err(CounterError::InvalidAmount);
    }
    let (key, token) = request.keys(prefix, name, "take")?;
    Ok(redis
        .take_bounded(&BoundedChange { key: &key, token: token.as_deref(), count: request.count }, max)
        .await?)
}

/// Gives units back, never more than are taken.
///
/// # Errors
/// As [`take`].
///
/// # Cancel safety
/// Dropping the future leaves it unknown whether they were given back.
pub async fn give_back(
    redis: &RedisClient,
    prefix: &str,
    name: &CounterName,
    request: BoundedRequest<'_>,
) -> Result<BoundedOutcome, CounterError> {
    let (key, token) = request.keys(prefix, name, "give")?;
    Ok(redis
        .give_back_bounded(&BoundedChange { key: &key, token: token.as_deref(), count: request.count })
        .await?)
}

/// How many units are taken.
///
/// # Errors
/// [`CounterError::Redis`].
pub async fn get(redis: &RedisClient, prefix: &str, name: &CounterName) -> Result<u64, CounterError> {
    let taken = redis.read_counter(&keys::bounded(prefix, name.as_str())).await?;
    Ok(u64::try_from(taken).unwrap_or(0))
}

impl BoundedRequest<'_> {
    /// The keys of counter and token; a token for taking is another one than the same token for giving back.
    fn keys(
        &self,
        prefix: &str,
        name: &CounterName,
        verb: &str,
    ) -> Result<(String, Option<String>), CounterError> {
        if !(1..=AMOUNT_MAX).contains(&self.count) {
            return Err(CounterError::InvalidAmount);
        }
        let printable = |token: &str| {
            (1..=TOKEN_MAX).contains(&token.len())
                && token.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
        };
        if self.token.is_some_and(|token| !printable(token)) {
            return Err(CounterError::InvalidToken);
        }
        let token = self.token.map(|token| {
            let digest = digest::digest(&digest::SHA256, format!("{verb} {token}").as_bytes());
            let digest: String = digest.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
            keys::bounded_token(prefix, name.as_str(), &digest)
        });
        Ok((keys::bounded(prefix, name.as_str()), token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_tokens_are_checked_before_redis_is_called() {
        let name = CounterName::parse("stock").unwrap();
        let keys = |count, token| BoundedRequest { count, token }.keys("p", &name, "take");
        assert_eq!(keys(0, None), Err(CounterError::InvalidAmount));
        assert_eq!(keys(AMOUNT_MAX + 1, None), Err(CounterError::InvalidAmount));
        assert_eq!(keys(1, Some("")), Err(CounterError::InvalidToken));
        assert_eq!(keys(1, Some("a\nb")), Err(CounterError::InvalidToken));
        let (key, token) = keys(AMOUNT_MAX, Some("a b")).unwrap();
        assert_eq!(key, "p:b:stock");
        assert!(token.unwrap().starts_with("p:bt:stock:"));
    }
}
