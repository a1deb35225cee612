//! One execution of a task: its thread, its renewals, its end.
//!
//! The event loop only waits here. The job has a thread of its own, and its execution keeps its place until the thread
//! has ended, because one cannot be taken back, and until the end is told, so that no more results wait for Redis than
//! there are places.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{MissedTickBehavior, Sleep, interval, sleep, timeout};

use crate::backoff::ExponentialBackoff;
use crate::redis;
use crate::redis::ServerRejection;
use crate::redis::task::{ExecutionResult, IdleWorker, StartOutcome, TaskDelivery, TaskExecution};
use crate::sys::{clock, cpu};
use crate::tasks::context::TaskContext;
use crate::tasks::jobs::JobOutcome;
use crate::tasks::runner::ActiveGuard;
use crate::tasks::{IntakeState, TaskService};

/// Renewals in the time of a lease: two may be lost.
const RENEWALS_PER_LEASE: u32 = 3;

/// Shortest pause between two steps that are told, and before the first: followers look no more often, and a task that
/// is done sooner costs no call.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Pause before the second attempt, doubled before each later one; never longer than a lease.
const RETRY_DELAY_MIN: Duration = Duration::from_millis(500);

/// Pauses between tries to tell how a task ended.
const FINISH_RETRY: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

/// Time in which a job that was told to stop is expected to.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// What a job's thread sends when it ends.
type JobThread = oneshot::Receiver<JobOutcome>;

/// What becomes of an execution's place at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PermitDisposition {
    /// The next task may have it.
    Released,
    /// A thread goes on in it, or the worker takes no more.
    Retained,
}

/// Why an execution is over.
enum ExecutionEnd {
    /// The job has ended.
    Finished(JobOutcome),
    /// The worker leaves.
    Released,
    /// It was cancelled, or another worker has taken it over.
    Superseded,
    /// It has run for too long.
    TimedOut,
}

impl TaskService {
    /// Executes what was taken.
    pub(super) async fn execute(
        self: Arc<Self>,
        taken: TaskDelivery,
        _place: OwnedSemaphorePermit,
        busy: ActiveGuard,
    ) {
        let execution = match TaskExecution::new(taken) {
            Ok(execution) => execution,
            Err(error) => return tracing::error!(%error, "a task waits for a lease: {error}"),
        };
        let Some((attempt, input)) = self.start_attempt(&execution).await else { return };
        let progress = TaskContext::new(attempt);
        if self.is_draining() {
            return self.finish(&execution, &ExecutionResult::Released, PermitDisposition::Retained).await;
        }
        let Some(mut thread) = self.spawn_job_thread(&execution, input, &progress) else {
            self.finish(&execution, &ExecutionResult::Released, PermitDisposition::Retained).await;
            // This worker is not to be the first to try again.
            return sleep(FINISH_RETRY[1]).await;
        };
        let deadline = sleep(self.timeout);
        tokio::pin!(deadline);
        self.running_tasks().insert(execution.delivery.id, progress.clone());
        let end = self.supervise(&execution, &progress, &mut thread, deadline.as_mut()).await;
        self.running_tasks().remove(&execution.delivery.id);
        let outcome = match end {
            ExecutionEnd::Finished(outcome) => {
                return self
                    .finish(&execution, &self.execution_result(outcome, attempt), PermitDisposition::Released)
                    .await;
            }
            ExecutionEnd::Released => Some(ExecutionResult::Released),
            ExecutionEnd::Superseded => None,
            ExecutionEnd::TimedOut => Some(ExecutionResult::Failed(self.timeout_reason(&execution))),
        };
        progress.stop();
        if let Some(outcome) = outcome {
            self.finish(&execution, &outcome, PermitDisposition::Retained).await;
        }
        // What is told is told: who leaves need not wait for a thread that goes on.
        drop(busy);
        tokio::select! {
            _ = &mut thread => {}
            () = deadline => self.wait_for_thread(&mut thread).await,
        }
    }

    /// Begins; `None`: there is nothing to do.
    async fn start_attempt(&self, execution: &TaskExecution) -> Option<(u64, String)> {
        let kind = execution.delivery.kind.as_str();
        let start = async {
            loop {
                match self
                    .redis
                    .start_task_for(execution, &self.worker, &self.worker_channel, &self.policy)
                    .await
                {
                    Ok(outcome) => return outcome,
                    Err(error) => self.record_failure("a task cannot be begun", &error),
                }
                sleep(FINISH_RETRY[0]).await;
            }
        };
        // Later than that another worker has it.
        match timeout(self.policy.lease, start).await {
            Ok(StartOutcome::Started { attempt, input }) => Some((attempt, input)),
            Ok(StartOutcome::Dead) => {
                tracing::warn!(kind, "a task is dead: its worker was lost at each of its attempts");
                None
            }
            Ok(StartOutcome::NothingToDo) | Err(_) => None,
        }
    }

    /// Starts the job; `None` where there can be no thread for it.
    fn spawn_job_thread(
        &self,
        execution: &TaskExecution,
        input: String,
        progress: &TaskContext,
    ) -> Option<JobThread> {
        let job = Arc::clone(self.jobs().get(execution.delivery.kind.as_str())?);
        let (sender, thread) = oneshot::channel();
        let progress = progress.clone();
        let work = move || {
            if let Err(error) = cpu::lower_thread_priority() {
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
    async fn supervise(
        &self,
        execution: &TaskExecution,
        progress: &TaskContext,
        thread: &mut JobThread,
        mut deadline: std::pin::Pin<&mut Sleep>,
    ) -> ExecutionEnd {
        let mut order = self.intake.subscribe();
        let mut renewals = interval(self.policy.lease / RENEWALS_PER_LEASE);
        renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
        renewals.tick().await;
        let started_at = clock::monotonic();
        let (mut doubted, mut checked_at) = (false, started_at.saturating_sub(PROGRESS_INTERVAL));
        let (mut reported, mut waits, mut quiet_until) = (0, false, clock::monotonic() + PROGRESS_INTERVAL);
        loop {
            let percent = tokio::select! {
                // First, because the end says more than any step.
                biased;
                outcome = &mut *thread => {
                    let died = |_| JobOutcome::Retry("its thread ended without a word".to_owned());
                    return ExecutionEnd::Finished(outcome.unwrap_or_else(died));
                }
                _ = order.wait_for(|order| *order == IntakeState::Releasing) => return ExecutionEnd::Released,
                () = &mut deadline => return ExecutionEnd::TimedOut,
                _ = renewals.tick() => None,
                // However often it is said that it was cancelled, it is asked ten times a second at most.
                () = progress.check_requested() => {
                    doubted = true;
                    continue;
                }
                () = sleep(clock::until(checked_at + PROGRESS_INTERVAL)), if doubted => {
                    (doubted, checked_at) = (false, clock::monotonic());
                    None
                }
                () = progress.changed() => {
                    waits = true;
                    continue;
                }
                () = sleep(clock::until(quiet_until)), if waits => {
                    waits = false;
                    match progress.next_report(reported) {
                        None => continue,
                        due => due,
                    }
                }
            };
            if let Some(percent) = percent {
                reported = percent;
                quiet_until = clock::monotonic() + PROGRESS_INTERVAL;
            }
            match self.redis.renew_task(execution, percent).await {
                Ok(true) => {}
                Ok(false) => return ExecutionEnd::Superseded,
                Err(error) => self.record_failure("a task is not renewed", &error),
            }
        }
    }

    fn execution_result(&self, outcome: JobOutcome, attempt: u64) -> ExecutionResult {
        match outcome {
            JobOutcome::Done(result) => ExecutionResult::Done(result),
            JobOutcome::Failed(reason) => ExecutionResult::Failed(reason),
            JobOutcome::Retry(reason) => {
                ExecutionResult::Retry(reason, retry_delay(attempt, self.policy.lease))
            }
        }
    }

    fn timeout_reason(&self, execution: &TaskExecution) -> String {
        let (kind, most) = (&execution.delivery.kind, self.timeout);
        tracing::warn!(kind, "a task has failed: it ran for longer than {most:?} (tasks.timeout)");
        format!("it ran for longer than {most:?} (tasks.timeout)")
    }

    /// Tells how an execution ended, for as long as it takes: a lost answer is asked for again.
    async fn finish(&self, execution: &TaskExecution, outcome: &ExecutionResult, place: PermitDisposition) {
        let [mut pause, longest] = FINISH_RETRY;
        let kinds: Vec<&str> = self.jobs().keys().copied().collect();
        loop {
            // A worker that leaves, or whose thread goes on in this place, takes nothing for it.
            let waits = place == PermitDisposition::Released && !self.is_draining();
            let (worker, kinds) =
                if waits { (self.worker_channel.as_str(), kinds.as_slice()) } else { ("", &[][..]) };
            let idler = IdleWorker { worker, kinds, has_capacity: waits };
            let error = match self.redis.finish_task_for(execution, outcome, &self.policy, &idler).await {
                Ok(finished) => {
                    if !finished.accepted {
                        tracing::debug!(
                            "a task's end is not taken: it was cancelled, or another worker has it"
                        );
                    }
                    if waits {
                        self.on_permit_freed(finished.next);
                    }
                    return;
                }
                Err(error) => error,
            };
            self.record_failure("a task's end is not told yet", &error);
            if is_permanent(&error) {
                tracing::warn!(%error, "a task's end cannot be told: {error}");
                return;
            }
            sleep(pause).await;
            pause = (2 * pause).min(longest);
        }
    }

    /// Waits for a job that no one needs any more; one that does not end counts as hung.
    async fn wait_for_thread(&self, thread: &mut JobThread) {
        if timeout(STOP_TIMEOUT, &mut *thread).await.is_ok() {
            return;
        }
        tracing::error!("a task's job goes on although it was told to stop; its place is lost until it ends");
        self.hung.send_modify(|hung| *hung += 1);
        let _ = thread.await.is_ok();
        self.hung.send_modify(|hung| *hung -= 1);
    }
}

/// Pause after this attempt.
fn retry_delay(attempt: u64, longest: Duration) -> Duration {
    ExponentialBackoff::new(RETRY_DELAY_MIN, 2.0, longest).delay(attempt)
}

/// Whether saying it again is no use: something else lies under the key, or there is no code any more.
fn is_permanent(error: &redis::RedisError) -> bool {
    use redis::RedisError::{Protocol, Rejected, Unsupported};
    matches!(
        error,
        Protocol { .. }
            | Unsupported { .. }
            | Rejected { rejection: ServerRejection::WrongType | ServerRejection::Other, .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_are_never_longer_than_a_lease() {
        let lease = Duration::from_secs(3);
        let pauses: Vec<_> = (0..6).map(|attempt| retry_delay(attempt, lease).as_millis()).collect();
        assert_eq!(pauses, [500, 500, 1000, 2000, 3000, 3000]);
        assert_eq!(retry_delay(u64::MAX, lease), lease);
    }
}
