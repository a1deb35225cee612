//! One open WebSocket: receiving, sending, and closing (RFC 6455 §5 to §7).
//!
//! Guarantees that each violation is answered with its close code, and that waiting for a client that reads nothing is
//! bounded.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

/// How long a client may read nothing of what is sent to it.
pub(super) const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client has to answer a close frame.
pub(super) const CLOSE_LINGER: Duration = Duration::from_secs(2);

/// What a client is told whose worker leaves.
pub(super) const LEAVING: &str = "this worker is draining: connect again";

/// Bytes of one read; each connection keeps a buffer of this size.
const READ_BUFFER: usize = 4 << 10;

/// Frames are collected up to this size while more are available.
const WRITE_BUFFER: usize = 8 << 10;

/// Bounds of a connection: received messages have at most `max_received` bytes, sent ones `max_sent`.
pub(crate) fn websocket_config(max_received: usize, max_sent: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(max_sent.saturating_add(2 * WRITE_BUFFER))
        .max_message_size(Some(max_received))
        .max_frame_size(Some(max_received))
}

/// An open WebSocket whose messages are texts.
#[derive(Debug)]
pub(crate) struct TextSocket {
    stream: WebSocketStream<TokioIo<Upgraded>>,
}

/// What comes from a client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ClientMessage {
    /// A message.
    Text(Utf8Bytes),
    /// A ping; tungstenite has answered it already.
    Ping,
    /// The answer to a ping.
    Pong,
}

/// How a WebSocket ends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CloseReason {
    /// The client is gone or reads nothing: no close frame is sent.
    Disconnected,
    /// The client closes it.
    ByClient,
    /// This worker closes it with a code and a reason.
    ByServer(CloseCode, &'static str),
}

impl TextSocket {
    pub(crate) fn new(stream: WebSocketStream<TokioIo<Upgraded>>) -> Self {
        Self { stream }
    }

    /// The next message; an error is the end of the socket.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub(crate) async fn recv(&mut self) -> Result<ClientMessage, CloseReason> {
        match self.stream.next().await {
            Some(Ok(Message::Text(text))) => Ok(ClientMessage::Text(text)),
            Some(Ok(Message::Ping(_))) => Ok(ClientMessage::Ping),
            Some(Ok(Message::Pong(_))) => Ok(ClientMessage::Pong),
            Some(Ok(Message::Close(_))) => Err(CloseReason::ByClient),
            Some(Ok(Message::Binary(_) | Message::Frame(_))) => {
                Err(CloseReason::ByServer(CloseCode::Unsupported, "send text, not binary data"))
            }
            Some(Err(error)) => Err(close_reason_for(&error)),
            None => Err(CloseReason::Disconnected),
        }
    }

    /// Sends messages in as few writes as possible.
    ///
    /// # Errors
    /// The client is gone, or reads nothing for [`SEND_TIMEOUT`].
    ///
    /// # Cancel safety
    /// Messages that were not fed yet are not sent; the connection stays usable.
    pub(crate) async fn send(
        &mut self,
        messages: impl IntoIterator<Item = Message>,
    ) -> Result<(), CloseReason> {
        let sending = async {
            for message in messages {
                self.stream.feed(message).await?;
            }
            self.stream.flush().await
        };
        match timeout(SEND_TIMEOUT, sending).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(CloseReason::Disconnected),
        }
    }

    /// Closes the socket; waits at most [`CLOSE_LINGER`] for the client's close frame.
    pub(crate) async fn close(mut self, close_reason: CloseReason) {
        if close_reason == CloseReason::Disconnected {
            return;
        }
        let closing = async {
            if let CloseReason::ByServer(code, reason) = close_reason {
                let frame = CloseFrame { code, reason: Utf8Bytes::from_static(reason) };
                self.stream.send(Message::Close(Some(frame))).await?;
            }
            // Reading sends the answer to the client's close frame, or finds the answer to ours.
            while self.stream.next().await.transpose()?.is_some() {}
            Ok::<_, Error>(())
        };
        let _ = timeout(CLOSE_LINGER, closing).await;
        // The connection lingers before it is closed: a reset would discard the close frame on its way.
        let _ = self.stream.into_inner().shutdown().await;
    }
}

/// The close code of a violation (RFC 6455 §7.4.1).
pub(super) fn close_reason_for(error: &Error) -> CloseReason {
    match error {
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)
        | Error::ConnectionClosed
        | Error::AlreadyClosed
        | Error::Io(_) => CloseReason::Disconnected,
        Error::Capacity(_) => CloseReason::ByServer(CloseCode::Size, "the message is too large"),
        Error::Utf8(_) => CloseReason::ByServer(CloseCode::Invalid, "this text is not UTF-8"),
        Error::Protocol(_) => {
            CloseReason::ByServer(CloseCode::Protocol, "this is no WebSocket frame that may come here")
        }
        _ => CloseReason::ByServer(CloseCode::Error, ""),
    }
}
