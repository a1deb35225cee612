//! Tasks as an application shows them: the handle as an extractor, and a task's progress as events.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, StatusCode};

use crate::http::error::RequestError;
use crate::http::request_state::RequestState;
use crate::http::service::context::FleetHandle;
use crate::http::streams::sse;
use crate::redis::task::{TaskId, TaskStatus};
use crate::tasks::{TaskQueue, TaskWatch};

/// What browsers send when they connect again (WHATWG HTML §9.2.3).
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The id of a task's last event.
const FINISHED_EVENT_ID: &str = "end";

impl<S: Sync> FromRequestParts<S> for TaskQueue {
    type Rejection = RequestError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, RequestError> {
        let state = RequestState::from_extensions(&parts.extensions).ok_or(RequestError::OutsideFleet)?;
        Ok(state.core.tasks.clone())
    }
}

impl FleetHandle {
    /// A task as a response of server-sent events: how it stands now, and then each change, as JSON; `None` if there is
    /// no such task.
    ///
    /// It ends with the task. A browser comes again after every end; one that has seen the last event, by the request's
    /// `headers`, is told to stay away (204, WHATWG HTML §9.2.3).
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Unsupported`].
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

impl sse::SseSource for TaskEvents {
    async fn next(&mut self) -> Option<Bytes> {
        let task = match self.first.take() {
            Some(first) => first,
            None => self.task_watch.next().await?,
        };
        let event = sse::event("", &serde_json::to_string(&*task).unwrap_or_default());
        Some(if task.state.is_final() {
            [format!("id: {FINISHED_EVENT_ID}\n").as_bytes(), &event].concat().into()
        } else {
            event
        })
    }
}
