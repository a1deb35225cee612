//! What limits do while Redis is away: each worker allows its share, and tells Redis afterwards what it allowed.
//!
//! A worker does not know the others' requests, so it takes rate and burst divided by their number: all of them
//! together never allow more than the one limit would, as long as the number is right. When Redis is back, what a
//! subject still owes here is merged into its limit there, once: a batch has an id, and Redis applies it only the first
//! time, so that it may be sent again when its outcome is unknown. Pure; times are µs of the worker's own clock.

use std::num::NonZeroUsize;

use lru::LruCache;

use crate::limiter::gcra;
use crate::limiter::quota::Quota;
use crate::redis::begin::LimitReply;

/// Most limits that are counted here; the least recently used is forgotten first.
const BUCKETS_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 16) - 1);

/// Every limit that was decided here.
#[derive(Debug)]
pub struct Insurance {
    buckets: LruCache<Box<str>, Bucket>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    quota: Quota,
    /// The share's interval, µs, in which the arrival time is counted; another share has another one.
    interval_us: u64,
    tat_us: u64,
}

/// One limit of a request.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// The limit's key.
    pub key: &'a str,
    /// The whole fleet's quota.
    pub quota: Quota,
    /// Requests charged if all limits allow.
    pub cost: u64,
}

/// What a subject owes, for Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Debt {
    /// The limit's key.
    pub key: String,
    /// The whole fleet's quota.
    pub quota: Quota,
    /// Requests that were allowed here and have not come back yet, ≥ 1.
    pub requests: u64,
}

impl Default for Insurance {
    fn default() -> Self {
        Self { buckets: LruCache::sparse(BUCKETS_MAX) }
    }
}

impl Insurance {
    /// Decides one request as one of `sharers` workers; charges it only if all its limits allow.
    pub fn decide(&mut self, claims: &[Claim<'_>], sharers: u64, now_us: u64) -> Vec<LimitReply> {
        let decided: Vec<_> = claims
            .iter()
            .map(|claim| {
                let share = claim.quota.share(sharers);
                let tat = self.buckets.get(claim.key).map(|bucket| bucket.tat(&share, now_us));
                // The share of a small burst may be less than what one request costs: then it is the whole share.
                (share, gcra::decide(tat, now_us, &share, claim.cost.min(share.burst())))
            })
            .collect();
        if decided.iter().all(|(_, decision)| decision.reply.allowed) {
            for (claim, (share, decision)) in claims.iter().zip(&decided) {
                if let Some(tat_us) = decision.tat_us {
                    let bucket = Bucket { quota: claim.quota, interval_us: share.interval_us(), tat_us };
                    self.buckets.push(claim.key.into(), bucket);
                }
            }
            return decided.into_iter().map(|(_, decision)| decision.reply).collect();
        }
        let uncharged = |(claim, (share, decision)): (&Claim<'_>, &(Quota, gcra::Decision))| {
            if !decision.reply.allowed {
                return decision.reply;
            }
            let tat = self.buckets.peek(claim.key).map(|bucket| bucket.tat(share, now_us));
            gcra::decide(tat, now_us, share, 0).reply
        };
        claims.iter().zip(&decided).map(uncharged).collect()
    }

    /// What is owed at this moment, for one batch of at most `most`; what owes nothing any more is forgotten.
    pub fn debts(&mut self, most: usize, now_us: u64) -> Vec<Debt> {
        self.buckets.retain(|_, bucket| bucket.tat_us > now_us);
        let mut debts = Vec::new();
        for (key, bucket) in self.buckets.iter().take(most) {
            let requests = (bucket.tat_us - now_us).div_ceil(bucket.interval_us);
            debts.push(Debt { key: key.to_string(), quota: bucket.quota, requests });
        }
        debts
    }

    /// Redis has these debts now: here they are paid.
    pub fn paid(&mut self, debts: &[Debt]) {
        for debt in debts {
            // What was allowed since stays owed.
            if let Some(bucket) = self.buckets.peek_mut(debt.key.as_str()) {
                bucket.tat_us =
                    bucket.tat_us.saturating_sub(debt.requests.saturating_mul(bucket.interval_us));
            }
        }
    }
}

impl Bucket {
    /// The arrival time as a share of another size counts it: the same number of requests is owed.
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
    use crate::config::limit::Rate;

    fn quota(burst: u64) -> Quota {
        Quota::new(Rate { count: 10, period: Duration::from_secs(1) }, burst)
    }

    fn claim(key: &str, quota: Quota, cost: u64) -> Claim<'_> {
        Claim { key, quota, cost }
    }

    fn allowed(insurance: &mut Insurance, claims: &[Claim<'_>], sharers: u64, now_us: u64) -> bool {
        insurance.decide(claims, sharers, now_us).iter().all(|reply| reply.allowed)
    }

    #[test]
    fn a_worker_allows_its_share_and_never_less_than_one() {
        let mut insurance = Insurance::default();
        let granted = |insurance: &mut Insurance, key, burst, sharers| {
            (0..50).filter(|_| allowed(insurance, &[claim(key, quota(burst), 1)], sharers, 0)).count()
        };
        assert_eq!(granted(&mut insurance, "a", 20, 4), 5);
        assert_eq!(granted(&mut insurance, "b", 3, 4), 1);
        assert_eq!(granted(&mut insurance, "c", 20, 0), 20);
        assert!(allowed(&mut insurance, &[claim("d", quota(20), 20)], 4, 0), "a costly one is one share");
    }

    #[test]
    fn nothing_is_charged_if_one_limit_denies() {
        let mut insurance = Insurance::default();
        let both = [claim("wide", quota(10), 1), claim("tight", quota(1), 1)];
        assert!(allowed(&mut insurance, &both, 1, 0));
        for _ in 0..20 {
            let replies = insurance.decide(&both, 1, 0);
            assert_eq!((replies[0].remaining, replies[1].allowed), (9, false));
            assert_eq!(replies[1].retry_after_us, Some(100_000));
        }
        let owed: u64 = insurance.debts(9, 0).iter().map(|debt| debt.requests).sum();
        assert_eq!(owed, 2);
    }

    #[test]
    fn a_share_that_changes_keeps_what_is_owed() {
        let mut insurance = Insurance::default();
        for _ in 0..5 {
            assert!(allowed(&mut insurance, &[claim("a", quota(20), 1)], 4, 0));
        }
        assert!(!allowed(&mut insurance, &[claim("a", quota(20), 1)], 4, 0));
        let more = (0..50).filter(|_| allowed(&mut insurance, &[claim("a", quota(20), 1)], 2, 0)).count();
        assert_eq!(more, 5, "ten are half of twenty, and five were had");
    }

    #[test]
    fn debts_are_paid_once_and_what_came_meanwhile_stays() {
        let mut insurance = Insurance::default();
        for _ in 0..3 {
            assert!(allowed(&mut insurance, &[claim("a", quota(20), 1)], 1, 0));
        }
        let batch = insurance.debts(10, 0);
        assert_eq!(batch, [Debt { key: "a".into(), quota: quota(20), requests: 3 }]);
        assert!(allowed(&mut insurance, &[claim("a", quota(20), 1)], 1, 0));
        insurance.paid(&batch);
        assert_eq!(insurance.debts(10, 0)[0].requests, 1);
        assert!(insurance.debts(10, 100_000).is_empty(), "what came back by itself is not owed");
    }

    proptest! {
        #[test]
        fn all_shares_together_allow_no_more_than_the_limit(
            arrivals in prop::collection::vec((0..4usize, 0..50_000u64), 1..400),
            share in 1..20u64,
        ) {
            let quota = quota(share * 4);
            let mut workers: [Insurance; 4] = std::array::from_fn(|_| Insurance::default());
            let (mut now, mut granted) = (0, 0);
            for (worker, pause) in arrivals {
                now += pause;
                granted += u64::from(allowed(&mut workers[worker], &[claim("a", quota, 1)], 4, now));
                prop_assert!(granted <= quota.burst() + now / quota.interval_us());
            }
            // What Redis is told is what is still owed: it came back at the share's rate, four of them.
            let owed: u64 = workers.iter_mut().flat_map(|worker| worker.debts(9, now)).map(|debt| debt.requests).sum();
            prop_assert!(owed <= quota.burst() && owed <= granted);
        }
    }
}
