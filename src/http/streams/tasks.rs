//! Tasks in an application: the queue as an extractor, and a task's progress as server-sent events.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, StatusCode};

use crate::http::error::RequestError;
use crate::http::fleet_handle::FleetHandle;
use crate::http::header_names::LAST_EVENT_ID;
use crate::http::request_scope::RequestScope;
use crate::http::streams::sse::SseSource;
use crate::redis::task::{TaskId, TaskStatus};
use crate::sse::SseEvent;
use crate::tasks::{TaskQueue, TaskWatch};

/// The id of a task's last event.
const FINISHED_EVENT_ID: &str = "end";

impl<S: Sync> FromRequestParts<S> for TaskQueue {
    type Rejection = RequestError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, RequestError> {
        Ok(RequestScope::from_parts(parts)?.services.streams.tasks.clone())
    }
}

impl FleetHandle {
    /// A task as a response of server-sent events: its status now, then each change, as JSON; `None` if there is no such
    /// task.
    ///
    /// It ends with the task. A browser connects again after every end; one that has seen the last event, by the
    /// request's `headers`, gets 204 and stops (WHATWG HTML §9.2.3).
    ///
    /// # Errors
    /// [`RequestError`]: Redis is unavailable, or allows no server-side code.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn task_events(
        &self,
        id: &TaskId,
        headers: &HeaderMap,
    ) -> Result<Option<Response>, RequestError> {
        if headers.get(LAST_EVENT_ID).is_some_and(|last| last == FINISHED_EVENT_ID) {
            return Ok(Some(StatusCode::NO_CONTENT.into_response()));
        }
        let mut task_watch = self.tasks().watch(id).await?;
        let Some(first) = task_watch.next().await else { return Ok(None) };
        Ok(Some(self.events(TaskEvents { first: Some(first), task_watch })))
    }
}

/// A task's changes.
struct TaskEvents {
    first: Option<Arc<TaskStatus>>,
    task_watch: TaskWatch,
}

impl SseSource for TaskEvents {
    async fn next(&mut self) -> Option<Bytes> {
        let task = match self.first.take() {
            Some(first) => first,
            None => self.task_watch.next().await?,
        };
        let json = serde_json::to_string(&*task).unwrap_or_default();
        let id = if task.state.is_final() { FINISHED_EVENT_ID } else { "" };
        Some(SseEvent::default().id(id).data(&json).to_bytes())
    }
}
