//! What this library puts into a request's extensions.

use std::sync::Arc;

use http::Extensions;
use http::request::Parts;

use crate::http::error::RequestError;
use crate::http::request_state::RequestState;
use crate::http::request_state::session_store::RequestSessionStore;
use crate::http::services::WorkerServices;

/// A request's state and what it is made of, as extractors and layers find it.
#[derive(Debug, Clone)]
pub(crate) struct RequestScope {
    pub(crate) services: Arc<WorkerServices>,
    /// The store of the request's session, which has the request's state.
    pub(crate) store: Arc<RequestSessionStore>,
}

impl RequestScope {
    /// The scope of the request with these extensions; none outside a fleet.
    pub(crate) fn find(extensions: &Extensions) -> Option<&Self> {
        extensions.get()
    }

    /// The scope of this request.
    ///
    /// # Errors
    /// `OutsideFleet`.
    pub(crate) fn from_parts(parts: &Parts) -> Result<&Self, RequestError> {
        Self::find(&parts.extensions).ok_or(RequestError::OutsideFleet)
    }

    /// The request's state.
    pub(crate) fn state(&self) -> &Arc<RequestState> {
        &self.store.state
    }
}
