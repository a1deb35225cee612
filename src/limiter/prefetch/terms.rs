//! How a policy's quota is leased: when a worker draws some in advance, how much, and how much it leaves alone.

use crate::config::limits::{PREFETCH_BURST_MIN, PrefetchMode};
use crate::limiter::quota::Quota;

/// Requests of one worker in a tenth of a second from which `auto` leases: a draw costs as much as three or four
/// questions that ride on a call that is made anyway.
const AUTO_DEMAND_MIN: u64 = 40;

/// Fewest requests that are drawn: for less a request may as well ask itself.
const PREFETCH_MIN: u64 = 2;

/// When a worker leases, and how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::limiter) struct PrefetchTerms {
    /// Most requests that it holds.
    pub(in crate::limiter) held_max: u64,
    /// Requests that Redis must still have after a draw. Without a reserve a client that comes to another worker could
    /// be denied what lies here.
    pub(in crate::limiter) reserve: u64,
    /// Requests in a tenth of a second from which it draws.
    pub(in crate::limiter) demand_min: u64,
    /// Whether subjects are told apart by how often they come, before anything is kept of them.
    pub(in crate::limiter) busy_only: bool,
}

impl PrefetchTerms {
    /// The terms of a policy; `None`: it is never leased.
    pub(in crate::limiter) fn for_lease(lease: PrefetchMode, quota: &Quota) -> Option<Self> {
        let burst = quota.burst();
        let eager = |most| Self { held_max: most, reserve: 0, demand_min: PREFETCH_MIN, busy_only: false };
        match lease {
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
    fn auto_leases_from_a_burst_of_a_hundred_and_leaves_half_of_it_alone() {
        let of = |lease, burst| {
            let quota = Quota::new(Rate { count: burst, period: Duration::from_secs(1) }, burst);
            PrefetchTerms::for_lease(lease, &quota).map(|terms| (terms.held_max, terms.reserve))
        };
        assert_eq!(of(PrefetchMode::Auto, 99), None);
        assert_eq!(of(PrefetchMode::Auto, 100), Some((5, 50)));
        assert_eq!(of(PrefetchMode::Auto, 10_000), Some((500, 5_000)));
        assert_eq!(of(PrefetchMode::Always, 10_000), Some((500, 0)));
        assert_eq!(
            (of(PrefetchMode::AtMost(7), 100), of(PrefetchMode::AtMost(70), 100)),
            (Some((7, 0)), Some((50, 0)))
        );
        assert_eq!(of(PrefetchMode::Never, 10_000), None);
    }
}
