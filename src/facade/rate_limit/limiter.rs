//! A rate limit without HTTP.

use std::fmt;
use std::sync::Arc;

use crate::facade::rate_limit::decision::RateLimit;
use crate::facade::rate_limit::error::Error;
use crate::http::error::RequestError;
use crate::http::services::WorkerServices;
use crate::http::standalone::in_code_limit::InCodeLimit;
use crate::http::standalone::quota::LimitQuota;
use crate::http::standalone::redis::Redis;
use crate::http::standalone::state_handle;

/// A rate limit for what is no request: a mail to one address, a call to a partner, an attempt at a password.
///
/// Each check is one round trip. Only a digest of a key is stored.
///
/// *Inside a fleet* a policy `[limits.NAME]` of the configuration says how much; whatever it says of whose requests it
/// counts, the limit counts by the key of each check. `enabled = false` switches it off: everything is allowed.
///
/// ```no_run
/// use regatta::Redis;
/// use regatta::rate_limit::{Quota, RateLimiter};
///
/// # async fn run(redis: Redis) {
/// let mails = RateLimiter::new(&redis, "mails", Quota::per_minute(2).burst(5));
/// if mails.check("ann@example.org").await.is_ok() {
///     // The mail goes out.
/// }
/// // A letter to three of them counts for three, or is not sent.
/// let letter = mails.check_n("crew@example.org", 3).await;
/// // An operator forgives.
/// let forgiven = mails.reset("ann@example.org").await;
/// # let _ = (letter, forgiven);
/// # }
/// ```
#[derive(Clone)]
pub struct RateLimiter {
    services: Arc<WorkerServices>,
    limit: Arc<InCodeLimit>,
}

impl fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimiter").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl RateLimiter {
    /// A limit by this name: all processes with the same Redis, prefix, name and quota count together.
    pub fn new(redis: &Redis, name: &str, quota: LimitQuota) -> Self {
        let services = Arc::clone(redis.services());
        let limit = Arc::new(InCodeLimit::keyed(name, quota, &services.state));
        Self { services, limit }
    }

    /// Counts one, if it is allowed.
    ///
    /// Of requests at the same time, the place is taken until the value is dropped.
    ///
    /// # Errors
    /// [`Error::Denied`]; while Redis is away this process decides alone.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was counted.
    pub async fn check(&self, key: &str) -> Result<RateLimit, Error> {
        self.check_n(key, 1).await
    }

    /// Counts so many at once, or none of them; 0 only looks.
    ///
    /// # Errors
    /// As [`RateLimiter::check`].
    ///
    /// # Cancel safety
    /// As [`RateLimiter::check`].
    pub async fn check_n(&self, key: &str, cost: u64) -> Result<RateLimit, Error> {
        let state = state_handle::detached(&self.services);
        self.limit.apply_to(&state, key, cost).await?;
        Ok(RateLimit::decide(&state).await?)
    }

    /// Forgets what was counted for a key, on every process.
    ///
    /// # Errors
    /// [`Error::Redis`]: it may have been done.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was done; a repetition is safe.
    pub async fn reset(&self, key: &str) -> Result<(), Error> {
        self.services.ensure_started();
        let reset = self.services.state.limiter.reset(&self.limit.redis_key(key)).await;
        reset.map(drop).map_err(|error| RequestError::Redis((&error).into()).into())
    }
}
