//! Limits that are exceeded at once when quota comes back: quota is prefetched for all requests of a worker together,
//! a few dozen times a second however many there are.
//!
//! Where an interval is shorter than a round trip, a check each time the next request may be allowed would be a
//! thousand calls a second at a thousand requests a second. So a denial with a short wait makes its limit *hot* in
//! this worker: one request prefetches what the last moment has brought, those that arrive meanwhile wait for that,
//! and the rest are denied until the next prefetch is due. Nothing is allowed that was not prefetched; what is denied
//! might have been allowed [`HOT_PREFETCH_INTERVAL_US`] later at most, after a `Retry-After` of a second.
//! Pure but for the [`Notify`] that requests wait for; times are µs of the worker's clock.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::limiter::gcra::Quota;

/// Shortest time between two prefetches, and the longest wait that makes a limit hot.
pub const HOT_PREFETCH_INTERVAL_US: u64 = 20_000;

/// How long a limit stays hot after the last denial.
pub(super) const HOT_DURATION_US: u64 = 1_000_000;

/// Longest time whose quota one prefetch takes.
const REPLENISHED_MAX_US: u64 = 200_000;

/// A limit that is hot in this worker.
#[derive(Debug, Clone)]
pub(super) struct HotLimit {
    until_us: u64,
    /// When the last prefetch was answered; the next one is due an interval later.
    prefetched_us: u64,
    next_prefetch_us: u64,
    /// A prefetch is in flight since then; the others wait for its reply.
    in_flight: Option<(u64, Arc<Notify>)>,
    /// Time until the whole burst is available, by the last reply.
    reset_us: u64,
}

/// What a request under a hot limit has to do when no prefetched quota is left.
#[derive(Debug)]
pub enum HotLimitStep {
    /// It prefetches so much, for itself and for those that wait for this.
    Prefetch(u64, Arc<Notify>),
    /// A prefetch is in flight: wait for this and try again.
    Wait(Arc<Notify>),
    /// It is denied.
    Denied {
        /// When there may be quota again, µs.
        retry_us: u64,
        /// Time until the whole burst is available, µs.
        reset_us: u64,
    },
}

/// Whether quota may be prefetched in bulk: if the burst came back within two prefetches, each would lose a part of
/// it.
pub(super) fn can_be_hot(quota: &Quota) -> bool {
    quota.tolerance_us() >= 4 * HOT_PREFETCH_INTERVAL_US && quota.interval_us() < HOT_PREFETCH_INTERVAL_US
}

/// The largest cost that prefetched quota of a hot limit pays for.
pub(super) fn max_cost(quota: &Quota) -> u64 {
    (HOT_PREFETCH_INTERVAL_US / quota.interval_us()).max(1)
}

impl HotLimit {
    pub(super) fn new(now_us: u64, reset_us: u64) -> Self {
        let until_us = now_us.saturating_add(HOT_DURATION_US);
        Self {
            until_us,
            prefetched_us: now_us,
            next_prefetch_us: now_us.saturating_add(HOT_PREFETCH_INTERVAL_US),
            in_flight: None,
            reset_us,
        }
    }

    pub(super) fn is_expired(&self, now_us: u64) -> bool {
        self.until_us <= now_us && self.in_flight.is_none()
    }

    /// The limit was exceeded again.
    pub(super) fn extend(&mut self, now_us: u64) {
        self.until_us = self.until_us.max(now_us.saturating_add(HOT_DURATION_US));
    }

    /// What a request has to do that cannot be paid for; `demand` is the cost requested in the last tenth of a
    /// second.
    pub(super) fn next_step(
        &mut self,
        quota: &Quota,
        demand: u64,
        now_us: u64,
        timeout_us: u64,
        waited: bool,
    ) -> HotLimitStep {
        if let Some((since_us, answered)) = &self.in_flight
            && now_us.saturating_sub(*since_us) < timeout_us
            && !waited
        {
            return HotLimitStep::Wait(Arc::clone(answered));
        }
        if self.in_flight.is_none() && now_us >= self.next_prefetch_us {
            let answered = Arc::new(Notify::new());
            self.in_flight = Some((now_us, Arc::clone(&answered)));
            // What came back since the last prefetch, and what comes back until this one is answered and used.
            let since_us =
                now_us.saturating_sub(self.prefetched_us).min(REPLENISHED_MAX_US) + HOT_PREFETCH_INTERVAL_US;
            let returned = since_us / quota.interval_us();
            return HotLimitStep::Prefetch(
                returned.min(demand).clamp(1, (quota.burst() / 2).max(1)),
                answered,
            );
        }
        self.extend(now_us);
        HotLimitStep::Denied {
            retry_us: self.next_prefetch_us.saturating_sub(now_us).max(1),
            reset_us: self.reset_us,
        }
    }

    /// A prefetch was answered.
    pub(super) fn record_prefetched(&mut self, reset_us: u64, now_us: u64) {
        self.reset_us = reset_us;
        self.prefetched_us = now_us;
        self.next_prefetch_us = now_us.saturating_add(HOT_PREFETCH_INTERVAL_US);
        self.wake_waiters();
    }

    /// Quota was returned: the next request prefetches.
    pub(super) fn prefetch_now(&mut self, now_us: u64) {
        self.next_prefetch_us = self.next_prefetch_us.min(now_us);
    }

    /// Lets waiting requests try again.
    pub(super) fn wake_waiters(&mut self) {
        if let Some((_, answered)) = self.in_flight.take() {
            answered.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::limits::Rate;

    const TIMEOUT_US: u64 = 500_000;

    fn quota(rate: u64, burst: u64) -> Quota {
        Quota::new(Rate { count: rate, period: Duration::from_secs(1) }, burst)
    }

    #[test]
    fn one_request_prefetches_and_the_others_wait_or_are_denied_until_the_next_prefetch() {
        let quota = quota(1000, 2000);
        let mut hot = HotLimit::new(0, 9);
        let step =
            |hot: &mut HotLimit, now_us, waited| hot.next_step(&quota, 500, now_us, TIMEOUT_US, waited);
        assert!(matches!(step(&mut hot, 10, false), HotLimitStep::Denied { retry_us: 19_990, reset_us: 9 }));
        assert!(matches!(step(&mut hot, 20_000, false), HotLimitStep::Prefetch(40, _)));
        assert!(matches!(step(&mut hot, 20_001, false), HotLimitStep::Wait(_)));
        assert!(matches!(step(&mut hot, 20_002, true), HotLimitStep::Denied { .. }), "it waits once");
        hot.record_prefetched(7, 22_000);
        assert!(matches!(
            step(&mut hot, 22_000, true),
            HotLimitStep::Denied { retry_us: 20_000, reset_us: 7 }
        ));
        assert!(
            matches!(step(&mut hot, 72_000, false), HotLimitStep::Prefetch(70, _)),
            "a late prefetch loses nothing"
        );
        assert!(!hot.is_expired(9_000_000), "a prefetch is in flight");
        hot.wake_waiters();
        assert!(!hot.is_expired(1_021_999) && hot.is_expired(1_022_000));
    }

    #[test]
    fn no_more_is_prefetched_than_is_requested_or_half_the_burst() {
        let amount = |quota: Quota, demand| {
            let step = HotLimit::new(0, 0).next_step(&quota, demand, 150_000, TIMEOUT_US, false);
            let HotLimitStep::Prefetch(amount, _) = step else { panic!("{step:?}") };
            amount
        };
        assert_eq!(amount(quota(1000, 2000), 3), 3);
        assert_eq!(amount(quota(1000, 2000), 0), 1);
        assert_eq!(amount(quota(1000, 2000), 9999), 170);
        assert_eq!(amount(quota(1000, 100), 9999), 50);
    }

    #[test]
    fn slow_limits_and_tiny_bursts_are_checked_one_by_one() {
        assert!(can_be_hot(&quota(1000, 2000)) && can_be_hot(&quota(100, 20)));
        assert!(!can_be_hot(&quota(50, 100)), "a wait of 20 ms is known here");
        assert!(!can_be_hot(&quota(1000, 20)), "it comes back within a prefetch");
    }
}
