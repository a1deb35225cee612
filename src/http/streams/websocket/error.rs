//! Why nothing more is received over a WebSocket, or why nothing could be sent.

use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::error::ProtocolError;

/// Why a WebSocket failed. After any of them nothing more comes, and nothing can be sent.
///
/// A client that broke a rule was told so with the code of the close frame that is named here (RFC 6455 §7.4.1).
///
/// ```
/// use regatta::ws::{Error, WebSocket};
///
/// async fn count(mut socket: WebSocket) {
///     let mut messages = 0;
///     while let Some(received) = socket.recv().await {
///         match received {
///             Ok(_) => messages += 1,
///             Err(Error::Disconnected) => tracing::debug!(messages, "the client is gone"),
///             Err(error) => tracing::info!(messages, "{error}"),
///         }
///     }
/// }
/// # let _ = count;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// It was closed: by the client, by this program, or because the worker leaves.
    #[error("the WebSocket is closed")]
    Closed,
    /// The client is gone without a close frame.
    #[error("the client disconnected without closing its WebSocket")]
    Disconnected,
    /// The client has read nothing for 10 seconds of what was sent to it.
    #[error("the client reads nothing of what is sent to it")]
    TooSlow,
    /// The client has not answered a ping: 1008.
    #[error("the client did not answer a ping")]
    NoPong,
    /// The client sent more pings, or answers to none, than `websocket.max_messages_per_second`: 1008.
    #[error("the client sent too many pings")]
    TooManyPings,
    /// A message is larger than is allowed: 1009.
    #[error("the client sent a message that is too large")]
    TooLarge,
    /// A text is not UTF-8: 1007.
    #[error("the client sent a text that is not UTF-8")]
    NotUtf8,
    /// A frame breaks the protocol: 1002.
    #[error("the client broke the WebSocket protocol")]
    Protocol,
}

impl From<&tungstenite::Error> for SocketError {
    fn from(error: &tungstenite::Error) -> Self {
        match error {
            tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => Self::Closed,
            tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)
            | tungstenite::Error::Io(_) => Self::Disconnected,
            tungstenite::Error::Capacity(_) => Self::TooLarge,
            tungstenite::Error::Utf8(_) => Self::NotUtf8,
            _ => Self::Protocol,
        }
    }
}
