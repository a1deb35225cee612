//! What this worker knows to be denied, so that a flood from one client does not become a flood of Redis.
//!
//! Kept is a lower bound of a limit's arrival time, never a permission. Requests of others only move the true one
//! further away, so whatever the bound denies, Redis would deny too, for any cost. Two things could make it wrong and
//! are met: quota that is given back (whoever gives it tells everybody, [`Denials::forget`]) and clocks (the bound is
//! counted from the moment at which the question was sent, which is before Redis decided).
//!
//! When a bound has passed, one request asks and the others of the same limit wait for its answer: at the end of a
//! denial a flood is still one command. The one that asks first waits for as long as the last answer took: by then the
//! denial is over for Redis too, which decided somewhere in between. Pure but for the signal that others wait for; times
//! are µs of the worker's own clock.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use tokio::sync::Notify;

use crate::limiter::gcra;
use crate::limiter::quota::Quota;
use crate::redis::begin::LimitReply;

/// Most limits that are remembered; the least recently used is forgotten first.
pub const KNOWN_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 16) - 1);

/// What is known of the limits by their keys, which name subject, policy and the policy's version.
#[derive(Debug)]
pub struct Denials {
    known: LruCache<Box<str>, Known>,
}

#[derive(Debug, Clone)]
enum Known {
    /// The arrival time is this or later, as learned from a question sent at `asked_us` that took `way_us`.
    Bound { tat_us: u64, asked_us: u64, way_us: u64 },
    /// Somebody asks again; the others wait for this.
    Asked { since_us: u64, answered: Arc<Notify> },
    /// Quota was given back at this time: answers to questions from before it are worth nothing.
    Reset { at_us: u64 },
}

/// What to do with a request under one limit.
#[derive(Debug)]
pub enum Look {
    /// Redis would deny it.
    Denied(LimitReply),
    /// Nothing is known: ask.
    Unknown,
    /// What was known has run out, and nobody asks: whoever asks says so with [`Denials::ask`].
    Stale {
        /// Before this time Redis may still deny it.
        ask_at_us: u64,
    },
    /// Somebody asks already: wait for this and look again.
    Wait(Arc<Notify>),
}

impl Default for Denials {
    fn default() -> Self {
        Self { known: LruCache::sparse(KNOWN_MAX) }
    }
}

impl Denials {
    /// Looks a limit up, changing nothing.
    ///
    /// `oldest_us`: knowledge from before this time is not used, because news of refunds may have been missed since.
    /// `patience_us`: an answer that takes longer is not waited for.
    pub fn look(
        &mut self,
        key: &str,
        quota: &Quota,
        cost: u64,
        now_us: u64,
        oldest_us: u64,
        patience_us: u64,
    ) -> Look {
        match self.known.get(key) {
            None | Some(Known::Reset { .. }) => Look::Unknown,
            Some(Known::Bound { asked_us, .. }) if *asked_us < oldest_us => Look::Stale { ask_at_us: now_us },
            Some(Known::Bound { tat_us, way_us, .. }) => {
                match gcra::decide(Some(*tat_us), now_us, quota, cost).reply {
                    reply if !reply.allowed => Look::Denied(reply),
                    // A look has nothing to wait for.
                    _ if cost == 0 => Look::Unknown,
                    _ => Look::Stale { ask_at_us: when(*tat_us, quota, cost).saturating_add(*way_us) },
                }
            }
            Some(Known::Asked { .. }) if cost == 0 => Look::Unknown,
            Some(Known::Asked { since_us, answered }) => match now_us.saturating_sub(*since_us) < patience_us
            {
                true => Look::Wait(Arc::clone(answered)),
                false => Look::Stale { ask_at_us: now_us },
            },
        }
    }

    /// Somebody asks Redis about a limit that was [`Look::Stale`]; ends with [`Denials::learn`] or
    /// [`Denials::unanswered`].
    pub fn ask(&mut self, key: &str, now_us: u64) {
        if let Some(known @ (Known::Bound { .. } | Known::Asked { .. })) = self.known.get_mut(key) {
            *known = Known::Asked { since_us: now_us, answered: Arc::default() };
        }
    }

    /// Takes note of Redis's answer, which comes now, to a question that was sent at `asked_us`.
    ///
    /// Kept only if it denies the same request again, be it that the limit denied it or that it took the last.
    pub fn learn(
        &mut self,
        key: &str,
        quota: &Quota,
        cost: u64,
        reply: &LimitReply,
        asked_us: u64,
        now_us: u64,
    ) {
        let spent = reply.reset_us.min(quota.tolerance_us());
        let possible = quota.interval_us().saturating_mul(cost) <= quota.tolerance_us();
        let denies = cost > 0 && possible && !gcra::decide(Some(spent), 0, quota, cost).reply.allowed;
        // The common case, a client far from its limit, is only this one look-up; mostly in an empty table.
        let before = match self.known.get_mut(key) {
            None if !denies => return,
            before => before,
        };
        let (tat_us, way_us) = (asked_us.saturating_add(spent), now_us.saturating_sub(asked_us));
        match before {
            Some(Known::Reset { at_us }) if asked_us <= *at_us => return,
            Some(Known::Bound { tat_us: bound, asked_us: newer, .. }) if *newer >= asked_us => {
                // Answers may overtake each other; both are true.
                *bound = tat_us.max(*bound);
                return;
            }
            Some(Known::Asked { answered, .. }) => answered.notify_waiters(),
            Some(Known::Bound { .. } | Known::Reset { .. }) | None => {}
        }
        match denies {
            true => _ = self.known.push(key.into(), Known::Bound { tat_us, asked_us, way_us }),
            false => _ = self.known.pop(key),
        }
    }

    /// The question failed: whoever waited asks himself.
    pub fn unanswered(&mut self, key: &str) {
        if let Some(Known::Asked { answered, .. }) = self.known.peek(key) {
            answered.notify_waiters();
            self.known.pop(key);
        }
    }

    /// Quota was given back, or the limit was reset.
    pub fn forget(&mut self, key: &str, now_us: u64) {
        // Remembered even if nothing is known: an answer from before may still be on its way.
        let before = self.known.push(key.into(), Known::Reset { at_us: now_us });
        if let Some((_, Known::Asked { answered, .. })) = before {
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

    fn look(denials: &mut Denials, quota: &Quota, cost: u64, now_us: u64) -> Look {
        denials.look(KEY, quota, cost, now_us, 0, PATIENCE_US)
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
            denials.learn(KEY, &quota, 1, &reply, 100, 100);
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
        denials.learn(KEY, &quota, 1, &decide(&mut tat, &quota, 1, 0), 0, 0);
        assert!(matches!(look(&mut denials, &quota, 1, 999_999), Look::Denied(_)));
        assert!(matches!(look(&mut denials, &quota, 1, 1_000_000), Look::Stale { .. }));
        denials.ask(KEY, 1_000_000);
        assert!(matches!(look(&mut denials, &quota, 1, 1_000_001), Look::Wait(_)));
        assert!(matches!(look(&mut denials, &quota, 1, 1_000_000 + PATIENCE_US), Look::Stale { .. }));
        denials.learn(KEY, &quota, 1, &decide(&mut tat, &quota, 1, 1_000_100), 1_000_000, 1_000_200);
        assert!(matches!(look(&mut denials, &quota, 1, 1_000_200), Look::Denied(_)));
        // The answer took 200: so long after the bound Redis is sure to allow it.
        assert!(matches!(look(&mut denials, &quota, 1, 2_000_000), Look::Stale { ask_at_us: 2_000_200 }));
        denials.ask(KEY, 2_000_100);
        denials.unanswered(KEY);
        assert!(matches!(look(&mut denials, &quota, 1, 2_000_200), Look::Unknown));
    }

    #[test]
    fn an_answer_from_before_a_refund_is_worth_nothing() {
        let (quota, mut denials, mut tat) = (quota(1), Denials::default(), Some(1_000_000));
        let denied = decide(&mut tat, &quota, 1, 100);
        denials.forget(KEY, 150);
        denials.learn(KEY, &quota, 1, &denied, 100, 160);
        assert!(matches!(look(&mut denials, &quota, 1, 200), Look::Unknown));
        denials.learn(KEY, &quota, 1, &denied, 160, 170);
        assert!(matches!(look(&mut denials, &quota, 1, 200), Look::Denied(_)));
        denials.forget(KEY, 300);
        assert!(matches!(look(&mut denials, &quota, 1, 300), Look::Unknown));
    }

    #[test]
    fn what_is_too_old_to_be_trusted_is_not_used() {
        let (quota, mut denials, mut tat) = (quota(1), Denials::default(), None);
        denials.learn(KEY, &quota, 1, &decide(&mut tat, &quota, 1, 500), 500, 500);
        assert!(matches!(
            denials.look(KEY, &quota, 1, 600, 501, PATIENCE_US),
            Look::Stale { ask_at_us: 600 }
        ));
        assert!(matches!(denials.look(KEY, &quota, 1, 600, 500, PATIENCE_US), Look::Denied(_)));
    }

    #[test]
    fn a_cost_that_can_never_be_allowed_is_not_remembered_and_memory_is_bounded() {
        let (quota, mut denials) = (quota(1), Denials::default());
        denials.learn(KEY, &quota, 2, &decide(&mut None, &quota, 2, 0), 0, 0);
        assert!(denials.is_empty());
        for client in 0..KNOWN_MAX.get() + 10 {
            denials.learn(&client.to_string(), &quota, 1, &decide(&mut Some(1_000_000), &quota, 1, 0), 0, 0);
        }
        assert_eq!(denials.len(), KNOWN_MAX.get());
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
        fn it_never_denies_what_redis_would_allow(
            steps in prop::collection::vec((step(), 0..700_000u64), 1..120),
            burst in 1..6u64,
        ) {
            let (quota, mut denials, mut tat, mut now) = (quota(burst), Denials::default(), None, 1_000_000u64);
            for (step, pause) in steps {
                now += pause;
                match step {
                    Step::Own { cost, way_us } => match look(&mut denials, &quota, cost, now) {
                        Look::Denied(told) => {
                            let truth = gcra::decide(tat, now, &quota, cost).reply;
                            prop_assert!(!truth.allowed);
                            prop_assert!(told.retry_after_us <= truth.retry_after_us);
                        }
                        Look::Wait(_) => prop_assert!(false, "nobody asks"),
                        unsure => {
                            if matches!(unsure, Look::Stale { .. }) {
                                denials.ask(KEY, now);
                            }
                            let asked = now;
                            now += way_us;
                            let reply = decide(&mut tat, &quota, cost, now);
                            now += way_us;
                            denials.learn(KEY, &quota, cost, &reply, asked, now);
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
