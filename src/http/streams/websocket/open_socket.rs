//! An open WebSocket, as a handler has it.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::{fmt, thread};

use axum::extract::ws::{CloseFrame, Message};
use futures_util::{Sink, Stream};
use http::HeaderValue;

use crate::http::streams::websocket::error::SocketError;
use crate::http::streams::websocket::link::Link;

/// The code of a socket that has done what it was opened for (RFC 6455 §7.4.1).
const NORMAL: u16 = 1000;

/// The code of a socket whose handler panicked.
const INTERNAL_ERROR: u16 = 1011;

/// An open WebSocket; a `Stream` and a `Sink`.
///
/// Pings are answered, and a client that answers none of this side's is closed, whatever the handler does meanwhile. When
/// the worker leaves, the client is sent 1012, nothing can be sent any more, and [`WebSocket::recv`] gives what the client
/// sent before it answered, for two seconds at most, and then `None`. Dropping the socket closes it, with 1000, or with
/// 1011 if the handler panicked.
///
/// ```
/// use axum::response::Response;
/// use regatta::ws::{WebSocket, WebSocketUpgrade};
///
/// async fn echo(upgrade: WebSocketUpgrade) -> Response {
///     upgrade.on_upgrade(talk)
/// }
///
/// async fn talk(mut socket: WebSocket) {
///     while let Some(Ok(message)) = socket.recv().await {
///         if socket.send(message).await.is_err() {
///             return;
///         }
///     }
/// }
/// # let _: axum::Router = axum::Router::new().route("/echo", axum::routing::any(echo));
/// ```
pub struct WebSocket {
    link: Arc<Link>,
    protocol: Option<HeaderValue>,
}

impl fmt::Debug for WebSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebSocket").field("protocol", &self.protocol).finish_non_exhaustive()
    }
}

impl WebSocket {
    pub(super) fn new(link: Arc<Link>, protocol: Option<HeaderValue>) -> Self {
        Self { link, protocol }
    }

    /// The next message; an error is the last item before `None`.
    ///
    /// The client's pings and its close frame come as messages, and were answered already.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn recv(&mut self) -> Option<Result<Message, SocketError>> {
        poll_fn(|context| self.link.poll_receive(context)).await
    }

    /// Sends a message; returns when the kernel has it. A close frame closes the socket.
    ///
    /// # Errors
    /// [`Error::Closed`](crate::ws::Error::Closed): the socket is closed, or was before the message could be written.
    ///
    /// # Cancel safety
    /// The message may have been sent, or may still be.
    pub async fn send(&mut self, message: Message) -> Result<(), SocketError> {
        let closes = matches!(message, Message::Close(_));
        poll_fn(|context| self.link.poll_ready(context)).await?;
        self.link.give(message)?;
        if closes {
            return Ok(());
        }
        poll_fn(|context| self.link.poll_flush(context)).await
    }

    /// Closes the socket and waits for the client's answer, for a second.
    ///
    /// Without a frame, or with a code that must not be sent (RFC 6455 §7.4), the client gets no code.
    ///
    /// # Cancel safety
    /// It is closed all the same.
    pub async fn close(self, frame: Option<CloseFrame>) {
        self.link.request_close(frame);
        self.link.abandon();
        poll_fn(|context| self.link.poll_ended(context)).await;
    }

    /// The protocol that both sides speak, of those of [`WebSocketUpgrade::protocols`](crate::ws::WebSocketUpgrade::protocols).
    pub fn protocol(&self) -> Option<&HeaderValue> {
        self.protocol.as_ref()
    }
}

impl Drop for WebSocket {
    fn drop(&mut self) {
        let code = if thread::panicking() { INTERNAL_ERROR } else { NORMAL };
        self.link.request_close(Some(CloseFrame { code, reason: "".into() }));
        self.link.abandon();
    }
}

impl Stream for WebSocket {
    type Item = Result<Message, SocketError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.link.poll_receive(context)
    }
}

impl Sink<Message> for WebSocket {
    type Error = SocketError;

    fn poll_ready(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), SocketError>> {
        self.link.poll_ready(context)
    }

    fn start_send(self: Pin<&mut Self>, message: Message) -> Result<(), SocketError> {
        self.link.give(message)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), SocketError>> {
        self.link.poll_flush(context)
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), SocketError>> {
        self.link.request_close(None);
        self.link.poll_ended(context).map(Ok)
    }
}
