//! Tasks as an application shows them: the handle as an extractor, and a task's progress as events.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::response::IntoResponse;
use axum::response::Response;
use bytes::Bytes;
use http::HeaderMap;
use http::HeaderName;
use http::StatusCode;
use http::request::Parts;

use crate::http::error::Error;
use crate::http::exchange::Exchange;
use crate::http::live::sse;
use crate::http::state::State;
use crate::redis::task::Task;
use crate::redis::task::TaskId;
use crate::task::Following;
use crate::task::Tasks;

/// What browsers send when they connect again (WHATWG HTML §9.2.3).
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The id of a task's last event.
const END: &str = "end";

impl<S: Sync> FromRequestParts<S> for Tasks {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        let exchange = Exchange::of(&parts.extensions).ok_or(Error::NoFleet)?;
        Ok(exchange.core.tasks.clone())
    }
}

impl State {
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
    pub async fn task_events(&self, id: &TaskId, headers: &HeaderMap) -> Result<Option<Response>, Error> {
        if headers.get(LAST_EVENT_ID).is_some_and(|last| last == END) {
            return Ok(Some(StatusCode::NO_CONTENT.into_response()));
        }
        let mut following = self.tasks().follow(id).await?;
        let Some(first) = following.next().await else { return Ok(None) };
        Ok(Some(self.events(Changes { first: Some(first), following })))
    }
}

/// A task's changes.
struct Changes {
    first: Option<Arc<Task>>,
    following: Following,
}

impl sse::Source for Changes {
    async fn next(&mut self) -> Option<Bytes> {
        let task = match self.first.take() {
            Some(first) => first,
            None => self.following.next().await?,
        };
        let event = sse::event("", &serde_json::to_string(&*task).unwrap_or_default());
        Some(if task.state.is_end() {
            [format!("id: {END}\n").as_bytes(), &event].concat().into()
        } else {
            event
        })
    }
}
