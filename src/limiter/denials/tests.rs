//! The rules one by one, and histories at random.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::limit::Rate;

const KEY: &str = "p:l:a:v:10.0.0.1";
const PATIENCE_US: u64 = 50_000;

fn quota(burst: u64) -> Quota {
    Quota::new(Rate { count: 1, period: Duration::from_secs(1) }, burst)
}

fn at(now_us: u64) -> Moment {
    Moment { now_us, oldest_us: 0, patience_us: PATIENCE_US, waited: false }
}

fn look(denials: &mut Denials, quota: &Quota, cost: u64, now_us: u64) -> Look {
    denials.look(KEY, quota, cost, at(now_us))
}

fn learn(denials: &mut Denials, quota: &Quota, cost: u64, reply: &LimitReply, asked_us: u64, now_us: u64) {
    denials.learn((KEY, quota, cost), reply, (asked_us, now_us), None);
}

fn question(cost: u64, probe: bool) -> Tracked {
    Tracked { key: KEY.to_owned(), cost, probe }
}

/// Asks a Redis with this arrival time.
fn decide(tat: &mut Option<u64>, quota: &Quota, cost: u64, at_us: u64) -> LimitReply {
    let decision = gcra::decide(*tat, at_us, quota, cost);
    *tat = decision.tat_us.or(*tat);
    decision.reply
}

#[test]
fn the_last_one_that_was_allowed_already_says_that_the_next_is_denied() {
    let (quota, mut denials, mut tat) = (quota(2), Denials::default(), None);
    for left in [1, 0] {
        assert!(matches!(look(&mut denials, &quota, 1, 100), Look::Unknown));
        let reply = decide(&mut tat, &quota, 1, 100);
        assert_eq!(reply.remaining, left);
        learn(&mut denials, &quota, 1, &reply, 100, 100);
    }
    let Look::Denied(reply) = look(&mut denials, &quota, 1, 400_100) else { panic!("asked") };
    assert_eq!((reply.remaining, reply.retry_after_us), (0, Some(600_000)));
    let Look::Denied(reply) = look(&mut denials, &quota, 2, 400_100) else { panic!("asked") };
    assert_eq!(reply.retry_after_us, Some(1_600_000), "more costs wait longer");
    assert!(matches!(look(&mut denials, &quota, 0, 400_100), Look::Unknown), "a look is never denied");
}

#[test]
fn when_a_denial_ends_one_asks_and_the_others_wait() {
    let (quota, mut denials, mut tat) = (quota(1), Denials::default(), None);
    learn(&mut denials, &quota, 1, &decide(&mut tat, &quota, 1, 0), 0, 0);
    assert!(matches!(look(&mut denials, &quota, 1, 999_999), Look::Denied(_)));
    assert!(matches!(look(&mut denials, &quota, 1, 1_000_000), Look::Stale { .. }));
    denials.ask(&question(1, true), 1_000_000);
    assert!(matches!(look(&mut denials, &quota, 1, 1_000_001), Look::Wait(_)));
    assert!(matches!(look(&mut denials, &quota, 1, 1_000_000 + PATIENCE_US), Look::Stale { .. }));
    let reply = decide(&mut tat, &quota, 1, 1_000_100);
    denials.learn((KEY, &quota, 1), &reply, (1_000_000, 1_000_200), Some(&question(1, true)));
    assert!(matches!(look(&mut denials, &quota, 1, 1_000_200), Look::Denied(_)));
    // The answer took 200: so long after the bound Redis is sure to allow it.
    assert!(matches!(look(&mut denials, &quota, 1, 2_000_000), Look::Stale { ask_at_us: 2_000_200 }));
    denials.ask(&question(1, true), 2_000_100);
    denials.unanswered(&question(1, true));
    assert!(matches!(look(&mut denials, &quota, 1, 2_000_200), Look::Unknown));
}

#[test]
fn an_answer_from_before_a_refund_is_worth_nothing() {
    let (quota, mut denials, mut tat) = (quota(1), Denials::default(), Some(1_000_000));
    let denied = decide(&mut tat, &quota, 1, 100);
    denials.forget(KEY, 150);
    learn(&mut denials, &quota, 1, &denied, 100, 160);
    assert!(matches!(look(&mut denials, &quota, 1, 200), Look::Unknown));
    learn(&mut denials, &quota, 1, &denied, 160, 170);
    assert!(matches!(look(&mut denials, &quota, 1, 200), Look::Denied(_)));
    denials.forget(KEY, 300);
    assert!(matches!(look(&mut denials, &quota, 1, 300), Look::Unknown));
}

#[test]
fn what_is_too_old_to_be_trusted_is_not_used() {
    let (quota, mut denials, mut tat) = (quota(1), Denials::default(), None);
    learn(&mut denials, &quota, 1, &decide(&mut tat, &quota, 1, 500), 500, 500);
    let old = |oldest_us| Moment { oldest_us, ..at(600) };
    assert!(matches!(denials.look(KEY, &quota, 1, old(501)), Look::Stale { ask_at_us: 600 }));
    assert!(matches!(denials.look(KEY, &quota, 1, old(500)), Look::Denied(_)));
}

#[test]
fn a_cost_that_can_never_be_allowed_is_not_remembered_and_memory_is_bounded() {
    let (quota, mut denials) = (quota(1), Denials::default());
    learn(&mut denials, &quota, 2, &decide(&mut None, &quota, 2, 0), 0, 0);
    assert!(denials.is_empty());
    for client in 0..KNOWN_MAX.get() + 10 {
        let reply = decide(&mut Some(1_000_000), &quota, 1, 0);
        denials.learn((&client.to_string(), &quota, 1), &reply, (0, 0), None);
    }
    assert_eq!(denials.len(), KNOWN_MAX.get());
}

/// 1000 a second, 10 at once: a token takes as long as a round trip.
fn quick() -> Quota {
    Quota::new(Rate { count: 1000, period: Duration::from_secs(1) }, 10)
}

#[test]
fn a_denial_is_believed_for_a_moment_by_what_costs_as_much() {
    let (quota, mut denials) = (quick(), Denials::default());
    let mut tat = Some(109_000);
    learn(&mut denials, &quota, 3, &decide(&mut tat, &quota, 3, 100_000), 100_000, 103_000);
    // 3 are left by then, and are had by what costs less.
    let Look::Denied(reply) = look(&mut denials, &quota, 3, 103_000) else { panic!("asked") };
    assert_eq!((reply.allowed, reply.retry_after_us), (false, Some(5_000)), "half of the burst's time");
    assert!(matches!(look(&mut denials, &quota, 1, 103_000), Look::Short));
    assert!(matches!(look(&mut denials, &quota, 3, 107_999), Look::Denied(_)));
    assert!(matches!(look(&mut denials, &quota, 3, 108_000), Look::Stale { .. }));
    // What gives quota back ends it at once.
    denials.forget(KEY, 103_001);
    assert!(matches!(look(&mut denials, &quota, 3, 103_001), Look::Unknown));
}

#[test]
fn whoever_waited_shares_the_answer_even_if_its_bound_has_passed() {
    let (quota, mut denials) = (quick(), Denials::default());
    let mut tat = Some(110_000);
    learn(&mut denials, &quota, 1, &decide(&mut tat, &quota, 1, 100_000), 100_000, 100_000);
    assert!(matches!(look(&mut denials, &quota, 1, 105_000), Look::Stale { .. }));
    denials.ask(&question(1, true), 105_000);
    assert!(matches!(look(&mut denials, &quota, 1, 105_000), Look::Wait(_)));
    // Others took all of it, and the answer took longer than the next one needs.
    let reply = decide(&mut Some(115_000), &quota, 1, 105_000);
    assert!(!reply.allowed);
    denials.learn((KEY, &quota, 1), &reply, (105_000, 120_000), Some(&question(1, true)));
    let waited = |now_us| Moment { waited: true, ..at(now_us) };
    assert!(matches!(denials.look(KEY, &quota, 1, waited(126_000)), Look::Denied(_)));
    assert!(matches!(look(&mut denials, &quota, 1, 126_000), Look::Stale { .. }), "who comes later asks");
}

#[test]
fn no_more_is_asked_than_can_be_granted_while_a_limit_is_short() {
    let (quota, mut denials) = (quick(), Denials::default());
    let mut tat = Some(110_000);
    learn(&mut denials, &quota, 1, &decide(&mut tat, &quota, 1, 100_000), 100_000, 100_000);
    denials.ask(&question(1, true), 106_000);
    let reply = decide(&mut tat, &quota, 1, 106_000);
    assert_eq!(reply.remaining, 5);
    denials.learn((KEY, &quota, 1), &reply, (106_000, 106_100), Some(&question(1, true)));
    for _ in 0..5 {
        assert!(matches!(look(&mut denials, &quota, 1, 106_100), Look::Short));
        denials.ask(&question(1, false), 106_100);
    }
    assert!(matches!(look(&mut denials, &quota, 1, 106_100), Look::Denied(_)));
    denials.unanswered(&question(1, false));
    assert!(matches!(look(&mut denials, &quota, 1, 106_100), Look::Short), "one of them was dropped");
    for _ in 0..4 {
        let reply = decide(&mut tat, &quota, 1, 106_200);
        let question = question(1, false);
        denials.learn((KEY, &quota, 1), &reply, (106_100, 106_300), Some(&question));
    }
    assert!(matches!(look(&mut denials, &quota, 1, 106_300), Look::Short), "one is left");
    // A second later it is like any other limit.
    let reply = decide(&mut tat, &quota, 1, 1_200_000);
    learn(&mut denials, &quota, 1, &reply, 1_200_000, 1_200_000);
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
        let (quota, mut denials, mut tat, mut now) = (quota(burst), Denials::default(), None, 1_000_000u64);
        // Until when a denial may be believed.
        let mut until = 0;
        for (step, pause) in steps {
            now += pause;
            match step {
                Step::Own { cost, way_us } => match look(&mut denials, &quota, cost, now) {
                    Look::Denied(told) => {
                        let truth = gcra::decide(tat, now, &quota, cost).reply;
                        prop_assert!(!told.allowed && (!truth.allowed || now < until));
                        let rest = until.saturating_sub(now);
                        let allowed = truth.retry_after_us.map_or(Some(rest), |wait| Some(wait.max(rest)));
                        prop_assert!(told.retry_after_us <= allowed);
                    }
                    Look::Wait(_) => prop_assert!(false, "nobody asks"),
                    unsure => {
                        let tracked = match unsure {
                            Look::Stale { .. } => Some(question(cost, true)),
                            Look::Short => Some(question(cost, false)),
                            _ => None,
                        };
                        let asked = now;
                        if let Some(question) = &tracked {
                            denials.ask(question, asked);
                        }
                        now += way_us;
                        let reply = decide(&mut tat, &quota, cost, now);
                        now += way_us;
                        denials.learn((KEY, &quota, cost), &reply, (asked, now), tracked.as_ref());
                        if !reply.allowed {
                            until = now + belief_us(&quota);
                        }
                    }
                },
                Step::Other { cost } => _ = decide(&mut tat, &quota, cost, now),
                Step::Refund { cost } => {
                    tat = gcra::refund(tat, now, &quota, cost);
                    denials.forget(KEY, now);
                }
            }
        }
    }
}

#[test]
fn quota_given_back_is_remembered_for_as_long_as_questions_are_under_way() {
    let mut denials = Denials::default();
    denials.forget(KEY, 100);
    denials.forget("other", 200);
    denials.expire(1_100, 1_000);
    assert_eq!(denials.len(), 2, "a question from before may still be answered");
    denials.forget(KEY, 1_150);
    denials.expire(1_101, 1_000);
    assert_eq!(denials.len(), 2, "it was given back again");
    denials.expire(1_201, 1_000);
    assert_eq!(denials.len(), 1);
    denials.expire(2_151, 1_000);
    assert!(denials.is_empty() && denials.resets.is_empty());
}
