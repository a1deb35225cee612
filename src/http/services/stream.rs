//! What streams of events and WebSockets are made of.

use std::fmt;
use std::sync::Arc;

use crate::broadcasts::BroadcastHub;
use crate::config::settings::{BroadcastConfig, WebSocketConfig};
use crate::http::services::app_services::AppServices;
use crate::http::services::cell_handle::CellHandle;
use crate::http::services::state::StateServices;
use crate::http::standalone::connection::StandaloneConnection;
use crate::http::streams::worker_streams::WorkerStreams;
use crate::limiter::RequestLimiter;
use crate::tasks::TaskQueue;

/// What responses without an end need.
pub(crate) struct StreamServices {
    pub(crate) broadcast_hub: BroadcastHub,
    pub(crate) tasks: TaskQueue,
    /// What streams share with those that the worker finds in its responses.
    pub(crate) streams: Arc<WorkerStreams>,
    pub(crate) broadcast: BroadcastConfig,
    pub(crate) websocket: WebSocketConfig,
    /// Charges the messages of WebSocket clients.
    pub(crate) limiter: Arc<RequestLimiter>,
    pub(crate) cell: CellHandle,
    /// The connection of a program without a fleet, which begins to follow broadcasts with their first use.
    pub(crate) standalone: Option<Arc<StandaloneConnection>>,
}

impl StreamServices {
    pub(crate) fn new(parts: &AppServices, state: &StateServices) -> Self {
        let config = &parts.config;
        Self {
            broadcast_hub: parts.broadcast_hub.clone(),
            tasks: parts.tasks.clone(),
            streams: Arc::clone(&state.worker.streams),
            broadcast: config.broadcast.clone(),
            websocket: config.websocket.clone(),
            limiter: Arc::clone(&state.limiter),
            cell: state.worker.cell.clone(),
            standalone: None,
        }
    }
}

impl fmt::Debug for StreamServices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamServices").field("streams", &self.streams).finish_non_exhaustive()
    }
}
