//! A rate and a burst as the two durations that GCRA works with.

use crate::config::limit::Rate;

/// Longest tolerance, µs (31 years): arrival times stay far below 2^53, where Lua's numbers stop being exact.
const TOLERANCE_MAX_US: u64 = 1_000_000_000_000_000;

/// How much a subject may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    interval_us: u64,
    tolerance_us: u64,
    burst: u64,
}

impl Quota {
    /// A sustained rate, and how many requests may come at once.
    ///
    /// The interval is rounded up: a rate that does not divide a second is never exceeded. A burst below 1 counts
    /// as 1; one that would take more than 31 years to come back is cut.
    pub fn new(rate: Rate, burst: u64) -> Self {
        let period_us = u64::try_from(rate.period.as_micros()).unwrap_or(TOLERANCE_MAX_US);
        let interval_us = period_us.div_ceil(rate.count.max(1)).clamp(1, TOLERANCE_MAX_US);
        let burst = burst.clamp(1, TOLERANCE_MAX_US / interval_us);
        Self { interval_us, tolerance_us: interval_us * burst, burst }
    }

    /// The part of one of so many who do not know of each other; a burst of at least 1, and all of it for one.
    pub fn share(&self, sharers: u64) -> Self {
        let sharers = sharers.max(1);
        let interval_us = self.interval_us.saturating_mul(sharers).min(TOLERANCE_MAX_US);
        let burst = (self.burst / sharers).clamp(1, TOLERANCE_MAX_US / interval_us);
        Self { interval_us, tolerance_us: interval_us * burst, burst }
    }

    /// Time one request costs, µs, ≥ 1.
    pub fn interval_us(&self) -> u64 {
        self.interval_us
    }

    /// Time that may be spent at once, µs: interval × burst.
    pub fn tolerance_us(&self) -> u64 {
        self.tolerance_us
    }

    /// Requests that may come at once, ≥ 1.
    pub fn burst(&self) -> u64 {
        self.burst
    }

    /// Time in which an unused burst comes back, whole seconds rounded up, ≥ 1.
    pub fn window_secs(&self) -> u64 {
        self.tolerance_us.div_ceil(1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_rate_that_does_not_divide_its_time_is_never_exceeded() {
        let quota = Quota::new(Rate { count: 3, period: Duration::from_secs(1) }, 3);
        assert_eq!((quota.interval_us(), quota.tolerance_us()), (333_334, 1_000_002));
    }

    #[test]
    fn the_extremes_stay_exact_in_lua() {
        let slowest = Quota::new(Rate { count: 1, period: Duration::from_secs(31 * 86_400) }, 1_000_000);
        assert!(slowest.tolerance_us() + 4_000_000_000_000_000 < 1 << 53);
        assert!(slowest.burst() >= 1 && slowest.tolerance_us() == slowest.interval_us() * slowest.burst());
        let fastest = Quota::new(Rate { count: 1_000_000, period: Duration::from_secs(1) }, 0);
        assert_eq!((fastest.interval_us(), fastest.burst(), fastest.window_secs()), (1, 1, 1));
    }
}
