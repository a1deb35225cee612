//! A task that was queued.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::facade::task::error::Error;
use crate::facade::task::lookup;
use crate::facade::task::status::TaskStatus;
use crate::http::services::stream::StreamServices;
use crate::tasks::{Task, TaskId, TaskState};

/// A task that was queued; cheap to clone.
///
/// ```
/// use regatta::task::{Error, Task, TaskQueue};
///
/// async fn now<T: Task>(tasks: &TaskQueue, task: T) -> Result<T::Output, Error> {
///     let handle = tasks.enqueue(task).await?;
///     if let Some(status) = handle.status().await? {
///         println!("{} is {}", handle.id(), status.state().name());
///     }
///     handle.output().await
/// }
/// ```
pub struct TaskHandle<T> {
    services: Arc<StreamServices>,
    id: TaskId,
    /// Nothing of the task itself is here.
    kind: PhantomData<fn() -> T>,
}

impl<T: Task> TaskHandle<T> {
    pub(super) fn new(services: Arc<StreamServices>, id: TaskId) -> Self {
        Self { services, id, kind: PhantomData }
    }

    /// Its id, by which any program may follow or cancel it.
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// The task as it is now; `None`: its record has expired.
    ///
    /// # Errors
    /// [`Error::Redis`].
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn status(&self) -> Result<Option<TaskStatus>, Error> {
        lookup::status(&self.services, self.id).await
    }

    /// Waits for the end and returns the result.
    ///
    /// # Errors
    /// [`Error::Failed`] when it ended without a result; [`Error::NotFound`] when its record has expired;
    /// [`Error::Output`], [`Error::Redis`].
    ///
    /// # Cancel safety
    /// Nothing is changed; the task goes on.
    pub async fn output(&self) -> Result<T::Output, Error> {
        let mut watch = lookup::watch(&self.services, self.id).await?;
        let mut last = None;
        while let Some(task) = watch.next().await {
            last = Some(task);
        }
        let task = last.filter(|task| task.state().is_final()).ok_or(Error::NotFound)?;
        match task.state() {
            TaskState::Done => task.output()?.ok_or(Error::NotFound),
            state => Err(Error::Failed { reason: task.error().unwrap_or(state.name()).to_owned() }),
        }
    }
}

impl<T> Clone for TaskHandle<T> {
    fn clone(&self) -> Self {
        Self { services: Arc::clone(&self.services), id: self.id, kind: PhantomData }
    }
}

impl<T> fmt::Debug for TaskHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskHandle").field("id", &self.id).finish_non_exhaustive()
    }
}
