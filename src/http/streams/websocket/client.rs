//! The client that sends messages over a WebSocket, as a subject of limits.

use std::time::Duration;

use crate::http::request_state::RequestState;
use crate::http::services::stream::StreamServices;
use crate::limiter::LimitSubject;

/// Bytes of a message that count as one request: a large message takes as much of Redis as many small ones.
const BYTES_PER_REQUEST: usize = 1024;

/// When a client may try again while Redis is nearly full.
const FULL_RETRY: Duration = Duration::from_secs(30);

/// A client, as its handshake identified it.
#[derive(Debug)]
pub(crate) struct SocketClient {
    client: String,
    session: Option<String>,
    user: Option<String>,
}

impl SocketClient {
    pub(crate) fn from_request_state(state: &RequestState) -> Self {
        Self {
            client: state.client.limit_subject(state.services.ipv6_prefix),
            session: state.visitor.confirmed_digest().map(str::to_owned),
            user: state.visitor.user().map(|user| user.to_string()),
        }
    }

    /// Charges `websocket.policy` for a message of so many bytes; `Err`: how long it is denied.
    pub(crate) async fn charge(&self, services: &StreamServices, bytes: usize) -> Result<(), Duration> {
        let Some(policy) = &services.websocket.policy else { return Ok(()) };
        if self.user.is_none()
            && services.cell.is_redis_full()
            && services.limiter.policies().closes_when_full(policy)
        {
            return Err(FULL_RETRY);
        }
        let subject = LimitSubject {
            client: &self.client,
            session: self.session.as_deref(),
            user: self.user.as_deref(),
        };
        services.limiter.charge(policy, &subject, message_cost(bytes)).await
    }
}

/// What a message counts for, requests.
pub(crate) fn message_cost(bytes: usize) -> u64 {
    bytes.div_ceil(BYTES_PER_REQUEST).max(1) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_counts_for_its_kibibytes() {
        assert_eq!([0, 1, 1024, 1025, 16 * 1024].map(message_cost), [1, 1, 1, 2, 16]);
    }
}
