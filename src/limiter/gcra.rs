//! The generic cell rate algorithm in whole microseconds, without a clock (ITU-T I.371, annex A).
//!
//! The same arithmetic as in `migrations/0021_regatta_v5.lua`; one table of cases drives both.

use crate::limiter::quota::Quota;
use crate::redis::begin::RateLimitDecision;

/// A decision, and what must be remembered for the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GcraDecision {
    /// What the client is told.
    pub reply: RateLimitDecision,
    /// Theoretical arrival time to store, µs; `None`: what is stored stays.
    pub tat_us: Option<u64>,
}

/// Decides whether `cost` requests are allowed at `now_us` (any clock, µs) after the arrival time `tat_us`.
///
/// An arrival time further ahead than the tolerance cannot have come from this clock: it is cut to the tolerance, so
/// that a clock that stepped back locks nobody out.
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
    // What was cut is stored so: the same clock, an hour later, would find it an hour ahead again.
    let cut = tat_us.is_some_and(|tat| tat.saturating_sub(now_us) > tolerance);
    GcraDecision { reply, tat_us: (cut || allowed && cost > 0).then(|| now_us + spent) }
}

/// The arrival time after `cost` requests were given back at `now_us`; never before now, where all is unused.
pub fn refund(tat_us: Option<u64>, now_us: u64, quota: &Quota, cost: u64) -> Option<u64> {
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
    use crate::config::limits::Rate;

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
    fn an_arrival_time_from_a_wrong_clock_locks_nobody_out() {
        let quota = Quota::new(Rate { count: 1, period: Duration::from_secs(1) }, 5);
        let denied = decide(Some(3_600_000_000), 0, &quota, 1);
        assert_eq!(denied.reply.retry_after_us, Some(1_000_000));
        assert!(decide(Some(3_600_000_000), 0, &quota, 0).reply.allowed);
    }

    #[test]
    fn what_is_given_back_can_be_had_again_and_never_more() {
        let quota = Quota::new(Rate { count: 1, period: Duration::from_secs(1) }, 5);
        let spent = decide(None, 0, &quota, 5).tat_us;
        assert_eq!(decide(refund(spent, 0, &quota, 2), 0, &quota, 0).reply.remaining, 2);
        assert_eq!(refund(spent, 0, &quota, 99), None);
        assert_eq!(refund(None, 0, &quota, 1), None);
        assert_eq!(refund(Some(3_600_000_000), 0, &quota, 0), Some(5_000_000));
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
