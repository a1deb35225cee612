//! Takes tasks as long as there is a place for one, and looks after those that no one takes.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use crate::redis;
use crate::redis::task::Idler;
use crate::redis::task::Next;
use crate::redis::task::TO_TAKE;
use crate::redis::task::Taken;
use crate::sys::time;
use crate::task::Inner;
use crate::task::WAIT_MAX;

/// Time between two looks into the queues while no worker can be woken, and after a failed one. Otherwise Redis says whose
/// turn it is, because wakes may be lost, and of an overdue task there is none.
const POLL: Duration = time::TICK.saturating_mul(10);

/// Shortest time from a look that found nothing to the next one, however often the worker is woken.
const SPACING: Duration = Duration::from_millis(20);

/// Time between two looks whether all goes well.
const LOOK: Duration = time::TICK.saturating_mul(20);

/// Looks without a failed call before a task is taken over. While Redis was away nothing was renewed: the worker that
/// runs a task has the first word afterwards.
pub(super) const CALM: u32 = 3;

/// Looks between two searches for tasks that have waited for too long.
const SEARCH_EVERY: u32 = 300;

/// Pause where tasks are not supported, which another connection may change.
const UNSUPPORTED: Duration = Duration::from_secs(60);

/// Something is under way as long as this value lives.
pub(super) struct Busy(watch::Sender<usize>);

impl Busy {
    fn new(busy: &watch::Sender<usize>) -> Self {
        busy.send_modify(|busy| *busy += 1);
        Self(busy.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.send_modify(|busy| *busy -= 1);
    }
}

impl Inner {
    /// Takes tasks until the worker leaves, never more than it has places for.
    pub(super) async fn take(self: Arc<Self>) {
        let kinds: Vec<&'static str> = self.kinds().keys().copied().collect();
        let waker = Arc::downgrade(&self);
        let listener = move |kind: &str| {
            if let Some(inner) = waker.upgrade() {
                inner.woken(kind);
            }
        };
        self.redis.listen(TO_TAKE, Arc::new(listener));
        let _heard = self.hear_own();
        let mut order = self.order.subscribe();
        // Before the first connection every call fails, which would say that others had no word either.
        self.redis.first_attempt().await;
        loop {
            let place = tokio::select! {
                place = Arc::clone(&self.places).acquire_owned() => place,
                _ = order.changed() => break,
            };
            let (Ok(place), Some((taken, busy))) = (place, self.next(&kinds).await) else { break };
            tokio::spawn(Arc::clone(&self).execute(taken, place, busy));
        }
        let idler = Idler { worker: &self.waker, kinds: &kinds, has_place: false };
        if let Err(error) = self.redis.rest_from_tasks(&idler).await {
            tracing::debug!(%error, "it is not told that this worker takes no more tasks: {error}");
        }
        // Its channel is heard until its tasks have ended: there it is told that one is cancelled.
        self.idle().await;
    }

    /// The next task; `None`: the worker leaves.
    async fn next(&self, kinds: &[&str]) -> Option<(Taken, Busy)> {
        let mut order = self.order.subscribe();
        let mut spaced = time::monotonic();
        loop {
            if !self.is_leaving() {
                tokio::select! {
                    // First, because a look answers whatever woke it.
                    biased;
                    () = self.wake.notified() => sleep(time::until(spaced)).await,
                    () = sleep(time::until(self.due())) => {}
                    _ = order.changed() => return None,
                }
            }
            // A taking that is under way is not broken off: what it takes would have to wait for a lease.
            let busy = Busy::new(&self.busy);
            if self.is_leaving() {
                return None;
            }
            let lease = (self.calm.load(Relaxed) >= CALM).then_some(self.rules.lease);
            let before = self.redis.absences();
            let has_place = self.places.available_permits() > 0;
            let idler = Idler { worker: &self.waker, kinds, has_place };
            let taken = self.redis.take_task_for(&idler, lease).await;
            let after = self.redis.absences();
            if (after.silences, after.waited) != (before.silences, before.waited) {
                self.away();
            }
            let pause = match taken {
                Ok((Some(taken), next)) => {
                    // Without another place it looks when one is free, unless the end of what has it says otherwise.
                    self.look_in(if next.left || !has_place {
                        Duration::ZERO
                    } else {
                        self.turn(next.pause)
                    });
                    return Some((taken, busy));
                }
                Ok((None, next)) => self.turn(next.pause),
                Err(redis::Error::Unsupported { .. }) => UNSUPPORTED,
                Err(error) => {
                    self.failed("no task can be taken", &error);
                    POLL
                }
            };
            drop(busy);
            spaced = time::monotonic() + SPACING;
            self.look_in(pause);
        }
    }

    fn due(&self) -> Duration {
        *self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look_in(&self, pause: Duration) {
        let pause = if pause.is_zero() { pause } else { time::after_tick(pause) };
        *self.due.lock().unwrap_or_else(PoisonError::into_inner) = time::monotonic() + pause;
    }

    /// The pause that Redis said; a shorter one while this worker cannot be woken.
    fn turn(&self, pause: Duration) -> Duration {
        match self.redis.news_since() {
            Some(_) => pause,
            None => pause.min(POLL),
        }
    }

    /// A place is free again, and Redis has said what to do with it.
    pub(super) fn freed(&self, next: Next) {
        if next.left {
            self.wake.notify_one();
        } else if self.due() <= time::monotonic() {
            self.look_in(self.turn(next.pause));
        }
    }

    /// A call has failed: for a while nothing is taken over.
    pub(super) fn failed(&self, what: &str, error: &redis::Error) {
        self.away();
        tracing::debug!(%error, "{what}: {error}");
    }

    /// Redis was away for a moment: at once, and for a while, nothing is taken over.
    fn away(&self) {
        self.trouble.store(true, Relaxed);
        self.calm.store(0, Relaxed);
    }

    /// Sees whether all goes well, and now and then whether tasks wait that no one takes.
    pub(super) async fn look_after(self: Arc<Self>) {
        // Workers that began together do not search together; that several do would be no harm.
        let mut until_search = std::process::id() % SEARCH_EVERY;
        loop {
            // With everything else that looks around: the event loop is woken once for all of it.
            sleep(time::until_tick(LOOK)).await;
            match self.trouble.swap(false, Relaxed) {
                true => self.calm.store(0, Relaxed),
                false => self.calm.store(self.calm.load(Relaxed).saturating_add(1), Relaxed),
            }
            until_search = match until_search.checked_sub(1) {
                Some(left) => left,
                None => {
                    if let Err(error) = self.give_up_overdue().await {
                        self.failed("tasks that wait for too long are not looked for", &error);
                    }
                    SEARCH_EVERY
                }
            };
        }
    }

    /// Gives up the tasks that no one has taken for a day: those of a kind that no program knows any more.
    async fn give_up_overdue(&self) -> Result<(), redis::Error> {
        let reason = format!("no worker took it within {} h", WAIT_MAX.as_secs() / 3600);
        for (id, kind) in self.redis.overdue_tasks(WAIT_MAX).await? {
            if self.redis.expire_task(id, &kind, (WAIT_MAX, &reason), &self.rules).await? {
                tracing::warn!(%kind, %reason, "a task is dead: {reason}");
            }
        }
        Ok(())
    }
}
