//! How a policy's quota is prefetched: from which demand on, how much, and how much stays in Redis.

use crate::config::limits::{PREFETCH_BURST_MIN, PrefetchMode};
use crate::limiter::gcra::Quota;

/// Requests of one worker in a tenth of a second from which `auto` prefetches: a prefetch costs as much as three or
/// four checks that ride on a call that is made anyway.
const AUTO_DEMAND_MIN: u64 = 40;

/// Fewest requests that are prefetched: for less a request can as well be checked in Redis.
pub(super) const PREFETCH_MIN: u64 = 2;

/// When a worker prefetches, and how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::limiter) struct PrefetchTerms {
    /// Most requests that it holds.
    pub(in crate::limiter) held_max: u64,
    /// Requests that Redis must still have after a prefetch. Without a reserve a client that comes to another worker
    /// could be denied what is held here.
    pub(in crate::limiter) reserve: u64,
    /// Requests in a tenth of a second from which it prefetches.
    pub(in crate::limiter) demand_min: u64,
    /// Whether only subjects that come often get a bucket, and denied workers call quota back.
    pub(in crate::limiter) busy_only: bool,
}

impl PrefetchTerms {
    /// The terms of a policy; `None`: its quota is never prefetched.
    pub(in crate::limiter) fn for_mode(mode: PrefetchMode, quota: &Quota) -> Option<Self> {
        let burst = quota.burst();
        let eager = |held_max| Self { held_max, reserve: 0, demand_min: PREFETCH_MIN, busy_only: false };
        match mode {
            PrefetchMode::Never => None,
            PrefetchMode::Always => Some(eager(burst / 20)),
            PrefetchMode::AtMost(most) => Some(eager(most.min(burst / 2))),
            PrefetchMode::Auto if burst < PREFETCH_BURST_MIN => None,
            PrefetchMode::Auto => Some(Self {
                held_max: burst / 20,
                reserve: burst / 2,
                demand_min: AUTO_DEMAND_MIN,
                busy_only: true,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::limits::Rate;

    #[test]
    fn auto_prefetches_from_a_burst_of_a_hundred_and_reserves_half_of_it() {
        let terms = |mode, burst| {
            let quota = Quota::new(Rate { count: burst, period: Duration::from_secs(1) }, burst);
            PrefetchTerms::for_mode(mode, &quota).map(|terms| (terms.held_max, terms.reserve))
        };
        assert_eq!(terms(PrefetchMode::Auto, 99), None);
        assert_eq!(terms(PrefetchMode::Auto, 100), Some((5, 50)));
        assert_eq!(terms(PrefetchMode::Auto, 10_000), Some((500, 5_000)));
        assert_eq!(terms(PrefetchMode::Always, 10_000), Some((500, 0)));
        assert_eq!(
            (terms(PrefetchMode::AtMost(7), 100), terms(PrefetchMode::AtMost(70), 100)),
            (Some((7, 0)), Some((50, 0)))
        );
        assert_eq!(terms(PrefetchMode::Never, 10_000), None);
    }
}
