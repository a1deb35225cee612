//! One attempt of a task: its job, its renewals, its result.
//!
//! A blocking job has a thread of its own, an async one is a task of the event loop. An execution holds its permit until
//! its job has ended, because a thread cannot be stopped, and until Redis has the result, so that no more results wait for
//! Redis than there are permits.

use std::pin::Pin;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, Sleep, interval, sleep, timeout};

use crate::redis::{RedisError, ServerRejection};
use crate::sys::{clock, cpu};
use crate::tasks::context::TaskContext;
use crate::tasks::jobs::{Job, JobOutcome};
use crate::tasks::service::{ActiveGuard, IntakeState, TaskService};
use crate::tasks::{ExecutionResult, IdleWorker, StartOutcome, TaskDelivery, TaskExecution};

/// Renewals in the time of a lease: two may be lost.
const RENEWALS_PER_LEASE: u32 = 3;

/// Shortest time between two progress reports, and before the first: watchers poll no more often, and a task that is done
/// sooner causes no call.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// First and longest delay between two calls to deliver a result.
const FINISH_RETRY: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

/// Time in which a job must stop once its context is cancelled.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A job that was started.
struct RunningJob {
    /// What it sends when it ends.
    outcome: oneshot::Receiver<JobOutcome>,
    /// Ends it at its next await; none: it has a thread.
    abort: Option<AbortHandle>,
}

/// What happens to an execution's permit at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PermitDisposition {
    /// It is free for the next task.
    Released,
    /// A thread goes on under it, or the worker claims no more.
    Retained,
}

/// Why an execution is over.
enum ExecutionEnd {
    /// The job has ended.
    Finished(JobOutcome),
    /// The worker releases its tasks.
    Released,
    /// The task was cancelled, or another worker reclaimed it.
    Superseded,
    /// It ran for too long.
    TimedOut,
}

/// Runs one attempt of a claimed task.
pub(super) async fn run(
    service: Arc<TaskService>,
    delivery: TaskDelivery,
    _permit: OwnedSemaphorePermit,
    active: ActiveGuard,
) {
    let execution = match TaskExecution::new(delivery) {
        Ok(execution) => execution,
        Err(error) => {
            return tracing::error!(%error, "task not started, waiting for its lease to end: {error}");
        }
    };
    let Some((attempt, input)) = start_attempt(&service, &execution).await else { return };
    let kind = service.settings_of(&execution.delivery.kind);
    let context = TaskContext::new(execution.delivery.id, attempt);
    if service.is_draining() {
        return finish(&service, &execution, &ExecutionResult::Released, PermitDisposition::Retained).await;
    }
    let Some(mut job) = start_job(&service, &execution, input, &context) else {
        finish(&service, &execution, &ExecutionResult::Released, PermitDisposition::Retained).await;
        // Another worker should try first.
        return sleep(FINISH_RETRY[1]).await;
    };
    let deadline = sleep(kind.timeout);
    tokio::pin!(deadline);
    service.running_tasks().insert(execution.delivery.id, context.clone());
    let end = supervise(&service, &execution, &context, &mut job, deadline.as_mut()).await;
    service.running_tasks().remove(&execution.delivery.id);
    let result = match end {
        ExecutionEnd::Finished(outcome) => {
            let result = execution_result(outcome, attempt, kind.backoff);
            return finish(&service, &execution, &result, PermitDisposition::Released).await;
        }
        ExecutionEnd::Released => Some(ExecutionResult::Released),
        ExecutionEnd::Superseded => None,
        ExecutionEnd::TimedOut => Some(ExecutionResult::Failed(timeout_reason(&execution, kind.timeout))),
    };
    context.stop();
    if let Some(result) = result {
        finish(&service, &execution, &result, PermitDisposition::Retained).await;
    }
    // Redis has the result: a worker that drains must not wait for a job that goes on.
    drop(active);
    if let Some(abort) = &job.abort {
        if timeout(STOP_TIMEOUT, &mut job.outcome).await.is_err() {
            tracing::warn!("async task job dropped: it went on after its cancellation");
            abort.abort();
        }
        return;
    }
    tokio::select! {
        _ = &mut job.outcome => {}
        () = deadline => wait_for_thread(&service, &mut job.outcome).await,
    }
}

/// Starts the attempt in Redis; `None`: there is nothing to run.
async fn start_attempt(service: &TaskService, execution: &TaskExecution) -> Option<(u64, String)> {
    let kind = execution.delivery.kind.as_str();
    let (worker, channel) = (&service.worker, &service.worker_channel);
    let policy = service.settings_of(kind).policy;
    let start = async {
        loop {
            match service.redis.start_task_for(execution, worker, channel, &policy).await {
                Ok(outcome) => return outcome,
                Err(error) => service.record_failure("task attempt not started", &error),
            }
            sleep(FINISH_RETRY[0]).await;
        }
    };
    // After a lease another worker may have it.
    match timeout(service.policy.lease, start).await {
        Ok(StartOutcome::Started { attempt, input }) => Some((attempt, input)),
        Ok(StartOutcome::Dead) => {
            tracing::warn!(kind, "task dead: its worker was lost at each of its attempts");
            None
        }
        Ok(StartOutcome::NothingToDo) | Err(_) => None,
    }
}

/// Starts the job; `None` if it needs a thread and the system has none.
fn start_job(
    service: &TaskService,
    execution: &TaskExecution,
    input: String,
    context: &TaskContext,
) -> Option<RunningJob> {
    let job = service.jobs().get(execution.delivery.kind.as_str())?.job.clone();
    let (sender, outcome) = oneshot::channel();
    let context = context.clone();
    let job = match job {
        Job::Blocking(job) => job,
        Job::Async(job) => {
            let running = tokio::spawn(async move {
                // The execution may be gone.
                let _ = sender.send(job(&input, &context).await);
            });
            return Some(RunningJob { outcome, abort: Some(running.abort_handle()) });
        }
    };
    let work = move || {
        if let Err(error) = cpu::lower_thread_priority() {
            tracing::debug!(%error, "priority of a task's thread not lowered: {error}");
        }
        // The execution may be gone.
        let _ = sender.send(job(&input, &context));
    };
    match thread::Builder::new().name("task".to_owned()).spawn(work) {
        Ok(_) => Some(RunningJob { outcome, abort: None }),
        Err(error) => {
            tracing::error!(%error, "thread for a task not started: {error}");
            None
        }
    }
}

/// Renews the lease and reports progress until the execution is over.
async fn supervise(
    service: &TaskService,
    execution: &TaskExecution,
    context: &TaskContext,
    job: &mut RunningJob,
    mut deadline: Pin<&mut Sleep>,
) -> ExecutionEnd {
    let mut intake = service.intake.subscribe();
    let mut renewals = interval(service.policy.lease / RENEWALS_PER_LEASE);
    renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
    renewals.tick().await;
    let started_at = clock::monotonic();
    let (mut must_check, mut checked_at) = (false, started_at.saturating_sub(PROGRESS_INTERVAL));
    let (mut reported, mut has_progress, mut report_at) = (0, false, started_at + PROGRESS_INTERVAL);
    loop {
        let percent = tokio::select! {
            // The end of the job first: it makes every report superfluous.
            biased;
            outcome = &mut job.outcome => {
                let died = |_| JobOutcome::Retry("it ended without a word".to_owned());
                return ExecutionEnd::Finished(outcome.unwrap_or_else(died));
            }
            _ = intake.wait_for(|state| *state == IntakeState::Releasing) => return ExecutionEnd::Released,
            () = &mut deadline => return ExecutionEnd::TimedOut,
            _ = renewals.tick() => None,
            // However many notifications of a cancellation arrive, Redis is called ten times a second at most.
            () = context.check_requested() => {
                must_check = true;
                continue;
            }
            () = sleep(clock::until(checked_at + PROGRESS_INTERVAL)), if must_check => {
                (must_check, checked_at) = (false, clock::monotonic());
                None
            }
            () = context.changed() => {
                has_progress = true;
                continue;
            }
            () = sleep(clock::until(report_at)), if has_progress => {
                has_progress = false;
                match context.next_report(reported) {
                    None => continue,
                    due => due,
                }
            }
        };
        if let Some(percent) = percent {
            reported = percent;
            report_at = clock::monotonic() + PROGRESS_INTERVAL;
        }
        match service.redis.renew_task(execution, percent).await {
            Ok(true) => {}
            Ok(false) => return ExecutionEnd::Superseded,
            Err(error) => service.record_failure("task lease not renewed", &error),
        }
    }
}

fn execution_result(outcome: JobOutcome, attempt: u64, backoff: (Duration, Duration)) -> ExecutionResult {
    match outcome {
        JobOutcome::Done(result) => ExecutionResult::Done(result),
        JobOutcome::Failed(reason) => ExecutionResult::Failed(reason),
        JobOutcome::Retry(reason) => ExecutionResult::Retry(reason, retry_delay(attempt, backoff)),
    }
}

fn timeout_reason(execution: &TaskExecution, limit: Duration) -> String {
    let kind = &execution.delivery.kind;
    tracing::warn!(kind, "task failed: it ran for longer than {limit:?} (tasks.timeout)");
    format!("it ran for longer than {limit:?} (tasks.timeout)")
}

/// Delivers a result to Redis, for as long as it takes: after a lost reply the call is repeated.
async fn finish(
    service: &TaskService,
    execution: &TaskExecution,
    result: &ExecutionResult,
    permit: PermitDisposition,
) {
    let [mut delay, longest] = FINISH_RETRY;
    let kinds = service.kinds();
    let policy = service.settings_of(&execution.delivery.kind).policy;
    loop {
        // A worker that drains, or whose thread goes on under this permit, claims nothing for it.
        let has_capacity = permit == PermitDisposition::Released && !service.is_draining();
        let (worker, kinds) = match has_capacity {
            true => (service.worker_channel.as_str(), kinds.as_slice()),
            false => ("", &[][..]),
        };
        let idle = IdleWorker { worker, kinds, has_capacity };
        let error = match service.redis.finish_task_for(execution, result, &policy, &idle).await {
            Ok(finished) => {
                if !finished.accepted {
                    tracing::debug!("task result rejected: cancelled or reclaimed");
                }
                if has_capacity {
                    service.on_permit_freed(finished.next);
                }
                return;
            }
            Err(error) => error,
        };
        service.record_failure("task result not delivered yet", &error);
        if is_permanent(&error) {
            tracing::warn!(%error, "task result not delivered: {error}");
            return;
        }
        sleep(delay).await;
        delay = (2 * delay).min(longest);
    }
}

/// Waits for a job whose result is not needed; one that does not end counts as hung.
async fn wait_for_thread(service: &TaskService, thread: &mut oneshot::Receiver<JobOutcome>) {
    if timeout(STOP_TIMEOUT, &mut *thread).await.is_ok() {
        return;
    }
    tracing::error!("task job hung: it goes on after its cancellation and holds its permit until it ends");
    service.hung.send_modify(|hung| *hung += 1);
    let _ = thread.await.is_ok();
    service.hung.send_modify(|hung| *hung -= 1);
}

/// Delay after this attempt: the first one, doubled by each attempt, up to the longest.
fn retry_delay(attempt: u64, (first, longest): (Duration, Duration)) -> Duration {
    let doublings = u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX).min(31);
    first.saturating_mul(1 << doublings).min(longest)
}

/// Whether a repetition is of no use: the key holds another type, or the functions are gone.
fn is_permanent(error: &RedisError) -> bool {
    use RedisError::{Protocol, Rejected, Unsupported};
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
    fn delays_double_up_to_the_longest() {
        let backoff = (Duration::from_millis(500), Duration::from_secs(3));
        let delays: Vec<_> = (0..6).map(|attempt| retry_delay(attempt, backoff).as_millis()).collect();
        assert_eq!(delays, [500, 500, 1000, 2000, 3000, 3000]);
        assert_eq!(retry_delay(u64::MAX, backoff), backoff.1);
        assert_eq!(retry_delay(u64::MAX, (Duration::MAX, Duration::MAX)), Duration::MAX);
    }
}
