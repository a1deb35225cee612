//! Charging what has no request of its own; see [`crate::limiter::message_meter`] for when Redis is called.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::limiter::background::{limit_charge, return_time};
use crate::limiter::gcra::Quota;
use crate::limiter::message_meter::MeterStep;
use crate::limiter::policy::{LimitPolicy, LimitSubject, PolicyMeasure};
use crate::limiter::state::{LimiterState, lock};

/// How long prefetched quota is held; a moment longer than [`crate::limiter::message_meter`] lets it be used.
const HOLD: Duration = Duration::from_millis(201);

/// See `RequestLimiter::charge`.
pub(super) async fn charge(
    state: &Arc<LimiterState>,
    policy: &LimitPolicy,
    subject: &LimitSubject<'_>,
    cost: u64,
) -> Result<(), Duration> {
    let PolicyMeasure::Rate { quota, .. } = policy.measure() else { return Ok(()) };
    if policy.is_shadow() || state.redis.is_plain() {
        return Ok(());
    }
    let cost = cost.clamp(1, quota.burst());
    let key = policy.subject_key(subject);
    loop {
        let step = lock(&state.meters).next_step(&key, &quota, cost, state.now_us());
        match step {
            MeterStep::Covered => return Ok(()),
            MeterStep::Denied(wait_us) => return Err(Duration::from_micros(wait_us)),
            MeterStep::Wait(answered) => {
                // With or without a reply, the next step is decided by the meter's state.
                let _ = timeout(state.redis_timeout, answered.notified()).await.is_ok();
            }
            MeterStep::Until(at_us) => {
                sleep(Duration::from_micros(at_us.saturating_sub(state.now_us()))).await;
            }
            MeterStep::Prefetch(requests) => {
                // In a task of its own: others wait for the reply, even if this connection closes.
                let prefetching = prefetch(Arc::clone(state), key.clone(), quota, cost, requests);
                match tokio::spawn(prefetching).await {
                    Ok(true) => {}
                    Ok(false) | Err(_) => return Ok(()),
                }
            }
        }
    }
}

/// Prefetches quota for messages; returns whether Redis replied.
async fn prefetch(state: Arc<LimiterState>, key: String, quota: Quota, cost: u64, requests: u64) -> bool {
    let prefetched = state.redis.prefetch_quota(&limit_charge(key.clone(), &quota, requests)).await;
    let reply = prefetched.as_ref().ok().map(|prefetched| (prefetched.requests, prefetched.reset_us));
    lock(&state.meters).record_prefetched(&key, (&quota, cost), reply, state.now_us());
    if let Err(error) = &prefetched {
        tracing::debug!(%error, "message not charged: {error}");
        return false;
    }
    tokio::spawn(async move {
        sleep(HOLD).await;
        let now_us = state.now_us();
        let left = lock(&state.meters).take_expired(&key, now_us);
        let left_us = left.saturating_mul(quota.interval_us());
        return_time(&state, limit_charge(key, &quota, 0), left_us).await;
    });
    true
}
