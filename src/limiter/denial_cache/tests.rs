//! The rules one by one, and histories at random.

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

fn question(cost: u64, probe: bool) -> TrackedCheck {
    TrackedCheck { key: KEY.to_owned(), cost, probe }
}

/// Asks a Redis with this arrival time.
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
fn when_a_denial_ends_one_asks_and_the_others_wait() {
    let (quota, mut denials, mut tat) = (quota(1), DenialCache::default(), None);
    record(&mut denials, &quota, 1, &decide(&mut tat, &quota, 1, 0), 0, 0);
    assert!(matches!(lookup(&mut denials, &quota, 1, 999_999), CacheLookup::Denied(_)));
    assert!(matches!(lookup(&mut denials, &quota, 1, 1_000_000), CacheLookup::Expired { .. }));
    denials.track(&question(1, true), 1_000_000);
    assert!(matches!(lookup(&mut denials, &quota, 1, 1_000_001), CacheLookup::InFlight(_)));
    assert!(matches!(lookup(&mut denials, &quota, 1, 1_000_000 + TIMEOUT_US), CacheLookup::Expired { .. }));
    let reply = decide(&mut tat, &quota, 1, 1_000_100);
    denials.record((KEY, &quota, 1), &reply, (1_000_000, 1_000_200), Some(&question(1, true)));
    assert!(matches!(lookup(&mut denials, &quota, 1, 1_000_200), CacheLookup::Denied(_)));
    // The answer took 200: so long after the bound Redis is sure to allow it.
    assert!(matches!(
        lookup(&mut denials, &quota, 1, 2_000_000),
        CacheLookup::Expired { check_at_us: 2_000_200 }
    ));
    denials.track(&question(1, true), 2_000_100);
    denials.abandon_probe(&question(1, true));
    assert!(matches!(lookup(&mut denials, &quota, 1, 2_000_200), CacheLookup::Unknown));
}

#[test]
fn an_answer_from_before_a_refund_is_worth_nothing() {
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
fn what_is_too_old_to_be_trusted_is_not_used() {
    let (quota, mut denials, mut tat) = (quota(1), DenialCache::default(), None);
    record(&mut denials, &quota, 1, &decide(&mut tat, &quota, 1, 500), 500, 500);
    let old = |oldest_us| LookupContext { oldest_us, ..at(600) };
    assert!(matches!(denials.lookup(KEY, &quota, 1, old(501)), CacheLookup::Expired { check_at_us: 600 }));
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
fn a_denial_is_believed_for_a_moment_by_what_costs_as_much() {
    let (quota, mut denials) = (quick(), DenialCache::default());
    let mut tat = Some(109_000);
    record(&mut denials, &quota, 3, &decide(&mut tat, &quota, 3, 100_000), 100_000, 103_000);
    // 3 are left by then, and are had by what costs less.
    let CacheLookup::Denied(reply) = lookup(&mut denials, &quota, 3, 103_000) else { panic!("asked") };
    assert_eq!((reply.allowed, reply.retry_after_us), (false, Some(5_000)), "half of the burst's time");
    assert!(matches!(lookup(&mut denials, &quota, 1, 103_000), CacheLookup::Scarce));
    assert!(matches!(lookup(&mut denials, &quota, 3, 107_999), CacheLookup::Denied(_)));
    assert!(matches!(lookup(&mut denials, &quota, 3, 108_000), CacheLookup::Expired { .. }));
    // What gives quota back ends it at once.
    denials.invalidate(KEY, 103_001);
    assert!(matches!(lookup(&mut denials, &quota, 3, 103_001), CacheLookup::Unknown));
}

#[test]
fn a_request_that_waited_shares_the_answer_even_if_its_bound_has_passed() {
    let (quota, mut denials) = (quick(), DenialCache::default());
    let mut tat = Some(110_000);
    record(&mut denials, &quota, 1, &decide(&mut tat, &quota, 1, 100_000), 100_000, 100_000);
    assert!(matches!(lookup(&mut denials, &quota, 1, 105_000), CacheLookup::Expired { .. }));
    denials.track(&question(1, true), 105_000);
    assert!(matches!(lookup(&mut denials, &quota, 1, 105_000), CacheLookup::InFlight(_)));
    // Others took all of it, and the answer took longer than the next one needs.
    let reply = decide(&mut Some(115_000), &quota, 1, 105_000);
    assert!(!reply.allowed);
    denials.record((KEY, &quota, 1), &reply, (105_000, 120_000), Some(&question(1, true)));
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
    denials.track(&question(1, true), 106_000);
    let reply = decide(&mut tat, &quota, 1, 106_000);
    assert_eq!(reply.remaining, 5);
    denials.record((KEY, &quota, 1), &reply, (106_000, 106_100), Some(&question(1, true)));
    for _ in 0..5 {
        assert!(matches!(lookup(&mut denials, &quota, 1, 106_100), CacheLookup::Scarce));
        denials.track(&question(1, false), 106_100);
    }
    assert!(matches!(lookup(&mut denials, &quota, 1, 106_100), CacheLookup::Denied(_)));
    denials.abandon_probe(&question(1, false));
    assert!(
        matches!(lookup(&mut denials, &quota, 1, 106_100), CacheLookup::Scarce),
        "one of them was dropped"
    );
    for _ in 0..4 {
        let reply = decide(&mut tat, &quota, 1, 106_200);
        let question = question(1, false);
        denials.record((KEY, &quota, 1), &reply, (106_100, 106_300), Some(&question));
    }
    assert!(matches!(lookup(&mut denials, &quota, 1, 106_300), CacheLookup::Scarce), "one is left");
    // A second later it is like any other limit.
    let reply = decide(&mut tat, &quota, 1, 1_200_000);
    record(&mut denials, &quota, 1, &reply, 1_200_000, 1_200_000);
    assert!(denials.is_empty());
}

/// What happens next in a history: of a worker's own requests, of another worker's, or of a refund.
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
        // Until when a denial may be believed.
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
                    CacheLookup::InFlight(_) => prop_assert!(false, "nobody asks"),
                    unsure => {
                        let tracked = match unsure {
                            CacheLookup::Expired { .. } => Some(question(cost, true)),
                            CacheLookup::Scarce => Some(question(cost, false)),
                            _ => None,
                        };
                        let sent_us = now;
                        if let Some(question) = &tracked {
                            denials.track(question, sent_us);
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
    assert_eq!(denials.len(), 2, "a question from before may still be answered");
    denials.invalidate(KEY, 1_150);
    denials.expire_resets(1_101, 1_000);
    assert_eq!(denials.len(), 2, "it was given back again");
    denials.expire_resets(1_201, 1_000);
    assert_eq!(denials.len(), 1);
    denials.expire_resets(2_151, 1_000);
    assert!(denials.is_empty() && denials.resets.is_empty());
}
