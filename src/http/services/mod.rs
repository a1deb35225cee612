//! What requests share, split by who needs it.
//!
//! Each part is built once a worker, before the first request, and is never changed afterwards; what changes inside a part
//! does so behind its own lock. No part knows a route, an extractor or a request. Sessions have theirs in their own room
//! ([`crate::sessions::services`]).

pub(crate) mod admin;
pub(crate) mod app_services;
pub(crate) mod cell_handle;
pub(crate) mod state;
pub(crate) mod stream;
pub(crate) mod worker;

use std::sync::Arc;

use crate::http::services::app_services::AppServices;
use crate::http::services::state::StateServices;
use crate::http::services::stream::StreamServices;
use crate::http::services::worker::WorkerContext;

/// The parts that the application's routes may reach.
#[derive(Debug)]
pub(crate) struct WorkerServices {
    pub(crate) worker: Arc<WorkerContext>,
    pub(crate) state: Arc<StateServices>,
    pub(crate) streams: Arc<StreamServices>,
}

impl WorkerServices {
    pub(super) fn new(parts: &AppServices, worker: Arc<WorkerContext>) -> Self {
        let state = StateServices::new(parts, &worker);
        let streams = StreamServices::new(parts, &state);
        Self { worker, state: Arc::new(state), streams: Arc::new(streams) }
    }
}
