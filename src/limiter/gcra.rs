//! Quotas, and the generic cell rate algorithm in whole microseconds, without a clock (ITU-T I.371, annex A).
//!
//! The same arithmetic as in `migrations/0021_regatta_v5.lua`; one table of cases drives both.

use crate::config::limits::Rate;
use crate::limiter::commands::RateLimitDecision;

/// Longest tolerance, µs (31 years): arrival times stay far below 2^53, where Lua's numbers stop being exact.
const TOLERANCE_MAX_US: u64 = 1_000_000_000_000_000;

/// A rate and a burst, as the two durations that GCRA works with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    interval_us: u64,
    tolerance_us: u64,
    burst: u64,
}

/// One of the workers that share a limit while Redis is unavailable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerShare {
    /// Instances, ≥ 1; none knows its number among them, so each has the same part.
    pub instances: u64,
    /// Workers of this instance, ≥ 1.
    pub workers: u64,
    /// Number of this worker among them, from 0.
    pub rank: u64,
}

impl WorkerShare {
    /// The only worker.
    pub const WHOLE: Self = Self { instances: 1, workers: 1, rank: 0 };

    /// Its part of a number. The remainder of the division goes to some of the instance's workers, to others of them
    /// for another key, so that a limit below their number is available on some worker and on none twice.
    pub fn portion(&self, whole: u64, key: &str) -> u64 {
        let per_instance = whole / self.instances.max(1);
        let workers = self.workers.max(1);
        // FNV-1a: every worker must compute the same number, whichever release it runs.
        let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let offset = key.bytes().fold(0xcbf2_9ce4_8422_2325, fnv) % workers;
        per_instance / workers + u64::from((self.rank + offset) % workers < per_instance % workers)
    }
}

impl Quota {
    /// A quota of a sustained rate and of requests that may come at once.
    ///
    /// The interval is rounded up: a rate that does not divide a second is never exceeded. A burst below 1 counts
    /// as 1; one that would take more than 31 years to come back is cut.
    pub fn new(rate: Rate, burst: u64) -> Self {
        let period_us = u64::try_from(rate.period.as_micros()).unwrap_or(TOLERANCE_MAX_US);
        let interval_us = period_us.div_ceil(rate.count.max(1)).clamp(1, TOLERANCE_MAX_US);
        let burst = burst.clamp(1, TOLERANCE_MAX_US / interval_us);
        Self { interval_us, tolerance_us: interval_us * burst, burst }
    }

    /// A multiple of the quota.
    pub fn scaled(&self, factor: u64) -> Self {
        let factor = factor.max(1);
        let interval_us = self.interval_us.div_ceil(factor);
        let burst = self.burst.saturating_mul(factor).min(TOLERANCE_MAX_US / interval_us);
        Self { interval_us, tolerance_us: interval_us * burst, burst }
    }

    /// The part of one worker among those who do not see each other's requests; `None`: the quota is too small for
    /// all of them, and this one has none. All parts together never exceed the whole, in burst and in rate.
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

/// A decision, and the state to store for the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GcraDecision {
    /// The decision that the client gets.
    pub reply: RateLimitDecision,
    /// Theoretical arrival time to store, µs; `None`: the stored one stays.
    pub tat_us: Option<u64>,
}

/// Decides whether `cost` requests are allowed at `now_us` (any clock, µs) after the arrival time `tat_us`.
///
/// An arrival time further ahead than the tolerance cannot have come from this clock: it is cut to the tolerance, so
/// that a clock that stepped back denies no client for long.
pub fn decide(tat_us: Option<u64>, now_us: u64, quota: &Quota, cost: u64) -> GcraDecision {
    let (interval, tolerance) = (quota.interval_us(), quota.tolerance_us());
    let ahead = tat_us.map_or(0, |tat| tat.saturating_sub(now_us)).min(tolerance);
    let increment = interval.saturating_mul(cost);
    let required = ahead.saturating_add(increment);
    let allowed = required <= tolerance;
    let spent = if allowed { required } else { ahead };
    let reply = RateLimitDecision {
        allowed,
        remaining: (tolerance - spent) / interval,
        retry_after_us: (!allowed && increment <= tolerance).then(|| required - tolerance),
        reset_us: spent,
    };
    // The cut value is stored: an hour later the same clock would find the old one an hour ahead again.
    let cut = tat_us.is_some_and(|tat| tat.saturating_sub(now_us) > tolerance);
    GcraDecision { reply, tat_us: (cut || allowed && cost > 0).then(|| now_us + spent) }
}

/// The arrival time after `cost` requests were returned at `now_us`; `None`: the whole burst is available.
#[cfg(test)]
pub(super) fn refund(tat_us: Option<u64>, now_us: u64, quota: &Quota, cost: u64) -> Option<u64> {
    let ahead = tat_us?.saturating_sub(now_us).min(quota.tolerance_us());
    match ahead.saturating_sub(quota.interval_us().saturating_mul(cost)) {
        0 => None,
        left => Some(now_us + left),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// The cases of throttled's `TestRateLimit` (5 at once, 1/s), shared with the Lua code's test: time in ms, cost →
    /// remaining, reset ms, retry ms, allowed.
    const THROTTLED: &str = include_str!("../../tests/it/support/gcra_throttled.txt");

    #[test]
    fn decisions_agree_with_throttled() {
        let quota = Quota::new(Rate { count: 1, period: Duration::from_secs(1) }, 5);
        let mut tat = None;
        for line in THROTTLED.lines().filter(|line| !line.starts_with('#')) {
            let row: Vec<&str> = line.split_ascii_whitespace().collect();
            let number = |column: usize| row[column].parse::<u64>().unwrap();
            let decision = decide(tat, number(0) * 1000, &quota, number(1));
            let expected = RateLimitDecision {
                allowed: row[5] == "yes",
                remaining: number(2),
                reset_us: number(3) * 1000,
                retry_after_us: row[4].parse::<u64>().ok().map(|ms| ms * 1000),
            };
            assert_eq!(decision.reply, expected, "{line}");
            tat = decision.tat_us.or(tat);
        }
    }

    #[test]
    fn an_arrival_time_from_a_wrong_clock_denies_no_client_for_long() {
        let quota = Quota::new(Rate { count: 1, period: Duration::from_secs(1) }, 5);
        let denied = decide(Some(3_600_000_000), 0, &quota, 1);
        assert_eq!(denied.reply.retry_after_us, Some(1_000_000));
        assert!(decide(Some(3_600_000_000), 0, &quota, 0).reply.allowed);
    }

    #[test]
    fn a_refund_never_returns_more_than_was_charged() {
        let quota = Quota::new(Rate { count: 1, period: Duration::from_secs(1) }, 5);
        let spent = decide(None, 0, &quota, 5).tat_us;
        assert_eq!(decide(refund(spent, 0, &quota, 2), 0, &quota, 0).reply.remaining, 2);
        assert_eq!(refund(spent, 0, &quota, 99), None);
        assert_eq!(refund(None, 0, &quota, 1), None);
        assert_eq!(refund(Some(3_600_000_000), 0, &quota, 0), Some(5_000_000));
    }

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
            assert!(instances > 1 || bursts == quota.burst(), "one instance uses the whole quota");
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

    proptest! {
        #[test]
        fn never_more_than_the_burst_plus_the_rate(gaps in prop::collection::vec(0u64..3_000_000, 1..200), burst in 1u64..20) {
            let quota = Quota::new(Rate { count: 2, period: Duration::from_secs(1) }, burst);
            let (mut now, mut tat, mut admitted) = (1_000_000_000u64, None, 0u64);
            let start = now;
            for gap in gaps {
                now += gap;
                let decision = decide(tat, now, &quota, 1);
                admitted += u64::from(decision.reply.allowed);
                tat = decision.tat_us.or(tat);
                prop_assert!(admitted <= burst + (now - start) / quota.interval_us());
                if let Some(wait) = decision.reply.retry_after_us {
                    prop_assert!(decide(tat, now + wait, &quota, 1).reply.allowed);
                    prop_assert!(!decide(tat, now + wait - 1, &quota, 1).reply.allowed);
                }
            }
        }
    }
}
