//! A request's state for what belongs to a request, and a state of its own for each use outside of one.

use std::sync::Arc;

use http::Request;

use crate::http::request_state::RequestState;
use crate::http::services::WorkerServices;

/// Where a handle finds the state for its next operation.
#[derive(Debug, Clone)]
pub(crate) enum StateHandle {
    /// The request's, which every operation of the request shares.
    Request(Arc<RequestState>),
    /// A new one for each operation: a state that has failed once refuses every later use, which is right for one request
    /// and wrong for a handle that lives as long as its program.
    Detached(Arc<WorkerServices>),
}

impl StateHandle {
    /// The state for one operation.
    pub(crate) fn state(&self) -> Arc<RequestState> {
        match self {
            Self::Request(state) => Arc::clone(state),
            Self::Detached(services) => detached(services),
        }
    }
}

/// A state under no policy, of no client and without a session.
pub(crate) fn detached(services: &Arc<WorkerServices>) -> Arc<RequestState> {
    services.ensure_started();
    let (parts, ()) = Request::new(()).into_parts();
    Arc::new(RequestState::standalone(Arc::clone(&services.state), None, &parts))
}
