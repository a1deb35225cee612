//! WebSockets: axum's in names and shape, opened by pages of one's own, and closed so that clients come back when their
//! worker leaves.
//!
//! ```
//! use axum::response::Response;
//! use regatta::ws::{WebSocket, WebSocketUpgrade};
//!
//! async fn echo(upgrade: WebSocketUpgrade) -> Response {
//!     upgrade.max_message_size(4096).on_upgrade(talk)
//! }
//!
//! /// Ends when the client leaves, or when the worker does: then the client was told 1012 and is back in a moment.
//! async fn talk(mut socket: WebSocket) {
//!     while let Some(Ok(message)) = socket.recv().await {
//!         if socket.send(message).await.is_err() {
//!             return;
//!         }
//!     }
//! }
//! # let _: axum::Router = axum::Router::new().route("/echo", axum::routing::any(echo));
//! ```

use axum::extract::FromRequestParts;
pub use axum::extract::ws::{CloseFrame, Message, Utf8Bytes};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;

use crate::http::request_scope::RequestScope;
pub use crate::http::streams::websocket::error::SocketError as Error;
use crate::http::streams::websocket::handshake::HandshakeError;
pub use crate::http::streams::websocket::handshake::WebSocketUpgrade;
pub use crate::http::streams::websocket::open_socket::WebSocket;
use crate::http::streams::websocket::terms::SocketTerms;

/// Why a request opens no WebSocket.
///
/// ```
/// use regatta::ws::{Rejection, WebSocketUpgrade};
///
/// async fn socket(upgrade: Result<WebSocketUpgrade, Rejection>) -> Result<&'static str, Rejection> {
///     match upgrade {
///         Ok(_) => Ok("a handshake"),
///         Err(Rejection::Handshake) => Ok("a plain request"),
///         Err(rejection) => Err(rejection),
///     }
/// }
/// # let _: axum::Router = axum::Router::new().route("/ws", axum::routing::get(socket));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejection {
    /// It came over HTTP/2: 505.
    #[error("a WebSocket is opened over HTTP/1.1 here")]
    Version,
    /// It is no handshake of version 13: 426.
    #[error("this URL is a WebSocket: open one, version 13")]
    Handshake,
    /// Its key is none: 400.
    #[error("Sec-WebSocket-Key is one text of 16 bytes in base64")]
    Key,
}

impl Rejection {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::Handshake => StatusCode::UPGRADE_REQUIRED,
            Self::Key => StatusCode::BAD_REQUEST,
        }
    }
}

#[doc(hidden)]
impl From<HandshakeError> for Rejection {
    fn from(error: HandshakeError) -> Self {
        match error {
            HandshakeError::Version => Self::Version,
            HandshakeError::NotAnUpgrade => Self::Handshake,
            HandshakeError::InvalidKey => Self::Key,
        }
    }
}

impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        let error = match self {
            Self::Version => HandshakeError::Version,
            Self::Handshake => HandshakeError::NotAnUpgrade,
            Self::Key => HandshakeError::InvalidKey,
        };
        error.into_problem_response()
    }
}

impl<S: Sync> FromRequestParts<S> for WebSocketUpgrade {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Rejection> {
        // A socket needs no Redis, and without one it needs no fleet either.
        let scope = RequestScope::from_parts(parts).ok().cloned();
        let terms = match &scope {
            Some(scope) => SocketTerms::new(&scope.services.streams),
            None => SocketTerms::detached(),
        };
        let client = RequestScope::from_client(parts).ok();
        Ok(Self::from_handshake(parts, client.as_ref(), terms)?)
    }
}
