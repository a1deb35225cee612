//! One execution of a task: its thread, its renewals, its end.
//!
//! The event loop only waits here. The job has a thread of its own, and its execution keeps its place until the thread
//! has ended, because one cannot be taken back, and until the end is told, so that no more results wait for Redis than
//! there are places.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;
use tokio::time::Sleep;
use tokio::time::interval;
use tokio::time::sleep;
use tokio::time::timeout;

use crate::redis;
use crate::redis::Refusal;
use crate::redis::task::Begun;
use crate::redis::task::Execution;
use crate::redis::task::Idler;
use crate::redis::task::Outcome;
use crate::redis::task::Taken;
use crate::sys::cpu;
use crate::sys::time;
use crate::task::Inner;
use crate::task::Order;
use crate::task::kinds::Ended;
use crate::task::progress::Progress;
use crate::task::taker::Busy;

/// Renewals in the time of a lease: two may be lost.
const RENEWALS: u32 = 3;

/// Shortest pause between two steps that are told, and before the first: followers look no more often, and a task that
/// is done sooner costs no call.
const QUIET: Duration = Duration::from_millis(100);

/// Pause before the second attempt, doubled before each later one; never longer than a lease.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Pauses between tries to tell how a task ended.
const TRY_AGAIN: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

/// Time in which a job that was told to stop is expected to.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a job's thread sends when it ends.
type Thread = oneshot::Receiver<Ended>;

/// What becomes of an execution's place at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The next task may have it.
    Free,
    /// A thread goes on in it, or the worker takes no more.
    Kept,
}

/// Why an execution is over.
enum Over {
    /// The job has ended.
    Ended(Ended),
    /// The worker leaves.
    Back,
    /// It was cancelled, or another worker has taken it over.
    Dropped,
    /// It has run for too long.
    TooLong,
}

impl Inner {
    /// Executes what was taken.
    pub(super) async fn execute(self: Arc<Self>, taken: Taken, _place: OwnedSemaphorePermit, busy: Busy) {
        let execution = match Execution::new(taken) {
            Ok(execution) => execution,
            Err(error) => return tracing::error!(%error, "a task waits for a lease: {error}"),
        };
        let Some((attempt, input)) = self.begin(&execution).await else { return };
        let progress = Progress::new(attempt);
        if self.is_leaving() {
            return self.end(&execution, &Outcome::Back, Place::Kept).await;
        }
        let Some(mut thread) = self.thread(&execution, input, &progress) else {
            self.end(&execution, &Outcome::Back, Place::Kept).await;
            // This worker is not to be the first to try again.
            return sleep(TRY_AGAIN[1]).await;
        };
        let deadline = sleep(self.timeout);
        tokio::pin!(deadline);
        self.present().insert(execution.taken.id, progress.clone());
        let over = self.accompany(&execution, &progress, &mut thread, deadline.as_mut()).await;
        self.present().remove(&execution.taken.id);
        let outcome = match over {
            Over::Ended(ended) => {
                return self.end(&execution, &self.outcome(ended, attempt), Place::Free).await;
            }
            Over::Back => Some(Outcome::Back),
            Over::Dropped => None,
            Over::TooLong => Some(Outcome::Failed(self.too_long(&execution))),
        };
        progress.stop();
        if let Some(outcome) = outcome {
            self.end(&execution, &outcome, Place::Kept).await;
        }
        // What is told is told: who leaves need not wait for a thread that goes on.
        drop(busy);
        tokio::select! {
            _ = &mut thread => {}
            () = deadline => self.outlive(&mut thread).await,
        }
    }

    /// Begins; `None`: there is nothing to do.
    async fn begin(&self, execution: &Execution) -> Option<(u64, String)> {
        let kind = execution.taken.kind.as_str();
        let begun = async {
            loop {
                match self.redis.begin_task_for(execution, &self.worker, &self.waker, &self.rules).await {
                    Ok(begun) => return begun,
                    Err(error) => self.failed("a task cannot be begun", &error),
                }
                sleep(TRY_AGAIN[0]).await;
            }
        };
        // Later than that another worker has it.
        match timeout(self.rules.lease, begun).await {
            Ok(Begun::Run { attempt, input }) => Some((attempt, input)),
            Ok(Begun::Dead) => {
                tracing::warn!(kind, "a task is dead: its worker was lost at each of its attempts");
                None
            }
            Ok(Begun::Ended) | Err(_) => None,
        }
    }

    /// Starts the job; `None` where there can be no thread for it.
    fn thread(&self, execution: &Execution, input: String, progress: &Progress) -> Option<Thread> {
        let job = Arc::clone(self.kinds().get(execution.taken.kind.as_str())?);
        let (sender, thread) = oneshot::channel();
        let progress = progress.clone();
        let work = move || {
            if let Err(error) = cpu::stand_back() {
                tracing::debug!(%error, "a task's thread does not stand back: {error}");
            }
            // The one who waited may be gone.
            let _ = sender.send(job(&input, &progress));
        };
        match thread::Builder::new().name("task".to_owned()).spawn(work) {
            Ok(_) => Some(thread),
            Err(error) => {
                tracing::error!(%error, "there is no thread for a task: {error}");
                None
            }
        }
    }

    /// Renews and tells how far the job is, until it is over.
    async fn accompany(
        &self,
        execution: &Execution,
        progress: &Progress,
        thread: &mut Thread,
        mut deadline: std::pin::Pin<&mut Sleep>,
    ) -> Over {
        let mut order = self.order.subscribe();
        let mut renewals = interval(self.rules.lease / RENEWALS);
        renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
        renewals.tick().await;
        let begun = time::monotonic();
        let (mut doubted, mut asked) = (false, begun.saturating_sub(QUIET));
        let (mut told, mut waits, mut quiet_until) = (0, false, time::monotonic() + QUIET);
        loop {
            let percent = tokio::select! {
                // First, because the end says more than any step.
                biased;
                ended = &mut *thread => {
                    let died = |_| Ended::Again("its thread ended without a word".to_owned());
                    return Over::Ended(ended.unwrap_or_else(died));
                }
                _ = order.wait_for(|order| *order == Order::Back) => return Over::Back,
                () = &mut deadline => return Over::TooLong,
                _ = renewals.tick() => None,
                // However often it is said that it was cancelled, it is asked ten times a second at most.
                () = progress.doubted() => {
                    doubted = true;
                    continue;
                }
                () = sleep(time::until(asked + QUIET)), if doubted => {
                    (doubted, asked) = (false, time::monotonic());
                    None
                }
                () = progress.moved() => {
                    waits = true;
                    continue;
                }
                () = sleep(time::until(quiet_until)), if waits => {
                    waits = false;
                    match progress.due(told) {
                        None => continue,
                        due => due,
                    }
                }
            };
            if let Some(percent) = percent {
                told = percent;
                quiet_until = time::monotonic() + QUIET;
            }
            match self.redis.renew_task(execution, percent).await {
                Ok(true) => {}
                Ok(false) => return Over::Dropped,
                Err(error) => self.failed("a task is not renewed", &error),
            }
        }
    }

    fn outcome(&self, ended: Ended, attempt: u64) -> Outcome {
        match ended {
            Ended::Done(result) => Outcome::Done(result),
            Ended::Failed(reason) => Outcome::Failed(reason),
            Ended::Again(reason) => Outcome::Retry(reason, pause(attempt, self.rules.lease)),
        }
    }

    fn too_long(&self, execution: &Execution) -> String {
        let (kind, most) = (&execution.taken.kind, self.timeout);
        tracing::warn!(kind, "a task has failed: it ran for longer than {most:?} (tasks.timeout)");
        format!("it ran for longer than {most:?} (tasks.timeout)")
    }

    /// Tells how an execution ended, for as long as it takes: a lost answer is asked for again.
    async fn end(&self, execution: &Execution, outcome: &Outcome, place: Place) {
        let [mut pause, longest] = TRY_AGAIN;
        let kinds: Vec<&str> = self.kinds().keys().copied().collect();
        loop {
            // A worker that leaves, or whose thread goes on in this place, takes nothing for it.
            let waits = place == Place::Free && !self.is_leaving();
            let (worker, kinds) = if waits { (self.waker.as_str(), kinds.as_slice()) } else { ("", &[][..]) };
            let idler = Idler { worker, kinds, has_place: waits };
            let error = match self.redis.end_task_for(execution, outcome, &self.rules, &idler).await {
                Ok(ended) => {
                    if !ended.taken {
                        tracing::debug!(
                            "a task's end is not taken: it was cancelled, or another worker has it"
                        );
                    }
                    if waits {
                        self.freed(ended.next);
                    }
                    return;
                }
                Err(error) => error,
            };
            self.failed("a task's end is not told yet", &error);
            if is_hopeless(&error) {
                tracing::warn!(%error, "a task's end cannot be told: {error}");
                return;
            }
            sleep(pause).await;
            pause = (2 * pause).min(longest);
        }
    }

    /// Waits for a job that no one needs any more; one that does not end counts as hung.
    async fn outlive(&self, thread: &mut Thread) {
        if timeout(PATIENCE, &mut *thread).await.is_ok() {
            return;
        }
        tracing::error!("a task's job goes on although it was told to stop; its place is lost until it ends");
        self.hung.send_modify(|hung| *hung += 1);
        let _ = thread.await.is_ok();
        self.hung.send_modify(|hung| *hung -= 1);
    }
}

/// Pause after this attempt.
fn pause(attempt: u64, longest: Duration) -> Duration {
    let doublings = u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    (FIRST_PAUSE * 2_u32.pow(doublings)).min(longest)
}

/// Whether saying it again is no use: something else lies under the key, or there is no code any more.
fn is_hopeless(error: &redis::Error) -> bool {
    use redis::Error::Protocol;
    use redis::Error::Refused;
    use redis::Error::Unsupported;
    matches!(
        error,
        Protocol { .. } | Unsupported { .. } | Refused { refusal: Refusal::WrongType | Refusal::Other, .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_are_never_longer_than_a_lease() {
        let lease = Duration::from_secs(3);
        let pauses: Vec<_> = (0..6).map(|attempt| pause(attempt, lease).as_millis()).collect();
        assert_eq!(pauses, [500, 500, 1000, 2000, 3000, 3000]);
        assert_eq!(pause(u64::MAX, lease), lease);
    }
}
