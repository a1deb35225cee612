//! What a worker knows and holds of one limit. Pure; times are µs of the worker's clock.

use crate::limiter::hot_limit::HotLimit;
use crate::limiter::prefetch::DEMAND_WINDOW_US;
use crate::limiter::prefetch::spans::PrefetchedSpans;
use crate::limiter::quota::Quota;
use crate::redis::begin::RateLimitDecision;

/// How long it is believed how a limit stands in Redis, µs.
const REDIS_STATE_MAX_AGE_US: u64 = 1_000_000;

#[derive(Debug, Clone)]
pub(super) struct PrefetchBucket {
    pub(super) quota: Quota,
    /// What is paid for.
    pub(super) spans: PrefetchedSpans,
    /// When what is left goes back.
    pub(super) hold_until_us: u64,
    /// Requests asked for since `span_us`, and in the span before.
    pub(super) requested: u64,
    pub(super) requested_before: u64,
    pub(super) window_start_us: u64,
    pub(super) prefetch_state: PrefetchState,
    /// More is wanted than there is.
    pub(super) hot: Option<HotLimit>,
    /// The limit's arrival time in Redis, in this clock, and when that was heard: all that is held is charged in it.
    pub(super) redis_state: Option<(u64, u64)>,
    /// When another worker last wanted what is held here: what was asked for before that is wanted, too.
    pub(super) reclaimed_us: Option<u64>,
    /// When quota was last given back: what was drawn before that may be nearer than it seems.
    pub(super) refunded_us: Option<u64>,
}

/// Whether more is being drawn.
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

    /// Requests that are paid for.
    pub(super) fn held(&self, now_us: u64) -> u64 {
        self.held_us(now_us) / self.quota.interval_us()
    }

    /// The same as time.
    fn held_us(&self, now_us: u64) -> u64 {
        if self.hold_until_us > now_us { self.spans.remaining_us(now_us) } else { 0 }
    }

    /// Requests that Redis would allow now besides what is held here; `None`: not known.
    pub(super) fn remaining_in_redis(&self, now_us: u64) -> Option<u64> {
        Some(self.remaining_in_redis_us(now_us)? / self.quota.interval_us())
    }

    /// The same as time.
    fn remaining_in_redis_us(&self, now_us: u64) -> Option<u64> {
        let (tat_us, received_us) =
            self.redis_state.filter(|(_, at_us)| now_us.saturating_sub(*at_us) < REDIS_STATE_MAX_AGE_US)?;
        let ahead_us = tat_us.saturating_sub(now_us.max(received_us));
        Some(self.quota.tolerance_us().saturating_sub(ahead_us))
    }

    /// How the limit stands for its subject: what is held here is left, too.
    pub(super) fn decision(&self, now_us: u64) -> RateLimitDecision {
        let (burst, interval_us) = (self.quota.burst(), self.quota.interval_us());
        // A flood draws what there is: what is held is all that this worker can say.
        let in_redis = if self.hot.is_some() { None } else { self.remaining_in_redis_us(now_us) };
        // Parts of requests count together: what time took of the one came back in the other.
        let left_us = in_redis.unwrap_or_default().saturating_add(self.held_us(now_us));
        let remaining = (left_us / interval_us).min(burst);
        let reset_us = (burst - remaining).saturating_mul(interval_us);
        RateLimitDecision { allowed: true, remaining, retry_after_us: None, reset_us }
    }

    pub(super) fn count_demand(&mut self, cost: u64, now_us: u64) {
        let spans = now_us.saturating_sub(self.window_start_us) / DEMAND_WINDOW_US;
        if spans > 0 {
            self.requested_before = if spans == 1 { self.requested } else { 0 };
            self.requested = 0;
            self.window_start_us += spans * DEMAND_WINDOW_US;
        }
        self.requested = self.requested.saturating_add(cost);
    }
}

/// Most that is given back of a limit in one call, µs of the limit's time: workers that hear of a return, but not how
/// much it is, count what they hold as so much nearer. It is what a worker holds by default, and two requests.
pub(in crate::limiter) fn refund_chunk_us(interval_us: u64, tolerance_us: u64) -> u64 {
    (tolerance_us / 20).saturating_add(interval_us.saturating_mul(2))
}
