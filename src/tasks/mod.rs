//! Work that is queued in Redis, carried out by any worker of any instance, and finished once.
//!
//! Guarantees that a task has one result, however many attempts it takes: each execution has an id, and only the present
//! one may finish the task. A job may be started more than once, when its worker was lost or silent for longer than a
//! lease; its effects besides the result must allow that. Blocking jobs run on threads of their own, async ones share the
//! event loop. The room must not know HTTP or what jobs do.

mod attempt;
mod claim;
mod context;
mod execution;
mod jobs;
pub mod keys;
mod operations;
mod runner;
mod service;
mod stats;
mod task;
mod task_status;
mod watch;

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

pub use self::attempt::{
    Cancelled, EnqueueOutcome, ExecutionResult, StartOutcome, TASK_CHANGED, TASK_QUEUED, TaskDelivery,
    TaskExecution, TaskPolicy,
};
pub use self::claim::{FinishOutcome, IdleWorker, NextClaim};
pub use self::context::TaskContext;
pub use self::jobs::TaskFailure;
pub use self::stats::{DeadTask, RunningTask, TaskQueueStats, TaskTotals};
pub use self::task::{Task, TaskOptions};
pub use self::task_status::{InvalidTaskId, TaskId, TaskRandomSourceError, TaskState, TaskStatus};
pub use self::watch::TaskWatch;
use crate::config::settings::TasksConfig;
use crate::redis::{RedisClient, RedisError};
use crate::tasks::jobs::RegisteredJob;
use crate::tasks::service::{IntakeState, TaskService};

/// Largest input of a task, bytes of JSON.
pub const INPUT_MAX: usize = 16 * 1024;

/// Longest time for releasing running tasks.
const RELEASE_TIMEOUT: Duration = Duration::from_millis(500);

/// Why a task was not queued, or its status is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// As many tasks are queued as the settings allow; try again when workers have caught up.
    #[error("too many tasks wait already")]
    QueueFull,
    /// This worker's program registered no job for this kind.
    #[error("there is no task of the kind {0:?}")]
    UnknownKind(String),
    /// The input is larger than [`INPUT_MAX`], or cannot be written as JSON.
    #[error("the task's input cannot be taken: {0}")]
    InvalidInput(String),
    /// The operating system has no random bytes for an id.
    #[error(transparent)]
    NoRandomness(#[from] TaskRandomSourceError),
    /// Redis rejected the call or did not reply.
    #[error(transparent)]
    Redis(#[from] RedisError),
}

/// Why a job was not registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TaskKindError {
    /// The kind has a name that no kind may have.
    #[error("{0:?} is no name for a kind of tasks: use 1 to 32 of a-z, 0-9, - and _")]
    InvalidName(&'static str),
    /// There is a job for this kind already.
    #[error("the kind of tasks {0:?} is registered twice")]
    Duplicate(&'static str),
}

/// A worker's part in the fleet's tasks; clones share it.
#[derive(Clone)]
pub struct TaskQueue {
    service: Arc<TaskService>,
}

impl fmt::Debug for TaskQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskQueue")
            .field("kinds", &self.service.kinds())
            .field("active", &*self.service.active.borrow())
            .finish_non_exhaustive()
    }
}

impl TaskQueue {
    /// A queue over this connection; `worker` is the name that operators see: host and pid. No task is claimed before
    /// [`TaskQueue::start`].
    pub fn with_client(redis: RedisClient, settings: &TasksConfig, worker: &str) -> Self {
        Self { service: Arc::new(TaskService::new(redis, settings, worker)) }
    }

    /// A queue of a program that may queue tasks of kinds whose jobs only others have registered.
    ///
    /// `connection` lives as long as the queue, and keeps the connection.
    pub fn for_any_kind(
        redis: RedisClient,
        settings: &TasksConfig,
        worker: &str,
        connection: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        let mut service = TaskService::new(redis, settings, worker);
        service.connection = Some(connection);
        Self { service: Arc::new(service) }
    }

    /// Registers the job for tasks of this kind, on a thread of its own; any worker whose program registers the kind may
    /// run it.
    ///
    /// # Errors
    /// When the name has other characters than small letters, digits, `-` and `_`, or more than 32, or is registered
    /// already.
    pub fn register<I, O, E>(
        &self,
        kind: &'static str,
        job: impl Fn(I, &TaskContext) -> Result<O, E> + Send + Sync + 'static,
    ) -> Result<(), TaskKindError>
    where
        I: DeserializeOwned,
        O: Serialize,
        E: Into<TaskFailure>,
    {
        self.insert(kind, RegisteredJob { job: jobs::blocking(job), options: TaskOptions::default() })
    }

    /// Registers the blocking handler of a task.
    ///
    /// # Errors
    /// As [`TaskQueue::register`].
    pub fn register_blocking<T: Task, E: Into<TaskFailure>>(
        &self,
        handler: impl Fn(T, TaskContext) -> Result<T::Output, E> + Send + Sync + 'static,
    ) -> Result<(), TaskKindError> {
        let job = jobs::blocking(move |task, context: &TaskContext| handler(task, context.clone()));
        self.insert(T::NAME, RegisteredJob { job, options: T::options() })
    }

    /// Registers the async handler of a task.
    ///
    /// # Errors
    /// As [`TaskQueue::register`].
    pub fn register_async<T, Fut, E>(
        &self,
        handler: impl Fn(T, TaskContext) -> Fut + Send + Sync + 'static,
    ) -> Result<(), TaskKindError>
    where
        T: Task,
        Fut: Future<Output = Result<T::Output, E>> + Send + 'static,
        E: Into<TaskFailure>,
    {
        self.insert(T::NAME, RegisteredJob { job: jobs::asynchronous(handler), options: T::options() })
    }

    fn insert(&self, kind: &'static str, job: RegisteredJob) -> Result<(), TaskKindError> {
        if !jobs::is_valid_kind(kind) {
            return Err(TaskKindError::InvalidName(kind));
        }
        let mut jobs = self.service.jobs_mut();
        if jobs.contains_key(kind) {
            return Err(TaskKindError::Duplicate(kind));
        }
        jobs.insert(kind, job);
        Ok(())
    }

    /// Starts to claim tasks of the registered kinds. Call it once.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(&self) {
        if self.service.running_max > 0 && self.is_used() {
            self.service.subscribe_changes();
            tokio::spawn(runner::run(Arc::clone(&self.service)));
            tokio::spawn(runner::maintain(Arc::clone(&self.service)));
        }
    }

    /// Whether any kind is registered.
    pub fn is_used(&self) -> bool {
        !self.service.jobs().is_empty()
    }

    /// Claims no more tasks; a claim in progress may still bring one.
    pub fn stop_claiming(&self) {
        self.service.set_intake(IntakeState::Draining);
    }

    /// Claims no more tasks and returns when the running ones have finished.
    ///
    /// # Cancel safety
    /// After dropping the future, release the rest with [`TaskQueue::release_running`].
    pub async fn drain(&self) {
        self.stop_claiming();
        self.service.wait_until_idle().await;
    }

    /// Claims no more tasks and releases the running ones, for other workers to start anew at once; takes half a second
    /// at most. What is not released is reclaimed after a lease.
    pub async fn release_running(&self) {
        self.service.set_intake(IntakeState::Releasing);
        if timeout(RELEASE_TIMEOUT, self.service.wait_until_idle()).await.is_err() {
            tracing::warn!("running tasks not released in time; other workers reclaim them after a lease");
        }
    }

    /// Returns when every permit is held by a hung job: a thread cannot be stopped, so only another worker can run tasks
    /// in place of this one.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn all_permits_hung(&self) {
        let permits = self.service.running_max;
        let mut hung = self.service.hung.subscribe();
        if permits == 0 || hung.wait_for(|hung| *hung >= permits).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Queues a task for the next worker that has a permit and its job.
    ///
    /// # Errors
    /// See `TaskError`. After `RedisError::Timeout` or `RedisError::ConnectionLost` it may be queued; its id is not
    /// known then, and its record expires.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether the task is queued.
    pub async fn enqueue<I: Serialize + ?Sized>(&self, kind: &str, input: &I) -> Result<TaskId, TaskError> {
        let input =
            serde_json::to_string(input).map_err(|error| TaskError::InvalidInput(error.to_string()))?;
        self.enqueue_json(kind, &input).await
    }

    /// As [`TaskQueue::enqueue`], with an input that is JSON.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn enqueue_json(&self, kind: &str, input: &str) -> Result<TaskId, TaskError> {
        let service = &*self.service;
        let is_known = match service.connection.is_none() {
            true => service.jobs().contains_key(kind),
            false => jobs::is_valid_kind(kind),
        };
        if !is_known {
            return Err(TaskError::UnknownKind(kind.to_owned()));
        }
        if input.len() > INPUT_MAX {
            return Err(TaskError::InvalidInput(format!(
                "it has {} bytes; allowed: {INPUT_MAX}",
                input.len()
            )));
        }
        let id = TaskId::new()?;
        let policy = service.settings_of(kind).policy;
        let mut outcome = service.redis.enqueue_task(id, kind, input, &policy).await;
        if matches!(outcome, Err(RedisError::Timeout | RedisError::ConnectionLost { .. })) {
            // Redis queues an id once, so the repetition is safe.
            outcome = service.redis.enqueue_task(id, kind, input, &policy).await;
        }
        match outcome? {
            EnqueueOutcome::Queued => Ok(id),
            EnqueueOutcome::QueueFull => Err(TaskError::QueueFull),
        }
    }

    /// A task as it is now; `None`: there is none, or its record has expired.
    ///
    /// # Errors
    /// `TaskError::Redis`.
    pub async fn status(&self, id: &TaskId) -> Result<Option<TaskStatus>, TaskError> {
        Ok(self.service.redis.get_task(*id).await?)
    }

    /// Cancels a task; `None`: there is none.
    ///
    /// A queued one is never started. The job of a running one is notified, at once or within a third of a lease, and its
    /// result is dropped; the status is cancelled from now on.
    ///
    /// # Errors
    /// `TaskError::Redis`; a repetition does no harm.
    pub async fn cancel(&self, id: &TaskId) -> Result<Option<Cancelled>, TaskError> {
        let redis = &self.service.redis;
        match redis.get_task(*id).await? {
            None => Ok(None),
            Some(task) if task.state.is_final() => Ok(Some(Cancelled::Late)),
            Some(task) => {
                Ok(redis.cancel_task(*id, &task.kind, &self.service.settings_of(&task.kind).policy).await?)
            }
        }
    }

    /// Follows a task until it is final. All watchers of a task on one worker share one query of Redis.
    ///
    /// # Errors
    /// `TaskError::Redis`.
    pub async fn watch(&self, id: &TaskId) -> Result<TaskWatch, TaskError> {
        self.service.subscribe_changes();
        Ok(self.service.watchers.watch_task(&self.service.redis, *id).await?)
    }

    /// How many tasks are watched on this worker, by any number of clients.
    pub fn watched_count(&self) -> usize {
        self.service.watchers.len()
    }

    /// Figures of the fleet's tasks, those of all instances.
    ///
    /// # Errors
    /// `TaskError::Redis`.
    pub async fn stats(&self) -> Result<TaskQueueStats, TaskError> {
        Ok(self.service.redis.task_stats().await?)
    }
}

impl TaskError {
    /// How long a client should wait before it tries again.
    pub fn retry_after(&self) -> Duration {
        match self {
            Self::Redis(error) => error.retry_after(),
            _ => Duration::from_secs(1),
        }
    }
}
