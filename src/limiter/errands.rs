//! What a worker's limits do beside its requests: draw quota in advance, give it back, pay debts of an outage, refund.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::config::limit::Lease;
use crate::limiter::advance;
use crate::limiter::advance::Draw;
use crate::limiter::advance::Return;
use crate::limiter::asked::Charges;
use crate::limiter::desk::Desk;
use crate::limiter::desk::lock;
use crate::limiter::insurance::Debt;
use crate::limiter::quota::Quota;
use crate::redis::Error;
use crate::redis::Health;
use crate::redis::Refusal;
use crate::redis::begin::LimitArg;
use crate::redis::begin::LimitKind;
use crate::redis::limit::Amount;
use crate::redis::limit::Drawn;

/// How often it is looked whether debts can be paid.
const DEBTS_EVERY: Duration = Duration::from_millis(100);

/// Debts that are paid at the same time.
const DEBTS_AT_ONCE: usize = 32;

/// So many requests under a limit, as Redis is told of them.
pub(super) fn amount(key: String, quota: &Quota, requests: u64) -> Amount {
    Amount { key, interval_us: quota.interval_us(), tolerance_us: quota.tolerance_us(), requests }
}

/// What a request was charged under a limit on rate.
fn charged(arg: LimitArg) -> Option<Amount> {
    let LimitArg { key, kind, cost, .. } = arg;
    let LimitKind::Rate { interval_us, tolerance_us } = kind else { return None };
    Some(Amount { key, interval_us, tolerance_us, requests: cost })
}

impl Desk {
    /// Draws quota in advance, and looks after it until it is used or given back.
    pub(super) async fn draw(self: Arc<Self>, key: String, quota: Quota, lease: Lease, requests: u64) {
        let wanted = amount(key, &quota, requests);
        if lease == Lease::Auto && !self.hears_recalls() {
            lock(&self.advance).drawn(&wanted.key, None, self.now_us());
            return;
        }
        let asked_us = self.now_us();
        let drawn = match self.redis.draw(&wanted).await {
            Ok(drawn) => Some(drawn),
            Err(error) => {
                tracing::debug!(%error, "nothing was drawn in advance: {error}");
                None
            }
        };
        let now_us = self.now_us();
        let (is_held, wanted_back) = {
            let mut advance = lock(&self.advance);
            let answer = drawn.map(|drawn| self.draw_of(drawn, asked_us));
            let is_held = advance.drawn(&wanted.key, answer, now_us);
            if let Some(drawn) = drawn {
                advance.learn(&wanted.key, drawn.reset_us, (asked_us, now_us));
            }
            (is_held, advance.wanted_back(&wanted.key, lease, (asked_us, now_us)))
        };
        if let Some(held) = wanted_back {
            self.return_to_redis(&wanted.key, &held).await;
        }
        // Also if all went back: what a request gives back is held here until then.
        if is_held {
            self.look_after(wanted.key, lease).await;
        }
    }

    /// Whether this worker is told when another one wants what it holds. Quota that could not be recalled would be
    /// denied to others while it lies here.
    fn hears_recalls(self: &Arc<Self>) -> bool {
        self.listen();
        self.redis.news_since().is_some()
    }

    /// Since when it hears what others give back, µs; none: it does not.
    pub(super) fn hears_since(&self) -> Option<u64> {
        let news_us = self.us(self.redis.news_since()?);
        self.listens.get().map(|listens_us| news_us.max(*listens_us))
    }

    /// An answer to a draw that was sent then.
    fn draw_of(&self, drawn: Drawn, asked_us: u64) -> Draw {
        let hears = self.hears_since().is_some_and(|since_us| since_us <= asked_us);
        Draw { requests: drawn.requests, reset_us: drawn.reset_us, asked_us, hears }
    }

    /// Another worker was denied: what is held of this limit goes back at once.
    pub(super) fn return_held(self: &Arc<Self>, key: &str) {
        let now_us = self.now_us();
        if let Some(held) = lock(&self.advance).recall(key, now_us) {
            let (desk, key) = (Arc::clone(self), key.to_owned());
            tokio::spawn(async move { desk.return_to_redis(&key, &held).await });
        }
    }

    /// Gives back what a request took at `spent_us` from what was drawn: to what this worker holds, or to Redis if that
    /// went back meanwhile.
    pub(super) fn return_unused(self: &Arc<Self>, arg: LimitArg, spent_us: u64) {
        let now_us = self.now_us();
        if lock(&self.advance).unspend(&arg.key, arg.cost, (spent_us, now_us)) {
            return;
        }
        if let Some(limit) = charged(arg) {
            let cost_us = limit.requests.saturating_mul(limit.interval_us);
            let left_us = advance::still_ahead(cost_us, spent_us, now_us);
            let desk = Arc::clone(self);
            tokio::spawn(async move { desk.return_time(limit, left_us).await });
        }
    }

    /// Gives back what was held of a limit, to the µs.
    async fn return_to_redis(&self, key: &str, held: &Return) {
        self.return_time(amount(key.to_owned(), &held.quota, 0), held.time_us).await;
    }

    /// Gives back so much of a limit's time, in pieces: other workers hear of each, and count what they hold as nearer by
    /// one.
    pub(super) async fn return_time(&self, limit: Amount, mut left_us: u64) {
        let piece_us = advance::piece_us(limit.interval_us, limit.tolerance_us);
        let mut piece = Amount { interval_us: 1, ..limit };
        while left_us > 0 {
            piece.requests = left_us.min(piece_us);
            left_us -= piece.requests;
            if let Err(error) = self.redis.refund(&piece).await {
                tracing::debug!(%error, "drawn quota is lost until it comes back by itself: {error}");
            }
        }
    }

    /// The same for a limit that is hot, where others wait for it.
    pub(super) async fn draw_hot(self: Arc<Self>, key: String, quota: Quota, requests: u64) {
        let wanted = amount(key, &quota, requests);
        let asked_us = self.now_us();
        let drawn = match self.redis.draw(&wanted).await {
            Ok(drawn) => Some(self.draw_of(drawn, asked_us)),
            Err(error) => {
                tracing::debug!(%error, "nothing was drawn for a hot limit: {error}");
                None
            }
        };
        let now_us = self.now_us();
        if lock(&self.advance).drawn_hot(&wanted.key, drawn, now_us) {
            self.look_after(wanted.key, Lease::Always).await;
        }
    }

    /// Gives back what was drawn and not used in time.
    async fn look_after(&self, key: String, lease: Lease) {
        // A moment more than it is kept, so that nobody takes it any more.
        tokio::time::sleep(Duration::from_micros(advance::KEPT_US + 1000)).await;
        let now_us = self.now_us();
        let left = lock(&self.advance).expired(&key, lease, now_us);
        if let Some(held) = left {
            self.return_to_redis(&key, &held).await;
        }
    }

    /// Gives back what a request was charged; everybody who was denied meanwhile may ask again.
    ///
    /// # Errors
    /// What Redis said; some of it may have been given back.
    pub async fn refund(&self, charges: Charges) -> Result<(), Error> {
        let now_us = self.now_us();
        let mut gone = charges.advance;
        // The application says that it should not have counted at all, whatever time has taken of it.
        gone.retain(|arg| !lock(&self.advance).unspend(&arg.key, arg.cost, (now_us, now_us)));
        for mut amount in charges.redis.into_iter().chain(gone).filter_map(charged) {
            // In pieces: other workers hear of each, and count what they hold as nearer by one.
            let piece = advance::piece_us(amount.interval_us, amount.tolerance_us) / amount.interval_us;
            let mut left = amount.requests;
            while left > 0 {
                amount.requests = left.min(piece);
                left -= amount.requests;
                self.redis.refund(&amount).await?;
                // This worker's next request may come before the news.
                self.forget(&amount.key);
            }
        }
        Ok(())
    }

    /// Has debts paid as soon as Redis is back.
    pub(super) fn merge_later(self: &Arc<Self>) {
        if !self.merges.swap(true, Relaxed) {
            tokio::spawn(Arc::clone(self).merge());
        }
    }

    async fn merge(self: Arc<Self>) {
        // Sent again under the same name until Redis has said something: it may have been done.
        let mut pending: Vec<(String, Debt)> = Vec::new();
        loop {
            tokio::time::sleep(DEBTS_EVERY).await;
            if self.redis.health() != Health::Up {
                continue;
            }
            if pending.is_empty() {
                let now_us = self.now_us();
                let debts = lock(&self.insurance).debts(DEBTS_AT_ONCE, now_us);
                if debts.is_empty() {
                    // Between this look and the end a request may have been insured: it starts the next one.
                    self.merges.store(false, Relaxed);
                    return;
                }
                pending = debts.into_iter().map(|debt| (self.new_name(), debt)).collect();
            }
            pending = self.pay(pending).await;
        }
    }

    /// Pays debts; returns those that are still to be paid.
    async fn pay(self: &Arc<Self>, debts: Vec<(String, Debt)>) -> Vec<(String, Debt)> {
        let mut tasks = JoinSet::new();
        for (batch, debt) in debts {
            let redis = self.redis.clone();
            tasks.spawn(async move {
                let outcome =
                    redis.merge(&batch, &amount(debt.key.clone(), &debt.quota, debt.requests)).await;
                (batch, debt, outcome)
            });
        }
        let mut open = Vec::new();
        while let Some(joined) = tasks.join_next().await {
            let Ok((batch, debt, outcome)) = joined else { continue };
            match outcome {
                Ok(first) => {
                    tracing::debug!(first, requests = debt.requests, "a debt of the outage was paid");
                    lock(&self.insurance).paid(std::slice::from_ref(&debt));
                }
                // Something else lies under the key: asking again would never end.
                Err(
                    error @ (Error::Protocol { .. } | Error::Refused { refusal: Refusal::WrongType, .. }),
                ) => {
                    tracing::warn!(%error, "a debt of the outage cannot be paid: {error}");
                    lock(&self.insurance).paid(std::slice::from_ref(&debt));
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
