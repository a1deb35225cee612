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

use crate::config::limits::PrefetchMode;
use crate::limiter::applied_limits::AppliedLimits;
use crate::limiter::pending::PendingDecision;
use crate::limiter::policy::PolicyMeasure;
use crate::limiter::prefetch::HOLD_US;
use crate::limiter::prefetch::terms::PrefetchTerms;
use crate::limiter::quota::Quota;
use crate::limiter::request_limiter::{RequestLimiter, lock};
use crate::redis::begin::RateLimitDecision;

/// How long it is waited for what others return, µs: two messages through Redis, on a busy machine.
const RECLAIM_WAIT_US: u64 = 20_000;

/// Most limits whose recall is remembered.
const RECLAIMS_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 12) - 1);

/// Limits that denied, and what was returned since.
#[derive(Debug)]
pub(super) struct ReclaimTracker {
    rounds: LruCache<Box<str>, ReclaimRound>,
}

#[derive(Debug)]
struct ReclaimRound {
    started_us: u64,
    returned_us: Option<u64>,
    waiters: Arc<Notify>,
}

/// What a denied request does.
#[derive(Debug)]
pub(super) enum ReclaimStep {
    /// Nothing is held anywhere: it is denied.
    Denied,
    /// Something came back since it asked.
    Retry,
    /// It waits until then for what comes back, after it has told the others if it is the first.
    Wait { starts_round: bool, until_us: u64, returned: Arc<Notify> },
}

impl Default for ReclaimTracker {
    fn default() -> Self {
        Self { rounds: LruCache::sparse(RECLAIMS_MAX) }
    }
}

impl ReclaimTracker {
    /// A request was denied that was sent at `asked_us`; within `quiet_us` after a recall none is needed.
    pub(super) fn next_step(&mut self, key: &str, quiet_us: u64, sent_us: u64, now_us: u64) -> ReclaimStep {
        if let Some(round) = self.rounds.get(key) {
            if round.returned_us.is_some_and(|returned_us| returned_us >= sent_us) {
                return ReclaimStep::Retry;
            }
            let until_us = round.started_us.saturating_add(RECLAIM_WAIT_US);
            if now_us < until_us {
                return ReclaimStep::Wait {
                    starts_round: false,
                    until_us,
                    returned: Arc::clone(&round.waiters),
                };
            }
            if now_us.saturating_sub(round.started_us) < quiet_us.max(RECLAIM_WAIT_US) {
                return ReclaimStep::Denied;
            }
        }
        let returned = Arc::new(Notify::new());
        let round = ReclaimRound { started_us: now_us, returned_us: None, waiters: Arc::clone(&returned) };
        self.rounds.push(key.into(), round);
        ReclaimStep::Wait { starts_round: true, until_us: now_us.saturating_add(RECLAIM_WAIT_US), returned }
    }

    /// Whether something may be held elsewhere: none was called back lately, or something was returned since `asked_us`.
    pub(super) fn may_be_held_elsewhere(
        &mut self,
        key: &str,
        quiet_us: u64,
        sent_us: u64,
        now_us: u64,
    ) -> bool {
        self.rounds.get(key).is_none_or(|round| {
            let is_quiet = now_us.saturating_sub(round.started_us) < quiet_us.max(RECLAIM_WAIT_US);
            let waits = now_us < round.started_us.saturating_add(RECLAIM_WAIT_US);
            !is_quiet || waits || round.returned_us.is_some_and(|returned_us| returned_us >= sent_us)
        })
    }

    /// A limit has quota again. What comes long after a recall is no answer to it: more may be drawn from now on.
    pub(super) fn record_return(&mut self, key: &str, now_us: u64) {
        let Some(round) = self.rounds.peek_mut(key) else { return };
        if now_us.saturating_sub(round.started_us) > RECLAIM_WAIT_US + HOLD_US {
            self.rounds.pop(key);
            return;
        }
        round.returned_us = Some(now_us);
        round.waiters.notify_waiters();
    }
}

impl RequestLimiter {
    /// How long after a recall nothing can be held of a limit of which Redis has so many requests left; `None`: nothing
    /// is called back.
    fn reclaim_cooldown_us(
        &self,
        key: &str,
        (quota, lease): (&Quota, PrefetchMode),
        remaining: u64,
        now_us: u64,
    ) -> Option<u64> {
        let terms = PrefetchTerms::for_lease(lease, quota).filter(|terms| terms.busy_only)?;
        // News of other things may be heard and the answers to a recall not yet.
        let is_subscribed = self.subscribed_since_us().is_some();
        let is_hot = lock(&self.prefetch).is_hot(key, now_us);
        // With the reserve or more left others draw at any moment, and only the cost was too much.
        let until_drawn = terms.reserve.saturating_sub(remaining);
        (is_subscribed && !is_hot).then(|| until_drawn.saturating_mul(quota.interval_us()))
    }

    /// Whether what comes back is heard. A worker that is denied before it ever drew listens from then on, and waits a
    /// moment for the connection: without it its client is denied what other workers hold.
    async fn receives_returns(self: &Arc<Self>, lease: PrefetchMode, quota: &Quota) -> bool {
        if self.redis.is_plain()
            || PrefetchTerms::for_lease(lease, quota).is_none_or(|terms| !terms.busy_only)
        {
            return false;
        }
        self.subscribe();
        let since_us = self.subscribed_us.get().copied().unwrap_or_default();
        let left = since_us.saturating_add(RECLAIM_WAIT_US).saturating_sub(self.now_us());
        let mut changes = self.redis.notification_completeness_changes();
        let connected = changes.wait_for(Option::is_some);
        self.redis.notifications_complete_since().is_some()
            || left > 0 && tokio::time::timeout(Duration::from_micros(left), connected).await.is_ok()
    }

    /// The last that Redis had was granted: whether something may still be held elsewhere. Then the next request has to
    /// ask, and calls it back if it is denied; it is not denied by what is known here.
    pub(super) fn may_be_held_after_last_grant(
        &self,
        key: &str,
        (quota, lease): (&Quota, PrefetchMode),
        sent_us: u64,
    ) -> bool {
        let now_us = self.now_us();
        let quiet_us = self.reclaim_cooldown_us(key, (quota, lease), 0, now_us);
        quiet_us.is_some_and(|quiet_us| {
            lock(&self.reclaims).may_be_held_elsewhere(key, quiet_us, sent_us, now_us)
        })
    }
}

impl PendingDecision {
    /// Redis denied it: whether it has to be asked again, because other workers returned what they held. Never any more
    /// once it has waited for as long as a request may.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub async fn reclaim_held_quota(&mut self, set: &AppliedLimits, replies: &[RateLimitDecision]) -> bool {
        let limiter = Arc::clone(self.limiter());
        for (number, key, remaining) in self.denied_checks(set, replies) {
            let PolicyMeasure::Rate { quota, lease } = set.policy(number).measure() else { continue };
            let deadline_us = self.reclaim_deadline(&limiter);
            if limiter.now_us() >= deadline_us || !limiter.receives_returns(lease, &quota).await {
                continue;
            }
            let now_us = limiter.now_us();
            let Some(quiet_us) = limiter.reclaim_cooldown_us(&key, (&quota, lease), remaining, now_us) else {
                continue;
            };
            let step = lock(&limiter.reclaims).next_step(&key, quiet_us, self.sent_us(), now_us);
            let (starts_round, until_us, returned) = match step {
                ReclaimStep::Denied => continue,
                ReclaimStep::Retry => {
                    self.set_sent_at(now_us);
                    return true;
                }
                ReclaimStep::Wait { starts_round, until_us, returned } => (starts_round, until_us, returned),
            };
            // Before anything is sent: a signal that comes first would be missed.
            let notified = returned.notified();
            if starts_round {
                // This worker may hold some itself, if less than such a request costs.
                limiter.return_held(&key);
                limiter.redis.request_quota_return(&key);
            }
            let wait = Duration::from_micros(until_us.min(deadline_us).saturating_sub(now_us));
            let again = tokio::time::timeout(wait, notified).await.is_ok();
            if again {
                self.set_sent_at(limiter.now_us());
                return true;
            }
        }
        false
    }

    /// Until when this request may wait, counted from its first denial: one time for all its limits and all rounds.
    fn reclaim_deadline(&mut self, limiter: &RequestLimiter) -> u64 {
        *self.reclaim_deadline_us.get_or_insert_with(|| {
            let connects = limiter.redis.notifications_complete_since().is_none();
            limiter.now_us().saturating_add(if connects { 2 * RECLAIM_WAIT_US } else { RECLAIM_WAIT_US })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET_US: u64 = 1_000_000;

    #[test]
    fn the_first_denied_request_notifies_all_and_later_ones_wait_with_it() {
        let mut tracker = ReclaimTracker::default();
        let step =
            |tracker: &mut ReclaimTracker, sent_us, now_us| tracker.next_step("k", QUIET_US, sent_us, now_us);
        let until = RECLAIM_WAIT_US + 100;
        assert!(
            matches!(step(&mut tracker, 90, 100), ReclaimStep::Wait { starts_round: true, until_us, .. } if until_us == until)
        );
        assert!(
            matches!(step(&mut tracker, 90, 110), ReclaimStep::Wait { starts_round: false, until_us, .. } if until_us == until)
        );
        tracker.record_return("k", 120);
        assert!(matches!(step(&mut tracker, 115, 130), ReclaimStep::Retry), "decided before that came back");
        assert!(
            matches!(step(&mut tracker, 125, 131), ReclaimStep::Wait { starts_round: false, .. }),
            "more may come"
        );
        assert!(matches!(step(&mut tracker, until, until), ReclaimStep::Denied));
        assert!(matches!(step(&mut tracker, 1_000_099, 1_000_099), ReclaimStep::Denied));
        assert!(matches!(
            step(&mut tracker, 1_000_100, 1_000_100),
            ReclaimStep::Wait { starts_round: true, .. }
        ));
    }

    #[test]
    fn after_the_last_grant_redis_is_checked_again_unless_nothing_can_be_held() {
        let mut tracker = ReclaimTracker::default();
        assert!(tracker.may_be_held_elsewhere("k", QUIET_US, 0, 0), "nothing was called back");
        assert!(matches!(
            tracker.next_step("k", QUIET_US, 0, 0),
            ReclaimStep::Wait { starts_round: true, .. }
        ));
        assert!(tracker.may_be_held_elsewhere("k", QUIET_US, 10, 10), "it is on its way");
        assert!(!tracker.may_be_held_elsewhere("k", QUIET_US, RECLAIM_WAIT_US, RECLAIM_WAIT_US));
        assert!(tracker.may_be_held_elsewhere("k", 0, RECLAIM_WAIT_US, RECLAIM_WAIT_US), "others draw");
        tracker.record_return("k", RECLAIM_WAIT_US + 1);
        assert!(
            tracker.may_be_held_elsewhere("k", QUIET_US, RECLAIM_WAIT_US, RECLAIM_WAIT_US + 2),
            "it was granted before that came back"
        );
    }

    #[test]
    fn after_a_refund_it_is_called_back_again() {
        let mut tracker = ReclaimTracker::default();
        assert!(matches!(
            tracker.next_step("k", QUIET_US, 0, 0),
            ReclaimStep::Wait { starts_round: true, .. }
        ));
        tracker.record_return("other", 300_000);
        assert!(matches!(tracker.next_step("k", QUIET_US, 300_000, 300_000), ReclaimStep::Denied));
        tracker.record_return("k", 300_001);
        assert!(matches!(
            tracker.next_step("k", QUIET_US, 300_002, 300_002),
            ReclaimStep::Wait { starts_round: true, .. }
        ));
    }
}
