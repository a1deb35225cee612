//! The steps of a task's life: what each is told, and what it answers.

use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};

use crate::redis::task::task_status::{TaskId, TaskRandomSourceError};

/// Bounds that every call about a task's life knows.
#[derive(Debug, Clone, Copy)]
pub struct TaskPolicy {
    /// Most tasks that may wait.
    pub queue_max: u64,
    /// Times a task is begun before it is given up.
    pub max_attempts: u64,
    /// Longest life of a task that does not end.
    pub max_lifetime: Duration,
    /// How long a task is kept after its end.
    pub retention: Duration,
    /// After which time without a renewal a task is overdue.
    pub lease: Duration,
}

/// What became of a task that was to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnqueueOutcome {
    /// It waits, now or since an earlier sending.
    Queued,
    /// Too many wait already.
    QueueFull,
}

/// An entry of a queue, taken but not begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskDelivery {
    /// Its task.
    pub id: TaskId,
    /// The task's kind.
    pub kind: String,
    /// The entry's own name in its queue.
    pub entry_id: String,
    /// How often it was taken, this time included: whether anybody has taken it since shows in a larger number.
    pub delivery_count: u64,
}

/// One execution of a task: the right to renew and to end it, as long as it is the present one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskExecution {
    /// What was taken.
    pub delivery: TaskDelivery,
    /// Its number: unlike every other one's, chosen at random before it begins.
    pub id: u64,
}

impl TaskExecution {
    /// A new execution of what was taken.
    ///
    /// # Errors
    /// When the operating system has no random bytes.
    pub fn new(taken: TaskDelivery) -> Result<Self, TaskRandomSourceError> {
        let mut bytes = [0; 8];
        SystemRandom::new().fill(&mut bytes).map_err(|_| TaskRandomSourceError)?;
        Ok(Self { delivery: taken, id: u64::from_le_bytes(bytes) })
    }
}

/// The answer to a beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartOutcome {
    /// It runs.
    Started {
        /// Number of the attempt, from 1.
        attempt: u64,
        /// The job's input, JSON.
        input: String,
    },
    /// There is nothing to do: the task has ended, or somebody else has taken it since.
    NothingToDo,
    /// The task is dead: its attempts are used up.
    Dead,
}

/// How an execution ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecutionResult {
    /// With this result, JSON.
    Done(String),
    /// It cannot be done, for this reason.
    Failed(String),
    /// This attempt failed for this reason; another one may be made after a pause.
    Retry(String, Duration),
    /// The worker leaves: another one is to begin anew, and nothing is counted.
    Released,
}

/// What cancelling a task did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// It was not begun and never will be.
    Queued,
    /// It was running: its job is told, and what comes of it is dropped.
    Running,
    /// It had ended.
    AlreadyFinished,
}
