//! Limits outside a request's first step: what is given back, drawn in advance, merged, and places that are kept.
//!
//! The form is described at the head of `migrations/0017_regatta_limit_v2.lua`. Every call is about one limit, so that
//! it makes no difference how a cluster spreads them.

use fred::types::Value;

use crate::redis::begin::{LimitParameters, RateLimitCheck};
use crate::redis::breakers::CallKind;
use crate::redis::error::RedisError;
use crate::redis::functions::ServerFunction;
use crate::redis::transport::RedisTransport;
use crate::redis::{RedisClient, keys, plain};

/// How long Redis remembers that a batch was merged, ms: far longer than anybody tries to send it again.
const DEFERRED_MARK_TTL_MS: u64 = 600_000;

/// The kind of news that says that a limit denied a request, and that what workers hold of it is wanted.
pub const QUOTA_RETURN_REQUESTED: char = 'r';

/// A number of requests under one rate limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitCharge {
    /// The limit's key.
    pub key: String,
    /// Time one request costs, µs, ≥ 1.
    pub interval_us: u64,
    /// Time that may be spent at once, µs: interval × burst.
    pub tolerance_us: u64,
    /// Requests.
    pub requests: u64,
}

/// How a limit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitStatus {
    /// Requests that would be allowed right now.
    pub remaining: u64,
    /// When it is as if never used, µs from now.
    pub reset_us: u64,
}

/// What was drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefetchedQuota {
    /// Requests that were charged.
    pub requests: u64,
    /// When the limit is as if never used, µs from now.
    pub reset_us: u64,
}

impl LimitCharge {
    fn args(&self) -> [Value; 3] {
        [self.interval_us, self.tolerance_us, self.requests].map(number)
    }
}

impl RedisClient {
    /// Gives requests back to a limit and tells every worker; returns what remains.
    ///
    /// # Errors
    /// See [`Error`]; after [`Error::Timeout`] it may have been done.
    pub async fn refund_limit(&self, amount: &LimitCharge) -> Result<u64, RedisError> {
        if self.is_plain() {
            let channel = self.common_channel().await;
            let work = async |caller: &RedisTransport| plain::refund_limit(caller, &channel, amount).await;
            return self.call_plain(CallKind::Write, work).await;
        }
        let channel = Value::from(self.common_channel().await);
        let reply = self
            .call(ServerFunction::LimitRefund, |entry| {
                let [interval, tolerance, requests] = amount.args();
                call(entry, &[&amount.key], [channel.clone(), interval, tolerance, requests])
            })
            .await?;
        let Value::Array(remaining) = reply else {
            return Err(RedisError::protocol("refund did not answer"));
        };
        remaining.first().and_then(Value::as_u64).ok_or_else(|| RedisError::protocol("refund did not answer"))
    }

    /// Tells every worker to give back what it holds of a limit; those that do so tell that it has quota again.
    pub fn request_quota_return(&self, key: &str) {
        self.publish_notification(QUOTA_RETURN_REQUESTED, key);
    }

    /// Makes a limit as if never used and tells every worker; whether it was in use.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn reset_limit(&self, key: &str) -> Result<bool, RedisError> {
        if self.is_plain() {
            let channel = self.common_channel().await;
            let work = async |caller: &RedisTransport| plain::reset_limit(caller, &channel, key).await;
            return self.call_plain(CallKind::Write, work).await;
        }
        let channel = Value::from(self.common_channel().await);
        let reply =
            self.call(ServerFunction::LimitReset, |entry| call(entry, &[key], [channel.clone()])).await?;
        Ok(reply.as_u64() == Some(1))
    }

    /// How a limit stands.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn limit_status(&self, limit: &RateLimitCheck) -> Result<LimitStatus, RedisError> {
        if self.is_plain() {
            return self
                .call_plain(CallKind::Write, async |caller| plain::limit_status(caller, limit).await)
                .await;
        }
        let args = match limit.parameters {
            LimitParameters::Rate { interval_us, tolerance_us } => {
                vec![number(interval_us), number(tolerance_us)]
            }
            LimitParameters::Concurrency { max, .. } => vec![number(max)],
        };
        let reply =
            self.call(ServerFunction::LimitStatus, |entry| call(entry, &[&limit.key], args.clone())).await?;
        let (remaining, reset_us) = pair(&reply)?;
        Ok(LimitStatus { remaining, reset_us })
    }

    /// Charges a limit for requests to come, or for as many as it allows; returns how many.
    ///
    /// # Errors
    /// See [`Error`]; after [`Error::Timeout`] it may have charged them.
    pub async fn prefetch_quota(&self, amount: &LimitCharge) -> Result<PrefetchedQuota, RedisError> {
        let reply = self
            .call(ServerFunction::LimitPrefetch, |entry| call(entry, &[&amount.key], amount.args()))
            .await?;
        pair(&reply).map(|(requests, reset_us)| PrefetchedQuota { requests, reset_us })
    }

    /// Charges a limit for what was allowed elsewhere; a batch that was merged before changes nothing, so that it may
    /// be sent again when the outcome is unknown. Whether it was the first time.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn apply_deferred_charge(&self, batch: &str, amount: &LimitCharge) -> Result<bool, RedisError> {
        let mark = keys::deferred_mark(&amount.key, batch);
        if self.is_plain() {
            let work = async |caller: &RedisTransport| {
                plain::apply_deferred_charge(caller, &mark, DEFERRED_MARK_TTL_MS, amount).await
            };
            return self.call_plain(CallKind::Write, work).await;
        }
        let reply = self
            .call(ServerFunction::LimitApplyDeferred, |entry| {
                let [interval, tolerance, requests] = amount.args();
                call(
                    entry,
                    &[&mark, &amount.key],
                    [number(DEFERRED_MARK_TTL_MS), interval, tolerance, requests],
                )
            })
            .await?;
        Ok(reply.as_u64() == Some(1))
    }

    /// Keeps a place of a concurrency limit for so long from now, µs; whether it was still there.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn renew_permit(&self, key: &str, place: &str, lease_us: u64) -> Result<bool, RedisError> {
        let args = || [Value::from(place), number(lease_us)];
        let reply = self.call(ServerFunction::LimitRenewPermit, |entry| call(entry, &[key], args())).await?;
        Ok(reply.as_u64() == Some(1))
    }

    /// Gives a place of a concurrency limit back; whether it was still there.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn release_permit(&self, key: &str, place: &str) -> Result<bool, RedisError> {
        let reply = self
            .call(ServerFunction::LimitReleasePermit, |entry| call(entry, &[key], [Value::from(place)]))
            .await?;
        Ok(reply.as_u64() == Some(1))
    }

    /// Gives a place back for which no caller waits: if that fails it ends by itself.
    pub(crate) async fn release_permit_or_log(&self, key: &str, place: &str) {
        if let Err(error) = self.release_permit(key, place).await {
            tracing::debug!(%error, "a place was not given back and ends by itself: {error}");
        }
    }
}

fn call(entry: Value, keys: &[&str], args: impl IntoIterator<Item = Value>) -> Vec<Value> {
    let mut values = vec![entry, number(keys.len() as u64)];
    values.extend(keys.iter().map(|key| Value::from(*key)));
    values.extend(args);
    values
}

fn number(value: u64) -> Value {
    Value::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

fn pair(reply: &Value) -> Result<(u64, u64), RedisError> {
    let Value::Array(numbers) = reply else { return Err(RedisError::protocol("two numbers are missing")) };
    match numbers.iter().map(Value::as_u64).collect::<Vec<_>>()[..] {
        [Some(first), Some(second)] => Ok((first, second)),
        _ => Err(RedisError::protocol("two numbers are missing")),
    }
}
