//! A task's changes as a response of server-sent events.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;

use crate::facade::task::error::Error;
use crate::http::services::stream::StreamServices;
use crate::http::standalone::connection::StandaloneConnection;
use crate::http::streams::last_event_id::LastEventId;
use crate::http::streams::sse::{self, SseSource};
use crate::sse::SseEvent;
use crate::tasks::{TaskId, TaskStatus, TaskWatch};

/// The id of a task's last event.
const FINISHED_EVENT_ID: &str = "end";

pub(super) async fn respond(
    services: &StreamServices,
    id: TaskId,
    last: &LastEventId,
) -> Result<Response, Error> {
    if last.as_str() == Some(FINISHED_EVENT_ID) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let mut task_watch = services.tasks.watch(&id).await?;
    let first = task_watch.next().await.ok_or(Error::NotFound)?;
    let events = TaskEvents { first: Some(first), task_watch, _connection: services.standalone.clone() };
    Ok(sse::respond_permitted(events, &services.streams))
}

/// A task's changes.
struct TaskEvents {
    first: Option<Arc<TaskStatus>>,
    task_watch: TaskWatch,
    /// Nothing comes without it.
    _connection: Option<Arc<StandaloneConnection>>,
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
