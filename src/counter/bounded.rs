//! Bounded counters: of something of which there is only so much, never more is taken.

use ring::digest;

use crate::counter::Error;
use crate::counter::Name;
use crate::redis::Redis;
use crate::redis::count::Share;
use crate::redis::count::Shared;
use crate::redis::keys;

/// Largest bound and amount: beyond it Lua's numbers are not exact.
pub const MOST: u64 = 1 << 53;

/// Longest token, bytes.
pub const TOKEN_MAX: usize = 128;

/// A taking or giving back: how much, and the token under which it is done at most once.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// From 1 to [`MOST`].
    pub count: u64,
    /// Remembered for a day; the same token with another counter is another one.
    pub token: Option<&'a str>,
}

/// Takes, all or nothing; with `max` of it there are.
///
/// # Errors
/// [`Error::Amount`], [`Error::Token`], or [`Error::Redis`]; after a timeout it may have been taken, and a repetition
/// with the same token is safe.
///
/// # Cancel safety
/// Dropping the future leaves it unknown whether it was taken.
pub async fn take(
    redis: &Redis,
    prefix: &str,
    name: &Name,
    max: u64,
    wish: Wish<'_>,
) -> Result<Shared, Error> {
    if max > MOST {
        return Err(Error::Amount);
    }
    let (key, token) = wish.keys(prefix, name, "take")?;
    Ok(redis.take(&Share { key: &key, token: token.as_deref(), count: wish.count }, max).await?)
}

/// Gives back, and never more than is taken.
///
/// # Errors
/// As [`take`].
///
/// # Cancel safety
/// Dropping the future leaves it unknown whether it was given back.
pub async fn give(redis: &Redis, prefix: &str, name: &Name, wish: Wish<'_>) -> Result<Shared, Error> {
    let (key, token) = wish.keys(prefix, name, "give")?;
    Ok(redis.give(&Share { key: &key, token: token.as_deref(), count: wish.count }).await?)
}

/// How much is taken.
///
/// # Errors
/// [`Error::Redis`].
pub async fn taken(redis: &Redis, prefix: &str, name: &Name) -> Result<u64, Error> {
    let taken = redis.count(&keys::bounded(prefix, name.as_str()), 0).await?;
    Ok(u64::try_from(taken).unwrap_or(0))
}

impl Wish<'_> {
    /// The counter's key and the token's; a token of a taking is no token of a giving back.
    fn keys(&self, prefix: &str, name: &Name, verb: &str) -> Result<(String, Option<String>), Error> {
        if !(1..=MOST).contains(&self.count) {
            return Err(Error::Amount);
        }
        let printable = |token: &str| {
            (1..=TOKEN_MAX).contains(&token.len())
                && token.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
        };
        if self.token.is_some_and(|token| !printable(token)) {
            return Err(Error::Token);
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
    fn amounts_and_tokens_are_checked_before_redis_is_asked() {
        let name = Name::parse("seats").unwrap();
        let keys = |count, token| Wish { count, token }.keys("p", &name, "take");
        assert_eq!(keys(0, None), Err(Error::Amount));
        assert_eq!(keys(MOST + 1, None), Err(Error::Amount));
        assert_eq!(keys(1, Some("")), Err(Error::Token));
        assert_eq!(keys(1, Some("a\nb")), Err(Error::Token));
        let (key, token) = keys(MOST, Some("a b")).unwrap();
        assert_eq!(key, "p:b:seats");
        assert!(token.unwrap().starts_with("p:bt:seats:"));
    }
}
