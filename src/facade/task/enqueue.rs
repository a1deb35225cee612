//! A task that is about to be queued.

use std::fmt;
use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;

use crate::facade::task::error::Error;
use crate::facade::task::handle::TaskHandle;
use crate::http::services::stream::StreamServices;
use crate::tasks::Task;

/// A task to be; nothing is queued before `.await`.
///
/// ```
/// use regatta::task::{Enqueue, Error, Task, TaskHandle, TaskQueue};
///
/// async fn later<T: Task>(tasks: &TaskQueue, task: T) -> Result<TaskHandle<T>, Error> {
///     let enqueue: Enqueue<'_, T> = tasks.enqueue(task);
///     enqueue.await
/// }
/// # async fn run<T: Task>(tasks: TaskQueue, task: T) { let _ = later(&tasks, task).await; }
/// ```
///
/// # Errors
/// [`Error::Full`], [`Error::UnknownKind`], [`Error::Input`] if it has more than 16 KiB of JSON or no form as JSON;
/// [`Error::Redis`], after which it may be queued: its id is not known then, and its record expires.
///
/// # Cancel safety
/// Dropping the future leaves it unknown whether the task is queued.
#[must_use = "a task is queued by `.await`"]
pub struct Enqueue<'a, T> {
    services: &'a Arc<StreamServices>,
    task: T,
}

impl<'a, T: Task> Enqueue<'a, T> {
    pub(super) fn new(services: &'a Arc<StreamServices>, task: T) -> Self {
        Self { services, task }
    }

    async fn send(self) -> Result<TaskHandle<T>, Error> {
        let input = serde_json::to_string(&self.task).map_err(|error| Error::Input(error.into()))?;
        let services = self.services;
        // What is sent is JSON already, so that no future holds the task itself, which need not be `Sync`.
        drop(self.task);
        let id = services.tasks.enqueue_json(T::NAME, &input).await?;
        Ok(TaskHandle::new(Arc::clone(services), id))
    }
}

impl<'a, T: Task> IntoFuture for Enqueue<'a, T> {
    type Output = Result<TaskHandle<T>, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

impl<T: Task> fmt::Debug for Enqueue<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enqueue").field("kind", &T::NAME).finish_non_exhaustive()
    }
}
