//! Quota that a worker draws in advance, so that most requests under a high limit need no round trip.
//!
//! What is drawn is charged in Redis before it is used, and it is worth only what of that charge is still ahead
//! (`lots.rs`): time takes it from the worker as it takes it from Redis, so no number of workers allows more than the
//! limit does, in any window (but for what passes while the news of a return is on its way). A worker holds what it will need in a tenth of a second (or what the rate brings in it,
//! where it is leased by default: less would be passed before it is used), at most what the policy's `Terms` say. It
//! gives back what it did not use within two tenths (under `auto` not what time takes within two more), or as soon as another worker is denied; one that dies leaves that
//! much unused. Where a policy is leased by default, nothing is kept of a subject until it comes often, and nothing is
//! drawn of the last half of its burst. What passes unused was charged for nothing: a client may be denied that is less
//! than what the rate brings in half a second below its burst. Pure; times are µs of the worker's clock.

mod bucket;
mod spans;

use std::num::NonZeroUsize;

pub(super) use bucket::refund_chunk_us;
use lru::LruCache;
pub(super) use spans::unelapsed_us;

use crate::config::limits::PrefetchMode;
use crate::limiter::demand_sketch::DemandSketch;
use crate::limiter::hot_limit;
use crate::limiter::hot_limit::{HotLimit, HotLimitStep};
use crate::limiter::prefetch::bucket::{PrefetchBucket, PrefetchState};
use crate::limiter::prefetch::terms::PrefetchTerms;
use crate::limiter::quota::Quota;
use crate::redis::begin::RateLimitDecision;

/// How long drawn quota may wait, µs.
pub const HOLD_US: u64 = 200_000;

/// Time over which demand is counted, µs.
const DEMAND_WINDOW_US: u64 = 100_000;

/// Fewest requests that are drawn: for less a request may as well ask itself.
const PREFETCH_MIN: u64 = 2;

/// Most limits with drawn quota; what the least recently used one holds is lost until it comes back by itself.
const BUCKETS_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 14) - 1);

/// Drawn quota by the limits' keys.
#[derive(Debug)]
pub struct QuotaPrefetch {
    buckets: LruCache<Box<str>, PrefetchBucket>,
    /// Of limits without a purse: which of them should have one.
    demand: DemandSketch,
    /// Until then some limit may be hot.
    hot_until_us: u64,
}

/// An answer to a draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefetchReply {
    /// Requests that were charged; 0 if Redis had none.
    pub requests: u64,
    /// When the limit is as if never used, µs after it was asked.
    pub reset_us: u64,
    /// When Redis was asked.
    pub sent_us: u64,
    /// Whether this worker has heard since then of what others give back. If not, time takes what was drawn from the
    /// question on, as if nothing lay before it.
    pub was_subscribed: bool,
}

/// What is given back of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaReturn {
    /// The limit's.
    pub quota: Quota,
    /// How much of its time: a request may have been passed in part.
    pub time_us: u64,
}

/// What a request gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsumeOutcome {
    /// It is paid for; how the limit stands, as far as this worker knows.
    Consumed(RateLimitDecision),
    /// There is not enough: ask Redis.
    Insufficient,
}

impl QuotaPrefetch {
    /// Nothing is held; `seeds` are this worker's own and secret.
    pub fn new(seeds: [u64; 2]) -> Self {
        Self { buckets: LruCache::sparse(BUCKETS_MAX), demand: DemandSketch::new(seeds), hot_until_us: 0 }
    }

    /// Takes `cost` from what was drawn.
    pub fn consume(
        &mut self,
        key: &str,
        (quota, lease): (&Quota, PrefetchMode),
        cost: u64,
        now_us: u64,
    ) -> ConsumeOutcome {
        if !self.has_bucket(key, quota, lease, now_us) {
            return ConsumeOutcome::Insufficient;
        }
        let Some(bucket) = self.bucket_mut(key, quota, now_us) else { return ConsumeOutcome::Insufficient };
        bucket.count_demand(cost, now_us);
        let cost_us = bucket.quota.interval_us().saturating_mul(cost);
        if bucket.hold_until_us <= now_us || !bucket.spans.consume(cost_us, now_us) {
            return ConsumeOutcome::Insufficient;
        }
        ConsumeOutcome::Consumed(bucket.decision(now_us))
    }

    /// Whether anything is kept of a limit, or should be from now on.
    fn has_bucket(&mut self, key: &str, quota: &Quota, lease: PrefetchMode, now_us: u64) -> bool {
        if !self.buckets.is_empty() && self.buckets.contains(key) {
            return true;
        }
        match PrefetchTerms::for_lease(lease, quota) {
            Some(terms) if terms.busy_only => self.demand.count_is_busy(key, now_us),
            Some(_) => true,
            None => false,
        }
    }

    /// How a limit stood in Redis, heard now in answer to a question from `asked_us`; kept only of limits that may be
    /// drawn. An answer that a later one overtook would count as left what was drawn since.
    pub fn record_redis_state(&mut self, key: &str, reset_us: u64, (sent_us, now_us): (u64, u64)) {
        if self.buckets.is_empty() {
            return;
        }
        if let Some(bucket) = self.buckets.peek_mut(key) {
            let tat_us = now_us.saturating_add(reset_us);
            let overtaken = |(known_us, received_us)| sent_us < received_us && tat_us < known_us;
            if !bucket.redis_state.is_some_and(overtaken) {
                bucket.redis_state = Some((tat_us, now_us));
            }
        }
    }

    fn bucket_mut(&mut self, key: &str, quota: &Quota, now_us: u64) -> Option<&mut PrefetchBucket> {
        if !self.buckets.contains(key) {
            self.buckets.push(key.into(), PrefetchBucket::new(*quota, now_us));
        }
        self.buckets.get_mut(key)
    }

    /// Redis denied a request that may come again in less time than a draw takes: from now on quota is drawn for all.
    pub fn mark_hot(&mut self, key: &str, quota: &Quota, reset_us: u64, now_us: u64) {
        if !hot_limit::can_be_hot(quota) {
            return;
        }
        let Some(bucket) = self.bucket_mut(key, quota, now_us) else { return };
        bucket.hot.get_or_insert_with(|| HotLimit::new(now_us, reset_us)).extend(now_us);
        self.hot_until_us = now_us.saturating_add(hot_limit::HOT_DURATION_US);
    }

    /// What a request under a limit does that is hot and has not so much paid for; `None`: the limit is not hot, and
    /// it asks Redis itself.
    pub fn hot_limit_step(
        &mut self,
        key: &str,
        cost: u64,
        (now_us, timeout_us): (u64, u64),
        waited: bool,
    ) -> Option<HotLimitStep> {
        if !self.may_be_hot(now_us) {
            return None;
        }
        let bucket = self.buckets.get_mut(key)?;
        let quota = bucket.quota;
        if cost > hot_limit::max_cost(&quota) {
            return None;
        }
        if !waited {
            bucket.count_demand(cost, now_us);
        }
        let demand = bucket.requested.max(bucket.requested_before);
        let hot = bucket.hot.as_mut()?;
        if hot.is_expired(now_us) {
            bucket.hot = None;
            return None;
        }
        let turn = hot.next_step(&quota, demand, now_us, timeout_us, waited);
        self.hot_until_us = now_us.saturating_add(hot_limit::HOT_DURATION_US);
        Some(turn)
    }

    /// Whether a limit is hot: what it allows is paid from what was drawn.
    pub fn is_hot(&self, key: &str, now_us: u64) -> bool {
        let is_hot = |bucket: &PrefetchBucket| bucket.hot.as_ref().is_some_and(|hot| !hot.is_expired(now_us));
        self.may_be_hot(now_us) && self.buckets.peek(key).is_some_and(is_hot)
    }

    /// Of next to all workers no limit is hot: this is all that it costs them.
    pub fn may_be_hot(&self, now_us: u64) -> bool {
        now_us < self.hot_until_us
    }

    /// A draw for a hot limit was answered; `None`: it failed, and each request asks by itself.
    pub fn record_hot_prefetched(&mut self, key: &str, answer: Option<PrefetchReply>, now_us: u64) -> bool {
        let drawing = self.buckets.peek(key).map(|bucket| bucket.prefetch_state);
        let kept = self.record_prefetched(key, answer, now_us);
        let Some(bucket) = self.buckets.peek_mut(key) else { return kept };
        bucket.prefetch_state = drawing.unwrap_or(PrefetchState::Idle);
        if let Some(hot) = &mut bucket.hot {
            match answer {
                Some(draw) => hot.record_prefetched(draw.reset_us, now_us),
                None => {
                    hot.wake_waiters();
                    bucket.hot = None;
                }
            }
        }
        kept
    }

    /// Quota was given back: there may be some at once, and what is held here is nearer.
    pub fn on_quota_returned(&mut self, key: &str, now_us: u64) {
        if self.buckets.is_empty() {
            return;
        }
        let Some(bucket) = self.buckets.peek_mut(key) else { return };
        bucket.refunded_us = Some(now_us);
        let by_us = refund_chunk_us(bucket.quota.interval_us(), bucket.quota.tolerance_us());
        bucket.spans.shift_earlier(by_us, now_us);
        if let Some(hot) = &mut bucket.hot {
            hot.prefetch_now(now_us);
        }
    }

    /// Gives back what a request took at `spent_us` and does not need; whether it is held here again, or else has to go
    /// to Redis.
    pub fn return_unused(&mut self, key: &str, cost: u64, (spent_us, now_us): (u64, u64)) -> bool {
        match self.buckets.peek_mut(key) {
            Some(bucket) if bucket.hold_until_us > now_us => {
                let cost_us = bucket.quota.interval_us().saturating_mul(cost);
                bucket.spans.restore(cost_us, spent_us, now_us);
                true
            }
            _ => false,
        }
    }

    /// Whether so much is paid for: such a request needs no answer of Redis, whatever Redis said to others.
    pub fn holds_enough(&self, key: &str, cost: u64, now_us: u64) -> bool {
        self.buckets.peek(key).is_some_and(|bucket| bucket.held(now_us) >= cost)
    }

    /// How much to draw now, if less than half of what is to be held is left; ends with [`Advance::drawn`].
    ///
    /// Only what is missing: what a worker holds is denied to all others.
    pub fn amount_to_prefetch(
        &mut self,
        key: &str,
        (lease, cost): (PrefetchMode, u64),
        now_us: u64,
        timeout_us: u64,
    ) -> Option<u64> {
        if self.is_hot(key, now_us) {
            return None;
        }
        let bucket = self.buckets.peek_mut(key)?;
        let terms = PrefetchTerms::for_lease(lease, &bucket.quota)?;
        let demand = bucket.requested.max(bucket.requested_before);
        let from = if terms.busy_only { terms.demand_min.saturating_mul(cost) } else { terms.demand_min };
        // Near now, time takes what the rate brings: of less than that most would be passed before it is used.
        let passes = if terms.busy_only { DEMAND_WINDOW_US / bucket.quota.interval_us() } else { 0 };
        let target = terms.held_max.min(demand.max(passes));
        // What is about to go back counts: a draw that is answered first keeps it here, beside what it brings.
        let held = bucket.spans.remaining_us(now_us) / bucket.quota.interval_us();
        let waits = matches!(bucket.prefetch_state, PrefetchState::InFlight(since) if now_us.saturating_sub(since) < timeout_us);
        if waits || held * 2 >= target || demand < from || target < PREFETCH_MIN {
            return None;
        }
        let mut amount = target.saturating_sub(held).max(PREFETCH_MIN);
        if terms.reserve > 0 {
            amount = amount.min(bucket.remaining_in_redis(now_us)?.saturating_sub(terms.reserve));
        }
        if amount < PREFETCH_MIN {
            return None;
        }
        bucket.prefetch_state = PrefetchState::InFlight(now_us);
        Some(amount)
    }

    /// A draw was answered; `None`: it was not. Whether it has to be looked after.
    pub fn record_prefetched(&mut self, key: &str, answer: Option<PrefetchReply>, now_us: u64) -> bool {
        let Some(bucket) = self.buckets.peek_mut(key) else { return false };
        bucket.prefetch_state = PrefetchState::Idle;
        let Some(PrefetchReply { requests: requests @ 1.., reset_us, sent_us, was_subscribed }) = answer
        else {
            return false;
        };
        let length_us = bucket.quota.interval_us().saturating_mul(requests);
        let is_nearer =
            !was_subscribed || bucket.refunded_us.is_some_and(|refunded_us| refunded_us >= sent_us);
        // Counted from the question, which was before Redis decided: no later than it is.
        let tat_us = sent_us.saturating_add(reset_us);
        let latest_us = if is_nearer { sent_us.saturating_add(length_us) } else { u64::MAX };
        bucket.spans.add(tat_us.min(latest_us), length_us, now_us);
        bucket.hold_until_us = now_us.saturating_add(HOLD_US);
        true
    }

    /// Takes out what was drawn at `asked_us` and is wanted elsewhere: others drew too, and Redis has less left than the
    /// policy's reserve, or another worker called it back meanwhile.
    pub fn take_excess(
        &mut self,
        key: &str,
        lease: PrefetchMode,
        (sent_us, now_us): (u64, u64),
    ) -> Option<QuotaReturn> {
        let bucket = self.buckets.peek(key)?;
        let reserve = PrefetchTerms::for_lease(lease, &bucket.quota)?.reserve;
        let enough = reserve == 0 || bucket.remaining_in_redis(now_us).is_none_or(|left| left >= reserve);
        let is_reclaimed = bucket.reclaimed_us.is_some_and(|reclaimed_us| reclaimed_us >= sent_us);
        if enough && !is_reclaimed { None } else { self.take_held(key, now_us) }
    }

    /// Takes out what is held of a limit that denied a request of another worker; what was drawn in a flood stays, or
    /// two workers would send it to and fro.
    pub fn reclaim(&mut self, key: &str, now_us: u64) -> Option<QuotaReturn> {
        if self.is_hot(key, now_us) {
            return None;
        }
        // What is on its way goes back, too, when it comes.
        self.buckets.peek_mut(key)?.reclaimed_us = Some(now_us);
        self.take_held(key, now_us)
    }

    fn take_held(&mut self, key: &str, now_us: u64) -> Option<QuotaReturn> {
        if self.is_hot(key, now_us) {
            return None;
        }
        let bucket = self.buckets.peek_mut(key)?;
        // Nothing more is drawn until Redis says how the limit stands.
        bucket.redis_state = None;
        let time_us = bucket.spans.take_all(now_us);
        (time_us > 0).then_some(QuotaReturn { quota: bucket.quota, time_us })
    }

    /// Takes out what has waited too long, for Redis to have it back; `None`: it is gone, or drawn anew meanwhile.
    ///
    /// Under `auto` what time takes soon stays: a worker that is denied calls it back, and a return would bring what
    /// others hold nearer to now than they know for a moment.
    pub fn take_expired(&mut self, key: &str, lease: PrefetchMode, now_us: u64) -> Option<QuotaReturn> {
        let is_hot = self.is_hot(key, now_us);
        let bucket = self.buckets.peek_mut(key)?;
        let left_us = bucket.spans.remaining_us(now_us);
        if bucket.hold_until_us > now_us || left_us == 0 {
            return None;
        }
        let end_us = bucket.spans.end_us();
        if lease == PrefetchMode::Auto && !is_hot && end_us <= now_us.saturating_add(HOLD_US) {
            bucket.hold_until_us = end_us;
            return None;
        }
        Some(QuotaReturn { quota: bucket.quota, time_us: bucket.spans.take_all(now_us) })
    }

    /// Takes out everything.
    #[cfg(test)]
    fn drain(&mut self, now_us: u64) -> Vec<(String, QuotaReturn)> {
        let all = self.buckets.iter_mut().map(|(key, bucket)| {
            (key.to_string(), QuotaReturn { quota: bucket.quota, time_us: bucket.spans.take_all(now_us) })
        });
        all.filter(|(_, held)| held.time_us > 0).collect()
    }
}

pub(in crate::limiter) mod terms;
#[cfg(test)]
mod tests;
