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

use crate::http::services::app_services::AppServices;
use crate::http::services::state::StateServices;
use crate::http::services::stream::StreamServices;
use crate::http::services::worker::WorkerContext;

/// The parts that the application's routes may reach.
#[derive(Debug)]
pub(super) struct WorkerServices {
    pub(super) worker: Arc<WorkerContext>,
    pub(super) state: Arc<StateServices>,
    pub(super) streams: Arc<StreamServices>,
}

impl WorkerServices {
    pub(super) fn new(parts: &AppServices, worker: Arc<WorkerContext>) -> Self {
        let state = StateServices::new(parts, &worker);
        let streams = StreamServices::new(parts, &state);
        Self { worker, state: Arc::new(state), streams: Arc::new(streams) }
    }
}
