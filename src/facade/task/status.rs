//! A task at one moment.

use std::sync::Arc;
use std::time::SystemTime;

use serde::de::DeserializeOwned;
use serde::{Serialize, Serializer};

use crate::facade::task::error::Error;
use crate::tasks::{TaskId, TaskState, TaskStatus as TaskRecord};
use crate::units::since_1970;

/// A task as it is now; serialises to what [`TaskQueue::sse`](super::TaskQueue::sse) sends. Cheap to clone.
///
/// ```
/// use axum::Json;
/// use axum::extract::Path;
/// use regatta::task::{Error, TaskId, TaskQueue, TaskStatus};
///
/// async fn show(tasks: TaskQueue, Path(id): Path<TaskId>) -> Result<Json<TaskStatus>, Error> {
///     tasks.status(id).await?.map(Json).ok_or(Error::NotFound)
/// }
///
/// fn line(task: &TaskStatus) -> Result<String, Error> {
///     let words: Option<u64> = task.output()?;
///     Ok(format!("{} is {} ({} %): {words:?}", task.name(), task.state().name(), task.percent()))
/// }
///
/// fn history(task: &TaskStatus) -> String {
///     let times = (task.created_at(), task.started_at(), task.finished_at());
///     let (worker, error) = (task.worker().unwrap_or("-"), task.error().unwrap_or("-"));
///     format!("{}: {} attempts, last by {worker}: {error} {times:?}", task.id(), task.attempts())
/// }
/// # let _: axum::Router = axum::Router::new().route("/{id}", axum::routing::get(show));
/// # let _ = (line, history);
/// ```
#[derive(Debug, Clone)]
pub struct TaskStatus(Arc<TaskRecord>);

impl TaskStatus {
    pub(super) fn new(task: Arc<TaskRecord>) -> Self {
        Self(task)
    }

    /// Its id.
    pub fn id(&self) -> TaskId {
        self.0.id
    }

    /// The kind of task.
    pub fn name(&self) -> &str {
        &self.0.kind
    }

    /// Its state.
    pub fn state(&self) -> TaskState {
        self.0.state
    }

    /// Its progress, 0 to 100, as reported by its job.
    pub fn percent(&self) -> u8 {
        self.0.percent
    }

    /// How often it was started; attempts that a leaving worker released are not counted.
    pub fn attempts(&self) -> u64 {
        self.0.attempts
    }

    /// The worker that runs it, or ran it last: host and process.
    pub fn worker(&self) -> Option<&str> {
        self.0.worker.as_deref()
    }

    /// Why it failed, died or was cancelled, or why its last attempt failed.
    pub fn error(&self) -> Option<&str> {
        self.0.error.as_deref()
    }

    /// When it was enqueued, by Redis's clock.
    pub fn created_at(&self) -> SystemTime {
        since_1970(self.0.created_ms)
    }

    /// When it was last started.
    pub fn started_at(&self) -> Option<SystemTime> {
        self.0.started_ms.map(since_1970)
    }

    /// When it finished.
    pub fn finished_at(&self) -> Option<SystemTime> {
        self.0.finished_ms.map(since_1970)
    }

    /// Its result; `None` before it has one.
    ///
    /// # Errors
    /// [`Error::Output`]: the result is something else.
    pub fn output<T: DeserializeOwned>(&self) -> Result<Option<T>, Error> {
        let output = self.0.result.as_ref().map(|result| serde_json::from_str(result.get()));
        output.transpose().map_err(|error| Error::Output(error.into()))
    }
}

impl Serialize for TaskStatus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}
