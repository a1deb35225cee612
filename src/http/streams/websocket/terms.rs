//! What a WebSocket takes from where it is served: its bounds, who may open it, and when it ends.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::http::drain_state::DrainState;
use crate::http::services::stream::StreamServices;
use crate::http::streams::websocket::pump::PumpLimits;
use crate::http::streams::websocket::socket::{CLOSE_LINGER, SEND_TIMEOUT};
use crate::http::streams::worker_streams::WorkerStreams;

/// How long a client has to answer a close frame that a handler sent.
const HANDLER_CLOSE_LINGER: Duration = Duration::from_secs(1);

/// Bounds of sockets of one worker; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct SocketTerms {
    pub(super) streams: Arc<WorkerStreams>,
    pub(super) allowed_origins: Arc<[String]>,
    /// Largest message that a client may send, bytes.
    pub(super) max_message_size: usize,
    max_messages_per_second: u64,
}

/// Those of programs without a fleet and without Redis, with the settings' defaults.
static DETACHED: LazyLock<SocketTerms> = LazyLock::new(|| SocketTerms {
    streams: Arc::new(WorkerStreams::new(10_000, Duration::from_secs(15), &DrainState::default(), None)),
    allowed_origins: Arc::new([]),
    max_message_size: 16 * 1024,
    max_messages_per_second: 20,
});

impl SocketTerms {
    pub(crate) fn new(services: &StreamServices) -> Self {
        Self {
            streams: Arc::clone(&services.streams),
            allowed_origins: services.websocket.allowed_origins.as_slice().into(),
            max_message_size: services.websocket.max_message_size,
            max_messages_per_second: services.websocket.max_messages_per_second,
        }
    }

    /// Those of a request that belongs to no fleet and to no Redis.
    pub(crate) fn detached() -> Self {
        DETACHED.clone()
    }

    pub(super) fn pump_limits(&self) -> PumpLimits {
        PumpLimits {
            keep_alive_interval: self.streams.keep_alive_interval,
            pings_per_second: self.max_messages_per_second,
            send_timeout: SEND_TIMEOUT,
            close_linger: CLOSE_LINGER,
            handler_close_linger: HANDLER_CLOSE_LINGER,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_fleet_the_defaults_of_the_settings_hold() {
        let defaults = crate::config::defaults().unwrap();
        let terms = SocketTerms::detached();
        assert_eq!(terms.streams.keep_alive_interval, defaults.broadcast.keep_alive_interval);
        assert_eq!(terms.streams.free_places(), defaults.broadcast.max_subscribers);
        assert_eq!(*terms.allowed_origins, *defaults.websocket.allowed_origins);
        assert_eq!(terms.max_message_size, defaults.websocket.max_message_size);
        assert_eq!(terms.max_messages_per_second, defaults.websocket.max_messages_per_second);
    }
}
