//! Checks, charges and states of single limits, and their wire form, described at the head of
//! `migrations/0017_regatta_limit_v2.lua`; that of a check at the head of `migrations/0021_regatta_v5.lua`.

use crate::redis::RedisError;
use crate::redis::wire::{ReplyReader, Value, number};

/// The kind of notification that a limit has quota again.
pub const LIMIT_REPLENISHED: char = 'l';

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
    /// Its numbers in wire order.
    pub fn args(&self) -> [Value; 3] {
        [self.interval_us, self.tolerance_us, self.requests].map(number)
    }
}

/// One rate limit of one subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimitCheck {
    /// Key of the limit's state.
    pub key: String,
    /// What is limited, and how much of it is allowed.
    pub parameters: LimitParameters,
    /// Whether its denial is only reported.
    pub shadow: bool,
    /// Requests charged; 0 only reads.
    pub cost: u64,
}

impl RateLimitCheck {
    /// Whether a granted request holds a permit until it ends.
    pub fn needs_permit(&self) -> bool {
        self.cost > 0 && matches!(self.parameters, LimitParameters::Concurrency { .. })
    }
}

/// What a limit limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitParameters {
    /// Requests per time (GCRA).
    Rate {
        /// Time one request costs, µs, ≥ 1.
        interval_us: u64,
        /// Time that may be spent at once, µs: interval × burst.
        tolerance_us: u64,
    },
    /// Requests at once.
    Concurrency {
        /// A request counts for this long at most, µs, unless it is renewed.
        lease_us: u64,
        /// Most at once, ≥ 1.
        max: u64,
    },
}

impl RateLimitCheck {
    /// Kind, a, b and the cost in their wire form.
    pub fn to_wire(&self) -> [u64; 4] {
        let (kind, a, b) = match self.parameters {
            LimitParameters::Rate { interval_us, tolerance_us } => (0, interval_us, tolerance_us),
            LimitParameters::Concurrency { lease_us, max } => (2, lease_us, max),
        };
        [kind + u64::from(self.shadow), a, b, self.cost]
    }
}

/// One limit's decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimitDecision {
    /// Whether this limit allows the request.
    pub allowed: bool,
    /// Requests that would be allowed right now.
    pub remaining: u64,
    /// When the request would be allowed, µs from now; `None` if it is allowed, or can never be.
    pub retry_after_us: Option<u64>,
    /// When the limit is unused again, µs from now.
    pub reset_us: u64,
}

impl RateLimitDecision {
    /// Reads a decision out of the reply to a request's begin.
    ///
    /// # Errors
    /// `Protocol` when a number is missing.
    pub fn read(numbers: &mut ReplyReader<'_>) -> Result<Self, RedisError> {
        let allowed = numbers.signed()? == 1;
        let remaining = numbers.unsigned()?;
        let retry_after_us = u64::try_from(numbers.signed()?).ok();
        Ok(Self { allowed, remaining, retry_after_us, reset_us: numbers.unsigned()? })
    }
}
