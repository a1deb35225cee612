//! Tasks as Redis has them: plain data and its wire form, described at the head of `migrations/0019_regatta_task_v3.lua`.
//!
//! Without server-side code there are none: every call is [`Error::Unsupported`].

mod idle;
mod record;
mod step;
mod survey;

use std::time::Duration;

use fred::types::Value;

use crate::redis::Redis;
use crate::redis::count::list;
use crate::redis::count::number;
use crate::redis::count::signed;
use crate::redis::count::with_keys;
use crate::redis::error::Error;
use crate::redis::keys;
use crate::redis::lanes::Kind;
use crate::redis::library::Entry;
use crate::redis::link::Live;
pub use idle::Ended;
pub use idle::Idler;
pub use idle::Next;
pub use record::NoRandomness;
pub use record::NoTaskId;
pub use record::Task;
pub use record::TaskId;
pub use record::TaskState;
pub use step::Begun;
pub use step::Cancelled;
pub use step::Enqueued;
pub use step::Execution;
pub use step::Outcome;
pub use step::Rules;
pub use step::Taken;
pub use survey::DeadTask;
pub use survey::RunningTask;
pub use survey::Survey;
pub use survey::TaskTotals;

/// News of workers of earlier releases, and the first letter of what is told to one worker: there is something to take;
/// its text is the kind.
pub const TO_TAKE: char = 't';

/// The same: a task has changed; its text is the id, a space, and the state.
pub const CHANGED: char = 'p';

fn millis(time: Duration) -> Value {
    number(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

impl Redis {
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
        rules: &Rules,
    ) -> Result<Enqueued, Error> {
        let prefix = &self.inner.prefix;
        let id = id.to_string();
        let keys = [
            keys::task(prefix, &id),
            keys::task_queue(prefix, kind),
            keys::tasks_waiting(prefix),
            keys::tasks_idle(prefix, kind),
        ];
        let words = self.words().await;
        let reply = self
            .run(Entry::TaskEnqueue, |entry| {
                let mut args = with_keys(entry, keys.iter().map(String::as_str));
                args.extend_from_slice(&words);
                args.extend([id.as_str(), kind, input].map(Value::from));
                args.extend([number(rules.queue), millis(rules.life)]);
                args
            })
            .await?;
        match signed(Some(reply))? {
            0 => Ok(Enqueued::Full),
            _ => Ok(Enqueued::Waits),
        }
    }

    /// Begins an execution for a worker that is told nothing of it.
    ///
    /// # Errors
    /// As [`Redis::begin_task_for`].
    ///
    /// # Cancel safety
    /// As there.
    pub async fn begin_task(
        &self,
        execution: &Execution,
        worker: &str,
        rules: &Rules,
    ) -> Result<Begun, Error> {
        self.begin_task_for(execution, worker, "", rules).await
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
    pub async fn begin_task_for(
        &self,
        execution: &Execution,
        worker: &str,
        told: &str,
        rules: &Rules,
    ) -> Result<Begun, Error> {
        let [attempts, times] = [rules.attempts, execution.taken.times].map(number);
        let names = [worker, told].map(Value::from);
        let numbers = [attempts, millis(rules.life), millis(rules.keep), times];
        let rest: Vec<Value> = names.into_iter().chain(numbers).collect();
        let reply = self.of_execution(Entry::TaskBegin, execution, &rest, &[]).await?;
        let mut parts = list(reply, 1)?;
        match signed(parts.next())? {
            0 => Ok(Begun::Ended),
            2 => Ok(Begun::Dead),
            _ => {
                let attempt = u64::try_from(signed(parts.next())?).unwrap_or(0);
                let input = parts.next().and_then(|part| part.as_string());
                let input = input.ok_or_else(|| Error::protocol("a task has no input"))?;
                Ok(Begun::Run { attempt, input })
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
    pub async fn renew_task(&self, execution: &Execution, percent: Option<u8>) -> Result<bool, Error> {
        let prefix = &self.inner.prefix;
        let Taken { id, kind, .. } = &execution.taken;
        let id = id.to_string();
        let keys = [keys::task(prefix, &id), keys::task_queue(prefix, kind), keys::tasks_running(prefix)];
        let (words, head) = (self.words().await, head(execution));
        let reply = self
            .run(Entry::TaskRenew, |entry| {
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
        rules: &Rules,
    ) -> Result<Option<Cancelled>, Error> {
        let id = id.to_string();
        let rest = [millis(rules.keep)];
        let reply = self.of_task(Entry::TaskCancel, &id, kind, &rest, &[]).await?;
        Ok(match signed(Some(reply))? {
            0 => None,
            1 => Some(Cancelled::Queued),
            2 => Some(Cancelled::Running),
            _ => Some(Cancelled::Late),
        })
    }

    /// Some of the tasks that have waited for longer than this, with their kinds, the oldest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn overdue_tasks(&self, longest: Duration) -> Result<Vec<(TaskId, String)>, Error> {
        let waiting = keys::tasks_waiting(&self.inner.prefix);
        let reply = self
            .run(Entry::TaskOverdue, |entry| {
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
        rules: &Rules,
    ) -> Result<bool, Error> {
        let rest = [millis(longest), millis(rules.keep), Value::from(reason)];
        let reply = self.of_task(Entry::TaskExpire, &id.to_string(), kind, &rest, &[]).await?;
        Ok(signed(Some(reply))? == 1)
    }

    /// A task as it is now; `None`: there is none, or no longer.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn look_at_task(&self, id: TaskId) -> Result<Option<Task>, Error> {
        if self.is_plain() {
            return Err(Error::Unsupported { what: "tasks" });
        }
        let key = keys::task(&self.inner.prefix, &id.to_string());
        let args: Vec<Value> = std::iter::once(key.as_str()).chain(record::FIELDS).map(Value::from).collect();
        let call = |live: Live| {
            let args = args.clone();
            async move { live.caller.send("HMGET", args).await }
        };
        match self.guard_as(Kind::Read, call).await? {
            Value::Array(values) => Task::read(id, &values),
            _ => Err(Error::protocol("what lies under a task's key is none")),
        }
    }

    /// How the fleet's tasks stand.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn survey_tasks(&self) -> Result<Survey, Error> {
        let prefix = &self.inner.prefix;
        let keys = [
            keys::tasks_waiting(prefix),
            keys::tasks_running(prefix),
            keys::tasks_dead(prefix),
            keys::tasks_totals(prefix),
        ];
        let keys = || keys.iter().map(String::as_str);
        Survey::read(&self.run(Entry::TaskSurvey, |entry| with_keys(entry, keys())).await?)
    }

    /// What every call that tells something begins with: what channels begin with, the channel of earlier releases, and
    /// whether the answer to PUBLISH counts every listener.
    async fn words(&self) -> [Value; 3] {
        let counts = if self.inner.endpoint.cluster().is_none() { "1" } else { "0" };
        [self.inner.space.clone().into(), self.earlier_channel().await.into(), counts.into()]
    }

    async fn of_execution(
        &self,
        entry: Entry,
        execution: &Execution,
        rest: &[Value],
        more_keys: &[String],
    ) -> Result<Value, Error> {
        let Taken { id, kind, .. } = &execution.taken;
        let [_, _, words @ ..] = head(execution);
        let rest: Vec<Value> = words.into_iter().chain(rest.iter().cloned()).collect();
        self.of_task(entry, &id.to_string(), kind, &rest, more_keys).await
    }

    /// A call that may change everything that is known of a task: id and kind, and the rest.
    async fn of_task(
        &self,
        entry: Entry,
        id: &str,
        kind: &str,
        rest: &[Value],
        more_keys: &[String],
    ) -> Result<Value, Error> {
        let prefix = &self.inner.prefix;
        let keys = [
            keys::task(prefix, id),
            keys::task_queue(prefix, kind),
            keys::tasks_waiting(prefix),
            keys::tasks_running(prefix),
            keys::tasks_dead(prefix),
            keys::tasks_totals(prefix),
        ];
        let words = self.words().await;
        self.run(entry, |entry| {
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
fn head(execution: &Execution) -> [Value; 4] {
    let Taken { id, kind, entry, .. } = &execution.taken;
    let number = format!("{:016x}", execution.number);
    [id.to_string(), kind.clone(), entry.clone(), number].map(Value::from)
}
