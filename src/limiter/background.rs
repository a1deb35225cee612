//! What a worker's limits do beside its requests: prefetch quota, return it, apply deferred charges, refund.
//!
//! Quota that was charged in Redis and is not used goes back, or time takes it: a failed return never allows more.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::config::limits::PrefetchMode;
use crate::limiter::commands::{
    LIMIT_REPLENISHED, LimitCharge, LimitParameters, PrefetchedQuota, QUOTA_RETURN_REQUESTED, RateLimitCheck,
};
use crate::limiter::gcra::Quota;
use crate::limiter::local_fallback::DeferredCharge;
use crate::limiter::prefetch;
use crate::limiter::prefetch::{PrefetchReply, QuotaReturn};
use crate::limiter::state::{LimiterState, lock};
use crate::redis::{RedisError, RedisStatus, ServerRejection};

/// Time between two attempts to apply deferred charges.
const DEFERRED_INTERVAL: Duration = Duration::from_millis(100);

/// Most deferred charges that are sent at the same time.
const DEFERRED_BATCH_MAX: usize = 32;

/// A charge of so many requests, as Redis takes it.
pub(super) fn limit_charge(key: String, quota: &Quota, requests: u64) -> LimitCharge {
    LimitCharge { key, interval_us: quota.interval_us(), tolerance_us: quota.tolerance_us(), requests }
}

/// What a request was charged under a rate limit.
fn refundable_charge(check: RateLimitCheck) -> Option<LimitCharge> {
    let RateLimitCheck { key, parameters, cost, .. } = check;
    let LimitParameters::Rate { interval_us, tolerance_us } = parameters else { return None };
    Some(LimitCharge { key, interval_us, tolerance_us, requests: cost })
}

/// Subscribes, once, to notifications that a limit has quota again and that this worker should return what it holds.
pub(super) fn subscribe(state: &Arc<LimiterState>) {
    if state.subscribed_us.set(state.now_us()).is_err() {
        return;
    }
    let handler = |act: fn(&Arc<LimiterState>, &str)| {
        let state: Weak<LimiterState> = Arc::downgrade(state);
        Arc::new(move |key: &str| {
            if let Some(state) = state.upgrade() {
                act(&state, key);
            }
        })
    };
    state.redis.on_notification(LIMIT_REPLENISHED, handler(|state, key| state.on_replenished(key)));
    state.redis.on_notification(QUOTA_RETURN_REQUESTED, handler(return_held));
}

/// Prefetches quota, and returns what is not used in time.
pub(super) async fn prefetch(
    state: Arc<LimiterState>,
    key: String,
    quota: Quota,
    mode: PrefetchMode,
    requests: u64,
) {
    let charge = limit_charge(key, &quota, requests);
    if mode == PrefetchMode::Auto && !receives_reclaims(&state) {
        lock(&state.prefetch).record_prefetched(&charge.key, None, state.now_us());
        return;
    }
    let sent_us = state.now_us();
    let prefetched = match state.redis.prefetch_quota(&charge).await {
        Ok(prefetched) => Some(prefetched),
        Err(error) => {
            tracing::debug!(%error, "quota prefetch failed: {error}");
            None
        }
    };
    let now_us = state.now_us();
    let (is_held, excess) = {
        let mut held = lock(&state.prefetch);
        let reply = prefetched.map(|prefetched| prefetch_reply(&state, prefetched, sent_us));
        let is_held = held.record_prefetched(&charge.key, reply, now_us);
        if let Some(prefetched) = prefetched {
            held.record_redis_state(&charge.key, prefetched.reset_us, (sent_us, now_us));
        }
        (is_held, held.take_excess(&charge.key, mode, (sent_us, now_us)))
    };
    if let Some(excess) = excess {
        return_to_redis(&state, &charge.key, &excess).await;
    }
    // Also if all of it went back: until then this worker may hold what a request returns.
    if is_held {
        return_when_expired(&state, charge.key, mode).await;
    }
}

/// The same for a hot limit, whose requests wait for the reply.
pub(super) async fn prefetch_hot(state: Arc<LimiterState>, key: String, quota: Quota, requests: u64) {
    let charge = limit_charge(key, &quota, requests);
    let sent_us = state.now_us();
    let reply = match state.redis.prefetch_quota(&charge).await {
        Ok(prefetched) => Some(prefetch_reply(&state, prefetched, sent_us)),
        Err(error) => {
            tracing::debug!(%error, "quota prefetch for a hot limit failed: {error}");
            None
        }
    };
    let now_us = state.now_us();
    if lock(&state.prefetch).record_hot_prefetched(&charge.key, reply, now_us) {
        return_when_expired(&state, charge.key, PrefetchMode::Always).await;
    }
}

/// Whether requests of other workers to return quota arrive here. Without them held quota would be denied to others.
fn receives_reclaims(state: &Arc<LimiterState>) -> bool {
    subscribe(state);
    state.redis.notifications_complete_since().is_some()
}

fn prefetch_reply(state: &LimiterState, prefetched: PrefetchedQuota, sent_us: u64) -> PrefetchReply {
    let was_subscribed = state.subscribed_since_us().is_some_and(|since_us| since_us <= sent_us);
    PrefetchReply { requests: prefetched.requests, reset_us: prefetched.reset_us, sent_us, was_subscribed }
}

/// Another worker was denied: returns at once what this one holds of the limit.
pub(super) fn return_held(state: &Arc<LimiterState>, key: &str) {
    let now_us = state.now_us();
    if let Some(held) = lock(&state.prefetch).reclaim(key, now_us) {
        let (state, key) = (Arc::clone(state), key.to_owned());
        tokio::spawn(async move { return_to_redis(&state, &key, &held).await });
    }
}

/// Returns what a request consumed of prefetched quota at `consumed_us`: to what this worker holds, or to Redis if that
/// went back meanwhile.
pub(super) fn return_unused(state: &Arc<LimiterState>, check: RateLimitCheck, consumed_us: u64) {
    let now_us = state.now_us();
    if lock(&state.prefetch).return_unused(&check.key, check.cost, (consumed_us, now_us)) {
        return;
    }
    if let Some(charge) = refundable_charge(check) {
        let cost_us = charge.requests.saturating_mul(charge.interval_us);
        let left_us = prefetch::unelapsed_us(cost_us, consumed_us, now_us);
        let state = Arc::clone(state);
        tokio::spawn(async move { return_time(&state, charge, left_us).await });
    }
}

/// Returns held quota, to the µs.
async fn return_to_redis(state: &LimiterState, key: &str, held: &QuotaReturn) {
    return_time(state, limit_charge(key.to_owned(), &held.quota, 0), held.time_us).await;
}

/// Returns so much of a limit's time, in chunks: other workers get a notification of each, and shift what they hold by
/// one chunk.
pub(super) async fn return_time(state: &LimiterState, charge: LimitCharge, mut left_us: u64) {
    let chunk_us = prefetch::refund_chunk_us(charge.interval_us, charge.tolerance_us);
    let mut chunk = LimitCharge { interval_us: 1, ..charge };
    while left_us > 0 {
        chunk.requests = left_us.min(chunk_us);
        left_us -= chunk.requests;
        if let Err(error) = state.redis.refund_limit(&chunk).await {
            tracing::debug!(%error, "unused quota not returned: {error}");
        }
    }
}

/// Returns what was prefetched and not used in time.
async fn return_when_expired(state: &LimiterState, key: String, mode: PrefetchMode) {
    // A moment longer than it is held, so that no request consumes it any more.
    sleep(Duration::from_micros(prefetch::HOLD_US + 1000)).await;
    let now_us = state.now_us();
    let left = lock(&state.prefetch).take_expired(&key, mode, now_us);
    if let Some(held) = left {
        return_to_redis(state, &key, &held).await;
    }
}

/// Refunds what a request was charged in Redis and from prefetched quota; denied clients may try again at once.
///
/// # Errors
/// The first error of Redis; some of the charges may have been refunded.
pub(super) async fn refund(
    state: &LimiterState,
    in_redis: Vec<RateLimitCheck>,
    mut prefetched: Vec<RateLimitCheck>,
) -> Result<(), RedisError> {
    let now_us = state.now_us();
    // The whole cost, whatever time has taken of it: the request should not have counted.
    prefetched.retain(|check| !lock(&state.prefetch).return_unused(&check.key, check.cost, (now_us, now_us)));
    for mut charge in in_redis.into_iter().chain(prefetched).filter_map(refundable_charge) {
        // In chunks: other workers get a notification of each, and shift what they hold by one chunk.
        let chunk = prefetch::refund_chunk_us(charge.interval_us, charge.tolerance_us) / charge.interval_us;
        let mut left = charge.requests;
        while left > 0 {
            charge.requests = left.min(chunk);
            left -= charge.requests;
            state.redis.refund_limit(&charge).await?;
            // This worker's next request may come before the notification.
            state.on_replenished(&charge.key);
        }
    }
    Ok(())
}

/// Has deferred charges applied as soon as Redis is available.
pub(super) fn schedule_deferred(state: &Arc<LimiterState>) {
    if !state.deferred_scheduled.swap(true, Relaxed) {
        tokio::spawn(apply_deferred(Arc::clone(state)));
    }
}

async fn apply_deferred(state: Arc<LimiterState>) {
    // A batch keeps its name until Redis replies: it may have been applied, and Redis applies a name once.
    let mut pending: Vec<(String, DeferredCharge)> = Vec::new();
    loop {
        sleep(DEFERRED_INTERVAL).await;
        if state.redis.status() != RedisStatus::Up {
            continue;
        }
        if pending.is_empty() {
            let now_us = state.now_us();
            let charges = lock(&state.local_limiter).deferred_charges(DEFERRED_BATCH_MAX, now_us);
            if charges.is_empty() {
                // A request that is decided locally from here on schedules the next run.
                state.deferred_scheduled.store(false, Relaxed);
                return;
            }
            pending = charges.into_iter().map(|charge| (state.unique_name(), charge)).collect();
        }
        pending = apply_batch(&state, pending).await;
    }
}

/// Applies deferred charges; returns those without a final reply.
async fn apply_batch(
    state: &LimiterState,
    charges: Vec<(String, DeferredCharge)>,
) -> Vec<(String, DeferredCharge)> {
    let mut calls = JoinSet::new();
    for (batch, deferred) in charges {
        let redis = state.redis.clone();
        calls.spawn(async move {
            let charge = limit_charge(deferred.key.clone(), &deferred.quota, deferred.requests);
            let outcome = redis.apply_deferred_charge(&batch, &charge).await;
            (batch, deferred, outcome)
        });
    }
    let mut open = Vec::new();
    while let Some(joined) = calls.join_next().await {
        let Ok((batch, deferred, outcome)) = joined else { continue };
        match outcome {
            Ok(first) => {
                tracing::debug!(first, requests = deferred.requests, "deferred rate-limit charges applied");
                lock(&state.local_limiter).mark_applied(std::slice::from_ref(&deferred));
            }
            // The key holds another type: a repetition would never succeed.
            Err(
                error @ (RedisError::Protocol { .. }
                | RedisError::Rejected { rejection: ServerRejection::WrongType, .. }),
            ) => {
                tracing::warn!(%error, "deferred rate-limit charges rejected: {error}");
                lock(&state.local_limiter).mark_applied(std::slice::from_ref(&deferred));
            }
            Err(error) => {
                tracing::debug!(%error, "deferred rate-limit charges not applied yet: {error}");
                open.push((batch, deferred));
            }
        }
    }
    open
}
