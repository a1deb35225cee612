//! What this worker knows to be denied, so that a flood from one client does not become a flood of Redis.
//!
//! Kept is a lower bound of a limit's arrival time, never a permission. Requests of others only move the true one
//! further away, so whatever the bound denies, Redis would deny too, for any cost. Two things could make it wrong and
//! are met: quota that is given back (whoever gives it tells everybody, [`Denials::forget`]) and clocks (the bound is
//! counted from the moment at which the question was sent, which is before Redis decided).
//!
//! Where an interval is shorter than a round trip the bound has passed before it is known, and every denial would cost a
//! question. Three rules keep a flood at one question in a while, at any rate:
//!
//! - A denial of Redis is believed for a moment ([`belief_us`]), also past its bound: a tenth of a second at most, and
//!   never as long as it takes for the burst to come back, so that no quota is lost by it. This is the only denial that
//!   Redis might not confirm; the `Retry-After` that came with it is a second at least.
//! - After that one request asks, and the others of the same limit wait for its answer and share it: they were there
//!   when Redis decided. The one that asks first waits for as long as the last answer took: by then the denial is over
//!   for Redis too, which decided somewhere in between.
//! - While a limit is short, no more questions are under way than what Redis had left can grant.
//!
//! Pure but for the signal that others wait for; times are µs of the worker's own clock.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use tokio::sync::Notify;

use crate::limiter::gcra;
use crate::limiter::quota::Quota;
use crate::redis::begin::LimitReply;

/// Most limits that are remembered; the least recently used is forgotten first.
pub const KNOWN_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 16) - 1);

/// Longest time for which a denial is believed past its bound, µs.
const BELIEF_MAX_US: u64 = 100_000;

/// How long after a denial a limit counts as short, µs.
const SHORT_US: u64 = 1_000_000;

/// What is known of the limits by their keys, which name subject, policy and the policy's version.
#[derive(Debug)]
pub struct Denials {
    known: LruCache<Box<str>, Known>,
}

#[derive(Debug, Clone)]
enum Known {
    Bound(Bound),
    /// Quota was given back at this time: answers to questions from before it are worth nothing.
    Reset {
        at_us: u64,
    },
}

#[derive(Debug, Clone)]
struct Bound {
    /// The arrival time is this or later,
    tat_us: u64,
    /// as learned from a question that was sent then
    asked_us: u64,
    /// and took so long.
    way_us: u64,
    /// What the questions under way cost: granted, they move the arrival time as far.
    under_way: u64,
    /// Redis denied a request of this cost, which is believed until then.
    believed: Option<(u64, u64)>,
    /// When Redis last denied; none: it only granted the last that was left.
    denied_us: Option<u64>,
    /// One request asks whether the denial is over, since then; the others wait for this.
    probe: Option<(u64, Arc<Notify>)>,
}

/// What to do with a request under one limit.
#[derive(Debug)]
pub enum Look {
    /// Redis would deny it, or did so a moment ago.
    Denied(LimitReply),
    /// Nothing is known: ask.
    Unknown,
    /// The limit was short a moment ago and has something left: whoever asks says so with [`Denials::ask`].
    Short,
    /// What was known has run out, and nobody asks: likewise, for all others.
    Stale {
        /// Before this time Redis may still deny it.
        ask_at_us: u64,
    },
    /// Somebody asks already: wait for this and look again.
    Wait(Arc<Notify>),
}

/// When a look is taken, and what it may rely on.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Now.
    pub now_us: u64,
    /// Knowledge from before this time is not used, because news of refunds may have been missed since.
    pub oldest_us: u64,
    /// An answer that takes longer is not waited for.
    pub patience_us: u64,
    /// Whether the request waited for somebody's answer, which then is its own.
    pub waited: bool,
}

/// A question that is under way and known to [`Denials`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracked {
    /// The limit.
    pub key: String,
    /// What is asked for.
    pub cost: u64,
    /// Whether others wait for the answer.
    pub probe: bool,
}

impl Default for Denials {
    fn default() -> Self {
        Self { known: LruCache::sparse(KNOWN_MAX) }
    }
}

impl Denials {
    /// Looks a limit up, changing nothing.
    pub fn look(&mut self, key: &str, quota: &Quota, cost: u64, at: Moment) -> Look {
        match self.known.get(key) {
            // A request that costs nothing is never denied, and has nothing to wait for.
            Some(Known::Bound(bound)) if cost > 0 => bound.look(quota, cost, at),
            _ => Look::Unknown,
        }
    }

    /// Redis is asked about a limit that was [`Look::Short`] or [`Look::Stale`]; ends with [`Denials::learn`] or
    /// [`Denials::unanswered`].
    pub fn ask(&mut self, question: &Tracked, now_us: u64) {
        if let Some(Known::Bound(bound)) = self.known.get_mut(question.key.as_str()) {
            bound.under_way = bound.under_way.saturating_add(question.cost);
            if question.probe {
                bound.probe = Some((now_us, Arc::default()));
            }
        }
    }

    /// Takes note of Redis's answer, which comes now, to a question that was sent at `asked_us`; `tracked` is what was
    /// said of it to [`Denials::ask`].
    ///
    /// Kept only if it denies the same request again, be it that the limit denied it or that it took the last; and
    /// while the limit is short.
    pub fn learn(
        &mut self,
        (key, quota, cost): (&str, &Quota, u64),
        reply: &LimitReply,
        (asked_us, now_us): (u64, u64),
        tracked: Option<&Tracked>,
    ) {
        let spent = reply.reset_us.min(quota.tolerance_us());
        let possible = cost > 0 && quota.interval_us().saturating_mul(cost) <= quota.tolerance_us();
        let denies = possible && !gcra::decide(Some(spent), 0, quota, cost).reply.allowed;
        let answer = Bound {
            tat_us: asked_us.saturating_add(spent),
            asked_us,
            way_us: now_us.saturating_sub(asked_us),
            under_way: 0,
            believed: (possible && !reply.allowed).then(|| (cost, now_us.saturating_add(belief_us(quota)))),
            denied_us: (possible && !reply.allowed).then_some(now_us),
            probe: None,
        };
        // The common case, a client far from its limit, is only this one look-up; mostly in an empty table.
        match self.known.get_mut(key) {
            None if !denies => return,
            Some(Known::Reset { at_us }) if asked_us <= *at_us => return,
            Some(Known::Bound(bound)) => {
                bound.answered(tracked);
                bound.update(&answer);
                if denies || bound.is_short(now_us) || bound.probe.is_some() {
                    return;
                }
            }
            None | Some(Known::Reset { .. }) if denies => {
                self.known.push(key.into(), Known::Bound(answer));
                return;
            }
            None | Some(Known::Reset { .. }) => {}
        }
        self.known.pop(key);
    }

    /// The question failed: whoever waited asks himself.
    pub fn unanswered(&mut self, question: &Tracked) {
        if let Some(Known::Bound(bound)) = self.known.peek_mut(question.key.as_str()) {
            bound.answered(Some(question));
            if question.probe {
                self.known.pop(question.key.as_str());
            }
        }
    }

    /// Quota was given back, or the limit was reset.
    pub fn forget(&mut self, key: &str, now_us: u64) {
        // Remembered even if nothing is known: an answer from before may still be on its way.
        let before = self.known.push(key.into(), Known::Reset { at_us: now_us });
        if let Some((_, Known::Bound(Bound { probe: Some((_, answered)), .. }))) = before {
            answered.notify_waiters();
        }
    }

    /// Limits that are remembered.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

impl Bound {
    fn look(&self, quota: &Quota, cost: u64, at: Moment) -> Look {
        let Moment { now_us, oldest_us, patience_us, waited } = at;
        let is_fresh = self.asked_us >= oldest_us;
        let decide = |tat_us: u64, at_us: u64| gcra::decide(Some(tat_us), at_us, quota, cost).reply;
        // Whether there was something left when the last answer was given.
        let had_room = decide(self.tat_us, self.asked_us).allowed;
        if is_fresh {
            let believed = self.believed.filter(|(least, until)| cost >= *least && now_us < *until);
            let rest_us = believed.map_or(0, |(_, until_us)| until_us - now_us);
            let reply = decide(self.tat_us, now_us);
            if !reply.allowed || rest_us > 0 || (waited && !had_room) {
                // A cost above the burst is never allowed, and has no time at which it would be.
                let retry_after_us = match reply.allowed {
                    true => Some(rest_us.max(1)),
                    false => reply.retry_after_us.map(|retry_us| retry_us.max(rest_us)),
                };
                let remaining = if reply.allowed { 0 } else { reply.remaining };
                let reset_us = reply.reset_us.max(rest_us);
                return Look::Denied(LimitReply { allowed: false, remaining, retry_after_us, reset_us });
            }
        }
        match &self.probe {
            Some((since_us, answered)) if !waited && now_us.saturating_sub(*since_us) < patience_us => {
                return Look::Wait(Arc::clone(answered));
            }
            Some(_) => return Look::Stale { ask_at_us: now_us },
            None => {}
        }
        if !is_fresh {
            return Look::Stale { ask_at_us: now_us };
        }
        if !had_room {
            return Look::Stale { ask_at_us: when(self.tat_us, quota, cost).saturating_add(self.way_us) };
        }
        let taken_us = quota.interval_us().saturating_mul(self.under_way);
        match decide(self.tat_us.max(now_us).saturating_add(taken_us), now_us) {
            reply if !reply.allowed => Look::Denied(reply),
            _ => Look::Short,
        }
    }

    /// A question is not under way any more.
    fn answered(&mut self, question: Option<&Tracked>) {
        let Some(question) = question else { return };
        self.under_way = self.under_way.saturating_sub(question.cost);
        if question.probe
            && let Some((_, answered)) = self.probe.take()
        {
            answered.notify_waiters();
        }
    }

    /// Joins another answer to this one; they may overtake each other, and both are true.
    fn update(&mut self, answer: &Self) {
        if self.asked_us >= answer.asked_us {
            self.tat_us = self.tat_us.max(answer.tat_us);
        } else {
            (self.tat_us, self.asked_us, self.way_us) = (answer.tat_us, answer.asked_us, answer.way_us);
            // Granted later than denied: there is quota again.
            self.believed = self.believed.filter(|_| answer.believed.is_some());
        }
        if let Some((cost, until_us)) = answer.believed {
            let least = self.believed.map_or(cost, |(least, _)| least.min(cost));
            self.believed = Some((least, until_us));
        }
        self.denied_us = answer.denied_us.or(self.denied_us);
    }

    /// Whether Redis denied somebody lately.
    fn is_short(&self, now_us: u64) -> bool {
        self.denied_us.is_some_and(|denied_us| now_us.saturating_sub(denied_us) < SHORT_US)
    }
}

/// How long a denial is believed past its bound: by then not even half of the burst has come back, so none is lost.
fn belief_us(quota: &Quota) -> u64 {
    BELIEF_MAX_US.min(quota.tolerance_us() / 2)
}

/// When a request of this cost is allowed at the earliest.
fn when(tat_us: u64, quota: &Quota, cost: u64) -> u64 {
    tat_us.saturating_add(quota.interval_us().saturating_mul(cost)).saturating_sub(quota.tolerance_us())
}

#[cfg(test)]
mod tests {
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

    fn learn(
        denials: &mut Denials,
        quota: &Quota,
        cost: u64,
        reply: &LimitReply,
        asked_us: u64,
        now_us: u64,
    ) {
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
}
