//! Rounds in which quota that other workers hold is called back before a limit denies.
//!
//! What a worker holds is charged in Redis, so Redis may deny one worker's request while another worker holds quota that
//! it does not use. A denied worker therefore requests the return once, waits, and asks Redis again each time something
//! came back, for as long as a request may wait: 20 ms from its first denial, however many limits deny it, and 20 ms
//! more if the worker has to connect first to receive returns. Where Redis has less left than the policy's reserve, one
//! round is enough until that has come back: before that no worker prefetches. So a flood that is denied costs one
//! message and one short wait each time its limit runs out. A request that costs more than the reserve may be denied
//! while others still prefetch: then each denial may start a round. Pure but for the [`Notify`] that requests wait for;
//! times are µs of the worker's clock.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use tokio::sync::Notify;

use crate::limiter::prefetch::HOLD_US;

/// How long a request waits for returned quota, µs: two messages through Redis, on a busy host.
pub(super) const RECLAIM_WAIT_US: u64 = 20_000;

/// Most limits whose round is kept.
const RECLAIMS_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 12) - 1);

/// Limits that denied, and when quota was returned since.
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

/// What a denied request has to do.
#[derive(Debug)]
pub(super) enum ReclaimStep {
    /// It is denied: no worker holds quota.
    Denied,
    /// It asks Redis again: quota was returned since it was sent.
    Retry,
    /// It waits until then for returned quota, after requesting the return if it starts the round.
    Wait { starts_round: bool, until_us: u64, returned: Arc<Notify> },
}

impl Default for ReclaimTracker {
    fn default() -> Self {
        Self { rounds: LruCache::sparse(RECLAIMS_MAX) }
    }
}

impl ReclaimTracker {
    /// A request that was sent at `sent_us` was denied; within `quiet_us` of a round no other one is needed.
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

    /// Whether another worker may hold quota: there was no round lately, or quota was returned since `sent_us`.
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

    /// A limit has quota again. A return long after a round does not belong to it: workers may prefetch again.
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
        assert!(
            matches!(step(&mut tracker, 115, 130), ReclaimStep::Retry),
            "it was decided before the return"
        );
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
        assert!(tracker.may_be_held_elsewhere("k", QUIET_US, 0, 0), "there was no round");
        assert!(matches!(
            tracker.next_step("k", QUIET_US, 0, 0),
            ReclaimStep::Wait { starts_round: true, .. }
        ));
        assert!(tracker.may_be_held_elsewhere("k", QUIET_US, 10, 10), "the round is not over");
        assert!(!tracker.may_be_held_elsewhere("k", QUIET_US, RECLAIM_WAIT_US, RECLAIM_WAIT_US));
        assert!(tracker.may_be_held_elsewhere("k", 0, RECLAIM_WAIT_US, RECLAIM_WAIT_US), "others prefetch");
        tracker.record_return("k", RECLAIM_WAIT_US + 1);
        assert!(
            tracker.may_be_held_elsewhere("k", QUIET_US, RECLAIM_WAIT_US, RECLAIM_WAIT_US + 2),
            "it was granted before the return"
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
