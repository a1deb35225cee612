//! Tasks as Redis has them: plain data and its wire form, described at the head of `migrations/0019_regatta_task_v3.lua`.
//!
//! Without server-side code there are none: every call is [`Error::Unsupported`].

mod attempt;
mod claim;
mod stats;
mod task_status;

use std::time::Duration;

pub use attempt::{
    Cancelled, EnqueueOutcome, ExecutionResult, StartOutcome, TaskDelivery, TaskExecution, TaskPolicy,
};
pub use claim::{FinishOutcome, IdleWorker, NextClaim};
use fred::types::Value;
pub use stats::{DeadTask, RunningTask, TaskQueueStats, TaskTotals};
pub use task_status::{InvalidTaskId, TaskId, TaskRandomSourceError, TaskState, TaskStatus};

use crate::redis::breakers::CallKind;
use crate::redis::connection::ActiveConnection;
use crate::redis::counter_commands::{list, number, signed, with_keys};
use crate::redis::error::RedisError;
use crate::redis::functions::ServerFunction;
use crate::redis::{RedisClient, keys};

/// News of workers of earlier releases, and the first letter of what is told to one worker: there is something to take;
/// its text is the kind.
pub const TASK_QUEUED: char = 't';

/// The same: a task has changed; its text is the id, a space, and the state.
pub const TASK_CHANGED: char = 'p';

fn millis(time: Duration) -> Value {
    number(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

impl RedisClient {
    /// Makes a task. Repeating it changes nothing.
    ///
    /// # Errors
    /// See [`Error`]; after [`Error::Timeout`] it may have been made, and saying it once more does no harm.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was made.
    pub async fn enqueue_task(
        &self,
        id: TaskId,
        kind: &str,
        input: &str,
        rules: &TaskPolicy,
    ) -> Result<EnqueueOutcome, RedisError> {
        let prefix = &self.inner.prefix;
        let id = id.to_string();
        let keys = [
            keys::task(prefix, &id),
            keys::task_queue(prefix, kind),
            keys::tasks_waiting(prefix),
            keys::task_idle_workers(prefix, kind),
        ];
        let words = self.notification_args().await;
        let reply = self
            .call(ServerFunction::TaskEnqueue, |entry| {
                let mut args = with_keys(entry, keys.iter().map(String::as_str));
                args.extend_from_slice(&words);
                args.extend([id.as_str(), kind, input].map(Value::from));
                args.extend([number(rules.queue_max), millis(rules.max_lifetime)]);
                args
            })
            .await?;
        match signed(Some(reply))? {
            0 => Ok(EnqueueOutcome::QueueFull),
            _ => Ok(EnqueueOutcome::Queued),
        }
    }

    /// Begins an execution for a worker that is told nothing of it.
    ///
    /// # Errors
    /// As [`Redis::begin_task_for`].
    ///
    /// # Cancel safety
    /// As there.
    pub async fn start_task(
        &self,
        execution: &TaskExecution,
        worker: &str,
        rules: &TaskPolicy,
    ) -> Result<StartOutcome, RedisError> {
        self.start_task_for(execution, worker, "", rules).await
    }

    /// Begins an execution; `worker` is what people know it by, `told` where it hears that the task was cancelled.
    /// Repeating it with the same number changes nothing, and neither does one that comes after others have taken the
    /// entry.
    ///
    /// # Errors
    /// See [`Error`]; after [`Error::Timeout`] it may have begun.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it has begun; the task is overdue after a lease.
    pub async fn start_task_for(
        &self,
        execution: &TaskExecution,
        worker: &str,
        notified_worker: &str,
        rules: &TaskPolicy,
    ) -> Result<StartOutcome, RedisError> {
        let [attempts, times] = [rules.max_attempts, execution.delivery.delivery_count].map(number);
        let names = [worker, notified_worker].map(Value::from);
        let numbers = [attempts, millis(rules.max_lifetime), millis(rules.retention), times];
        let rest: Vec<Value> = names.into_iter().chain(numbers).collect();
        let reply = self.call_for_execution(ServerFunction::TaskStart, execution, &rest, &[]).await?;
        let mut parts = list(reply, 1)?;
        match signed(parts.next())? {
            0 => Ok(StartOutcome::NothingToDo),
            2 => Ok(StartOutcome::Dead),
            _ => {
                let attempt = u64::try_from(signed(parts.next())?).unwrap_or(0);
                let input = parts.next().and_then(|part| part.as_string());
                let input = input.ok_or_else(|| RedisError::protocol("a task has no input"))?;
                Ok(StartOutcome::Started { attempt, input })
            }
        }
    }

    /// Says that an execution goes on, and how far it is if that has changed; false: it is no longer the present one.
    ///
    /// # Errors
    /// See [`Error`]; saying it once more does no harm.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was said.
    pub async fn renew_task(
        &self,
        execution: &TaskExecution,
        percent: Option<u8>,
    ) -> Result<bool, RedisError> {
        let prefix = &self.inner.prefix;
        let TaskDelivery { id, kind, .. } = &execution.delivery;
        let id = id.to_string();
        let keys = [keys::task(prefix, &id), keys::task_queue(prefix, kind), keys::tasks_running(prefix)];
        let (words, head) = (self.notification_args().await, execution_args(execution));
        let reply = self
            .call(ServerFunction::TaskRenew, |entry| {
                let mut args = with_keys(entry, keys.iter().map(String::as_str));
                args.extend_from_slice(&words);
                args.extend_from_slice(&head);
                args.push(Value::Integer(percent.map_or(-1, i64::from)));
                args
            })
            .await?;
        Ok(signed(Some(reply))? == 1)
    }

    /// Cancels a task of this kind; `None`: there is none.
    ///
    /// # Errors
    /// See [`Error`]; after [`Error::Timeout`] it may have been cancelled.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was cancelled.
    pub async fn cancel_task(
        &self,
        id: TaskId,
        kind: &str,
        rules: &TaskPolicy,
    ) -> Result<Option<Cancelled>, RedisError> {
        let id = id.to_string();
        let rest = [millis(rules.retention)];
        let reply = self.call_for_task(ServerFunction::TaskCancel, &id, kind, &rest, &[]).await?;
        Ok(match signed(Some(reply))? {
            0 => None,
            1 => Some(Cancelled::Queued),
            2 => Some(Cancelled::Running),
            _ => Some(Cancelled::AlreadyFinished),
        })
    }

    /// Some of the tasks that have waited for longer than this, with their kinds, the oldest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn overdue_tasks(&self, longest: Duration) -> Result<Vec<(TaskId, String)>, RedisError> {
        let waiting = keys::tasks_waiting(&self.inner.prefix);
        let reply = self
            .call(ServerFunction::TaskOverdue, |entry| {
                let mut args = with_keys(entry, [waiting.as_str()]);
                args.push(millis(longest));
                args
            })
            .await?;
        let member = |part: Value| {
            let text = part.as_string()?;
            let (id, kind) = text.split_once(' ')?;
            Some((id.parse().ok()?, kind.to_owned()))
        };
        Ok(list(reply, 0)?.filter_map(member).collect())
    }

    /// Gives up a task that has waited for longer than this; whether it had.
    ///
    /// # Errors
    /// See [`Error`]; saying it once more does no harm.
    pub async fn expire_task(
        &self,
        id: TaskId,
        kind: &str,
        (longest, reason): (Duration, &str),
        rules: &TaskPolicy,
    ) -> Result<bool, RedisError> {
        let rest = [millis(longest), millis(rules.retention), Value::from(reason)];
        let reply = self.call_for_task(ServerFunction::TaskExpire, &id.to_string(), kind, &rest, &[]).await?;
        Ok(signed(Some(reply))? == 1)
    }

    /// A task as it is now; `None`: there is none, or no longer.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_task(&self, id: TaskId) -> Result<Option<TaskStatus>, RedisError> {
        if self.is_plain() {
            return Err(RedisError::Unsupported { what: "tasks" });
        }
        let key = keys::task(&self.inner.prefix, &id.to_string());
        let args: Vec<Value> =
            std::iter::once(key.as_str()).chain(task_status::STATUS_FIELDS).map(Value::from).collect();
        let call = |live: ActiveConnection| {
            let args = args.clone();
            async move { live.transport.send("HMGET", args).await }
        };
        match self.send(CallKind::Read, call).await? {
            Value::Array(values) => TaskStatus::from_values(id, &values),
            _ => Err(RedisError::protocol("what lies under a task's key is none")),
        }
    }

    /// How the fleet's tasks stand.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn task_stats(&self) -> Result<TaskQueueStats, RedisError> {
        let prefix = &self.inner.prefix;
        let keys = [
            keys::tasks_waiting(prefix),
            keys::tasks_running(prefix),
            keys::tasks_dead(prefix),
            keys::tasks_totals(prefix),
        ];
        let keys = || keys.iter().map(String::as_str);
        TaskQueueStats::decode(&self.call(ServerFunction::TaskStats, |entry| with_keys(entry, keys())).await?)
    }

    /// What every call that tells something begins with: what channels begin with, the channel of earlier releases, and
    /// whether the answer to PUBLISH counts every listener.
    async fn notification_args(&self) -> [Value; 3] {
        let counts = if self.inner.endpoint.cluster_seeds().is_none() { "1" } else { "0" };
        [self.inner.channel_prefix.clone().into(), self.earlier_release_channel().await.into(), counts.into()]
    }

    async fn call_for_execution(
        &self,
        entry: ServerFunction,
        execution: &TaskExecution,
        rest: &[Value],
        more_keys: &[String],
    ) -> Result<Value, RedisError> {
        let TaskDelivery { id, kind, .. } = &execution.delivery;
        let [_, _, words @ ..] = execution_args(execution);
        let rest: Vec<Value> = words.into_iter().chain(rest.iter().cloned()).collect();
        self.call_for_task(entry, &id.to_string(), kind, &rest, more_keys).await
    }

    /// A call that may change everything that is known of a task: id and kind, and the rest.
    async fn call_for_task(
        &self,
        entry: ServerFunction,
        id: &str,
        kind: &str,
        rest: &[Value],
        more_keys: &[String],
    ) -> Result<Value, RedisError> {
        let prefix = &self.inner.prefix;
        let keys = [
            keys::task(prefix, id),
            keys::task_queue(prefix, kind),
            keys::tasks_waiting(prefix),
            keys::tasks_running(prefix),
            keys::tasks_dead(prefix),
            keys::tasks_totals(prefix),
        ];
        let words = self.notification_args().await;
        self.call(entry, |entry| {
            let mut args = with_keys(entry, keys.iter().chain(more_keys).map(String::as_str));
            args.extend_from_slice(&words);
            args.extend([id, kind].map(Value::from));
            args.extend_from_slice(rest);
            args
        })
        .await
    }
}

/// What every call about an execution names: id, kind, entry, number.
fn execution_args(execution: &TaskExecution) -> [Value; 4] {
    let TaskDelivery { id, kind, entry_id: entry, .. } = &execution.delivery;
    let number = format!("{:016x}", execution.id);
    [id.to_string(), kind.clone(), entry.clone(), number].map(Value::from)
}
