//! Workers that wait for tasks: taking, ending, and the word in the same call that a worker waits.

use std::time::{Duration, Instant};

use fred::types::Value;

use crate::redis::counter_commands::{list, number, signed, with_keys};
use crate::redis::error::RedisError;
use crate::redis::functions::ServerFunction;
use crate::redis::task::{ExecutionResult, TaskDelivery, TaskExecution, TaskPolicy, millis};
use crate::redis::{RedisClient, keys};

/// A call that took longer than this to be sent was held for an absence of Redis, and not for a busy moment.
const HELD_AFTER: Duration = Duration::from_millis(300);

/// A worker that waits for tasks.
#[derive(Debug, Clone, Copy)]
pub struct IdleWorker<'a> {
    /// Where it is woken; empty: it is not, and nothing is noted of it.
    pub worker: &'a str,
    /// The kinds that it takes.
    pub kinds: &'a [&'a str],
    /// Whether it can take another one beside what this call is about.
    pub has_capacity: bool,
}

/// What a worker is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextClaim {
    /// Whether there is something left for it to take.
    pub has_more: bool,
    /// If not, when it is its turn to look, unless it is woken before.
    pub pause: Duration,
}

/// How the end of an execution was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FinishOutcome {
    /// Whether the task has ended so; otherwise nothing was changed.
    pub accepted: bool,
    /// What its worker is to do next.
    pub next: NextClaim,
}

impl RedisClient {
    /// Takes the next entry of these kinds: one that is overdue if `lease` is given, else the oldest. For a worker that
    /// does not wait where there is none.
    ///
    /// # Errors
    /// See [`Error`]; what was taken by a call that was not answered is overdue after a lease.
    ///
    /// # Cancel safety
    /// As after an error.
    pub async fn claim_task(
        &self,
        kinds: &[&str],
        lease: Option<Duration>,
    ) -> Result<Option<TaskDelivery>, RedisError> {
        let idler = IdleWorker { worker: "", kinds, has_capacity: false };
        Ok(self.claim_task_for(&idler, lease).await?.0)
    }

    /// Takes the next entry, or waits for one from now on; and what to do next.
    ///
    /// # Errors
    /// As [`Redis::take_task`].
    ///
    /// # Cancel safety
    /// As after an error.
    pub async fn claim_task_for(
        &self,
        idler: &IdleWorker<'_>,
        lease: Option<Duration>,
    ) -> Result<(Option<TaskDelivery>, NextClaim), RedisError> {
        let (keys, words, requested_at) =
            (self.idle_keys(idler.kinds), self.notification_args().await, Instant::now());
        let reply = self
            .call(ServerFunction::TaskClaim, |entry| {
                let mut args = with_keys(entry, keys.iter().map(String::as_str));
                args.extend_from_slice(&words);
                // Made for each sending: a call that was held while Redis was away must take nothing over, because the
                // workers that run tasks could renew nothing meanwhile.
                let lease = lease.filter(|_| requested_at.elapsed() < HELD_AFTER);
                args.push(lease.map_or(number(0), millis));
                args.extend(idler.to_args());
                args.extend(idler.kinds.iter().copied().map(Value::from));
                args
            })
            .await?;
        let mut parts = list(reply, 2)?;
        let next = decode_next(&mut parts)?;
        let Some(queue) = parts.next() else { return Ok((None, next)) };
        let odd = || RedisError::protocol("an entry of a queue of tasks has another form");
        let queue = usize::try_from(signed(Some(queue))?).map_err(|_| odd())?;
        let kind = queue.checked_sub(1).and_then(|at| idler.kinds.get(at)).ok_or_else(odd)?;
        let mut text = || parts.next().and_then(|part| part.as_string());
        let (Some(entry), Some(id)) = (text(), text()) else { return Err(odd()) };
        let id = id.parse().map_err(|_| odd())?;
        let times = u64::try_from(signed(parts.next())?).map_err(|_| odd())?;
        Ok((
            Some(TaskDelivery { id, kind: (*kind).to_owned(), entry_id: entry, delivery_count: times }),
            next,
        ))
    }

    /// Says that a worker waits no more; what it was woken for is passed on.
    ///
    /// # Errors
    /// See [`Error`]; a worker whose word is lost is forgotten when its turn has passed.
    ///
    /// # Cancel safety
    /// As after an error.
    pub async fn stop_waiting_for_tasks(&self, idler: &IdleWorker<'_>) -> Result<(), RedisError> {
        let (keys, words) = (self.idle_keys(idler.kinds), self.notification_args().await);
        self.call(ServerFunction::TaskWithdraw, |entry| {
            let mut args = with_keys(entry, keys.iter().map(String::as_str));
            args.extend_from_slice(&words);
            args.push(Value::from(idler.worker));
            args.extend(idler.kinds.iter().copied().map(Value::from));
            args
        })
        .await
        .map(|_| ())
    }

    /// Ends an execution; false: the task has not ended so, nothing was changed. Repeating it does no harm.
    ///
    /// # Errors
    /// See [`Error`]; after [`Error::Timeout`] it may have ended, and saying it once more answers as the first time.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it has ended.
    pub async fn finish_task(
        &self,
        execution: &TaskExecution,
        outcome: &ExecutionResult,
        rules: &TaskPolicy,
    ) -> Result<bool, RedisError> {
        let idler = IdleWorker { worker: "", kinds: &[], has_capacity: false };
        Ok(self.finish_task_for(execution, outcome, rules, &idler).await?.accepted)
    }

    /// Ends an execution, whose worker has its place free and waits for the next one.
    ///
    /// # Errors
    /// As [`Redis::end_task`].
    ///
    /// # Cancel safety
    /// As there.
    pub async fn finish_task_for(
        &self,
        execution: &TaskExecution,
        outcome: &ExecutionResult,
        rules: &TaskPolicy,
        idler: &IdleWorker<'_>,
    ) -> Result<FinishOutcome, RedisError> {
        let (name, value, pause) = match outcome {
            ExecutionResult::Done(result) => ("done", result.as_str(), Duration::ZERO),
            ExecutionResult::Failed(reason) => ("failed", reason.as_str(), Duration::ZERO),
            ExecutionResult::Retry(reason, pause) => ("retry", reason.as_str(), *pause),
            ExecutionResult::Released => ("back", "", Duration::ZERO),
        };
        let mut rest = vec![Value::from(name), Value::from(value), number(rules.max_attempts)];
        rest.extend([rules.retention, pause, rules.lease].map(millis));
        rest.extend(idler.to_args());
        let mut keys = vec![keys::task_idle_workers(&self.inner.prefix, &execution.delivery.kind)];
        keys.extend(self.idle_keys(idler.kinds));
        let reply = self.call_for_execution(ServerFunction::TaskFinish, execution, &rest, &keys).await?;
        let mut parts = list(reply, 3)?;
        let taken = signed(parts.next())? == 1;
        Ok(FinishOutcome { accepted: taken, next: decode_next(&mut parts)? })
    }

    /// Keys of the queues of these kinds, and of the workers that wait for them.
    fn idle_keys(&self, kinds: &[&str]) -> Vec<String> {
        let prefix = &self.inner.prefix;
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
