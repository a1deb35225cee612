//! What is charged without a request of its own: see [`crate::limiter::meter`] for when Redis is asked.

use std::sync::Arc;
use std::time::Duration;

use crate::limiter::desk::Desk;
use crate::limiter::desk::lock;
use crate::limiter::errands::amount;
use crate::limiter::meter::Step;
use crate::limiter::policy::Measured;
use crate::limiter::policy::Subject;
use crate::limiter::quota::Quota;

/// How long drawn quota may wait before it is given back; a moment more than [`crate::limiter::meter`] keeps it.
const KEPT: Duration = Duration::from_millis(201);

impl Desk {
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
        subject: &Subject<'_>,
        cost: u64,
    ) -> Result<(), Duration> {
        let Some((_, policy)) = self.policies().named(policy) else { return Ok(()) };
        let Measured::Rate { quota, .. } = policy.measure() else { return Ok(()) };
        if policy.is_shadow() || self.redis.is_plain() {
            return Ok(());
        }
        let cost = cost.clamp(1, quota.burst());
        let key = policy.key_of(subject);
        loop {
            let step = lock(&self.meters).step(&key, &quota, cost, self.now_us());
            match step {
                Step::Paid => return Ok(()),
                Step::Denied(wait_us) => return Err(Duration::from_micros(wait_us)),
                Step::Wait(answered) => {
                    // Answered or not, the next look says how things are.
                    let _ = tokio::time::timeout(self.patience, answered.notified()).await.is_ok();
                }
                Step::Until(at_us) => {
                    tokio::time::sleep(Duration::from_micros(at_us.saturating_sub(self.now_us()))).await;
                }
                Step::Draw(requests, _) => {
                    // In a task of its own: others wait for it, whatever becomes of this connection.
                    let drawing = Arc::clone(self).draw_for_messages(key.clone(), quota, cost, requests);
                    match tokio::spawn(drawing).await {
                        Ok(true) => {}
                        Ok(false) | Err(_) => return Ok(()),
                    }
                }
            }
        }
    }

    /// Whether Redis answered.
    async fn draw_for_messages(self: Arc<Self>, key: String, quota: Quota, cost: u64, requests: u64) -> bool {
        let drawn = self.redis.draw(&amount(key.clone(), &quota, requests)).await;
        let answer = drawn.as_ref().ok().map(|drawn| (drawn.requests, drawn.reset_us));
        lock(&self.meters).drawn(&key, (&quota, cost), answer, self.now_us());
        if let Err(error) = &drawn {
            tracing::debug!(%error, "a message was not charged: {error}");
            return false;
        }
        let desk = Arc::clone(&self);
        tokio::spawn(async move {
            tokio::time::sleep(KEPT).await;
            let now_us = desk.now_us();
            let left = lock(&desk.meters).expired(&key, now_us);
            desk.return_time(amount(key, &quota, 0), left.saturating_mul(quota.interval_us())).await;
        });
        true
    }
}
