//! What is charged without a request of its own: see [`crate::limiter::message_meter`] for when Redis is asked.

use std::sync::Arc;
use std::time::Duration;

use crate::limiter::background::limit_charge;
use crate::limiter::message_meter::MeterStep;
use crate::limiter::policy::{LimitSubject, PolicyMeasure};
use crate::limiter::quota::Quota;
use crate::limiter::request_limiter::{RequestLimiter, lock};

/// How long drawn quota may wait before it is given back; a moment more than [`crate::limiter::message_meter`] keeps it.
const HOLD: Duration = Duration::from_millis(201);

impl RequestLimiter {
    /// Charges a policy for what a subject sends over a connection; `Err`: how long it is denied.
    ///
    /// A policy that is switched off or in shadow, counts what is under way, or cannot be asked (Redis is away, or
    /// allows no code) denies nothing: what the message asks for then fails or succeeds by itself.
    ///
    /// # Cancel safety
    /// What was drawn and not used goes back.
    pub async fn charge(
        self: &Arc<Self>,
        policy: &str,
        subject: &LimitSubject<'_>,
        cost: u64,
    ) -> Result<(), Duration> {
        let Some((_, policy)) = self.policies().find(policy) else { return Ok(()) };
        let PolicyMeasure::Rate { quota, .. } = policy.measure() else { return Ok(()) };
        if policy.is_shadow() || self.redis.is_plain() {
            return Ok(());
        }
        let cost = cost.clamp(1, quota.burst());
        let key = policy.subject_key(subject);
        loop {
            let step = lock(&self.meters).next_step(&key, &quota, cost, self.now_us());
            match step {
                MeterStep::Covered => return Ok(()),
                MeterStep::Denied(wait_us) => return Err(Duration::from_micros(wait_us)),
                MeterStep::Wait(answered) => {
                    // Answered or not, the next look says how things are.
                    let _ = tokio::time::timeout(self.redis_timeout, answered.notified()).await.is_ok();
                }
                MeterStep::Until(at_us) => {
                    tokio::time::sleep(Duration::from_micros(at_us.saturating_sub(self.now_us()))).await;
                }
                MeterStep::Prefetch(requests, _) => {
                    // In a task of its own: others wait for it, whatever becomes of this connection.
                    let drawing = Arc::clone(self).prefetch_for_messages(key.clone(), quota, cost, requests);
                    match tokio::spawn(drawing).await {
                        Ok(true) => {}
                        Ok(false) | Err(_) => return Ok(()),
                    }
                }
            }
        }
    }

    /// Whether Redis answered.
    async fn prefetch_for_messages(
        self: Arc<Self>,
        key: String,
        quota: Quota,
        cost: u64,
        requests: u64,
    ) -> bool {
        let drawn = self.redis.prefetch_quota(&limit_charge(key.clone(), &quota, requests)).await;
        let answer = drawn.as_ref().ok().map(|drawn| (drawn.requests, drawn.reset_us));
        lock(&self.meters).record_prefetched(&key, (&quota, cost), answer, self.now_us());
        if let Err(error) = &drawn {
            tracing::debug!(%error, "a message was not charged: {error}");
            return false;
        }
        let limiter = Arc::clone(&self);
        tokio::spawn(async move {
            tokio::time::sleep(HOLD).await;
            let now_us = limiter.now_us();
            let left = lock(&limiter.meters).take_expired(&key, now_us);
            limiter.return_time(limit_charge(key, &quota, 0), left.saturating_mul(quota.interval_us())).await;
        });
        true
    }
}
