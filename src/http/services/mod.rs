//! What requests share, split by who needs it.
//!
//! Each part is built once a worker, before the first request, and is never changed afterwards; what changes inside a part
//! does so behind its own lock. No part knows a route, an extractor or a request. Sessions have theirs in their own room
//! ([`crate::sessions::services`]).

#[cfg(feature = "fleet")]
pub(crate) mod admin;
pub(crate) mod app_services;
pub(crate) mod build_mistakes;
pub(crate) mod cell_handle;
pub(crate) mod state;
pub(crate) mod stream;
pub(crate) mod worker;

use std::sync::Arc;

use crate::config::settings::SessionConfig;
use crate::http::services::app_services::AppServices;
use crate::http::services::state::StateServices;
use crate::http::services::stream::StreamServices;
use crate::http::services::worker::WorkerContext;
use crate::http::standalone::connection::StandaloneConnection;

/// The parts that the application's routes may reach.
#[derive(Debug)]
pub(crate) struct WorkerServices {
    pub(crate) worker: Arc<WorkerContext>,
    pub(crate) state: Arc<StateServices>,
    pub(crate) streams: Arc<StreamServices>,
    /// Defaults of a session layer.
    pub(crate) session_config: SessionConfig,
    /// The connection of a program without a fleet; none in a worker, whose loop keeps it.
    pub(crate) standalone: Option<Arc<StandaloneConnection>>,
}

impl WorkerServices {
    pub(crate) fn new(parts: &AppServices, worker: Arc<WorkerContext>) -> Self {
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
    pub(crate) fn standalone(
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

    /// Begins to connect a program without a fleet, unless that has begun.
    pub(crate) fn ensure_started(&self) {
        if let Some(connection) = &self.standalone {
            connection.ensure_started();
        }
    }

    /// The same over another state.
    pub(crate) fn with_state(&self, state: StateServices) -> Self {
        Self {
            worker: Arc::clone(&self.worker),
            state: Arc::new(state),
            streams: Arc::clone(&self.streams),
            session_config: self.session_config.clone(),
            standalone: self.standalone.clone(),
        }
    }
}
