//! A rate and a burst as the two durations that GCRA works with.

use crate::config::limits::Rate;
use crate::digest::fnv1a64;

/// Longest tolerance, µs (31 years): arrival times stay far below 2^53, where Lua's numbers stop being exact.
const TOLERANCE_MAX_US: u64 = 1_000_000_000_000_000;

/// How much a subject may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    interval_us: u64,
    tolerance_us: u64,
    burst: u64,
}

/// One worker among those who share a limit while Redis is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerShare {
    /// Machines, ≥ 1; none knows which one it is, so each has the same part.
    pub instances: u64,
    /// Workers of this machine, ≥ 1.
    pub workers: u64,
    /// Number of this worker among them, from 0.
    pub rank: u64,
}

impl WorkerShare {
    /// All of it.
    pub const WHOLE: Self = Self { instances: 1, workers: 1, rank: 0 };

    /// Its part of so many. What does not divide evenly goes to some of the machine's workers, and to others of them
    /// for another key, so that a limit smaller than their number is had somewhere and never twice.
    pub fn portion(&self, whole: u64, key: &str) -> u64 {
        let per_instance = whole / self.instances.max(1);
        let workers = self.workers.max(1);
        // Every worker must find the same number, whatever built it.
        let turn = fnv1a64(key.as_bytes()) % workers;
        per_instance / workers + u64::from((self.rank + turn) % workers < per_instance % workers)
    }
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

    /// So many times as much.
    pub fn scaled(&self, factor: u64) -> Self {
        let factor = factor.max(1);
        let interval_us = self.interval_us.div_ceil(factor);
        let burst = self.burst.saturating_mul(factor).min(TOLERANCE_MAX_US / interval_us);
        Self { interval_us, tolerance_us: interval_us * burst, burst }
    }

    /// The part of one of those who share it and do not know of each other's requests; none if it is too small for all
    /// of them and this one goes without. All parts together are never more than the whole, in burst and in rate.
    pub fn share(&self, part: &WorkerShare, key: &str) -> Option<Self> {
        let burst = part.portion(self.burst, key);
        if burst == 0 {
            return None;
        }
        let whole = u128::from(self.interval_us) * u128::from(self.burst);
        let interval_us = whole.div_ceil(u128::from(burst)).min(u128::from(TOLERANCE_MAX_US));
        let interval_us = u64::try_from(interval_us).unwrap_or(TOLERANCE_MAX_US);
        let burst = burst.min(TOLERANCE_MAX_US / interval_us);
        Some(Self { interval_us, tolerance_us: interval_us * burst, burst })
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
    fn all_parts_together_are_never_more_than_the_whole() {
        for (burst, instances, workers) in
            [(20, 1, 4), (3, 1, 4), (1, 1, 8), (7, 2, 3), (1, 2, 2), (5, 3, 8), (1000, 5, 7), (0, 1, 1)]
        {
            let quota = Quota::new(Rate { count: 10, period: Duration::from_secs(1) }, burst);
            let parts: Vec<_> = (0..workers)
                .filter_map(|rank| quota.share(&WorkerShare { instances, workers, rank }, "k"))
                .collect();
            let (bursts, per_hour) = parts
                .iter()
                .fold((0, 0), |sum, part| (sum.0 + part.burst(), sum.1 + 3_600_000_000 / part.interval_us()));
            assert!(bursts * instances <= quota.burst(), "{burst} {instances} {workers}");
            assert!(per_hour * instances <= 36_000, "{burst} {instances} {workers}: {per_hour}");
            assert!(instances > 1 || bursts == quota.burst(), "on one machine nothing is left over");
        }
        let lucky = |key: &str| {
            let of = |rank| WorkerShare { instances: 1, workers: 4, rank }.portion(1, key);
            (0..4).position(|rank| of(rank) == 1).unwrap()
        };
        assert!((0..20).map(|n| lucky(&format!("k{n}"))).any(|rank| rank != lucky("k0")));
        let quota = Quota::new(Rate { count: 3, period: Duration::from_secs(1) }, 5);
        assert_eq!(quota.share(&WorkerShare::WHOLE, "k"), Some(quota));
        assert_eq!((quota.scaled(10).interval_us(), quota.scaled(10).burst()), (33_334, 50));
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
