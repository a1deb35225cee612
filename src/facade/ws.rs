//! WebSockets: opened by pages of one's own, and closed so that clients come back when their worker leaves.
//!
//! ```
//! use axum::response::Response;
//! use regatta::broadcast::Broadcast;
//! use regatta::ws::WebSocketUpgrade;
//! use regatta::{Error, LastEventId};
//!
//! async fn chat(upgrade: WebSocketUpgrade, broadcast: Broadcast, last: LastEventId) -> Result<Response, Error> {
//!     Ok(broadcast.topic("chat")?.socket(upgrade, last).await?)
//! }
//! # let _: axum::Router = axum::Router::new().route("/ws", axum::routing::get(chat));
//! ```

use axum::extract::FromRequestParts;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;

use crate::http::error::RequestError;
use crate::http::request_scope::RequestScope;
use crate::http::streams::websocket::handshake::HandshakeError;
pub use crate::http::streams::websocket::handshake::WebSocketUpgrade;

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
    /// A page of another site sent it: 403.
    #[error("pages of this origin may not open a WebSocket here")]
    Origin,
    /// No fleet and no Redis is around the handler: 500.
    #[error("this handler has no Redis")]
    Missing,
}

impl Rejection {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::Handshake => StatusCode::UPGRADE_REQUIRED,
            Self::Key => StatusCode::BAD_REQUEST,
            Self::Origin => StatusCode::FORBIDDEN,
            Self::Missing => StatusCode::INTERNAL_SERVER_ERROR,
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
            HandshakeError::ForbiddenOrigin => Self::Origin,
        }
    }
}

impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        let error = match self {
            Self::Version => HandshakeError::Version,
            Self::Handshake => HandshakeError::NotAnUpgrade,
            Self::Key => HandshakeError::InvalidKey,
            Self::Origin => HandshakeError::ForbiddenOrigin,
            Self::Missing => return RequestError::MissingRedis.into_response(),
        };
        error.into_problem_response()
    }
}

impl<S: Sync> FromRequestParts<S> for WebSocketUpgrade {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Rejection> {
        let scope = RequestScope::from_parts(parts).map_err(|_| Rejection::Missing)?.clone();
        let origins = &scope.services.streams.websocket.allowed_origins;
        Ok(Self::from_handshake(parts, Some(&scope.state().client), origins)?)
    }
}
