//! Calls about limits outside a request's begin: refund, prefetch, deferred charges, permits.
//!
//! Each call is about one limit, so it does not matter how a cluster spreads them.

use crate::limiter::commands::{
    LimitCharge, LimitParameters, LimitStatus, PrefetchedQuota, QUOTA_RETURN_REQUESTED, RateLimitCheck,
};
use crate::limiter::{keys, plain as limiter_plain};
use crate::redis::functions::ServerFunction;
use crate::redis::wire::{Value, call_args, number};
use crate::redis::{CallKind, RedisClient, RedisError, RedisTransport};

/// How long Redis remembers that a deferred charge was applied, ms: far longer than it is sent again.
const DEFERRED_MARK_TTL_MS: u64 = 600_000;

impl RedisClient {
    /// Gives requests back to a limit and notifies every worker; returns what remains.
    ///
    /// # Errors
    /// See [`RedisError`]; after [`RedisError::Timeout`] it may have been done.
    pub async fn refund_limit(&self, amount: &LimitCharge) -> Result<u64, RedisError> {
        if self.is_plain() {
            let channel = self.common_channel().await;
            let work =
                async |caller: &RedisTransport| limiter_plain::refund_limit(caller, &channel, amount).await;
            return self.call_plain(CallKind::Write, work).await;
        }
        let channel = Value::from(self.common_channel().await);
        let reply = self
            .call(ServerFunction::LimitRefund, |entry| {
                let [interval, tolerance, requests] = amount.args();
                call_args(entry, [&amount.key], [channel.clone(), interval, tolerance, requests])
            })
            .await?;
        let Value::Array(remaining) = reply else {
            return Err(RedisError::protocol("refund did not answer"));
        };
        remaining.first().and_then(Value::as_u64).ok_or_else(|| RedisError::protocol("refund did not answer"))
    }

    /// Asks every worker to give back the quota that it holds of a limit; those that do notify the others.
    pub fn request_quota_return(&self, key: &str) {
        self.publish_notification(QUOTA_RETURN_REQUESTED, key);
    }

    /// Makes a limit unused and notifies every worker; returns whether it was in use.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn reset_limit(&self, key: &str) -> Result<bool, RedisError> {
        if self.is_plain() {
            let channel = self.common_channel().await;
            let work =
                async |caller: &RedisTransport| limiter_plain::reset_limit(caller, &channel, key).await;
            return self.call_plain(CallKind::Write, work).await;
        }
        let channel = Value::from(self.common_channel().await);
        let reply =
            self.call(ServerFunction::LimitReset, |entry| call_args(entry, [key], [channel.clone()])).await?;
        Ok(reply.as_u64() == Some(1))
    }

    /// The state of a limit.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn limit_status(&self, limit: &RateLimitCheck) -> Result<LimitStatus, RedisError> {
        if self.is_plain() {
            return self
                .call_plain(CallKind::Write, async |caller| limiter_plain::limit_status(caller, limit).await)
                .await;
        }
        let args = match limit.parameters {
            LimitParameters::Rate { interval_us, tolerance_us } => {
                vec![number(interval_us), number(tolerance_us)]
            }
            LimitParameters::Concurrency { max, .. } => vec![number(max)],
        };
        let reply = self
            .call(ServerFunction::LimitStatus, |entry| call_args(entry, [&limit.key], args.clone()))
            .await?;
        let (remaining, reset_us) = pair(&reply)?;
        Ok(LimitStatus { remaining, reset_us })
    }

    /// Charges a limit for future requests, or for as many as it allows; returns how many.
    ///
    /// # Errors
    /// See [`RedisError`]; after [`RedisError::Timeout`] they may have been charged.
    pub async fn prefetch_quota(&self, amount: &LimitCharge) -> Result<PrefetchedQuota, RedisError> {
        let reply = self
            .call(ServerFunction::LimitPrefetch, |entry| call_args(entry, [&amount.key], amount.args()))
            .await?;
        pair(&reply).map(|(requests, reset_us)| PrefetchedQuota { requests, reset_us })
    }

    /// Charges a limit for requests that were allowed locally. A batch that was applied before changes nothing, so it
    /// may be sent again when the outcome is unknown. Returns whether it was applied now.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn apply_deferred_charge(&self, batch: &str, amount: &LimitCharge) -> Result<bool, RedisError> {
        let mark = keys::deferred_mark(&amount.key, batch);
        if self.is_plain() {
            let work = async |caller: &RedisTransport| {
                limiter_plain::apply_deferred_charge(caller, &mark, DEFERRED_MARK_TTL_MS, amount).await
            };
            return self.call_plain(CallKind::Write, work).await;
        }
        let reply = self
            .call(ServerFunction::LimitApplyDeferred, |entry| {
                let [interval, tolerance, requests] = amount.args();
                call_args(
                    entry,
                    [&mark, &amount.key],
                    [number(DEFERRED_MARK_TTL_MS), interval, tolerance, requests],
                )
            })
            .await?;
        Ok(reply.as_u64() == Some(1))
    }

    /// Extends a permit of a concurrency limit by this time from now, µs; returns whether it was still held.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn renew_permit(&self, key: &str, place: &str, lease_us: u64) -> Result<bool, RedisError> {
        let args = || [Value::from(place), number(lease_us)];
        let reply =
            self.call(ServerFunction::LimitRenewPermit, |entry| call_args(entry, [key], args())).await?;
        Ok(reply.as_u64() == Some(1))
    }

    /// Releases a permit of a concurrency limit; returns whether it was still held.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn release_permit(&self, key: &str, place: &str) -> Result<bool, RedisError> {
        let reply = self
            .call(ServerFunction::LimitReleasePermit, |entry| call_args(entry, [key], [Value::from(place)]))
            .await?;
        Ok(reply.as_u64() == Some(1))
    }

    /// Releases a permit that no caller waits for; if that fails it expires by itself.
    pub(crate) async fn release_permit_or_log(&self, key: &str, place: &str) {
        if let Err(error) = self.release_permit(key, place).await {
            tracing::debug!(%error, "concurrency permit not released, it ends with its lease: {error}");
        }
    }
}

fn pair(reply: &Value) -> Result<(u64, u64), RedisError> {
    let Value::Array(numbers) = reply else { return Err(RedisError::protocol("two numbers are missing")) };
    match numbers.iter().map(Value::as_u64).collect::<Vec<_>>()[..] {
        [Some(first), Some(second)] => Ok((first, second)),
        _ => Err(RedisError::protocol("two numbers are missing")),
    }
}
