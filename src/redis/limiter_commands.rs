//! Charges and states of single limits, and their wire form, described at the head of
//! `migrations/0017_regatta_limit_v2.lua`.

use fred::types::Value;

use crate::redis::wire::number;

/// The kind of notification that asks workers to give back the quota that they hold of a limit, because it denied a
/// request.
pub const QUOTA_RETURN_REQUESTED: char = 'r';

/// A number of requests under one rate limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitCharge {
    /// The limit's key.
    pub key: String,
    /// Time one request costs, µs, ≥ 1.
    pub interval_us: u64,
    /// Time that may be spent at once, µs: interval × burst.
    pub tolerance_us: u64,
    /// Requests.
    pub requests: u64,
}

/// The state of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitStatus {
    /// Requests that would be allowed right now.
    pub remaining: u64,
    /// When the limit is unused again, µs from now.
    pub reset_us: u64,
}

/// Quota that was charged in advance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefetchedQuota {
    /// Requests that were charged.
    pub requests: u64,
    /// When the limit is unused again, µs from now.
    pub reset_us: u64,
}

impl LimitCharge {
    pub(super) fn args(&self) -> [Value; 3] {
        [self.interval_us, self.tolerance_us, self.requests].map(number)
    }
}
