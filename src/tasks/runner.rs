//! Takes tasks as long as there is a place for one, and looks after those that no one takes.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use crate::redis;
use crate::redis::task::{IdleWorker, NextClaim, TASK_QUEUED, TaskDelivery};
use crate::sys::clock;
use crate::tasks::{QUEUE_WAIT_MAX, TaskService};

/// Time between two looks into the queues while no worker can be woken, and after a failed one. Otherwise Redis says whose
/// turn it is, because wakes may be lost, and of an overdue task there is none.
const POLL_INTERVAL: Duration = clock::TICK.saturating_mul(10);

/// Shortest time from a look that found nothing to the next one, however often the worker is woken.
const CLAIM_SPACING: Duration = Duration::from_millis(20);

/// Time between two looks whether all goes well.
const CHECK_EVERY: Duration = clock::TICK.saturating_mul(20);

/// Looks without a failed call before a task is taken over. While Redis was away nothing was renewed: the worker that
/// runs a task has the first word afterwards.
pub(super) const QUIET_CHECKS: u32 = 3;

/// Looks between two searches for tasks that have waited for too long.
const SEARCH_EVERY: u32 = 300;

/// Pause where tasks are not supported, which another connection may change.
const UNSUPPORTED_PAUSE: Duration = Duration::from_secs(60);

/// Something is under way as long as this value lives.
pub(super) struct ActiveGuard(watch::Sender<usize>);

impl ActiveGuard {
    fn new(busy: &watch::Sender<usize>) -> Self {
        busy.send_modify(|busy| *busy += 1);
        Self(busy.clone())
    }
}

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        self.0.send_modify(|busy| *busy -= 1);
    }
}

impl TaskService {
    /// Takes tasks until the worker leaves, never more than it has places for.
    pub(super) async fn run(self: Arc<Self>) {
        let kinds: Vec<&'static str> = self.jobs().keys().copied().collect();
        let waker = Arc::downgrade(&self);
        let listener = move |kind: &str| {
            if let Some(inner) = waker.upgrade() {
                inner.on_task_queued(kind);
            }
        };
        self.redis.on_notification(TASK_QUEUED, Arc::new(listener));
        let _subscription = self.subscribe_worker_channel();
        let mut order = self.intake.subscribe();
        // Before the first connection every call fails, which would say that others had no word either.
        self.redis.wait_for_first_attempt().await;
        loop {
            let place = tokio::select! {
                place = Arc::clone(&self.permits).acquire_owned() => place,
                _ = order.changed() => break,
            };
            let (Ok(place), Some((taken, busy))) = (place, self.claim_next(&kinds).await) else { break };
            tokio::spawn(Arc::clone(&self).execute(taken, place, busy));
        }
        let idler = IdleWorker { worker: &self.worker_channel, kinds: &kinds, has_capacity: false };
        if let Err(error) = self.redis.stop_waiting_for_tasks(&idler).await {
            tracing::debug!(%error, "it is not told that this worker takes no more tasks: {error}");
        }
        // Its channel is heard until its tasks have ended: there it is told that one is cancelled.
        self.wait_until_idle().await;
    }

    /// The next task; `None`: the worker leaves.
    async fn claim_next(&self, kinds: &[&str]) -> Option<(TaskDelivery, ActiveGuard)> {
        let mut order = self.intake.subscribe();
        let mut spaced = clock::monotonic();
        loop {
            if !self.is_draining() {
                tokio::select! {
                    // First, because a look answers whatever woke it.
                    biased;
                    () = self.wake.notified() => sleep(clock::until(spaced)).await,
                    () = sleep(clock::until(self.next_check_at())) => {}
                    _ = order.changed() => return None,
                }
            }
            // A taking that is under way is not broken off: what it takes would have to wait for a lease.
            let busy = ActiveGuard::new(&self.active);
            if self.is_draining() {
                return None;
            }
            let lease = (self.quiet_checks.load(Relaxed) >= QUIET_CHECKS).then_some(self.policy.lease);
            let before = self.redis.outage_stats();
            let has_place = self.permits.available_permits() > 0;
            let idler = IdleWorker { worker: &self.worker_channel, kinds, has_capacity: has_place };
            let taken = self.redis.claim_task_for(&idler, lease).await;
            let after = self.redis.outage_stats();
            if (after.silences, after.waited) != (before.silences, before.waited) {
                self.reset_quiet_checks();
            }
            let pause = match taken {
                Ok((Some(taken), next)) => {
                    // Without another place it looks when one is free, unless the end of what has it says otherwise.
                    self.schedule_check(if next.has_more || !has_place {
                        Duration::ZERO
                    } else {
                        self.check_delay(next.pause)
                    });
                    return Some((taken, busy));
                }
                Ok((None, next)) => self.check_delay(next.pause),
                Err(redis::RedisError::Unsupported { .. }) => UNSUPPORTED_PAUSE,
                Err(error) => {
                    self.record_failure("no task can be taken", &error);
                    POLL_INTERVAL
                }
            };
            drop(busy);
            spaced = clock::monotonic() + CLAIM_SPACING;
            self.schedule_check(pause);
        }
    }

    fn next_check_at(&self) -> Duration {
        *self.next_check.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn schedule_check(&self, pause: Duration) {
        let pause = if pause.is_zero() { pause } else { clock::after_tick(pause) };
        *self.next_check.lock().unwrap_or_else(PoisonError::into_inner) = clock::monotonic() + pause;
    }

    /// The pause that Redis said; a shorter one while this worker cannot be woken.
    fn check_delay(&self, pause: Duration) -> Duration {
        match self.redis.notifications_complete_since() {
            Some(_) => pause,
            None => pause.min(POLL_INTERVAL),
        }
    }

    /// A place is free again, and Redis has said what to do with it.
    pub(super) fn on_permit_freed(&self, next: NextClaim) {
        if next.has_more {
            self.wake.notify_one();
        } else if self.next_check_at() <= clock::monotonic() {
            self.schedule_check(self.check_delay(next.pause));
        }
    }

    /// A call has failed: for a while nothing is taken over.
    pub(super) fn record_failure(&self, what: &str, error: &redis::RedisError) {
        self.reset_quiet_checks();
        tracing::debug!(%error, "{what}: {error}");
    }

    /// Redis was away for a moment: at once, and for a while, nothing is taken over.
    fn reset_quiet_checks(&self) {
        self.had_failure.store(true, Relaxed);
        self.quiet_checks.store(0, Relaxed);
    }

    /// Sees whether all goes well, and now and then whether tasks wait that no one takes.
    pub(super) async fn maintain(self: Arc<Self>) {
        // Workers that began together do not search together; that several do would be no harm.
        let mut until_search = std::process::id() % SEARCH_EVERY;
        loop {
            // With everything else that looks around: the event loop is woken once for all of it.
            sleep(clock::until_tick(CHECK_EVERY)).await;
            match self.had_failure.swap(false, Relaxed) {
                true => self.quiet_checks.store(0, Relaxed),
                false => self.quiet_checks.store(self.quiet_checks.load(Relaxed).saturating_add(1), Relaxed),
            }
            until_search = match until_search.checked_sub(1) {
                Some(left) => left,
                None => {
                    if let Err(error) = self.bury_expired().await {
                        self.record_failure("tasks that wait for too long are not looked for", &error);
                    }
                    SEARCH_EVERY
                }
            };
        }
    }

    /// Gives up the tasks that no one has taken for a day: those of a kind that no program knows any more.
    async fn bury_expired(&self) -> Result<(), redis::RedisError> {
        let reason = format!("no worker took it within {} h", QUEUE_WAIT_MAX.as_secs() / 3600);
        for (id, kind) in self.redis.overdue_tasks(QUEUE_WAIT_MAX).await? {
            if self.redis.expire_task(id, &kind, (QUEUE_WAIT_MAX, &reason), &self.policy).await? {
                tracing::warn!(%kind, %reason, "a task is dead: {reason}");
            }
        }
        Ok(())
    }
}
