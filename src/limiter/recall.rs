//! Quota that other workers hold is called back before a leased limit denies.
//!
//! What a worker holds is charged in Redis, so Redis may deny one worker's request while another worker holds quota that
//! it does not use. A worker that is denied therefore tells all others once, waits for what they return, and asks again
//! each time that something came back, for as long as a request may wait: 20 ms from its first denial, whatever number of
//! limits denies it, and 20 more if the worker has to connect first to hear of returns. Where Redis has less left than
//! the policy's reserve, one message is enough for as long as it takes until that has come back: before that no worker
//! draws. So a flood that is denied costs one message and one short wait for each time that its limit runs out. A
//! request that costs more than the reserve may be denied while others still draw: then nothing is taken for granted.
//! [`Recalls`] is pure but for the signal that others wait for; times are µs of the worker's clock.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use tokio::sync::Notify;

use crate::config::limit::Lease;
use crate::limiter::advance::KEPT_US;
use crate::limiter::asked::Asked;
use crate::limiter::desk::Desk;
use crate::limiter::desk::lock;
use crate::limiter::policy::Measured;
use crate::limiter::quota::Quota;
use crate::limiter::set::Set;
use crate::limiter::terms::Terms;
use crate::redis::begin::LimitReply;

/// How long it is waited for what others return, µs: two messages through Redis, on a busy machine.
const WAIT_US: u64 = 20_000;

/// Most limits whose recall is remembered.
const RECALLS_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 12) - 1);

/// Limits that denied, and what was returned since.
#[derive(Debug)]
pub(super) struct Recalls {
    known: LruCache<Box<str>, Recall>,
}

#[derive(Debug)]
struct Recall {
    since_us: u64,
    returned_us: Option<u64>,
    told: Arc<Notify>,
}

/// What a denied request does.
#[derive(Debug)]
pub(super) enum Step {
    /// Nothing is held anywhere: it is denied.
    Denied,
    /// Something came back since it asked.
    Again,
    /// It waits until then for what comes back, after it has told the others if it is the first.
    Wait { tells: bool, until_us: u64, told: Arc<Notify> },
}

impl Default for Recalls {
    fn default() -> Self {
        Self { known: LruCache::sparse(RECALLS_MAX) }
    }
}

impl Recalls {
    /// A request was denied that was sent at `asked_us`; within `quiet_us` after a recall none is needed.
    pub(super) fn denied(&mut self, key: &str, quiet_us: u64, asked_us: u64, now_us: u64) -> Step {
        if let Some(recall) = self.known.get(key) {
            if recall.returned_us.is_some_and(|returned_us| returned_us >= asked_us) {
                return Step::Again;
            }
            let until_us = recall.since_us.saturating_add(WAIT_US);
            if now_us < until_us {
                return Step::Wait { tells: false, until_us, told: Arc::clone(&recall.told) };
            }
            if now_us.saturating_sub(recall.since_us) < quiet_us.max(WAIT_US) {
                return Step::Denied;
            }
        }
        let told = Arc::new(Notify::new());
        let recall = Recall { since_us: now_us, returned_us: None, told: Arc::clone(&told) };
        self.known.push(key.into(), recall);
        Step::Wait { tells: true, until_us: now_us.saturating_add(WAIT_US), told }
    }

    /// Whether something may be held elsewhere: none was called back lately, or something was returned since `asked_us`.
    pub(super) fn may_return(&mut self, key: &str, quiet_us: u64, asked_us: u64, now_us: u64) -> bool {
        self.known.get(key).is_none_or(|recall| {
            let is_quiet = now_us.saturating_sub(recall.since_us) < quiet_us.max(WAIT_US);
            let waits = now_us < recall.since_us.saturating_add(WAIT_US);
            !is_quiet || waits || recall.returned_us.is_some_and(|returned_us| returned_us >= asked_us)
        })
    }

    /// A limit has quota again. What comes long after a recall is no answer to it: more may be drawn from now on.
    pub(super) fn returned(&mut self, key: &str, now_us: u64) {
        let Some(recall) = self.known.peek_mut(key) else { return };
        if now_us.saturating_sub(recall.since_us) > WAIT_US + KEPT_US {
            self.known.pop(key);
            return;
        }
        recall.returned_us = Some(now_us);
        recall.told.notify_waiters();
    }
}

impl Desk {
    /// How long after a recall nothing can be held of a limit of which Redis has so many requests left; `None`: nothing
    /// is called back.
    fn quiet_us(
        &self,
        key: &str,
        (quota, lease): (&Quota, Lease),
        remaining: u64,
        now_us: u64,
    ) -> Option<u64> {
        let terms = Terms::of(lease, quota).filter(|terms| terms.busy_only)?;
        // News of other things may be heard and the answers to a recall not yet.
        let hears = self.hears_since().is_some();
        let is_hot = lock(&self.advance).is_hot(key, now_us);
        // With the reserve or more left others draw at any moment, and only the cost was too much.
        let until_drawn = terms.reserve.saturating_sub(remaining);
        (hears && !is_hot).then(|| until_drawn.saturating_mul(quota.interval_us()))
    }

    /// Whether what comes back is heard. A worker that is denied before it ever drew listens from then on, and waits a
    /// moment for the connection: without it its client is denied what other workers hold.
    async fn hears_returns(self: &Arc<Self>, lease: Lease, quota: &Quota) -> bool {
        if self.redis.is_plain() || Terms::of(lease, quota).is_none_or(|terms| !terms.busy_only) {
            return false;
        }
        self.listen();
        let since_us = self.listens.get().copied().unwrap_or_default();
        let left = since_us.saturating_add(WAIT_US).saturating_sub(self.now_us());
        let mut changes = self.redis.news_changes();
        let heard = changes.wait_for(Option::is_some);
        self.redis.news_since().is_some()
            || left > 0 && tokio::time::timeout(Duration::from_micros(left), heard).await.is_ok()
    }

    /// The last that Redis had was granted: whether something may still be held elsewhere. Then the next request has to
    /// ask, and calls it back if it is denied; it is not denied by what is known here.
    pub(super) fn may_return_after_last(
        &self,
        key: &str,
        (quota, lease): (&Quota, Lease),
        asked_us: u64,
    ) -> bool {
        let now_us = self.now_us();
        let quiet_us = self.quiet_us(key, (quota, lease), 0, now_us);
        quiet_us.is_some_and(|quiet_us| lock(&self.recalls).may_return(key, quiet_us, asked_us, now_us))
    }
}

impl Asked {
    /// Redis denied it: whether it has to be asked again, because other workers returned what they held. Never any more
    /// once it has waited for as long as a request may.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub async fn recalled(&mut self, set: &Set, replies: &[LimitReply]) -> bool {
        let desk = Arc::clone(self.desk());
        for (number, key, remaining) in self.denying(set, replies) {
            let Measured::Rate { quota, lease } = set.policy(number).measure() else { continue };
            let deadline_us = self.recall_deadline(&desk);
            if desk.now_us() >= deadline_us || !desk.hears_returns(lease, &quota).await {
                continue;
            }
            let now_us = desk.now_us();
            let Some(quiet_us) = desk.quiet_us(&key, (&quota, lease), remaining, now_us) else { continue };
            let step = lock(&desk.recalls).denied(&key, quiet_us, self.sent_us(), now_us);
            let (tells, until_us, told) = match step {
                Step::Denied => continue,
                Step::Again => {
                    self.asked_at(now_us);
                    return true;
                }
                Step::Wait { tells, until_us, told } => (tells, until_us, told),
            };
            // Before anything is sent: a signal that comes first would be missed.
            let notified = told.notified();
            if tells {
                // This worker may hold some itself, if less than such a request costs.
                desk.return_held(&key);
                desk.redis.recall_limit(&key);
            }
            let wait = Duration::from_micros(until_us.min(deadline_us).saturating_sub(now_us));
            let again = tokio::time::timeout(wait, notified).await.is_ok();
            if again {
                self.asked_at(desk.now_us());
                return true;
            }
        }
        false
    }

    /// Until when this request may wait, counted from its first denial: one time for all its limits and all rounds.
    fn recall_deadline(&mut self, desk: &Desk) -> u64 {
        *self.recall_until_us.get_or_insert_with(|| {
            let connects = desk.redis.news_since().is_none();
            desk.now_us().saturating_add(if connects { 2 * WAIT_US } else { WAIT_US })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET_US: u64 = 1_000_000;

    #[test]
    fn the_first_that_is_denied_tells_all_and_those_after_it_wait_with_it() {
        let mut recalls = Recalls::default();
        let step = |recalls: &mut Recalls, asked_us, now_us| recalls.denied("k", QUIET_US, asked_us, now_us);
        let until = WAIT_US + 100;
        assert!(
            matches!(step(&mut recalls, 90, 100), Step::Wait { tells: true, until_us, .. } if until_us == until)
        );
        assert!(
            matches!(step(&mut recalls, 90, 110), Step::Wait { tells: false, until_us, .. } if until_us == until)
        );
        recalls.returned("k", 120);
        assert!(matches!(step(&mut recalls, 115, 130), Step::Again), "decided before that came back");
        assert!(matches!(step(&mut recalls, 125, 131), Step::Wait { tells: false, .. }), "more may come");
        assert!(matches!(step(&mut recalls, until, until), Step::Denied));
        assert!(matches!(step(&mut recalls, 1_000_099, 1_000_099), Step::Denied));
        assert!(matches!(step(&mut recalls, 1_000_100, 1_000_100), Step::Wait { tells: true, .. }));
    }

    #[test]
    fn after_the_last_one_was_granted_it_is_asked_again_unless_nothing_can_be_held() {
        let mut recalls = Recalls::default();
        assert!(recalls.may_return("k", QUIET_US, 0, 0), "nothing was called back");
        assert!(matches!(recalls.denied("k", QUIET_US, 0, 0), Step::Wait { tells: true, .. }));
        assert!(recalls.may_return("k", QUIET_US, 10, 10), "it is on its way");
        assert!(!recalls.may_return("k", QUIET_US, WAIT_US, WAIT_US));
        assert!(recalls.may_return("k", 0, WAIT_US, WAIT_US), "others draw");
        recalls.returned("k", WAIT_US + 1);
        assert!(
            recalls.may_return("k", QUIET_US, WAIT_US, WAIT_US + 2),
            "it was granted before that came back"
        );
    }

    #[test]
    fn after_a_refund_it_is_called_back_again() {
        let mut recalls = Recalls::default();
        assert!(matches!(recalls.denied("k", QUIET_US, 0, 0), Step::Wait { tells: true, .. }));
        recalls.returned("other", 300_000);
        assert!(matches!(recalls.denied("k", QUIET_US, 300_000, 300_000), Step::Denied));
        recalls.returned("k", 300_001);
        assert!(matches!(recalls.denied("k", QUIET_US, 300_002, 300_002), Step::Wait { tells: true, .. }));
    }
}
