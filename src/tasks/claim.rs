//! Claiming and finishing tasks; the same call registers that the worker waits for the next one.

use std::time::{Duration, Instant};

use crate::redis::functions::ServerFunction;
use crate::redis::wire::{Value, list, millis, number, signed, with_keys};
use crate::redis::{RedisClient, RedisError};
use crate::tasks::attempt::{ExecutionResult, TaskDelivery, TaskExecution, TaskPolicy};
use crate::tasks::keys;

/// A call that took longer than this to be sent was held during an outage of Redis, not by a busy moment.
const HELD_AFTER: Duration = Duration::from_millis(300);

/// A worker that waits for tasks.
#[derive(Debug, Clone, Copy)]
pub struct IdleWorker<'a> {
    /// The name by which it is notified; empty: it is not notified, and not registered as waiting.
    pub worker: &'a str,
    /// The kinds that it runs.
    pub kinds: &'a [&'a str],
    /// Whether it can run another task beside the one of this call.
    pub has_capacity: bool,
}

/// What a worker does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextClaim {
    /// Whether there is another task to claim now.
    pub has_more: bool,
    /// If not, after which time it polls unless it is notified before.
    pub pause: Duration,
}

/// The result of finishing an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FinishOutcome {
    /// Whether the task has finished with this result; otherwise nothing was changed.
    pub accepted: bool,
    /// What its worker does next.
    pub next: NextClaim,
}

impl RedisClient {
    /// Claims the next entry of these kinds: an overdue one if `lease` is given, else the oldest. For a worker that
    /// does not wait for one.
    ///
    /// # Errors
    /// See [`RedisError`]; what an unanswered call claimed is overdue after a lease.
    ///
    /// # Cancel safety
    /// As after an error.
    pub async fn claim_task(
        &self,
        kinds: &[&str],
        lease: Option<Duration>,
    ) -> Result<Option<TaskDelivery>, RedisError> {
        let idle_worker = IdleWorker { worker: "", kinds, has_capacity: false };
        Ok(self.claim_task_for(&idle_worker, lease).await?.0)
    }

    /// Claims the next entry, or registers the worker as waiting; also returns what to do next.
    ///
    /// # Errors
    /// As [`RedisClient::claim_task`].
    ///
    /// # Cancel safety
    /// As after an error.
    pub async fn claim_task_for(
        &self,
        idle_worker: &IdleWorker<'_>,
        lease: Option<Duration>,
    ) -> Result<(Option<TaskDelivery>, NextClaim), RedisError> {
        let (keys, notification, requested_at) =
            (self.idle_keys(idle_worker.kinds), self.notification_args().await, Instant::now());
        let reply = self
            .call(ServerFunction::TaskClaim, |entry| {
                let mut args = with_keys(entry, keys.iter().map(String::as_str));
                args.extend_from_slice(&notification);
                // Evaluated for each sending: a call that was held during an outage must claim no overdue task, because
                // its worker could not renew it meanwhile.
                let lease = lease.filter(|_| requested_at.elapsed() < HELD_AFTER);
                args.push(lease.map_or(number(0), millis));
                args.extend(idle_worker.to_args());
                args.extend(idle_worker.kinds.iter().copied().map(Value::from));
                args
            })
            .await?;
        let mut parts = list(reply, 2)?;
        let next = decode_next(&mut parts)?;
        let Some(queue) = parts.next() else { return Ok((None, next)) };
        let odd = || RedisError::protocol("an entry of a queue of tasks has another form");
        let queue = usize::try_from(signed(Some(queue))?).map_err(|_| odd())?;
        let kind = queue.checked_sub(1).and_then(|at| idle_worker.kinds.get(at)).ok_or_else(odd)?;
        let mut text = || parts.next().and_then(|part| part.as_string());
        let (Some(entry), Some(id)) = (text(), text()) else { return Err(odd()) };
        let id = id.parse().map_err(|_| odd())?;
        let times = u64::try_from(signed(parts.next())?).map_err(|_| odd())?;
        Ok((
            Some(TaskDelivery { id, kind: (*kind).to_owned(), entry_id: entry, delivery_count: times }),
            next,
        ))
    }

    /// Ends a worker's waiting; another worker is notified in its place if necessary.
    ///
    /// # Errors
    /// See [`RedisError`]; after a lost call the worker is removed when its time has passed.
    ///
    /// # Cancel safety
    /// As after an error.
    pub async fn stop_waiting_for_tasks(&self, idle_worker: &IdleWorker<'_>) -> Result<(), RedisError> {
        let (keys, notification) = (self.idle_keys(idle_worker.kinds), self.notification_args().await);
        self.call(ServerFunction::TaskWithdraw, |entry| {
            let mut args = with_keys(entry, keys.iter().map(String::as_str));
            args.extend_from_slice(&notification);
            args.push(Value::from(idle_worker.worker));
            args.extend(idle_worker.kinds.iter().copied().map(Value::from));
            args
        })
        .await
        .map(|_| ())
    }

    /// Finishes an execution; false if the task has not finished so and nothing was changed. Repeating it does no harm.
    ///
    /// # Errors
    /// See [`RedisError`]; after [`RedisError::Timeout`] it may have finished, and a repetition returns the same.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it has finished.
    pub async fn finish_task(
        &self,
        execution: &TaskExecution,
        outcome: &ExecutionResult,
        rules: &TaskPolicy,
    ) -> Result<bool, RedisError> {
        let idle_worker = IdleWorker { worker: "", kinds: &[], has_capacity: false };
        Ok(self.finish_task_for(execution, outcome, rules, &idle_worker).await?.accepted)
    }

    /// Finishes an execution whose worker is free for the next one.
    ///
    /// # Errors
    /// As [`RedisClient::finish_task`].
    ///
    /// # Cancel safety
    /// As there.
    pub async fn finish_task_for(
        &self,
        execution: &TaskExecution,
        outcome: &ExecutionResult,
        rules: &TaskPolicy,
        idle_worker: &IdleWorker<'_>,
    ) -> Result<FinishOutcome, RedisError> {
        let (name, value, pause) = match outcome {
            ExecutionResult::Done(result) => ("done", result.as_str(), Duration::ZERO),
            ExecutionResult::Failed(reason) => ("failed", reason.as_str(), Duration::ZERO),
            ExecutionResult::Retry(reason, pause) => ("retry", reason.as_str(), *pause),
            ExecutionResult::Released => ("back", "", Duration::ZERO),
        };
        let mut rest = vec![Value::from(name), Value::from(value), number(rules.max_attempts)];
        rest.extend([rules.retention, pause, rules.lease].map(millis));
        rest.extend(idle_worker.to_args());
        let mut keys = vec![keys::task_idle_workers(self.prefix(), &execution.delivery.kind)];
        keys.extend(self.idle_keys(idle_worker.kinds));
        let reply = self.call_for_execution(ServerFunction::TaskFinish, execution, &rest, &keys).await?;
        let mut parts = list(reply, 3)?;
        let taken = signed(parts.next())? == 1;
        Ok(FinishOutcome { accepted: taken, next: decode_next(&mut parts)? })
    }

    /// Keys of the queues of these kinds, and of their waiting workers.
    fn idle_keys(&self, kinds: &[&str]) -> Vec<String> {
        let prefix = self.prefix();
        let queues = kinds.iter().map(|kind| keys::task_queue(prefix, kind));
        queues.chain(kinds.iter().map(|kind| keys::task_idle_workers(prefix, kind))).collect()
    }
}

impl IdleWorker<'_> {
    fn to_args(self) -> [Value; 2] {
        [Value::from(self.worker), Value::from_static_str(if self.has_capacity { "1" } else { "0" })]
    }
}

fn decode_next(parts: &mut impl Iterator<Item = Value>) -> Result<NextClaim, RedisError> {
    let left = signed(parts.next())? == 1;
    let pause = u64::try_from(signed(parts.next())?).unwrap_or(0);
    Ok(NextClaim { has_more: left, pause: Duration::from_millis(pause) })
}
