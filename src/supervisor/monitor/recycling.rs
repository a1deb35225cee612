//! When a worker has done enough, or holds too much: limits and its figures → stay, retire or kill; pure.
//!
//! That only one worker retires at a time is the planner's business.

use std::fmt;
use std::time::Duration;

use crate::scoreboard::ExitReason;

/// Samples in a row above the soft limit before a worker retires: a spike is no leak.
const SAMPLES_ABOVE_SOFT: u32 = 3;

/// Time between two samples of a worker's memory.
const MEMORY_INTERVAL: Duration = Duration::from_secs(1);

/// The same when it holds most of what it may.
const MEMORY_INTERVAL_NEAR_LIMIT: Duration = Duration::from_millis(500);

/// Bounds on a worker's life; none is unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecycleLimits {
    /// Requests after which it retires.
    pub requests: Option<u64>,
    /// Up to this many more, another number for each worker, so that they do not all retire at once.
    pub requests_jitter: u64,
    /// Age at which it retires at the latest; up to a tenth earlier, for the same reason.
    pub age: Option<Duration>,
    /// Private memory above which it retires, bytes.
    pub memory_soft: Option<u64>,
    /// Private memory above which it is killed, bytes.
    pub memory_hard: Option<u64>,
}

impl RecycleLimits {
    /// Whether a worker's memory has to be looked at at all.
    pub fn has_memory_limit(&self) -> bool {
        self.memory_soft.is_some() || self.memory_hard.is_some()
    }

    /// Whether there is any bound.
    pub fn has_any_limit(&self) -> bool {
        self.has_memory_limit() || self.requests.is_some() || self.age.is_some()
    }

    /// Whether this much memory is at least four fifths of a limit.
    pub fn is_near(&self, memory: u64) -> bool {
        let lowest = self.memory_soft.into_iter().chain(self.memory_hard).min();
        lowest.is_some_and(|limit| memory >= limit / 5 * 4)
    }
}

/// What is to become of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecycleDecision {
    /// It goes on.
    Keep,
    /// A successor takes its slot, then it drains.
    Replace(RecycleCause),
    /// It is killed at once.
    Kill(RecycleCause),
    /// It is as heavy as when it was new: to replace it would be of no use, the limit is too low. Reported once.
    LimitTooLow(RecycleCause),
}

/// Which limit was met, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecycleCause {
    /// It has answered this many requests.
    Requests(u64),
    /// It is this old.
    Age(Duration),
    /// It holds this much private memory, and may hold that much; bytes.
    Memory {
        /// What it holds.
        held: u64,
        /// What it may.
        limit: u64,
    },
}

impl RecycleCause {
    /// The reason an exit for it is counted under.
    pub fn exit_reason(self) -> ExitReason {
        match self {
            Self::Requests(_) => ExitReason::Requests,
            Self::Age(_) => ExitReason::Age,
            Self::Memory { .. } => ExitReason::Memory,
        }
    }
}

impl fmt::Display for RecycleCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        match *self {
            Self::Requests(requests) => write!(f, "it has answered {requests} requests"),
            Self::Age(age) => {
                write!(f, "it is {} old", humantime::format_duration(Duration::from_secs(age.as_secs())))
            }
            Self::Memory { held, limit } => {
                write!(f, "it holds {:.1} MiB of memory, more than {:.1} MiB", mib(held), mib(limit))
            }
        }
    }
}

/// What is remembered of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecycleTracker {
    /// Tells this worker from others: same seed, same jitter.
    seed: u64,
    /// Samples in a row above the soft limit; none as long as it has never been below it.
    above: Option<u32>,
    /// Whether it was found too heavy when it was new.
    limit_too_low: bool,
    /// When its memory is looked at next.
    sample_at: Duration,
}

impl RecycleTracker {
    /// For a worker whose process is `pid`, in slot `slot`.
    pub fn new(slot: usize, pid: u32) -> Self {
        Self {
            seed: ((slot as u64) << 32) | u64::from(pid),
            above: None,
            limit_too_low: false,
            sample_at: Duration::ZERO,
        }
    }

    /// Whether its memory has to be read now.
    pub fn needs_memory_sample(&self, limits: &RecycleLimits, now: Duration) -> bool {
        limits.has_memory_limit() && now >= self.sample_at
    }

    /// Takes a sample of its private memory, bytes.
    pub fn check_memory(&mut self, limits: &RecycleLimits, held: u64, now: Duration) -> RecycleDecision {
        self.sample_at =
            now + if limits.is_near(held) { MEMORY_INTERVAL_NEAR_LIMIT } else { MEMORY_INTERVAL };
        if let Some(limit) = limits.memory_hard.filter(|limit| held > *limit) {
            return RecycleDecision::Kill(RecycleCause::Memory { held, limit });
        }
        let Some(limit) = limits.memory_soft.filter(|limit| held > *limit) else {
            self.above = Some(0);
            return RecycleDecision::Keep;
        };
        let cause = RecycleCause::Memory { held, limit };
        let Some(above) = &mut self.above else {
            // Its successors would be no better, and retire for ever.
            let reported = std::mem::replace(&mut self.limit_too_low, true);
            return if reported { RecycleDecision::Keep } else { RecycleDecision::LimitTooLow(cause) };
        };
        *above = above.saturating_add(1);
        if *above < SAMPLES_ABOVE_SOFT { RecycleDecision::Keep } else { RecycleDecision::Replace(cause) }
    }

    /// Checks what it has done since it became READY.
    pub fn check_age_and_requests(
        &self,
        limits: &RecycleLimits,
        requests: u64,
        age: Duration,
    ) -> RecycleDecision {
        if limits.requests.is_some_and(|most| requests >= self.max_requests(limits, most)) {
            return RecycleDecision::Replace(RecycleCause::Requests(requests));
        }
        if limits.age.is_some_and(|oldest| age >= self.max_age(oldest)) {
            return RecycleDecision::Replace(RecycleCause::Age(age));
        }
        RecycleDecision::Keep
    }

    /// When its age comes to be too much, counted from READY; none when it may grow old.
    #[cfg(test)]
    fn max_age_at(&self, limits: &RecycleLimits) -> Option<Duration> {
        limits.age.map(|oldest| self.max_age(oldest))
    }

    fn max_requests(&self, limits: &RecycleLimits, most: u64) -> u64 {
        let choices = limits.requests_jitter.saturating_add(1);
        most.saturating_add(mix(self.seed) % choices)
    }

    fn max_age(&self, oldest: Duration) -> Duration {
        let share = (mix(!self.seed) >> 11) as f64 / (1_u64 << 53) as f64;
        oldest.mul_f64(1.0 - share / 10.0)
    }
}

/// Spreads a seed over all numbers (the last step of `SplitMix64`).
fn mix(seed: u64) -> u64 {
    let seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let seed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let seed = (seed ^ (seed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    seed ^ (seed >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;
    const NOW: Duration = Duration::from_secs(100);
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    #[test]
    fn without_limits_every_worker_stays() {
        let limits = RecycleLimits::default();
        let mut watch = RecycleTracker::new(0, 1);
        assert!(!limits.has_any_limit() && !watch.needs_memory_sample(&limits, NOW));
        assert_eq!(watch.check_age_and_requests(&limits, u64::MAX, Duration::MAX), RecycleDecision::Keep);
        assert_eq!(watch.check_memory(&limits, u64::MAX, NOW), RecycleDecision::Keep);
    }

    #[test]
    fn workers_of_one_fleet_retire_apart() {
        let limits = RecycleLimits {
            requests: Some(1000),
            requests_jitter: 500,
            age: Some(DAY),
            ..RecycleLimits::default()
        };
        let mut most: Vec<_> =
            (0..8).map(|n| RecycleTracker::new(n, 100 + n as u32).max_requests(&limits, 1000)).collect();
        let mut ages: Vec<_> =
            (0..8).map(|n| RecycleTracker::new(n, 100 + n as u32).max_age_at(&limits).unwrap()).collect();
        most.sort_unstable();
        ages.sort_unstable();
        most.dedup();
        ages.dedup();
        assert!(most.len() > 6 && ages.len() == 8, "{most:?} {ages:?}");
        assert!(most[most.len() - 1] - most[0] > 100, "{most:?}");
        assert!(ages[7] - ages[0] > DAY / 50, "{ages:?}");
    }

    #[test]
    fn a_spike_is_no_leak_and_a_leak_is_found() {
        let limits = RecycleLimits { memory_soft: Some(100 * MIB), ..RecycleLimits::default() };
        let mut watch = RecycleTracker::new(0, 1);
        for held in [99, 101, 101, 99, 101, 101] {
            assert_eq!(watch.check_memory(&limits, held * MIB, NOW), RecycleDecision::Keep);
        }
        let cause = RecycleCause::Memory { held: 102 * MIB, limit: 100 * MIB };
        assert_eq!(watch.check_memory(&limits, 102 * MIB, NOW), RecycleDecision::Replace(cause));
        assert_eq!(cause.to_string(), "it holds 102.0 MiB of memory, more than 100.0 MiB");
    }

    #[test]
    fn a_worker_that_starts_above_the_limit_is_kept_and_reported_once() {
        let limits = RecycleLimits { memory_soft: Some(100 * MIB), ..RecycleLimits::default() };
        let mut watch = RecycleTracker::new(0, 1);
        assert!(matches!(watch.check_memory(&limits, 101 * MIB, NOW), RecycleDecision::LimitTooLow(_)));
        assert!((0..10).all(|_| watch.check_memory(&limits, 101 * MIB, NOW) == RecycleDecision::Keep));
        watch.check_memory(&limits, 99 * MIB, NOW);
        let later: Vec<_> = (0..3).map(|_| watch.check_memory(&limits, 101 * MIB, NOW)).collect();
        assert!(matches!(later[2], RecycleDecision::Replace(_)), "{later:?}");
    }

    #[test]
    fn the_hard_limit_kills_at_once() {
        let limits = RecycleLimits {
            memory_soft: Some(100 * MIB),
            memory_hard: Some(200 * MIB),
            ..RecycleLimits::default()
        };
        let decision = RecycleTracker::new(0, 1).check_memory(&limits, 201 * MIB, NOW);
        assert_eq!(
            decision,
            RecycleDecision::Kill(RecycleCause::Memory { held: 201 * MIB, limit: 200 * MIB })
        );
    }

    #[test]
    fn memory_is_sampled_more_often_near_the_limit() {
        let limits = RecycleLimits { memory_hard: Some(100 * MIB), ..RecycleLimits::default() };
        let mut watch = RecycleTracker::new(0, 1);
        assert!(watch.needs_memory_sample(&limits, NOW));
        watch.check_memory(&limits, 79 * MIB, NOW);
        assert!(
            !watch.needs_memory_sample(&limits, NOW + MEMORY_INTERVAL_NEAR_LIMIT)
                && watch.needs_memory_sample(&limits, NOW + MEMORY_INTERVAL)
        );
        watch.check_memory(&limits, 80 * MIB, NOW);
        assert!(watch.needs_memory_sample(&limits, NOW + MEMORY_INTERVAL_NEAR_LIMIT));
    }

    proptest! {
        #[test]
        fn jitter_stays_within_its_bounds(slot in 0_usize..1024, pid in 0_u32.., most in 1_u64..1_000_000_000, jitter in 0_u64..1_000_000) {
            let limits = RecycleLimits { requests: Some(most), requests_jitter: jitter, age: Some(DAY), ..RecycleLimits::default() };
            let watch = RecycleTracker::new(slot, pid);
            prop_assert_eq!(watch.check_age_and_requests(&limits, most - 1, DAY.mul_f64(0.9) - Duration::from_secs(1)), RecycleDecision::Keep);
            prop_assert_ne!(watch.check_age_and_requests(&limits, most + jitter, Duration::ZERO), RecycleDecision::Keep);
            prop_assert_ne!(watch.check_age_and_requests(&limits, 0, DAY), RecycleDecision::Keep);
        }
    }
}
