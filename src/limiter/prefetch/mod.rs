//! Quota that a worker prefetches, so that most requests under a high limit need no round trip.
//!
//! Prefetched quota is charged in Redis before it is used, and worth only what of that charge is still ahead
//! ([`spans`]): time takes it from the worker as it takes it from Redis, so any number of workers allows no more than
//! the limit, in any window (but for the time in which the notification of a return is on its way). A worker holds
//! what it needs in a tenth of a second (by default at least what the rate brings in that time: time would take less
//! before it is used), at most what the policy's [`terms`] allow. It returns what it did not use within two tenths of
//! a second (under `auto` not what time takes within two more), or as soon as another worker is denied; a worker that
//! dies loses that much. By default nothing is stored of a subject until it comes often, and the last half of its
//! burst is not prefetched. What time takes unused was charged for nothing: a client whose rate is less than half a
//! second's quota below its limit may be denied. Pure; times are µs of the worker's clock.

mod bucket;
mod spans;
pub(super) mod terms;

use std::num::NonZeroUsize;

pub(super) use bucket::refund_chunk_us;
use lru::LruCache;
pub(super) use spans::unelapsed_us;

use crate::config::limits::PrefetchMode;
use crate::limiter::commands::RateLimitDecision;
use crate::limiter::demand_sketch::DemandSketch;
use crate::limiter::gcra::Quota;
use crate::limiter::hot_limit;
use crate::limiter::hot_limit::{HotLimit, HotLimitStep};
use crate::limiter::prefetch::bucket::{DEMAND_WINDOW_US, PrefetchBucket, PrefetchState};
use crate::limiter::prefetch::terms::{PREFETCH_MIN, PrefetchTerms};

/// How long prefetched quota is held, µs.
pub const HOLD_US: u64 = 200_000;

/// Most limits with a bucket; what the least recently used one holds is lost until time brings it back.
const BUCKETS_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 14) - 1);

/// Prefetched quota by the limits' keys.
#[derive(Debug)]
pub struct QuotaPrefetch {
    buckets: LruCache<Box<str>, PrefetchBucket>,
    /// Which of the limits without a bucket should have one.
    demand: DemandSketch,
    /// Until then a limit may be hot.
    hot_until_us: u64,
}

/// Redis's reply to a prefetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefetchReply {
    /// Requests that were charged; 0 if Redis had none.
    pub requests: u64,
    /// Time from the charge until the whole burst is available, µs.
    pub reset_us: u64,
    /// When the prefetch was sent.
    pub sent_us: u64,
    /// Whether notifications of returned quota have arrived since then. If not, the quota counts as the nearest
    /// possible: from the moment of sending on.
    pub was_subscribed: bool,
}

/// Quota to return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaReturn {
    /// The limit's quota.
    pub quota: Quota,
    /// How much of its time, µs: a request may have been taken by time in part.
    pub time_us: u64,
}

/// What prefetched quota does for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsumeOutcome {
    /// It pays for it; the limit's state, as far as this worker knows.
    Consumed(RateLimitDecision),
    /// There is not enough: check with Redis.
    Insufficient,
}

impl QuotaPrefetch {
    /// An empty table; `seeds` are random and secret.
    pub fn new(seeds: [u64; 2]) -> Self {
        Self { buckets: LruCache::sparse(BUCKETS_MAX), demand: DemandSketch::new(seeds), hot_until_us: 0 }
    }

    /// Consumes `cost` of what is held.
    pub fn consume(
        &mut self,
        key: &str,
        (quota, mode): (&Quota, PrefetchMode),
        cost: u64,
        now_us: u64,
    ) -> ConsumeOutcome {
        if !self.has_bucket(key, quota, mode, now_us) {
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

    /// Whether a limit has a bucket, or should have one from now on.
    fn has_bucket(&mut self, key: &str, quota: &Quota, mode: PrefetchMode, now_us: u64) -> bool {
        if !self.buckets.is_empty() && self.buckets.contains(key) {
            return true;
        }
        match PrefetchTerms::for_mode(mode, quota) {
            Some(terms) if terms.busy_only => self.demand.count_is_busy(key, now_us),
            Some(_) => true,
            None => false,
        }
    }

    /// Records a limit's state, received now in reply to a check of `sent_us`, if the limit has a bucket. A reply
    /// that a later one overtook is ignored: it would count as left what was prefetched since.
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

    /// Redis denied a request that may be allowed again in less time than a prefetch takes: from now on quota is
    /// prefetched for all.
    pub fn mark_hot(&mut self, key: &str, quota: &Quota, reset_us: u64, now_us: u64) {
        if !hot_limit::can_be_hot(quota) {
            return;
        }
        let Some(bucket) = self.bucket_mut(key, quota, now_us) else { return };
        bucket.hot.get_or_insert_with(|| HotLimit::new(now_us, reset_us)).extend(now_us);
        self.hot_until_us = now_us.saturating_add(hot_limit::HOT_DURATION_US);
    }

    /// What a request under a hot limit has to do when no quota is left; `None`: the limit is not hot, and Redis
    /// decides.
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
        let step = hot.next_step(&quota, demand, now_us, timeout_us, waited);
        self.hot_until_us = now_us.saturating_add(hot_limit::HOT_DURATION_US);
        Some(step)
    }

    /// Whether a limit is hot.
    pub fn is_hot(&self, key: &str, now_us: u64) -> bool {
        let is_hot = |bucket: &PrefetchBucket| bucket.hot.as_ref().is_some_and(|hot| !hot.is_expired(now_us));
        self.may_be_hot(now_us) && self.buckets.peek(key).is_some_and(is_hot)
    }

    /// Whether any limit may be hot; for nearly every worker this comparison is all that hot limits cost.
    pub fn may_be_hot(&self, now_us: u64) -> bool {
        now_us < self.hot_until_us
    }

    /// The prefetch of a hot limit was answered; `None`: it failed, and Redis decides each request.
    pub fn record_hot_prefetched(&mut self, key: &str, reply: Option<PrefetchReply>, now_us: u64) -> bool {
        let prefetch_state = self.buckets.peek(key).map(|bucket| bucket.prefetch_state);
        let is_held = self.record_prefetched(key, reply, now_us);
        let Some(bucket) = self.buckets.peek_mut(key) else { return is_held };
        bucket.prefetch_state = prefetch_state.unwrap_or(PrefetchState::Idle);
        if let Some(hot) = &mut bucket.hot {
            match reply {
                Some(reply) => hot.record_prefetched(reply.reset_us, now_us),
                None => {
                    hot.wake_waiters();
                    bucket.hot = None;
                }
            }
        }
        is_held
    }

    /// Quota was returned: Redis may have some at once, and what is held here may be nearer than it seems.
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

    /// Returns what a request consumed at `consumed_us`; true if it is held here again, false if it has to go to
    /// Redis.
    pub fn return_unused(&mut self, key: &str, cost: u64, (consumed_us, now_us): (u64, u64)) -> bool {
        match self.buckets.peek_mut(key) {
            Some(bucket) if bucket.hold_until_us > now_us => {
                let cost_us = bucket.quota.interval_us().saturating_mul(cost);
                bucket.spans.restore(cost_us, consumed_us, now_us);
                true
            }
            _ => false,
        }
    }

    /// Whether so much is held: such a request needs no reply of Redis, whatever Redis replied to others.
    pub fn holds_enough(&self, key: &str, cost: u64, now_us: u64) -> bool {
        self.buckets.peek(key).is_some_and(|bucket| bucket.held(now_us) >= cost)
    }

    /// How much to prefetch now, if less than half of the target is left; ends with
    /// [`QuotaPrefetch::record_prefetched`].
    ///
    /// Only what is missing: what a worker holds is denied to all others.
    pub fn amount_to_prefetch(
        &mut self,
        key: &str,
        (mode, cost): (PrefetchMode, u64),
        now_us: u64,
        timeout_us: u64,
    ) -> Option<u64> {
        if self.is_hot(key, now_us) {
            return None;
        }
        let bucket = self.buckets.peek_mut(key)?;
        let terms = PrefetchTerms::for_mode(mode, &bucket.quota)?;
        let demand = bucket.requested.max(bucket.requested_before);
        let demand_min =
            if terms.busy_only { terms.demand_min.saturating_mul(cost) } else { terms.demand_min };
        // At least what the rate brings: near now, time would take most of less before it is used.
        let brought = if terms.busy_only { DEMAND_WINDOW_US / bucket.quota.interval_us() } else { 0 };
        let target = terms.held_max.min(demand.max(brought));
        // Including what is about to be returned: if the reply comes first, it stays here beside what it brings.
        let held = bucket.spans.remaining_us(now_us) / bucket.quota.interval_us();
        let is_in_flight = matches!(bucket.prefetch_state, PrefetchState::InFlight(since) if now_us.saturating_sub(since) < timeout_us);
        if is_in_flight || held * 2 >= target || demand < demand_min || target < PREFETCH_MIN {
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

    /// A prefetch was answered; `None`: it failed. Returns whether quota is held that has to be returned in time.
    pub fn record_prefetched(&mut self, key: &str, reply: Option<PrefetchReply>, now_us: u64) -> bool {
        let Some(bucket) = self.buckets.peek_mut(key) else { return false };
        bucket.prefetch_state = PrefetchState::Idle;
        let Some(PrefetchReply { requests: requests @ 1.., reset_us, sent_us, was_subscribed }) = reply
        else {
            return false;
        };
        let length_us = bucket.quota.interval_us().saturating_mul(requests);
        let is_nearer =
            !was_subscribed || bucket.refunded_us.is_some_and(|refunded_us| refunded_us >= sent_us);
        // Counted from the sending, which is before Redis decided: no later than it is.
        let tat_us = sent_us.saturating_add(reset_us);
        let latest_us = if is_nearer { sent_us.saturating_add(length_us) } else { u64::MAX };
        bucket.spans.add(tat_us.min(latest_us), length_us, now_us);
        bucket.hold_until_us = now_us.saturating_add(HOLD_US);
        true
    }

    /// Takes out what was prefetched at `sent_us` and is wanted elsewhere: other workers prefetched too, and Redis
    /// has less left than the policy's reserve, or another worker called it back meanwhile.
    pub fn take_excess(
        &mut self,
        key: &str,
        mode: PrefetchMode,
        (sent_us, now_us): (u64, u64),
    ) -> Option<QuotaReturn> {
        let bucket = self.buckets.peek(key)?;
        let reserve = PrefetchTerms::for_mode(mode, &bucket.quota)?.reserve;
        let enough = reserve == 0 || bucket.remaining_in_redis(now_us).is_none_or(|left| left >= reserve);
        let is_reclaimed = bucket.reclaimed_us.is_some_and(|reclaimed_us| reclaimed_us >= sent_us);
        if enough && !is_reclaimed { None } else { self.take_held(key, now_us) }
    }

    /// Takes out what is held of a limit that denied a request of another worker. What was prefetched for a hot limit
    /// stays, or two workers would send it back and forth.
    pub fn reclaim(&mut self, key: &str, now_us: u64) -> Option<QuotaReturn> {
        if self.is_hot(key, now_us) {
            return None;
        }
        // A prefetch in flight is returned, too, when it is answered.
        self.buckets.peek_mut(key)?.reclaimed_us = Some(now_us);
        self.take_held(key, now_us)
    }

    fn take_held(&mut self, key: &str, now_us: u64) -> Option<QuotaReturn> {
        if self.is_hot(key, now_us) {
            return None;
        }
        let bucket = self.buckets.peek_mut(key)?;
        // No prefetch until Redis reports the limit's state.
        bucket.redis_state = None;
        let time_us = bucket.spans.take_all(now_us);
        (time_us > 0).then_some(QuotaReturn { quota: bucket.quota, time_us })
    }

    /// Takes out what was not used in time, to be returned; `None`: nothing is left, or quota was prefetched again
    /// meanwhile.
    ///
    /// Under `auto` what time takes soon stays: a worker that is denied calls it back, and a return would make what
    /// others hold count as nearer until they are notified.
    pub fn take_expired(&mut self, key: &str, mode: PrefetchMode, now_us: u64) -> Option<QuotaReturn> {
        let is_hot = self.is_hot(key, now_us);
        let bucket = self.buckets.peek_mut(key)?;
        let left_us = bucket.spans.remaining_us(now_us);
        if bucket.hold_until_us > now_us || left_us == 0 {
            return None;
        }
        let end_us = bucket.spans.end_us();
        if mode == PrefetchMode::Auto && !is_hot && end_us <= now_us.saturating_add(HOLD_US) {
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

#[cfg(test)]
mod tests;
