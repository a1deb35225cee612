//! The changes of one task.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::Stream;

use crate::facade::stepwise::Stepwise;
use crate::facade::task::status::TaskStatus;
use crate::http::standalone::connection::StandaloneConnection;
use crate::tasks;
use crate::tasks::TaskStatus as TaskRecord;

/// A `Stream` of a task's changes, which begins with the task as it is and ends with the task.
///
/// ```
/// use regatta::task::{Error, TaskId, TaskQueue};
///
/// async fn wait(tasks: TaskQueue, id: TaskId) -> Result<Option<u64>, Error> {
///     let mut watch = tasks.watch(id).await?;
///     let mut last = None;
///     while let Some(task) = watch.next().await {
///         last = Some(task);
///     }
///     last.map_or(Ok(None), |task| task.output())
/// }
/// # let _ = wait;
/// ```
pub struct TaskWatch {
    first: Option<TaskStatus>,
    steps: Stepwise<tasks::TaskWatch, TaskStatus>,
    /// Nothing comes without it.
    _connection: Option<Arc<StandaloneConnection>>,
}

impl TaskWatch {
    pub(super) fn new(
        first: Arc<TaskRecord>,
        watch: tasks::TaskWatch,
        connection: Option<Arc<StandaloneConnection>>,
    ) -> Self {
        let steps = Stepwise::new(watch, |mut watch| {
            Box::pin(async move {
                let task = watch.next().await;
                (watch, task.map(TaskStatus::new))
            })
        });
        Self { first: Some(TaskStatus::new(first)), steps, _connection: connection }
    }

    /// The task at its next change; `None` after its final state, or when its record is gone.
    ///
    /// Changes within a tenth of a second may arrive as one.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn next(&mut self) -> Option<TaskStatus> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }
}

impl Stream for TaskWatch {
    type Item = TaskStatus;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<TaskStatus>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => self.steps.poll_next(context),
        }
    }
}

impl fmt::Debug for TaskWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskWatch").finish_non_exhaustive()
    }
}
