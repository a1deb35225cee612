//! What streams of events and WebSockets are made of.

use std::fmt;
use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::broadcasts::BroadcastHub;
use crate::config::settings::{BroadcastConfig, WebSocketConfig};
use crate::http::drain_state::DrainState;
use crate::http::services::app_services::AppServices;
use crate::http::services::cell_handle::CellHandle;
use crate::http::services::state::StateServices;
use crate::http::standalone::connection::StandaloneConnection;
use crate::limiter::RequestLimiter;
use crate::tasks::TaskQueue;

/// What responses without an end need.
pub(in crate::http) struct StreamServices {
    pub(in crate::http) broadcast_hub: BroadcastHub,
    pub(in crate::http) tasks: TaskQueue,
    /// Permits of event streams that are no broadcasts, which have their own.
    pub(in crate::http) stream_permits: Arc<Semaphore>,
    pub(in crate::http) drain: DrainState,
    pub(in crate::http) broadcast: BroadcastConfig,
    pub(in crate::http) websocket: WebSocketConfig,
    /// Charges the messages of WebSocket clients.
    pub(in crate::http) limiter: Arc<RequestLimiter>,
    pub(in crate::http) cell: CellHandle,
    /// The connection of a program without a fleet, which begins to follow broadcasts with their first use.
    pub(in crate::http) standalone: Option<Arc<StandaloneConnection>>,
}

impl StreamServices {
    pub(in crate::http) fn new(parts: &AppServices, state: &StateServices) -> Self {
        let config = &parts.config;
        Self {
            broadcast_hub: parts.broadcast_hub.clone(),
            tasks: parts.tasks.clone(),
            stream_permits: Arc::new(Semaphore::new(config.broadcast.max_subscribers)),
            drain: parts.drain.clone(),
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
        f.debug_struct("StreamServices").field("drain", &self.drain).finish_non_exhaustive()
    }
}
