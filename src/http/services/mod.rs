//! What requests share, split by who needs it.
//!
//! Each part is built once a worker, before the first request, and is never changed afterwards; what changes inside a part
//! does so behind its own lock. No part knows a route, an extractor or a request. Sessions have theirs in their own room
//! ([`crate::sessions::services`]).

pub(super) mod admin;
pub(super) mod app_services;
pub(super) mod cell_handle;
pub(super) mod state;
pub(super) mod stream;
pub(super) mod worker;

use std::sync::Arc;

use crate::config::settings::SessionConfig;
use crate::http::services::app_services::AppServices;
use crate::http::services::state::StateServices;
use crate::http::services::stream::StreamServices;
use crate::http::services::worker::WorkerContext;
use crate::http::standalone::connection::StandaloneConnection;

/// The parts that the application's routes may reach.
#[derive(Debug)]
pub(super) struct WorkerServices {
    pub(super) worker: Arc<WorkerContext>,
    pub(super) state: Arc<StateServices>,
    pub(super) streams: Arc<StreamServices>,
    /// Defaults of a session layer.
    pub(super) session_config: SessionConfig,
    /// The connection of a program without a fleet; none in a worker, whose loop keeps it.
    pub(super) standalone: Option<Arc<StandaloneConnection>>,
}

impl WorkerServices {
    pub(super) fn new(parts: &AppServices, worker: Arc<WorkerContext>) -> Self {
        let state = StateServices::new(parts, &worker);
        let streams = StreamServices::new(parts, &state);
        Self {
            worker,
            state: Arc::new(state),
            streams: Arc::new(streams),
            session_config: parts.config.session.clone(),
            standalone: None,
        }
    }

    /// Those of a program without a fleet, whose requests have no session unless a layer gives them one.
    pub(super) fn standalone(
        parts: &AppServices,
        worker: Arc<WorkerContext>,
        connection: Arc<StandaloneConnection>,
    ) -> Self {
        let state = StateServices { has_sessions: false, ..StateServices::new(parts, &worker) };
        let mut streams = StreamServices::new(parts, &state);
        streams.standalone = Some(Arc::clone(&connection));
        Self {
            worker,
            state: Arc::new(state),
            streams: Arc::new(streams),
            session_config: parts.config.session.clone(),
            standalone: Some(connection),
        }
    }

    /// The same over another state.
    pub(super) fn with_state(&self, state: StateServices) -> Self {
        Self {
            worker: Arc::clone(&self.worker),
            state: Arc::new(state),
            streams: Arc::clone(&self.streams),
            session_config: self.session_config.clone(),
            standalone: self.standalone.clone(),
        }
    }
}
