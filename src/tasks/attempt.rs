//! The steps of a task's life: their arguments and results.

use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};

use crate::tasks::task_status::{TaskId, TaskRandomSourceError};

/// A task is queued; its text is the kind. The first letter of notifications to one worker, and of those of earlier
/// releases on the common channel.
pub const TASK_QUEUED: char = 't';

/// A task has changed; its text is the id, a space, and the state.
pub const TASK_CHANGED: char = 'p';

/// Bounds that every call about a task uses.
#[derive(Debug, Clone, Copy)]
pub struct TaskPolicy {
    /// Most waiting tasks.
    pub queue_max: u64,
    /// Attempts before a task is dead.
    pub max_attempts: u64,
    /// Longest life of a task that does not finish.
    pub max_lifetime: Duration,
    /// How long a finished task is kept.
    pub retention: Duration,
    /// The time without a renewal after which a task is overdue.
    pub lease: Duration,
}

/// The result of enqueueing a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnqueueOutcome {
    /// It is queued, now or since an earlier sending.
    Queued,
    /// Too many tasks wait already.
    QueueFull,
}

/// An entry of a queue that was claimed and not started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskDelivery {
    /// Its task.
    pub id: TaskId,
    /// The task's kind.
    pub kind: String,
    /// The entry's id in its queue.
    pub entry_id: String,
    /// How often it was claimed, this time included: a larger number shows that another worker has claimed it since.
    pub delivery_count: u64,
}

/// One execution of a task: the right to renew and finish it, as long as it is the current one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskExecution {
    /// The claimed entry.
    pub delivery: TaskDelivery,
    /// Its number, chosen at random so that it is unique.
    pub id: u64,
}

impl TaskExecution {
    /// A new execution of a claimed entry.
    ///
    /// # Errors
    /// When the operating system has no random bytes.
    pub fn new(taken: TaskDelivery) -> Result<Self, TaskRandomSourceError> {
        let mut bytes = [0; 8];
        SystemRandom::new().fill(&mut bytes).map_err(|_| TaskRandomSourceError)?;
        Ok(Self { delivery: taken, id: u64::from_le_bytes(bytes) })
    }
}

/// The result of starting an execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartOutcome {
    /// It is running.
    Started {
        /// Number of the attempt, from 1.
        attempt: u64,
        /// The job's input, JSON.
        input: String,
    },
    /// There is nothing to do: the task has finished, or another worker has claimed it since.
    NothingToDo,
    /// The task is dead: its attempts are used up.
    Dead,
}

/// How an execution ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecutionResult {
    /// With this result, JSON.
    Done(String),
    /// It failed for this reason and is not retried.
    Failed(String),
    /// This attempt failed for this reason; another one may follow after a pause.
    Retry(String, Duration),
    /// The worker is leaving: the task is started again elsewhere, and no attempt is counted.
    Released,
}

/// The result of cancelling a task.
///
/// ```
/// use regatta::task::{Cancelled, Error, TaskId, TaskQueue};
///
/// async fn give_up(tasks: &TaskQueue, id: TaskId) -> Result<&'static str, Error> {
///     Ok(match tasks.cancel(id).await? {
///         Some(Cancelled::Waiting) => "it will never start",
///         Some(Cancelled::Running) => "its job is told",
///         Some(_) => "it had finished",
///         None => "there is no such task",
///     })
/// }
/// # let _ = give_up;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cancelled {
    /// It waited, and will never start.
    Waiting,
    /// It was running: its job is notified, and its result is dropped.
    Running,
    /// It had finished.
    Late,
}
