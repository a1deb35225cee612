//! How a policy's quota is leased: when a worker draws some in advance, how much, and how much it leaves alone.

use crate::config::limit::LEASE_BURST_MIN;
use crate::config::limit::Lease;
use crate::limiter::quota::Quota;

/// Requests of one worker in a tenth of a second from which `auto` leases: a draw costs as much as three or four
/// questions that ride on a call that is made anyway.
const AUTO_FROM: u64 = 40;

/// Fewest requests that are drawn: for less a request may as well ask itself.
const DRAW_MIN: u64 = 2;

/// When a worker leases, and how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Terms {
    /// Most requests that it holds.
    pub(super) most: u64,
    /// Requests that Redis must still have after a draw. Without a reserve a client that comes to another worker could
    /// be denied what lies here.
    pub(super) reserve: u64,
    /// Requests in a tenth of a second from which it draws.
    pub(super) from: u64,
    /// Whether subjects are told apart by how often they come, before anything is kept of them.
    pub(super) busy_only: bool,
}

impl Terms {
    /// The terms of a policy; `None`: it is never leased.
    pub(super) fn of(lease: Lease, quota: &Quota) -> Option<Self> {
        let burst = quota.burst();
        let eager = |most| Self { most, reserve: 0, from: DRAW_MIN, busy_only: false };
        match lease {
            Lease::Never => None,
            Lease::Always => Some(eager(burst / 20)),
            Lease::AtMost(most) => Some(eager(most.min(burst / 2))),
            Lease::Auto if burst < LEASE_BURST_MIN => None,
            Lease::Auto => {
                Some(Self { most: burst / 20, reserve: burst / 2, from: AUTO_FROM, busy_only: true })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::limit::Rate;

    #[test]
    fn auto_leases_from_a_burst_of_a_hundred_and_leaves_half_of_it_alone() {
        let of = |lease, burst| {
            let quota = Quota::new(Rate { count: burst, period: Duration::from_secs(1) }, burst);
            Terms::of(lease, &quota).map(|terms| (terms.most, terms.reserve))
        };
        assert_eq!(of(Lease::Auto, 99), None);
        assert_eq!(of(Lease::Auto, 100), Some((5, 50)));
        assert_eq!(of(Lease::Auto, 10_000), Some((500, 5_000)));
        assert_eq!(of(Lease::Always, 10_000), Some((500, 0)));
        assert_eq!((of(Lease::AtMost(7), 100), of(Lease::AtMost(70), 100)), (Some((7, 0)), Some((50, 0))));
        assert_eq!(of(Lease::Never, 10_000), None);
    }
}
