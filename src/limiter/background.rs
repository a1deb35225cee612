//! What a worker's limits do beside its requests: draw quota in advance, give it back, pay debts of an outage, refund.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::config::limits::PrefetchMode;
use crate::limiter::local_fallback::DeferredCharge;
use crate::limiter::pending::LimitCharges;
use crate::limiter::prefetch;
use crate::limiter::prefetch::{PrefetchReply, QuotaReturn};
use crate::limiter::quota::Quota;
use crate::limiter::request_limiter::{RequestLimiter, lock};
use crate::redis::begin::{LimitParameters, RateLimitCheck};
use crate::redis::limiter_commands::{LimitCharge, PrefetchedQuota};
use crate::redis::{RedisError, RedisStatus, ServerRejection};

/// How often it is looked whether debts can be paid.
const DEFERRED_INTERVAL: Duration = Duration::from_millis(100);

/// Debts that are paid at the same time.
const DEFERRED_BATCH_MAX: usize = 32;

/// So many requests under a limit, as Redis is told of them.
pub(super) fn limit_charge(key: String, quota: &Quota, requests: u64) -> LimitCharge {
    LimitCharge { key, interval_us: quota.interval_us(), tolerance_us: quota.tolerance_us(), requests }
}

/// What a request was charged under a limit on rate.
fn refundable_charge(arg: RateLimitCheck) -> Option<LimitCharge> {
    let RateLimitCheck { key, parameters: kind, cost, .. } = arg;
    let LimitParameters::Rate { interval_us, tolerance_us } = kind else { return None };
    Some(LimitCharge { key, interval_us, tolerance_us, requests: cost })
}

impl RequestLimiter {
    /// Draws quota in advance, and looks after it until it is used or given back.
    pub(super) async fn prefetch(
        self: Arc<Self>,
        key: String,
        quota: Quota,
        lease: PrefetchMode,
        requests: u64,
    ) {
        let charge = limit_charge(key, &quota, requests);
        if lease == PrefetchMode::Auto && !self.receives_reclaims() {
            lock(&self.prefetch).record_prefetched(&charge.key, None, self.now_us());
            return;
        }
        let sent_us = self.now_us();
        let drawn = match self.redis.prefetch_quota(&charge).await {
            Ok(drawn) => Some(drawn),
            Err(error) => {
                tracing::debug!(%error, "nothing was drawn in advance: {error}");
                None
            }
        };
        let now_us = self.now_us();
        let (is_held, excess) = {
            let mut advance = lock(&self.prefetch);
            let answer = drawn.map(|drawn| self.prefetch_reply(drawn, sent_us));
            let is_held = advance.record_prefetched(&charge.key, answer, now_us);
            if let Some(drawn) = drawn {
                advance.record_redis_state(&charge.key, drawn.reset_us, (sent_us, now_us));
            }
            (is_held, advance.take_excess(&charge.key, lease, (sent_us, now_us)))
        };
        if let Some(held) = excess {
            self.return_to_redis(&charge.key, &held).await;
        }
        // Also if all went back: what a request gives back is held here until then.
        if is_held {
            self.return_when_expired(charge.key, lease).await;
        }
    }

    /// Whether this worker is told when another one wants what it holds. Quota that could not be recalled would be
    /// denied to others while it lies here.
    fn receives_reclaims(self: &Arc<Self>) -> bool {
        self.subscribe();
        self.redis.notifications_complete_since().is_some()
    }

    /// Since when it hears what others give back, µs; none: it does not.
    pub(super) fn subscribed_since_us(&self) -> Option<u64> {
        let notified_us = self.to_us(self.redis.notifications_complete_since()?);
        self.subscribed_us.get().map(|listens_us| notified_us.max(*listens_us))
    }

    /// An answer to a draw that was sent then.
    fn prefetch_reply(&self, drawn: PrefetchedQuota, sent_us: u64) -> PrefetchReply {
        let was_subscribed = self.subscribed_since_us().is_some_and(|since_us| since_us <= sent_us);
        PrefetchReply { requests: drawn.requests, reset_us: drawn.reset_us, sent_us, was_subscribed }
    }

    /// Another worker was denied: what is held of this limit goes back at once.
    pub(super) fn return_held(self: &Arc<Self>, key: &str) {
        let now_us = self.now_us();
        if let Some(held) = lock(&self.prefetch).reclaim(key, now_us) {
            let (limiter, key) = (Arc::clone(self), key.to_owned());
            tokio::spawn(async move { limiter.return_to_redis(&key, &held).await });
        }
    }

    /// Gives back what a request took at `spent_us` from what was drawn: to what this worker holds, or to Redis if that
    /// went back meanwhile.
    pub(super) fn return_unused(self: &Arc<Self>, arg: RateLimitCheck, spent_us: u64) {
        let now_us = self.now_us();
        if lock(&self.prefetch).return_unused(&arg.key, arg.cost, (spent_us, now_us)) {
            return;
        }
        if let Some(limit) = refundable_charge(arg) {
            let cost_us = limit.requests.saturating_mul(limit.interval_us);
            let left_us = prefetch::unelapsed_us(cost_us, spent_us, now_us);
            let limiter = Arc::clone(self);
            tokio::spawn(async move { limiter.return_time(limit, left_us).await });
        }
    }

    /// Gives back what was held of a limit, to the µs.
    async fn return_to_redis(&self, key: &str, held: &QuotaReturn) {
        self.return_time(limit_charge(key.to_owned(), &held.quota, 0), held.time_us).await;
    }

    /// Gives back so much of a limit's time, in pieces: other workers hear of each, and count what they hold as nearer by
    /// one.
    pub(super) async fn return_time(&self, limit: LimitCharge, mut left_us: u64) {
        let piece_us = prefetch::refund_chunk_us(limit.interval_us, limit.tolerance_us);
        let mut piece = LimitCharge { interval_us: 1, ..limit };
        while left_us > 0 {
            piece.requests = left_us.min(piece_us);
            left_us -= piece.requests;
            if let Err(error) = self.redis.refund_limit(&piece).await {
                tracing::debug!(%error, "drawn quota is lost until it comes back by itself: {error}");
            }
        }
    }

    /// The same for a limit that is hot, where others wait for it.
    pub(super) async fn prefetch_hot(self: Arc<Self>, key: String, quota: Quota, requests: u64) {
        let charge = limit_charge(key, &quota, requests);
        let sent_us = self.now_us();
        let drawn = match self.redis.prefetch_quota(&charge).await {
            Ok(drawn) => Some(self.prefetch_reply(drawn, sent_us)),
            Err(error) => {
                tracing::debug!(%error, "nothing was drawn for a hot limit: {error}");
                None
            }
        };
        let now_us = self.now_us();
        if lock(&self.prefetch).record_hot_prefetched(&charge.key, drawn, now_us) {
            self.return_when_expired(charge.key, PrefetchMode::Always).await;
        }
    }

    /// Gives back what was drawn and not used in time.
    async fn return_when_expired(&self, key: String, lease: PrefetchMode) {
        // A moment more than it is kept, so that nobody takes it any more.
        tokio::time::sleep(Duration::from_micros(prefetch::HOLD_US + 1000)).await;
        let now_us = self.now_us();
        let left = lock(&self.prefetch).take_expired(&key, lease, now_us);
        if let Some(held) = left {
            self.return_to_redis(&key, &held).await;
        }
    }

    /// Gives back what a request was charged; everybody who was denied meanwhile may ask again.
    ///
    /// # Errors
    /// What Redis said; some of it may have been given back.
    pub async fn refund(&self, charges: LimitCharges) -> Result<(), RedisError> {
        let now_us = self.now_us();
        let mut gone = charges.prefetched;
        // The application says that it should not have counted at all, whatever time has taken of it.
        gone.retain(|arg| !lock(&self.prefetch).return_unused(&arg.key, arg.cost, (now_us, now_us)));
        for mut amount in charges.redis.into_iter().chain(gone).filter_map(refundable_charge) {
            // In pieces: other workers hear of each, and count what they hold as nearer by one.
            let piece =
                prefetch::refund_chunk_us(amount.interval_us, amount.tolerance_us) / amount.interval_us;
            let mut left = amount.requests;
            while left > 0 {
                amount.requests = left.min(piece);
                left -= amount.requests;
                self.redis.refund_limit(&amount).await?;
                // This worker's next request may come before the news.
                self.on_replenished(&amount.key);
            }
        }
        Ok(())
    }

    /// Has debts paid as soon as Redis is back.
    pub(super) fn schedule_deferred(self: &Arc<Self>) {
        if !self.deferred_scheduled.swap(true, Relaxed) {
            tokio::spawn(Arc::clone(self).apply_deferred());
        }
    }

    async fn apply_deferred(self: Arc<Self>) {
        // Sent again under the same name until Redis has said something: it may have been done.
        let mut pending: Vec<(String, DeferredCharge)> = Vec::new();
        loop {
            tokio::time::sleep(DEFERRED_INTERVAL).await;
            if self.redis.status() != RedisStatus::Up {
                continue;
            }
            if pending.is_empty() {
                let now_us = self.now_us();
                let debts = lock(&self.local_limiter).deferred_charges(DEFERRED_BATCH_MAX, now_us);
                if debts.is_empty() {
                    // Between this look and the end a request may have been insured: it starts the next one.
                    self.deferred_scheduled.store(false, Relaxed);
                    return;
                }
                pending = debts.into_iter().map(|debt| (self.unique_name(), debt)).collect();
            }
            pending = self.apply_batch(pending).await;
        }
    }

    /// Pays debts; returns those that are still to be paid.
    async fn apply_batch(
        self: &Arc<Self>,
        debts: Vec<(String, DeferredCharge)>,
    ) -> Vec<(String, DeferredCharge)> {
        let mut tasks = JoinSet::new();
        for (batch, debt) in debts {
            let redis = self.redis.clone();
            tasks.spawn(async move {
                let outcome = redis
                    .apply_deferred_charge(
                        &batch,
                        &limit_charge(debt.key.clone(), &debt.quota, debt.requests),
                    )
                    .await;
                (batch, debt, outcome)
            });
        }
        let mut open = Vec::new();
        while let Some(joined) = tasks.join_next().await {
            let Ok((batch, debt, outcome)) = joined else { continue };
            match outcome {
                Ok(first) => {
                    tracing::debug!(first, requests = debt.requests, "a debt of the outage was paid");
                    lock(&self.local_limiter).mark_applied(std::slice::from_ref(&debt));
                }
                // Something else lies under the key: asking again would never end.
                Err(
                    error @ (RedisError::Protocol { .. }
                    | RedisError::Rejected { rejection: ServerRejection::WrongType, .. }),
                ) => {
                    tracing::warn!(%error, "a debt of the outage cannot be paid: {error}");
                    lock(&self.local_limiter).mark_applied(std::slice::from_ref(&debt));
                }
                Err(error) => {
                    tracing::debug!(%error, "a debt of the outage waits: {error}");
                    open.push((batch, debt));
                }
            }
        }
        open
    }
}
