//! The calls about single tasks, and the totals.

use std::time::Duration;

use crate::redis::functions::ServerFunction;
use crate::redis::wire::{Value, list, millis, number, signed, with_keys};
use crate::redis::{ActiveConnection, CallKind, RedisClient, RedisError};
use crate::tasks::attempt::{
    Cancelled, EnqueueOutcome, StartOutcome, TaskDelivery, TaskExecution, TaskPolicy,
};
use crate::tasks::stats::TaskQueueStats;
use crate::tasks::task_status::{TaskId, TaskStatus};
use crate::tasks::{keys, task_status};

impl RedisClient {
    /// Enqueues a task. Repeating it changes nothing.
    ///
    /// # Errors
    /// See [`RedisError`]; after [`RedisError::Timeout`] it may have been enqueued, and repeating it does no harm.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was enqueued.
    pub async fn enqueue_task(
        &self,
        id: TaskId,
        kind: &str,
        input: &str,
        rules: &TaskPolicy,
    ) -> Result<EnqueueOutcome, RedisError> {
        let prefix = self.prefix();
        let id = id.to_string();
        let keys = [
            keys::task(prefix, &id),
            keys::task_queue(prefix, kind),
            keys::tasks_waiting(prefix),
            keys::task_idle_workers(prefix, kind),
        ];
        let notification = self.notification_args().await;
        let reply = self
            .call(ServerFunction::TaskEnqueue, |entry| {
                let mut args = with_keys(entry, keys.iter().map(String::as_str));
                args.extend_from_slice(&notification);
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

    /// Starts an execution for a worker that is not notified.
    ///
    /// # Errors
    /// As [`RedisClient::start_task_for`].
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

    /// Starts an execution; `worker` is its name for operators, `notified_worker` the name by which it is notified of a
    /// cancellation. Repeating it with the same number changes nothing, and neither does a call after others have
    /// claimed the entry.
    ///
    /// # Errors
    /// See [`RedisError`]; after [`RedisError::Timeout`] it may have started.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it has started; the task is overdue after a lease.
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

    /// Renews an execution, with its progress if that has changed; false: it is no longer the current one.
    ///
    /// # Errors
    /// See [`RedisError`]; repeating it does no harm.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was renewed.
    pub async fn renew_task(
        &self,
        execution: &TaskExecution,
        percent: Option<u8>,
    ) -> Result<bool, RedisError> {
        let prefix = self.prefix();
        let TaskDelivery { id, kind, .. } = &execution.delivery;
        let id = id.to_string();
        let keys = [keys::task(prefix, &id), keys::task_queue(prefix, kind), keys::tasks_running(prefix)];
        let (notification, head) = (self.notification_args().await, execution_args(execution));
        let reply = self
            .call(ServerFunction::TaskRenew, |entry| {
                let mut args = with_keys(entry, keys.iter().map(String::as_str));
                args.extend_from_slice(&notification);
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
    /// See [`RedisError`]; after [`RedisError::Timeout`] it may have been cancelled.
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
            1 => Some(Cancelled::Waiting),
            2 => Some(Cancelled::Running),
            _ => Some(Cancelled::Late),
        })
    }

    /// Some of the tasks that have waited for longer than this, with their kinds, the oldest first.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn overdue_tasks(&self, longest: Duration) -> Result<Vec<(TaskId, String)>, RedisError> {
        let waiting = keys::tasks_waiting(self.prefix());
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

    /// Makes a task dead that has waited for longer than this; returns whether it had.
    ///
    /// # Errors
    /// See [`RedisError`]; repeating it does no harm.
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
    /// See [`RedisError`].
    pub async fn get_task(&self, id: TaskId) -> Result<Option<TaskStatus>, RedisError> {
        if self.is_plain() {
            return Err(RedisError::Unsupported { what: "tasks" });
        }
        let key = keys::task(self.prefix(), &id.to_string());
        let args: Vec<Value> =
            std::iter::once(key.as_str()).chain(task_status::STATUS_FIELDS).map(Value::from).collect();
        let call = |active: ActiveConnection| {
            let args = args.clone();
            async move { active.transport.send("HMGET", args).await }
        };
        match self.send(CallKind::Read, call).await? {
            Value::Array(values) => TaskStatus::from_values(id, &values),
            _ => Err(RedisError::protocol("what lies under a task's key is none")),
        }
    }

    /// The state of the fleet's tasks.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn task_stats(&self) -> Result<TaskQueueStats, RedisError> {
        let prefix = self.prefix();
        let keys = [
            keys::tasks_waiting(prefix),
            keys::tasks_running(prefix),
            keys::tasks_dead(prefix),
            keys::tasks_totals(prefix),
        ];
        let keys = || keys.iter().map(String::as_str);
        TaskQueueStats::decode(&self.call(ServerFunction::TaskStats, |entry| with_keys(entry, keys())).await?)
    }

    /// The first arguments of every call that notifies: the prefix of channels, the channel of earlier releases, and
    /// whether the reply to PUBLISH counts every subscriber.
    pub(super) async fn notification_args(&self) -> [Value; 3] {
        let counts = if !self.is_cluster() { "1" } else { "0" };
        [self.channel_prefix().into(), self.earlier_release_channel().await.into(), counts.into()]
    }

    pub(super) async fn call_for_execution(
        &self,
        entry: ServerFunction,
        execution: &TaskExecution,
        rest: &[Value],
        more_keys: &[String],
    ) -> Result<Value, RedisError> {
        let TaskDelivery { id, kind, .. } = &execution.delivery;
        let [_, _, notification @ ..] = execution_args(execution);
        let rest: Vec<Value> = notification.into_iter().chain(rest.iter().cloned()).collect();
        self.call_for_task(entry, &id.to_string(), kind, &rest, more_keys).await
    }

    /// A call that may change everything about a task: id and kind, and the rest.
    pub(super) async fn call_for_task(
        &self,
        entry: ServerFunction,
        id: &str,
        kind: &str,
        rest: &[Value],
        more_keys: &[String],
    ) -> Result<Value, RedisError> {
        let prefix = self.prefix();
        let keys = [
            keys::task(prefix, id),
            keys::task_queue(prefix, kind),
            keys::tasks_waiting(prefix),
            keys::tasks_running(prefix),
            keys::tasks_dead(prefix),
            keys::tasks_totals(prefix),
        ];
        let notification = self.notification_args().await;
        self.call(entry, |entry| {
            let mut args = with_keys(entry, keys.iter().chain(more_keys).map(String::as_str));
            args.extend_from_slice(&notification);
            args.extend([id, kind].map(Value::from));
            args.extend_from_slice(rest);
            args
        })
        .await
    }
}

/// The arguments that identify an execution: id, kind, entry, number.
fn execution_args(execution: &TaskExecution) -> [Value; 4] {
    let TaskDelivery { id, kind, entry_id: entry, .. } = &execution.delivery;
    let number = format!("{:016x}", execution.id);
    [id.to_string(), kind.clone(), entry.clone(), number].map(Value::from)
}
