//! How much a limit that the program makes allows, and what holds while Redis is away.

use std::time::Duration;

use crate::config::limits::{
    BURST_MAX, Enforcement, LimitConfig, LimitKind, LimitScope, OnRedisDown, OnRedisFull, PrefetchMode, Rate,
    SubjectKind,
};

/// How long the place of a request is kept whose process was killed.
const CONCURRENCY_LEASE: Duration = Duration::from_secs(10);

/// Most requests that may be under way at the same time.
const CONCURRENT_MAX: u64 = 100_000;

/// Longest period: arrival times of a longer one are not exact in Redis.
const PERIOD_MAX: Duration = Duration::from_secs(31 * 24 * 60 * 60);

/// How much is allowed: so many requests in a time, or at the same time.
///
/// Numbers are taken from 1 to 1,000,000 requests, or to 100,000 at the same time, and times from 1 s to 31 days; what is
/// beyond is taken for the nearest. Unless it is said, the burst is two seconds' worth, and 1 at least.
///
/// ```
/// use std::time::Duration;
/// use regatta::rate_limit::Quota;
///
/// const LOGIN: Quota = Quota::per_minute(20).burst(5);
/// const EXPORT: Quota = Quota::per(3, Duration::from_secs(86_400)).burst(3);
/// const UPLOADS: Quota = Quota::concurrent(8);
/// # let _ = (LOGIN, EXPORT, UPLOADS);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitQuota {
    requests: u64,
    /// None: at the same time.
    period: Option<Duration>,
    burst: Option<u64>,
}

impl LimitQuota {
    /// So many requests a second.
    #[must_use]
    pub const fn per_second(requests: u64) -> Self {
        Self::per(requests, Duration::from_secs(1))
    }

    /// So many requests a minute.
    #[must_use]
    pub const fn per_minute(requests: u64) -> Self {
        Self::per(requests, Duration::from_secs(60))
    }

    /// So many requests in a time.
    #[must_use]
    pub const fn per(requests: u64, period: Duration) -> Self {
        Self { requests, period: Some(period), burst: None }
    }

    /// So many requests under way at the same time, over all processes and machines. The place of a request whose process
    /// was killed is free again after 10 s.
    #[must_use]
    pub const fn concurrent(requests: u64) -> Self {
        Self { requests, period: None, burst: None }
    }

    /// So many requests may come at once; means nothing for requests at the same time.
    #[must_use]
    pub const fn burst(self, requests: u64) -> Self {
        Self { burst: Some(requests), ..self }
    }

    /// As a policy that nothing but a layer applies.
    ///
    /// `client_factor`: how many times the limit one client may use under all values together; 0: no bound of its own.
    pub(crate) fn to_limit(
        self,
        subject: SubjectKind,
        client_factor: u64,
        on_redis_down: OnRedisDown,
    ) -> LimitConfig {
        let kind = match self.period {
            None => LimitKind::Concurrency {
                max: self.requests.clamp(1, CONCURRENT_MAX),
                lease: CONCURRENCY_LEASE,
            },
            Some(period) => {
                let count = self.requests.clamp(1, BURST_MAX);
                let period = period.clamp(Duration::from_secs(1), PERIOD_MAX);
                let usual = 2 * count / period.as_secs();
                let burst = self.burst.unwrap_or(usual).clamp(1, BURST_MAX);
                LimitKind::Rate { rate: Rate { count, period }, burst, prefetch: PrefetchMode::Auto }
            }
        };
        LimitConfig {
            subject,
            kind,
            cost: 1,
            scope: LimitScope::Layer,
            methods: Vec::new(),
            enforcement: Enforcement::Enforced,
            on_redis_down,
            on_redis_full: OnRedisFull::Open,
            client_factor,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::LimitQuota as Quota;
    use super::*;

    fn kind(quota: Quota) -> LimitKind {
        quota.to_limit(SubjectKind::Global, 0, OnRedisDown::Local).kind
    }

    #[test]
    fn a_burst_is_two_seconds_worth_and_one_at_least() {
        let burst = |quota| match kind(quota) {
            LimitKind::Rate { burst, .. } => burst,
            LimitKind::Concurrency { .. } => 0,
        };
        assert_eq!(burst(Quota::per_second(10)), 20);
        assert_eq!(burst(Quota::per_minute(20)), 1);
        assert_eq!(burst(Quota::per_minute(20).burst(7)), 7);
        assert_eq!(burst(Quota::per_second(u64::MAX).burst(u64::MAX)), BURST_MAX);
    }

    #[test]
    fn nothing_out_of_bounds_reaches_redis() {
        let LimitKind::Rate { rate, burst, .. } = kind(Quota::per(0, Duration::ZERO).burst(0)) else {
            panic!()
        };
        assert_eq!((rate.count, rate.period, burst), (1, Duration::from_secs(1), 1));
        assert!(matches!(kind(Quota::concurrent(0)), LimitKind::Concurrency { max: 1, .. }));
    }
}
