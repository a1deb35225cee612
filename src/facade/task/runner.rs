//! Tasks of a program that serves nothing.

use std::fmt;
use std::time::Duration;

use tokio::time::timeout;

use crate::facade::task::error::Error;
use crate::http::standalone::redis::Redis;
use crate::tasks::{Task, TaskContext, TaskFailure, TaskKindError, TaskQueue};

/// Longest time for running tasks to end once the shutdown has come; then they are released for others.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Does tasks in a program without a fleet: handlers as in `App`.
///
/// It does one task at a time, beside those of the fleet and of other programs on the same Redis and prefix.
///
/// ```no_run
/// use regatta::Redis;
/// use regatta::task::{Task, TaskContext, TaskRunner};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Resize {
///     file: String,
/// }
///
/// impl Task for Resize {
///     const NAME: &'static str = "resize";
///     type Output = u64;
/// }
///
/// async fn run() -> Result<(), Box<dyn std::error::Error>> {
///     let redis = Redis::connect("redis://127.0.0.1").await?;
///     let runner = TaskRunner::new(&redis).blocking_task(|task: Resize, _: TaskContext| {
///         std::fs::metadata(&task.file).map(|file| file.len())
///     });
///     runner.run(async { tokio::signal::ctrl_c().await.unwrap_or_default() }).await?;
///     Ok(())
/// }
/// ```
#[must_use = "nothing is done before `run`"]
pub struct TaskRunner {
    redis: Redis,
    registrations: Vec<Registration>,
}

type Registration = Box<dyn FnOnce(&TaskQueue) -> Result<(), TaskKindError> + Send>;

/// Ends the claiming of tasks, however the runner ends.
struct StopOnDrop(TaskQueue);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop_claiming();
    }
}

impl TaskRunner {
    /// One over this connection; a connection has one.
    pub fn new(redis: &Redis) -> Self {
        Self { redis: redis.clone(), registrations: Vec::new() }
    }

    /// Registers the async handler of a task; see `App::task`.
    pub fn task<T, F, Fut, E>(mut self, handler: F) -> Self
    where
        T: Task,
        F: Fn(T, TaskContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T::Output, E>> + Send + 'static,
        E: Into<TaskFailure>,
    {
        self.registrations.push(Box::new(move |queue| queue.register_async(handler)));
        self
    }

    /// Registers the handler of a task that blocks; see `App::blocking_task`.
    pub fn blocking_task<T, F, E>(mut self, handler: F) -> Self
    where
        T: Task,
        F: Fn(T, TaskContext) -> Result<T::Output, E> + Send + Sync + 'static,
        E: Into<TaskFailure>,
    {
        self.registrations.push(Box::new(move |queue| queue.register_blocking(handler)));
        self
    }

    /// Does tasks until the shutdown comes, then lets those that run end for half a minute and releases the rest: they
    /// begin anew elsewhere, and no attempt is counted.
    ///
    /// # Errors
    /// [`Error::Handlers`], before any task is done.
    ///
    /// # Cancel safety
    /// After dropping the future no further task begins; what runs ends, as long as the runtime does not.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), Error> {
        let services = self.redis.services();
        let queue = services.streams.tasks.clone();
        let registered = self.registrations.into_iter().try_for_each(|register| register(&queue));
        registered.map_err(|error| Error::Handlers(error.into()))?;
        services.ensure_started();
        let stop = StopOnDrop(queue);
        stop.0.start();
        shutdown.await;
        if timeout(DRAIN_TIMEOUT, stop.0.drain()).await.is_err() {
            stop.0.release_running().await;
        }
        Ok(())
    }
}

impl fmt::Debug for TaskRunner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskRunner").field("redis", &self.redis).finish_non_exhaustive()
    }
}
