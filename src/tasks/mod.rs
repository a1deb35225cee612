//! Work that is queued in Redis and done by any worker of any machine, and finished once.
//!
//! Guarantees that a task has one end, however often it was begun: each execution has a number, and only the present
//! one may end it. A job may be begun more than once, when its worker was lost or silent for longer than a lease; what it
//! does to the world besides its result must bear that. Nothing here runs on the event loop but the bookkeeping.

mod context;
mod execution;
mod jobs;
mod notifications;
mod runner;
mod watch;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

pub use context::TaskContext;
use jobs::JobTable;
pub use jobs::{RESULT_MAX, TaskFailure};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;
pub use watch::TaskWatch;
use watch::TaskWatchers;

use crate::config::settings;
use crate::redis;
use crate::redis::RedisClient;
use crate::redis::task::{Cancelled, EnqueueOutcome, TaskId, TaskPolicy, TaskQueueStats, TaskStatus};
use crate::sys::{clock, random};

/// Largest input of a task, bytes of JSON.
pub const INPUT_MAX: usize = 16 * 1024;

/// A task that waited for this long is dead: no one who could do it takes any.
pub const QUEUE_WAIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Longest time for giving back what still runs.
const RELEASE_TIMEOUT: Duration = Duration::from_millis(500);

/// Why a task was not made, or nothing could be said of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// As many tasks wait as `tasks.max_queued` allows; one may be made when workers have caught up.
    #[error("too many tasks wait already")]
    QueueFull,
    /// No job was registered for this kind in this worker's program.
    #[error("there is no task of the kind {0:?}")]
    UnknownKind(String),
    /// The input is larger than [`INPUT_MAX`], or cannot be written as JSON.
    #[error("the task's input cannot be taken: {0}")]
    InvalidInput(String),
    /// The operating system has no random bytes for an id.
    #[error(transparent)]
    NoRandomness(#[from] redis::task::TaskRandomSourceError),
    /// Redis said no, or nothing.
    #[error(transparent)]
    Redis(#[from] redis::RedisError),
}

/// What becomes of a worker's tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum IntakeState {
    /// They are taken.
    Accepting,
    /// None is taken, those that run may end.
    Draining,
    /// Those that run are given back.
    Releasing,
}

/// A worker's part in the fleet's tasks; clones are the same one.
#[derive(Clone)]
pub struct TaskQueue {
    inner: Arc<TaskService>,
}

struct TaskService {
    redis: RedisClient,
    policy: TaskPolicy,
    /// A task that runs for longer has failed.
    timeout: Duration,
    /// What people know this worker by.
    worker: String,
    jobs: RwLock<JobTable>,
    /// Most executions at once.
    running_max: usize,
    /// Places for them.
    permits: Arc<Semaphore>,
    /// Told when there is something to take.
    wake: Notify,
    /// Where this worker is told so, unlike every other one.
    worker_channel: String,
    /// When it looks by itself.
    next_check: Mutex<Duration>,
    intake: tokio::sync::watch::Sender<IntakeState>,
    /// Takings and executions under way.
    active: tokio::sync::watch::Sender<usize>,
    /// Jobs that were told to stop and do not.
    hung: tokio::sync::watch::Sender<usize>,
    /// What runs here, to be told when it is cancelled.
    running_tasks: Mutex<HashMap<TaskId, TaskContext>>,
    watchers: Arc<TaskWatchers>,
    /// Whether it hears of changes.
    changes_subscribed: AtomicBool,
    /// Whether a call has failed lately, and for how many looks none has.
    had_failure: AtomicBool,
    quiet_checks: AtomicU32,
}

impl fmt::Debug for TaskQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks")
            .field("kinds", &self.inner.jobs().keys().collect::<Vec<_>>())
            .field("busy", &*self.inner.active.borrow())
            .finish_non_exhaustive()
    }
}

impl TaskQueue {
    /// Over this connection; `worker` is what people know this worker by: host and pid. Nothing is taken before
    /// [`Tasks::start`].
    pub fn new(redis: RedisClient, settings: &settings::TasksConfig, worker: &str) -> Self {
        let rules = TaskPolicy {
            queue_max: settings.max_queued,
            max_attempts: settings.max_attempts,
            // Twice the longest wait, so that one that waits too long is found and not forgotten; and it may run then.
            max_lifetime: QUEUE_WAIT_MAX * 2 + settings.timeout,
            retention: settings.retention,
            lease: settings.lease,
        };
        let inner = TaskService {
            redis,
            policy: rules,
            timeout: settings.timeout,
            worker: worker.to_owned(),
            jobs: RwLock::default(),
            running_max: settings.concurrency,
            permits: Arc::new(Semaphore::new(settings.concurrency)),
            wake: Notify::new(),
            worker_channel: format!(
                "{:016x}",
                random::number().unwrap_or_else(|_| u64::from(std::process::id()))
            ),
            next_check: Mutex::new(clock::monotonic()),
            intake: tokio::sync::watch::Sender::new(IntakeState::Accepting),
            active: tokio::sync::watch::Sender::new(0),
            hung: tokio::sync::watch::Sender::new(0),
            running_tasks: Mutex::default(),
            watchers: Arc::default(),
            changes_subscribed: AtomicBool::new(false),
            had_failure: AtomicBool::new(false),
            quiet_checks: AtomicU32::new(runner::QUIET_CHECKS),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Says what is to be done for tasks of this kind; every worker whose program knows the kind may be asked to.
    ///
    /// The job runs on a thread of its own and may take all the time it needs, up to `tasks.timeout`. An error is final,
    /// unless it is a [`Failure::again`]; a panic, and a worker that is lost, are followed by another attempt as long as
    /// `tasks.max_attempts` allows. A job may thus be begun more than once: its result is taken once, and what else it does
    /// must bear that.
    ///
    /// ```no_run
    /// use regatta::Progress;
    ///
    /// regatta::Fleet::new(|fleet: regatta::State| {
    ///     fleet.tasks().register("sum", |numbers: Vec<u64>, progress: &Progress| {
    ///         let mut sum = 0_u64;
    ///         for (done, number) in numbers.iter().enumerate() {
    ///             sum = sum.checked_add(*number).ok_or("the sum is too large")?;
    ///             progress.percent((100 * done / numbers.len()) as u8);
    ///             if progress.is_cancelled() {
    ///                 return Err("no one needs it any more");
    ///             }
    ///         }
    ///         Ok(sum)
    ///     });
    ///     axum::Router::new().with_state(fleet)
    /// });
    /// ```
    ///
    /// # Panics
    /// When the name has other characters than small letters, digits, `-` and `_`, or more than 32, or is taken: the
    /// worker then says so and the fleet does not start.
    pub fn register<I, O, E>(
        &self,
        kind: &'static str,
        job: impl Fn(I, &TaskContext) -> Result<O, E> + Send + Sync + 'static,
    ) where
        I: DeserializeOwned,
        O: Serialize,
        E: Into<TaskFailure>,
    {
        assert!(jobs::is_valid_kind(kind), "{kind:?} is no name for a kind of tasks: use a-z, 0-9, - and _");
        let mut kinds = self.inner.jobs.write().unwrap_or_else(PoisonError::into_inner);
        assert!(!kinds.contains_key(kind), "the kind of tasks {kind:?} is registered twice");
        kinds.insert(kind, jobs::type_erase(job));
    }

    /// Begins to take tasks of the kinds that were registered; to be called once.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(&self) {
        if self.inner.running_max > 0 && self.is_used() {
            self.inner.subscribe_changes();
            tokio::spawn(Arc::clone(&self.inner).run());
            tokio::spawn(Arc::clone(&self.inner).maintain());
        }
    }

    /// Whether any kind was registered.
    pub fn is_used(&self) -> bool {
        !self.inner.jobs().is_empty()
    }

    /// Takes no more tasks from now on; one that is being taken may still come.
    pub fn stop_claiming(&self) {
        self.inner.set_intake(IntakeState::Draining);
    }

    /// Takes no more tasks, and returns when those that run have ended.
    ///
    /// # Cancel safety
    /// The one who stops waiting gives the rest back with [`Tasks::give_back`].
    pub async fn drain(&self) {
        self.stop_claiming();
        self.inner.wait_until_idle().await;
    }

    /// Takes no more tasks and gives back what still runs, for another worker to begin anew at once; in half a second at
    /// most. What could not be given back is taken over after a lease.
    pub async fn release_running(&self) {
        self.inner.set_intake(IntakeState::Releasing);
        if timeout(RELEASE_TIMEOUT, self.inner.wait_until_idle()).await.is_err() {
            tracing::warn!("tasks could not be given back in time; they are taken over after a lease");
        }
    }

    /// Returns when every place is held by a job that was told to stop and does not: a thread cannot be taken back, so
    /// only another worker can take tasks in this one's stead.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn all_permits_hung(&self) {
        let places = self.inner.running_max;
        let mut hung = self.inner.hung.subscribe();
        if places == 0 || hung.wait_for(|hung| *hung >= places).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Makes a task, for the next worker that has a place and knows its kind.
    ///
    /// # Errors
    /// See [`Error`]. After [`redis::Error::Timeout`] or [`redis::Error::Lost`] it may have been made; its id is not known
    /// then, and its result is forgotten by itself.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was made.
    pub async fn enqueue<I: Serialize + ?Sized>(&self, kind: &str, input: &I) -> Result<TaskId, TaskError> {
        let inner = &*self.inner;
        if !inner.jobs().contains_key(kind) {
            return Err(TaskError::UnknownKind(kind.to_owned()));
        }
        let input =
            serde_json::to_string(input).map_err(|error| TaskError::InvalidInput(error.to_string()))?;
        if input.len() > INPUT_MAX {
            return Err(TaskError::InvalidInput(format!(
                "it has {} bytes; allowed: {INPUT_MAX}",
                input.len()
            )));
        }
        let id = TaskId::new()?;
        let mut made = inner.redis.enqueue_task(id, kind, &input, &inner.policy).await;
        if matches!(made, Err(redis::RedisError::Timeout | redis::RedisError::ConnectionLost { .. })) {
            // Under the same id it is made once, however often it is said.
            made = inner.redis.enqueue_task(id, kind, &input, &inner.policy).await;
        }
        match made? {
            EnqueueOutcome::Queued => Ok(id),
            EnqueueOutcome::QueueFull => Err(TaskError::QueueFull),
        }
    }

    /// A task as it is now; `None`: there is none, or it ended longer than `tasks.retention` ago.
    ///
    /// # Errors
    /// [`Error::Redis`].
    pub async fn status(&self, id: &TaskId) -> Result<Option<TaskStatus>, TaskError> {
        Ok(self.inner.redis.get_task(*id).await?)
    }

    /// Says that no one needs a task any more; `None`: there is none.
    ///
    /// One that waits is never begun. The job of one that runs is told, at once or within a third of a lease, and what
    /// comes of it is dropped; the one who looks sees it as cancelled from now on.
    ///
    /// # Errors
    /// [`Error::Redis`]; saying it once more does no harm.
    pub async fn cancel(&self, id: &TaskId) -> Result<Option<Cancelled>, TaskError> {
        let redis = &self.inner.redis;
        match redis.get_task(*id).await? {
            None => Ok(None),
            Some(task) if task.state.is_final() => Ok(Some(Cancelled::AlreadyFinished)),
            Some(task) => Ok(redis.cancel_task(*id, &task.kind, &self.inner.policy).await?),
        }
    }

    /// Follows a task to its end. However many do so on a worker, Redis is asked once for all of them.
    ///
    /// # Errors
    /// [`Error::Redis`].
    pub async fn watch(&self, id: &TaskId) -> Result<TaskWatch, TaskError> {
        self.inner.subscribe_changes();
        Ok(self.inner.watchers.watch_task(&self.inner.redis, *id).await?)
    }

    /// How many tasks are followed on this worker, by whatever number of clients.
    pub fn watched_count(&self) -> usize {
        self.inner.watchers.len()
    }

    /// How the fleet's tasks stand, those of all machines.
    ///
    /// # Errors
    /// [`Error::Redis`].
    pub async fn stats(&self) -> Result<TaskQueueStats, TaskError> {
        Ok(self.inner.redis.task_stats().await?)
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

impl TaskService {
    fn jobs(&self) -> RwLockReadGuard<'_, JobTable> {
        self.jobs.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn running_tasks(&self) -> MutexGuard<'_, HashMap<TaskId, TaskContext>> {
        self.running_tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An order is never taken back.
    fn set_intake(&self, order: IntakeState) {
        self.intake.send_if_modified(|last| {
            let later = order > *last;
            *last = order.max(*last);
            later
        });
    }

    fn is_draining(&self) -> bool {
        *self.intake.borrow() >= IntakeState::Draining
    }

    /// Returns when nothing is under way.
    async fn wait_until_idle(&self) {
        let mut busy = self.active.subscribe();
        // The sender is here, so it is not gone.
        let _ = busy.wait_for(|busy| *busy == 0).await.is_ok();
    }
}
