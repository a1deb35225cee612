//! Denials that this worker knows, so that a flood from one client does not become a flood of Redis calls.
//!
//! The cache holds a lower bound of a limit's arrival time, never a permission. Requests at other workers only move
//! the true one further away, so what the bound denies, Redis would deny too, for any cost. Two things could make it
//! wrong: returned quota, for which a worker notifies all others ([`DenialCache::invalidate`]), and clocks, so the
//! bound is counted from the moment at which the check was sent, which is before Redis decided.
//!
//! Where an interval is shorter than a round trip, the bound has passed before it is known, and every denial would
//! cost a check. Three rules bound the checks of a flood, at any rate:
//!
//! - A denial of Redis is trusted for a moment (`trust_us`), also past its bound: a tenth of a second at most, and
//!   never as long as the burst takes to come back, so that no quota is lost by it. This is the only denial that Redis
//!   might not confirm; the `Retry-After` that came with it is a second at least.
//! - After that one request is the probe, and the others of the same limit wait for its reply and share it: they were
//!   there when Redis decided. The probe is delayed by the last round trip: by then the denial is over for Redis too,
//!   which decided somewhere in between.
//! - While a limit is scarce, no more checks are in flight than what Redis had left can grant.
//!
//! Pure but for the [`Notify`] that requests wait for; times are µs of the worker's clock.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use tokio::sync::Notify;

use crate::limiter::commands::RateLimitDecision;
use crate::limiter::gcra;
use crate::limiter::gcra::Quota;

/// Most limits in the cache; the least recently used is evicted first.
pub const CACHED_LIMITS_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 16) - 1);

/// Longest time for which a denial is trusted past its bound, µs.
const TRUST_MAX_US: u64 = 100_000;

/// How long after a denial a limit counts as scarce, µs.
const SCARCE_US: u64 = 1_000_000;

/// The known limits by their keys, which name policy, version and subject.
#[derive(Debug)]
pub struct DenialCache {
    entries: LruCache<Box<str>, CachedDenial>,
    /// The limits with returned quota, the oldest first. Without their expiry the cache would never be empty again,
    /// and every request of the worker would pay for a lookup.
    resets: VecDeque<(u64, Box<str>)>,
}

#[derive(Debug, Clone)]
enum CachedDenial {
    Bound(ArrivalBound),
    /// Quota was returned at this time: replies to earlier checks must be ignored.
    Reset {
        at_us: u64,
    },
}

#[derive(Debug, Clone)]
struct ArrivalBound {
    /// The arrival time is this or later.
    tat_us: u64,
    /// When the check with this reply was sent.
    sent_us: u64,
    /// How long the reply took.
    round_trip_us: u64,
    /// Cost of the checks in flight: granted, they move the arrival time by as much.
    in_flight_cost: u64,
    /// Redis denied a request of this cost, which is trusted until then.
    trusted_denial: Option<(u64, u64)>,
    /// When Redis last denied; `None`: it granted the last request that was left.
    denied_us: Option<u64>,
    /// One request checks, since then, whether the denial is over; the others wait for this.
    probe: Option<(u64, Arc<Notify>)>,
}

/// What the cache knows of a request under one limit.
#[derive(Debug)]
pub enum CacheLookup {
    /// Redis would deny it, or did so a moment ago.
    Denied(RateLimitDecision),
    /// Nothing: check with Redis.
    Unknown,
    /// The limit was scarce a moment ago and has something left: a caller that checks calls [`DenialCache::track`].
    Scarce,
    /// The bound has expired and no probe is in flight: the caller is the probe and calls [`DenialCache::track`].
    Expired {
        /// Before this time Redis may still deny it.
        check_at_us: u64,
    },
    /// A probe is in flight: wait for this and look up again.
    InFlight(Arc<Notify>),
}

/// When a lookup happens, and what it may rely on.
#[derive(Debug, Clone, Copy)]
pub struct LookupContext {
    /// Now.
    pub now_us: u64,
    /// Older entries are not used, because notifications of refunds may have been missed since.
    pub oldest_us: u64,
    /// A probe that takes longer is not waited for.
    pub timeout_us: u64,
    /// Whether the request waited for a probe, whose reply then is its own.
    pub waited: bool,
}

/// A check in flight that is known to [`DenialCache`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackedCheck {
    /// The limit's key.
    pub key: String,
    /// The request's cost.
    pub cost: u64,
    /// Whether others wait for the reply.
    pub probe: bool,
}

impl Default for DenialCache {
    fn default() -> Self {
        Self { entries: LruCache::sparse(CACHED_LIMITS_MAX), resets: VecDeque::new() }
    }
}

impl DenialCache {
    /// Looks up a limit without changing the entry.
    pub fn lookup(&mut self, key: &str, quota: &Quota, cost: u64, at: LookupContext) -> CacheLookup {
        match self.entries.get(key) {
            // A request without a cost is never denied.
            Some(CachedDenial::Bound(bound)) if cost > 0 => bound.lookup(quota, cost, at),
            _ => CacheLookup::Unknown,
        }
    }

    /// A limit that was [`CacheLookup::Scarce`] or [`CacheLookup::Expired`] is checked with Redis; ends with
    /// [`DenialCache::record`] or [`DenialCache::abandon_probe`].
    pub fn track(&mut self, check: &TrackedCheck, now_us: u64) {
        if let Some(CachedDenial::Bound(bound)) = self.entries.get_mut(check.key.as_str()) {
            bound.in_flight_cost = bound.in_flight_cost.saturating_add(check.cost);
            if check.probe {
                bound.probe = Some((now_us, Arc::default()));
            }
        }
    }

    /// Records a reply of Redis, which arrives now, to a check that was sent at `sent_us`; `tracked` is what was
    /// passed to [`DenialCache::track`].
    ///
    /// It is stored only if it denies the same request again (the limit denied it, or it took the last), and while
    /// the limit is scarce.
    pub fn record(
        &mut self,
        (key, quota, cost): (&str, &Quota, u64),
        reply: &RateLimitDecision,
        (sent_us, now_us): (u64, u64),
        tracked: Option<&TrackedCheck>,
    ) {
        let ahead_us = reply.reset_us.min(quota.tolerance_us());
        let possible = cost > 0 && quota.interval_us().saturating_mul(cost) <= quota.tolerance_us();
        let denies = possible && !gcra::decide(Some(ahead_us), 0, quota, cost).reply.allowed;
        let answer = ArrivalBound {
            tat_us: sent_us.saturating_add(ahead_us),
            sent_us,
            round_trip_us: now_us.saturating_sub(sent_us),
            in_flight_cost: 0,
            trusted_denial: (possible && !reply.allowed)
                .then(|| (cost, now_us.saturating_add(trust_us(quota)))),
            denied_us: (possible && !reply.allowed).then_some(now_us),
            probe: None,
        };
        // The common case, a client far from its limit, costs this one lookup, mostly in an empty table.
        match self.entries.get_mut(key) {
            None if !denies => return,
            Some(CachedDenial::Reset { at_us }) if sent_us <= *at_us => return,
            Some(CachedDenial::Bound(bound)) => {
                bound.finish_check(tracked);
                bound.merge(&answer);
                if denies || bound.is_scarce(now_us) || bound.probe.is_some() {
                    return;
                }
            }
            None | Some(CachedDenial::Reset { .. }) if denies => {
                self.entries.push(key.into(), CachedDenial::Bound(answer));
                return;
            }
            None | Some(CachedDenial::Reset { .. }) => {}
        }
        self.entries.pop(key);
    }

    /// The check failed: each request that waited for its reply checks with Redis by itself.
    pub fn abandon_probe(&mut self, check: &TrackedCheck) {
        if let Some(CachedDenial::Bound(bound)) = self.entries.peek_mut(check.key.as_str()) {
            bound.finish_check(Some(check));
            if check.probe {
                self.entries.pop(check.key.as_str());
            }
        }
    }

    /// Quota was returned, or the limit was reset.
    pub fn invalidate(&mut self, key: &str, now_us: u64) {
        // Stored even if there is no entry: the reply to an earlier check may still arrive.
        if self.resets.len() >= CACHED_LIMITS_MAX.get() {
            self.resets.pop_front();
        }
        self.resets.push_back((now_us, key.into()));
        let before = self.entries.push(key.into(), CachedDenial::Reset { at_us: now_us });
        if let Some((_, CachedDenial::Bound(ArrivalBound { probe: Some((_, answered)), .. }))) = before {
            answered.notify_waiters();
        }
    }

    /// Removes returns of quota so long ago that no earlier check is in flight any more.
    pub fn expire_resets(&mut self, now_us: u64, after_us: u64) {
        while self.resets.front().is_some_and(|(at_us, _)| now_us.saturating_sub(*at_us) > after_us) {
            let Some((reset_us, key)) = self.resets.pop_front() else { break };
            // A later return, or a later reply, stays.
            if matches!(self.entries.peek(&key), Some(CachedDenial::Reset { at_us }) if *at_us == reset_us) {
                self.entries.pop(&key);
            }
        }
    }

    /// Limits in the cache.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the cache is empty.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl ArrivalBound {
    fn lookup(&self, quota: &Quota, cost: u64, at: LookupContext) -> CacheLookup {
        let LookupContext { now_us, oldest_us, timeout_us, waited } = at;
        let is_fresh = self.sent_us >= oldest_us;
        let decide = |tat_us: u64, at_us: u64| gcra::decide(Some(tat_us), at_us, quota, cost).reply;
        // Whether quota was left when the last reply was sent.
        let had_room = decide(self.tat_us, self.sent_us).allowed;
        if is_fresh {
            let trusted = self.trusted_denial.filter(|(least, until)| cost >= *least && now_us < *until);
            let rest_us = trusted.map_or(0, |(_, until_us)| until_us - now_us);
            let reply = decide(self.tat_us, now_us);
            if !reply.allowed || rest_us > 0 || (waited && !had_room) {
                // A cost above the burst is never allowed, so no time is given.
                let retry_after_us = match reply.allowed {
                    true => Some(rest_us.max(1)),
                    false => reply.retry_after_us.map(|retry_us| retry_us.max(rest_us)),
                };
                let remaining = if reply.allowed { 0 } else { reply.remaining };
                let reset_us = reply.reset_us.max(rest_us);
                return CacheLookup::Denied(RateLimitDecision {
                    allowed: false,
                    remaining,
                    retry_after_us,
                    reset_us,
                });
            }
        }
        match &self.probe {
            Some((since_us, answered)) if !waited && now_us.saturating_sub(*since_us) < timeout_us => {
                return CacheLookup::InFlight(Arc::clone(answered));
            }
            Some(_) => return CacheLookup::Expired { check_at_us: now_us },
            None => {}
        }
        if !is_fresh {
            return CacheLookup::Expired { check_at_us: now_us };
        }
        if !had_room {
            return CacheLookup::Expired {
                check_at_us: allowed_at_us(self.tat_us, quota, cost).saturating_add(self.round_trip_us),
            };
        }
        let taken_us = quota.interval_us().saturating_mul(self.in_flight_cost);
        match decide(self.tat_us.max(now_us).saturating_add(taken_us), now_us) {
            reply if !reply.allowed => CacheLookup::Denied(reply),
            _ => CacheLookup::Scarce,
        }
    }

    /// A check is not in flight any more.
    fn finish_check(&mut self, check: Option<&TrackedCheck>) {
        let Some(check) = check else { return };
        self.in_flight_cost = self.in_flight_cost.saturating_sub(check.cost);
        if check.probe
            && let Some((_, answered)) = self.probe.take()
        {
            answered.notify_waiters();
        }
    }

    /// Merges another reply into this one; replies may overtake each other, and both are true.
    fn merge(&mut self, answer: &Self) {
        if self.sent_us >= answer.sent_us {
            self.tat_us = self.tat_us.max(answer.tat_us);
        } else {
            (self.tat_us, self.sent_us, self.round_trip_us) =
                (answer.tat_us, answer.sent_us, answer.round_trip_us);
            // Granted later than denied: there is quota again.
            self.trusted_denial = self.trusted_denial.filter(|_| answer.trusted_denial.is_some());
        }
        if let Some((cost, until_us)) = answer.trusted_denial {
            let least = self.trusted_denial.map_or(cost, |(least, _)| least.min(cost));
            self.trusted_denial = Some((least, until_us));
        }
        self.denied_us = answer.denied_us.or(self.denied_us);
    }

    /// Whether Redis denied a request a moment ago.
    fn is_scarce(&self, now_us: u64) -> bool {
        self.denied_us.is_some_and(|denied_us| now_us.saturating_sub(denied_us) < SCARCE_US)
    }
}

/// How long a denial is trusted past its bound: by then not even half of the burst has come back, so none is lost.
fn trust_us(quota: &Quota) -> u64 {
    TRUST_MAX_US.min(quota.tolerance_us() / 2)
}

/// When a request of this cost is allowed at the earliest.
fn allowed_at_us(tat_us: u64, quota: &Quota, cost: u64) -> u64 {
    tat_us.saturating_add(quota.interval_us().saturating_mul(cost)).saturating_sub(quota.tolerance_us())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::config::limits::Rate;

    const KEY: &str = "p:l:a:v:10.0.0.1";
    const TIMEOUT_US: u64 = 50_000;

    fn quota(burst: u64) -> Quota {
        Quota::new(Rate { count: 1, period: Duration::from_secs(1) }, burst)
    }

    fn at(now_us: u64) -> LookupContext {
        LookupContext { now_us, oldest_us: 0, timeout_us: TIMEOUT_US, waited: false }
    }

    fn lookup(denials: &mut DenialCache, quota: &Quota, cost: u64, now_us: u64) -> CacheLookup {
        denials.lookup(KEY, quota, cost, at(now_us))
    }

    fn record(
        denials: &mut DenialCache,
        quota: &Quota,
        cost: u64,
        reply: &RateLimitDecision,
        sent_us: u64,
        now_us: u64,
    ) {
        denials.record((KEY, quota, cost), reply, (sent_us, now_us), None);
    }

    fn check_of(cost: u64, probe: bool) -> TrackedCheck {
        TrackedCheck { key: KEY.to_owned(), cost, probe }
    }

    /// A decision of a Redis with this arrival time.
    fn decide(tat: &mut Option<u64>, quota: &Quota, cost: u64, at_us: u64) -> RateLimitDecision {
        let decision = gcra::decide(*tat, at_us, quota, cost);
        *tat = decision.tat_us.or(*tat);
        decision.reply
    }

    #[test]
    fn the_last_allowed_request_already_shows_that_the_next_is_denied() {
        let (quota, mut denials, mut tat) = (quota(2), DenialCache::default(), None);
        for left in [1, 0] {
            assert!(matches!(lookup(&mut denials, &quota, 1, 100), CacheLookup::Unknown));
            let reply = decide(&mut tat, &quota, 1, 100);
            assert_eq!(reply.remaining, left);
            record(&mut denials, &quota, 1, &reply, 100, 100);
        }
        let CacheLookup::Denied(reply) = lookup(&mut denials, &quota, 1, 400_100) else { panic!("asked") };
        assert_eq!((reply.remaining, reply.retry_after_us), (0, Some(600_000)));
        let CacheLookup::Denied(reply) = lookup(&mut denials, &quota, 2, 400_100) else { panic!("asked") };
        assert_eq!(reply.retry_after_us, Some(1_600_000), "more costs wait longer");
        assert!(
            matches!(lookup(&mut denials, &quota, 0, 400_100), CacheLookup::Unknown),
            "a look is never denied"
        );
    }

    #[test]
    fn when_a_denial_ends_one_request_probes_and_the_others_wait() {
        let (quota, mut denials, mut tat) = (quota(1), DenialCache::default(), None);
        record(&mut denials, &quota, 1, &decide(&mut tat, &quota, 1, 0), 0, 0);
        assert!(matches!(lookup(&mut denials, &quota, 1, 999_999), CacheLookup::Denied(_)));
        assert!(matches!(lookup(&mut denials, &quota, 1, 1_000_000), CacheLookup::Expired { .. }));
        denials.track(&check_of(1, true), 1_000_000);
        assert!(matches!(lookup(&mut denials, &quota, 1, 1_000_001), CacheLookup::InFlight(_)));
        assert!(matches!(
            lookup(&mut denials, &quota, 1, 1_000_000 + TIMEOUT_US),
            CacheLookup::Expired { .. }
        ));
        let reply = decide(&mut tat, &quota, 1, 1_000_100);
        denials.record((KEY, &quota, 1), &reply, (1_000_000, 1_000_200), Some(&check_of(1, true)));
        assert!(matches!(lookup(&mut denials, &quota, 1, 1_000_200), CacheLookup::Denied(_)));
        // The round trip took 200: that long after the bound Redis allows it for sure.
        assert!(matches!(
            lookup(&mut denials, &quota, 1, 2_000_000),
            CacheLookup::Expired { check_at_us: 2_000_200 }
        ));
        denials.track(&check_of(1, true), 2_000_100);
        denials.abandon_probe(&check_of(1, true));
        assert!(matches!(lookup(&mut denials, &quota, 1, 2_000_200), CacheLookup::Unknown));
    }

    #[test]
    fn a_reply_to_a_check_before_a_refund_is_ignored() {
        let (quota, mut denials, mut tat) = (quota(1), DenialCache::default(), Some(1_000_000));
        let denied = decide(&mut tat, &quota, 1, 100);
        denials.invalidate(KEY, 150);
        record(&mut denials, &quota, 1, &denied, 100, 160);
        assert!(matches!(lookup(&mut denials, &quota, 1, 200), CacheLookup::Unknown));
        record(&mut denials, &quota, 1, &denied, 160, 170);
        assert!(matches!(lookup(&mut denials, &quota, 1, 200), CacheLookup::Denied(_)));
        denials.invalidate(KEY, 300);
        assert!(matches!(lookup(&mut denials, &quota, 1, 300), CacheLookup::Unknown));
    }

    #[test]
    fn an_entry_from_before_a_missed_notification_is_not_used() {
        let (quota, mut denials, mut tat) = (quota(1), DenialCache::default(), None);
        record(&mut denials, &quota, 1, &decide(&mut tat, &quota, 1, 500), 500, 500);
        let old = |oldest_us| LookupContext { oldest_us, ..at(600) };
        assert!(matches!(
            denials.lookup(KEY, &quota, 1, old(501)),
            CacheLookup::Expired { check_at_us: 600 }
        ));
        assert!(matches!(denials.lookup(KEY, &quota, 1, old(500)), CacheLookup::Denied(_)));
    }

    #[test]
    fn a_cost_that_can_never_be_allowed_is_not_cached_and_memory_is_bounded() {
        let (quota, mut denials) = (quota(1), DenialCache::default());
        record(&mut denials, &quota, 2, &decide(&mut None, &quota, 2, 0), 0, 0);
        assert!(denials.is_empty());
        for client in 0..CACHED_LIMITS_MAX.get() + 10 {
            let reply = decide(&mut Some(1_000_000), &quota, 1, 0);
            denials.record((&client.to_string(), &quota, 1), &reply, (0, 0), None);
        }
        assert_eq!(denials.len(), CACHED_LIMITS_MAX.get());
    }

    /// 1000 a second, 10 at once: a token takes as long as a round trip.
    fn quick() -> Quota {
        Quota::new(Rate { count: 1000, period: Duration::from_secs(1) }, 10)
    }

    #[test]
    fn a_denial_is_trusted_for_a_moment_at_the_same_cost() {
        let (quota, mut denials) = (quick(), DenialCache::default());
        let mut tat = Some(109_000);
        record(&mut denials, &quota, 3, &decide(&mut tat, &quota, 3, 100_000), 100_000, 103_000);
        // Three are left by then, enough for a lower cost.
        let CacheLookup::Denied(reply) = lookup(&mut denials, &quota, 3, 103_000) else { panic!("asked") };
        assert_eq!((reply.allowed, reply.retry_after_us), (false, Some(5_000)), "half of the burst's time");
        assert!(matches!(lookup(&mut denials, &quota, 1, 103_000), CacheLookup::Scarce));
        assert!(matches!(lookup(&mut denials, &quota, 3, 107_999), CacheLookup::Denied(_)));
        assert!(matches!(lookup(&mut denials, &quota, 3, 108_000), CacheLookup::Expired { .. }));
        // Returned quota ends it at once.
        denials.invalidate(KEY, 103_001);
        assert!(matches!(lookup(&mut denials, &quota, 3, 103_001), CacheLookup::Unknown));
    }

    #[test]
    fn a_request_that_waited_shares_the_answer_even_if_its_bound_has_passed() {
        let (quota, mut denials) = (quick(), DenialCache::default());
        let mut tat = Some(110_000);
        record(&mut denials, &quota, 1, &decide(&mut tat, &quota, 1, 100_000), 100_000, 100_000);
        assert!(matches!(lookup(&mut denials, &quota, 1, 105_000), CacheLookup::Expired { .. }));
        denials.track(&check_of(1, true), 105_000);
        assert!(matches!(lookup(&mut denials, &quota, 1, 105_000), CacheLookup::InFlight(_)));
        // Others consumed all of it, and the round trip took longer than the next request has to wait.
        let reply = decide(&mut Some(115_000), &quota, 1, 105_000);
        assert!(!reply.allowed);
        denials.record((KEY, &quota, 1), &reply, (105_000, 120_000), Some(&check_of(1, true)));
        let waited = |now_us| LookupContext { waited: true, ..at(now_us) };
        assert!(matches!(denials.lookup(KEY, &quota, 1, waited(126_000)), CacheLookup::Denied(_)));
        assert!(
            matches!(lookup(&mut denials, &quota, 1, 126_000), CacheLookup::Expired { .. }),
            "who comes later asks"
        );
    }

    #[test]
    fn no_more_checks_are_sent_than_can_be_granted_while_a_limit_is_scarce() {
        let (quota, mut denials) = (quick(), DenialCache::default());
        let mut tat = Some(110_000);
        record(&mut denials, &quota, 1, &decide(&mut tat, &quota, 1, 100_000), 100_000, 100_000);
        denials.track(&check_of(1, true), 106_000);
        let reply = decide(&mut tat, &quota, 1, 106_000);
        assert_eq!(reply.remaining, 5);
        denials.record((KEY, &quota, 1), &reply, (106_000, 106_100), Some(&check_of(1, true)));
        for _ in 0..5 {
            assert!(matches!(lookup(&mut denials, &quota, 1, 106_100), CacheLookup::Scarce));
            denials.track(&check_of(1, false), 106_100);
        }
        assert!(matches!(lookup(&mut denials, &quota, 1, 106_100), CacheLookup::Denied(_)));
        denials.abandon_probe(&check_of(1, false));
        assert!(
            matches!(lookup(&mut denials, &quota, 1, 106_100), CacheLookup::Scarce),
            "one of them was dropped"
        );
        for _ in 0..4 {
            let reply = decide(&mut tat, &quota, 1, 106_200);
            let question = check_of(1, false);
            denials.record((KEY, &quota, 1), &reply, (106_100, 106_300), Some(&question));
        }
        assert!(matches!(lookup(&mut denials, &quota, 1, 106_300), CacheLookup::Scarce), "one is left");
        // A second later the limit is not scarce any more.
        let reply = decide(&mut tat, &quota, 1, 1_200_000);
        record(&mut denials, &quota, 1, &reply, 1_200_000, 1_200_000);
        assert!(denials.is_empty());
    }

    /// An event: a request of this worker or of another one, or a refund.
    #[derive(Debug, Clone)]
    enum Step {
        Own { cost: u64, way_us: u64 },
        Other { cost: u64 },
        Refund { cost: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..4u64, 0..3_000u64).prop_map(|(cost, way_us)| Step::Own { cost, way_us }),
            2 => (1..4u64).prop_map(|cost| Step::Other { cost }),
            1 => (1..4u64).prop_map(|cost| Step::Refund { cost }),
        ]
    }

    proptest! {
        #[test]
        fn it_never_denies_what_redis_would_allow_but_for_a_moment_after_a_denial(
            steps in prop::collection::vec((step(), 0..700_000u64), 1..120),
            burst in 1..6u64,
        ) {
            let (quota, mut denials, mut tat, mut now) = (quota(burst), DenialCache::default(), None, 1_000_000u64);
            // Until when a denial may be trusted.
            let mut until = 0;
            for (step, pause) in steps {
                now += pause;
                match step {
                    Step::Own { cost, way_us } => match lookup(&mut denials, &quota, cost, now) {
                        CacheLookup::Denied(cached) => {
                            let truth = gcra::decide(tat, now, &quota, cost).reply;
                            prop_assert!(!cached.allowed && (!truth.allowed || now < until));
                            let rest = until.saturating_sub(now);
                            let allowed = truth.retry_after_us.map_or(Some(rest), |wait| Some(wait.max(rest)));
                            prop_assert!(cached.retry_after_us <= allowed);
                        }
                        CacheLookup::InFlight(_) => prop_assert!(false, "no probe is in flight"),
                        unsure => {
                            let tracked = match unsure {
                                CacheLookup::Expired { .. } => Some(check_of(cost, true)),
                                CacheLookup::Scarce => Some(check_of(cost, false)),
                                _ => None,
                            };
                            let sent_us = now;
                            if let Some(check) = &tracked {
                                denials.track(check, sent_us);
                            }
                            now += way_us;
                            let reply = decide(&mut tat, &quota, cost, now);
                            now += way_us;
                            denials.record((KEY, &quota, cost), &reply, (sent_us, now), tracked.as_ref());
                            if !reply.allowed {
                                until = now + trust_us(&quota);
                            }
                        }
                    },
                    Step::Other { cost } => _ = decide(&mut tat, &quota, cost, now),
                    Step::Refund { cost } => {
                        tat = gcra::refund(tat, now, &quota, cost);
                        denials.invalidate(KEY, now);
                    }
                }
            }
        }
    }

    #[test]
    fn a_reset_is_retained_for_as_long_as_checks_are_in_flight() {
        let mut denials = DenialCache::default();
        denials.invalidate(KEY, 100);
        denials.invalidate("other", 200);
        denials.expire_resets(1_100, 1_000);
        assert_eq!(denials.len(), 2, "an earlier check may still be answered");
        denials.invalidate(KEY, 1_150);
        denials.expire_resets(1_101, 1_000);
        assert_eq!(denials.len(), 2, "quota was returned again");
        denials.expire_resets(1_201, 1_000);
        assert_eq!(denials.len(), 1);
        denials.expire_resets(2_151, 1_000);
        assert!(denials.is_empty() && denials.resets.is_empty());
    }
}
