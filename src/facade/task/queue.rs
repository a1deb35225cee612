//! The fleet's queue of tasks.

use std::fmt;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::response::Response;
use http::request::Parts;

use crate::facade::error::Error as AnyError;
use crate::facade::task::enqueue::Enqueue;
use crate::facade::task::error::Error;
use crate::facade::task::status::TaskStatus;
use crate::facade::task::watch::TaskWatch;
use crate::facade::task::{events, lookup};
use crate::http::request_scope::RequestScope;
use crate::http::services::stream::StreamServices;
use crate::http::standalone::redis::Redis;
use crate::http::streams::last_event_id::LastEventId;
use crate::tasks::{Cancelled, Task, TaskId};

/// The fleet's queue of tasks; also an extractor.
///
/// ```
/// use regatta::task::{Error, Task, TaskId, TaskQueue};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Thumbnails {
///     album: String,
/// }
///
/// impl Task for Thumbnails {
///     const NAME: &'static str = "thumbnails";
///     type Output = u32;
/// }
///
/// async fn start(tasks: TaskQueue, album: String) -> Result<String, Error> {
///     Ok(tasks.enqueue(Thumbnails { album }).await?.id().to_string())
/// }
///
/// async fn percent(tasks: &TaskQueue, id: TaskId) -> Result<Option<u8>, Error> {
///     Ok(tasks.status(id).await?.map(|task| task.percent()))
/// }
/// # let _: axum::Router = axum::Router::new().route("/", axum::routing::post(start));
/// # let _ = percent;
/// ```
#[derive(Clone)]
pub struct TaskQueue(Arc<StreamServices>);

impl fmt::Debug for TaskQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.tasks.fmt(f)
    }
}

impl TaskQueue {
    /// The queue over this connection, for programs that queue tasks and do none: it takes any kind, and whichever worker
    /// has the job does it.
    pub fn new(redis: &Redis) -> Self {
        Self::new_in(&redis.services().streams)
    }

    pub(crate) fn new_in(services: &Arc<StreamServices>) -> Self {
        Self(Arc::clone(services))
    }

    /// A task for the next worker that has room and its handler; it is queued by `.await`.
    pub fn enqueue<T: Task>(&self, task: T) -> Enqueue<'_, T> {
        Enqueue::new(&self.0, task)
    }

    /// A task as it is now; `None`: there is none, or its record has expired.
    ///
    /// # Errors
    /// [`Error::Redis`].
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn status(&self, id: TaskId) -> Result<Option<TaskStatus>, Error> {
        lookup::status(&self.0, id).await
    }

    /// Cancels a task; `None`: there is none.
    ///
    /// One that waits is never started. The handler of a running one is notified, at once or within a third of a lease, and its
    /// result is dropped; the status is cancelled from now on.
    ///
    /// # Errors
    /// [`Error::Redis`]; a repetition does no harm.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was cancelled.
    pub async fn cancel(&self, id: TaskId) -> Result<Option<Cancelled>, Error> {
        Ok(self.0.tasks.cancel(&id).await?)
    }

    /// Follows a task until it is final. All that follow a task on one worker share one query of Redis.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Redis`].
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn watch(&self, id: TaskId) -> Result<TaskWatch, Error> {
        lookup::watch(&self.0, id).await
    }

    /// A task as a response of server-sent events: its status now, then each change, as JSON.
    ///
    /// It ends with the task, and stays ended: a browser connects again after every end, and one that has seen the last
    /// event gets 204 then and stops (WHATWG HTML §9.2.3).
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Redis`].
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn sse(&self, id: TaskId, last: LastEventId) -> Result<Response, Error> {
        events::respond(&self.0, id, &last).await
    }
}

impl<S: Sync> FromRequestParts<S> for TaskQueue {
    type Rejection = AnyError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, AnyError> {
        Ok(Self::new_in(&RequestScope::from_parts(parts)?.services.streams))
    }
}
