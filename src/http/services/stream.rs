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
use crate::limiter::RequestLimiter;
use crate::tasks::TaskQueue;

/// What responses without an end need.
pub(crate) struct StreamServices {
    pub(crate) broadcast_hub: BroadcastHub,
    pub(crate) tasks: TaskQueue,
    /// Permits of event streams that are no broadcasts, which have their own.
    pub(crate) stream_permits: Arc<Semaphore>,
    pub(crate) drain: DrainState,
    pub(crate) broadcast: BroadcastConfig,
    pub(crate) websocket: WebSocketConfig,
    /// Charges the messages of WebSocket clients.
    pub(crate) limiter: Arc<RequestLimiter>,
    pub(crate) cell: CellHandle,
}

impl StreamServices {
    pub(crate) fn new(parts: &AppServices, state: &StateServices) -> Self {
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
        }
    }
}

impl fmt::Debug for StreamServices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamServices").field("drain", &self.drain).finish_non_exhaustive()
    }
}
