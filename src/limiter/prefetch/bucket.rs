//! What a worker knows and holds of one limit. Pure; times are µs of the worker's clock.

use crate::limiter::commands::RateLimitDecision;
use crate::limiter::gcra::Quota;
use crate::limiter::hot_limit::HotLimit;
use crate::limiter::prefetch::spans::PrefetchedSpans;

/// Time over which demand is counted, µs.
pub(super) const DEMAND_WINDOW_US: u64 = 100_000;

/// How long the state in Redis is used after it was received, µs.
const REDIS_STATE_MAX_AGE_US: u64 = 1_000_000;

#[derive(Debug, Clone)]
pub(super) struct PrefetchBucket {
    pub(super) quota: Quota,
    /// The prefetched quota.
    pub(super) spans: PrefetchedSpans,
    /// When what is left of it has to be returned.
    pub(super) hold_until_us: u64,
    /// Requested cost since `window_start_us`, and in the window before.
    pub(super) requested: u64,
    pub(super) requested_before: u64,
    pub(super) window_start_us: u64,
    pub(super) prefetch_state: PrefetchState,
    /// The limit is exceeded as fast as quota comes back.
    pub(super) hot: Option<HotLimit>,
    /// The limit's arrival time in Redis, in this worker's clock, and when it was received. All that is held is
    /// charged in it.
    pub(super) redis_state: Option<(u64, u64)>,
    /// When another worker last called quota back: what was prefetched before has to be returned, too.
    pub(super) reclaimed_us: Option<u64>,
    /// When quota was last returned: what was prefetched before may be nearer than it seems.
    pub(super) refunded_us: Option<u64>,
}

/// Whether a prefetch is in flight, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PrefetchState {
    Idle,
    InFlight(u64),
}

impl PrefetchBucket {
    pub(super) fn new(quota: Quota, now_us: u64) -> Self {
        Self {
            quota,
            spans: PrefetchedSpans::default(),
            hold_until_us: 0,
            requested: 0,
            requested_before: 0,
            window_start_us: now_us,
            prefetch_state: PrefetchState::Idle,
            hot: None,
            redis_state: None,
            reclaimed_us: None,
            refunded_us: None,
        }
    }

    /// Requests that are held.
    pub(super) fn held(&self, now_us: u64) -> u64 {
        self.held_us(now_us) / self.quota.interval_us()
    }

    /// The same as time, µs.
    fn held_us(&self, now_us: u64) -> u64 {
        if self.hold_until_us > now_us { self.spans.remaining_us(now_us) } else { 0 }
    }

    /// Requests that Redis would allow now, beside what is held here; `None`: not known.
    pub(super) fn remaining_in_redis(&self, now_us: u64) -> Option<u64> {
        Some(self.remaining_in_redis_us(now_us)? / self.quota.interval_us())
    }

    /// The same as time, µs.
    fn remaining_in_redis_us(&self, now_us: u64) -> Option<u64> {
        let (tat_us, received_us) =
            self.redis_state.filter(|(_, at_us)| now_us.saturating_sub(*at_us) < REDIS_STATE_MAX_AGE_US)?;
        let ahead_us = tat_us.saturating_sub(now_us.max(received_us));
        Some(self.quota.tolerance_us().saturating_sub(ahead_us))
    }

    /// The limit's state for its subject, including what is held here.
    pub(super) fn decision(&self, now_us: u64) -> RateLimitDecision {
        let (burst, interval_us) = (self.quota.burst(), self.quota.interval_us());
        // A hot limit prefetches all there is: what is held is all that this worker knows.
        let in_redis = if self.hot.is_some() { None } else { self.remaining_in_redis_us(now_us) };
        // Added as time, so that parts of requests count together.
        let left_us = in_redis.unwrap_or_default().saturating_add(self.held_us(now_us));
        let remaining = (left_us / interval_us).min(burst);
        let reset_us = (burst - remaining).saturating_mul(interval_us);
        RateLimitDecision { allowed: true, remaining, retry_after_us: None, reset_us }
    }

    pub(super) fn count_demand(&mut self, cost: u64, now_us: u64) {
        let windows = now_us.saturating_sub(self.window_start_us) / DEMAND_WINDOW_US;
        if windows > 0 {
            self.requested_before = if windows == 1 { self.requested } else { 0 };
            self.requested = 0;
            self.window_start_us += windows * DEMAND_WINDOW_US;
        }
        self.requested = self.requested.saturating_add(cost);
    }
}

/// Most quota that one call returns, µs of the limit's time: workers that are notified of a return do not know how
/// much it is, and count what they hold as nearer by so much. It is what a worker holds by default, and two requests.
pub(in crate::limiter) fn refund_chunk_us(interval_us: u64, tolerance_us: u64) -> u64 {
    (tolerance_us / 20).saturating_add(interval_us.saturating_mul(2))
}
