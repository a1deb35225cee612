//! Limits while Redis is unavailable: each worker allows its share, and charges Redis afterwards for what it allowed.
//!
//! A worker does not know the others' requests, so it takes its part of rate and burst: all parts together never
//! exceed the limit, as long as the number of workers is right. Where a limit is smaller than their number some have
//! no part, and a request that costs more than a part is allowed by none: such requests are answered as if the policy
//! were closed, because it is not their client's fault. When Redis is available again, what a subject still owes is
//! charged there, once: a batch has a name, and Redis applies it only the first time, so that it may be sent again
//! when its outcome is unknown. Pure; times are µs of the worker's clock.

use std::num::NonZeroUsize;

use lru::LruCache;

use crate::limiter::commands::RateLimitDecision;
use crate::limiter::gcra;
use crate::limiter::gcra::{Quota, WorkerShare};

/// Most limits that are counted; the least recently used is evicted first.
const BUCKETS_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 16) - 1);

/// The limits that this worker decided.
#[derive(Debug)]
pub struct LocalLimiter {
    buckets: LruCache<Box<str>, LocalBucket>,
}

#[derive(Debug, Clone, Copy)]
struct LocalBucket {
    quota: Quota,
    /// Interval of the share in which the arrival time is counted, µs; it changes with the number of workers.
    interval_us: u64,
    tat_us: u64,
}

/// One limit of a request.
#[derive(Debug, Clone, Copy)]
pub struct LocalCheck<'a> {
    /// The limit's key.
    pub key: &'a str,
    /// The fleet's quota.
    pub quota: Quota,
    /// Requests charged if all limits allow.
    pub cost: u64,
}

/// What a subject owes in Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeferredCharge {
    /// The limit's key.
    pub key: String,
    /// The fleet's quota.
    pub quota: Quota,
    /// Requests that were allowed and have not come back yet, ≥ 1.
    pub requests: u64,
}

impl Default for LocalLimiter {
    fn default() -> Self {
        Self { buckets: LruCache::sparse(BUCKETS_MAX) }
    }
}

impl LocalLimiter {
    /// Decides one request by this worker's share of its limits; charges it only if all allow. `None`: the request
    /// costs more than a share ever allows.
    pub fn decide(
        &mut self,
        checks: &[LocalCheck<'_>],
        part: &WorkerShare,
        now_us: u64,
    ) -> Option<Vec<RateLimitDecision>> {
        let mut decided = Vec::with_capacity(checks.len());
        for check in checks {
            let share = check.quota.share(part, check.key).filter(|share| check.cost <= share.burst())?;
            let tat = self.buckets.get(check.key).map(|bucket| bucket.tat(&share, now_us));
            decided.push((share, gcra::decide(tat, now_us, &share, check.cost)));
        }
        if decided.iter().all(|(_, decision)| decision.reply.allowed) {
            for (check, (share, decision)) in checks.iter().zip(&decided) {
                if let Some(tat_us) = decision.tat_us {
                    let bucket = LocalBucket { quota: check.quota, interval_us: share.interval_us(), tat_us };
                    self.buckets.push(check.key.into(), bucket);
                }
            }
            return Some(decided.into_iter().map(|(_, decision)| decision.reply).collect());
        }
        let uncharged = |(check, (share, decision)): (&LocalCheck<'_>, &(Quota, gcra::GcraDecision))| {
            if !decision.reply.allowed {
                return decision.reply;
            }
            let tat = self.buckets.peek(check.key).map(|bucket| bucket.tat(share, now_us));
            gcra::decide(tat, now_us, share, 0).reply
        };
        Some(checks.iter().zip(&decided).map(uncharged).collect())
    }

    /// What is owed now, `max` limits at a time; limits without debt are removed.
    pub fn deferred_charges(&mut self, max: usize, now_us: u64) -> Vec<DeferredCharge> {
        self.buckets.retain(|_, bucket| bucket.tat_us > now_us);
        let mut charges = Vec::new();
        for (key, bucket) in self.buckets.iter().take(max) {
            let requests = (bucket.tat_us - now_us).div_ceil(bucket.interval_us);
            charges.push(DeferredCharge { key: key.to_string(), quota: bucket.quota, requests });
        }
        charges
    }

    /// Redis has applied these charges.
    pub fn mark_applied(&mut self, charges: &[DeferredCharge]) {
        for charge in charges {
            // What was allowed since is still owed.
            if let Some(bucket) = self.buckets.peek_mut(charge.key.as_str()) {
                bucket.tat_us =
                    bucket.tat_us.saturating_sub(charge.requests.saturating_mul(bucket.interval_us));
            }
        }
    }
}

impl LocalBucket {
    /// The arrival time for a share of another size: the same number of requests is owed.
    fn tat(&self, share: &Quota, now_us: u64) -> u64 {
        let owed = u128::from(self.tat_us.saturating_sub(now_us));
        let owed = owed * u128::from(share.interval_us()) / u128::from(self.interval_us);
        now_us.saturating_add(u64::try_from(owed).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::config::limits::Rate;

    fn quota(burst: u64) -> Quota {
        Quota::new(Rate { count: 10, period: Duration::from_secs(1) }, burst)
    }

    fn check(key: &str, quota: Quota, cost: u64) -> LocalCheck<'_> {
        LocalCheck { key, quota, cost }
    }

    fn part(workers: u64, rank: u64) -> WorkerShare {
        WorkerShare { instances: 1, workers, rank }
    }

    fn allowed(limiter: &mut LocalLimiter, checks: &[LocalCheck<'_>], workers: u64, now_us: u64) -> bool {
        let decided = limiter.decide(checks, &part(workers, 0), now_us);
        decided.is_some_and(|replies| replies.iter().all(|reply| reply.allowed))
    }

    #[test]
    fn each_worker_allows_its_share_and_all_of_them_the_limit() {
        let granted = |burst, workers: u64, cost| {
            let of = |rank| {
                let mut limiter = LocalLimiter::default();
                let ask = |limiter: &mut LocalLimiter| {
                    let replies = limiter.decide(&[check("k", quota(burst), cost)], &part(workers, rank), 0);
                    replies.is_some_and(|replies| replies[0].allowed)
                };
                (0..50).filter(|_| ask(&mut limiter)).count()
            };
            (0..workers).map(of).collect::<Vec<_>>()
        };
        assert_eq!(granted(20, 4, 1), [5; 4]);
        assert_eq!(granted(3, 4, 1).iter().sum::<usize>(), 3, "some have none");
        assert_eq!(granted(1, 4, 1).iter().sum::<usize>(), 1);
        assert_eq!(granted(20, 1, 20), [1]);
        assert_eq!(granted(20, 4, 6), [0; 4], "no part is worth so much");
        assert_eq!(granted(20, 4, 5), [1; 4]);
    }

    #[test]
    fn nothing_is_charged_if_one_limit_denies() {
        let mut limiter = LocalLimiter::default();
        let both = [check("wide", quota(10), 1), check("tight", quota(1), 1)];
        assert!(allowed(&mut limiter, &both, 1, 0));
        for _ in 0..20 {
            let replies = limiter.decide(&both, &WorkerShare::WHOLE, 0).unwrap();
            assert_eq!((replies[0].remaining, replies[1].allowed), (9, false));
            assert_eq!(replies[1].retry_after_us, Some(100_000));
        }
        let owed: u64 = limiter.deferred_charges(9, 0).iter().map(|charge| charge.requests).sum();
        assert_eq!(owed, 2);
    }

    #[test]
    fn a_share_that_changes_keeps_what_is_owed() {
        let mut limiter = LocalLimiter::default();
        for _ in 0..5 {
            assert!(allowed(&mut limiter, &[check("a", quota(20), 1)], 4, 0));
        }
        assert!(!allowed(&mut limiter, &[check("a", quota(20), 1)], 4, 0));
        let more = (0..50).filter(|_| allowed(&mut limiter, &[check("a", quota(20), 1)], 2, 0)).count();
        assert_eq!(more, 5, "ten are half of twenty, and five were had");
    }

    #[test]
    fn charges_are_applied_once_and_later_requests_stay_owed() {
        let mut limiter = LocalLimiter::default();
        for _ in 0..3 {
            assert!(allowed(&mut limiter, &[check("a", quota(20), 1)], 1, 0));
        }
        let batch = limiter.deferred_charges(10, 0);
        assert_eq!(batch, [DeferredCharge { key: "a".into(), quota: quota(20), requests: 3 }]);
        assert!(allowed(&mut limiter, &[check("a", quota(20), 1)], 1, 0));
        limiter.mark_applied(&batch);
        assert_eq!(limiter.deferred_charges(10, 0)[0].requests, 1);
        assert!(limiter.deferred_charges(10, 100_000).is_empty(), "what came back by itself is not owed");
    }

    proptest! {
        #[test]
        fn all_parts_together_allow_no_more_than_the_limit(
            arrivals in prop::collection::vec((0..4u64, 0..50_000u64, 1..5u64), 1..400),
            burst in 1..40u64,
        ) {
            let quota = quota(burst);
            let mut workers: [LocalLimiter; 4] = std::array::from_fn(|_| LocalLimiter::default());
            let (mut now, mut granted) = (0, 0);
            for (worker, pause, cost) in arrivals {
                now += pause;
                let limiter = &mut workers[usize::try_from(worker).unwrap()];
                let replies = limiter.decide(&[check("a", quota, cost)], &part(4, worker), now);
                granted += if replies.is_some_and(|replies| replies[0].allowed) { cost } else { 0 };
                prop_assert!(granted <= quota.burst() + now / quota.interval_us());
            }
            // The charge is what is still owed: time paid part of it at the rates of all four shares.
            let owed: u64 = workers.iter_mut().flat_map(|worker| worker.deferred_charges(9, now)).map(|charge| charge.requests).sum();
            prop_assert!(owed <= quota.burst() && owed <= granted);
        }
    }
}
