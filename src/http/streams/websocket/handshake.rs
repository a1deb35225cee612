//! The opening handshake of a WebSocket (RFC 6455 §4), and which pages may open one.
//!
//! Guarantees that a page of another site opens none in a visitor's name (§10.2): a browser sends cookies with the
//! handshake without any preflight request. Only HTTP/1.1 carries WebSockets here (RFC 8441 is not supported).

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode, Version, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::http::body::UpgradePermits;
use crate::http::problem::Problem;
use crate::http::real_ip::ClientInfo;
use crate::http::request_head::has_token;
use crate::http::same_origin::{self, single_value};
use crate::http::streams::websocket::socket::WebSocket;

const UPGRADE_WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// A complete handshake of a supported version, from a page that may open a WebSocket.
///
/// An extractor; it rejects all others: 403 to pages of other sites, 426 to requests that are no handshake, 505 over
/// HTTP/2.
///
/// ```
/// use axum::response::Response;
/// use regatta::broadcast::Broadcast;
/// use regatta::ws::WebSocketUpgrade;
/// use regatta::{Error, LastEventId};
///
/// async fn chat(upgrade: WebSocketUpgrade, broadcast: Broadcast, last: LastEventId) -> Result<Response, Error> {
///     Ok(broadcast.topic("chat")?.socket(upgrade, last).await?)
/// }
/// # let _: axum::Router = axum::Router::new().route("/ws", axum::routing::get(chat));
/// ```
#[derive(Debug)]
pub struct WebSocketUpgrade {
    upgraded: OnUpgrade,
    accept: HeaderValue,
}

impl WebSocketUpgrade {
    /// Answers the handshake; `handler` starts when the client has the answer, in a task of its own.
    ///
    /// The request's concurrency permits are held until `handler` has ended.
    pub(crate) fn on_upgrade<F>(
        self,
        config: WebSocketConfig,
        handler: impl FnOnce(WebSocket) -> F + Send + 'static,
    ) -> Response
    where
        F: Future<Output = ()> + Send,
    {
        let Self { upgraded, accept } = self;
        let permits = UpgradePermits::default();
        let held_permits = permits.clone();
        tokio::spawn(async move {
            match upgraded.await {
                Ok(upgraded) => {
                    let io = TokioIo::new(upgraded);
                    let stream = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
                    handler(WebSocket::new(stream)).await;
                }
                Err(error) => tracing::debug!(%error, "client disconnected before its WebSocket was open"),
            }
            drop(held_permits);
        });
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.extensions_mut().insert(permits);
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, UPGRADE_WEBSOCKET);
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        response
    }

    /// # Errors
    /// It is no handshake, or not one that is answered.
    pub(crate) fn from_handshake(
        parts: &mut Parts,
        client: Option<&ClientInfo>,
        origins: &[String],
    ) -> Result<Self, HandshakeError> {
        if parts.version >= Version::HTTP_2 {
            return Err(HandshakeError::Version);
        }
        let headers = &parts.headers;
        let is_upgrade = parts.method == Method::GET
            && has_token(headers, &header::CONNECTION, "upgrade")
            && has_token(headers, &header::UPGRADE, "websocket");
        if !is_upgrade || single_value(headers, &header::SEC_WEBSOCKET_VERSION) != Some("13") {
            return Err(HandshakeError::NotAnUpgrade);
        }
        let key = single_value(headers, &header::SEC_WEBSOCKET_KEY).ok_or(HandshakeError::InvalidKey)?;
        if !BASE64_STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == 16) {
            return Err(HandshakeError::InvalidKey);
        }
        let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()))
            .map_err(|_| HandshakeError::InvalidKey)?;
        if !same_origin::is_same_origin(headers, &parts.uri, client, origins) {
            return Err(HandshakeError::ForbiddenOrigin);
        }
        let upgraded = parts.extensions.remove::<OnUpgrade>().ok_or(HandshakeError::NotAnUpgrade)?;
        Ok(Self { upgraded, accept })
    }
}

/// Why a request opens no WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandshakeError {
    /// It came over HTTP/2.
    Version,
    /// It is no handshake of version 13.
    NotAnUpgrade,
    /// Its key is none.
    InvalidKey,
    /// A page of another site sent it.
    ForbiddenOrigin,
}

impl HandshakeError {
    /// What the client is answered.
    pub(crate) fn into_problem_response(self) -> Response {
        let problem = |status, detail: &str| Problem::new(status, detail).into_response();
        match self {
            Self::Version => {
                problem(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "a WebSocket is opened over HTTP/1.1 here")
            }
            Self::NotAnUpgrade => {
                let detail = "this URL is a WebSocket: open one, version 13";
                let mut response = problem(StatusCode::UPGRADE_REQUIRED, detail);
                let headers = response.headers_mut();
                headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                headers.insert(header::UPGRADE, UPGRADE_WEBSOCKET);
                headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
                response
            }
            Self::InvalidKey => {
                problem(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is one text of 16 bytes in base64")
            }
            Self::ForbiddenOrigin => {
                problem(StatusCode::FORBIDDEN, "pages of this origin may not open a WebSocket here")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const GOOD: [(&str, &str); 5] = [
        ("host", "a.test:3000"),
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    fn handshake_error(change: &[(&str, &str)], version: Version) -> Option<HandshakeError> {
        let kept = GOOD.iter().filter(|(name, _)| !change.iter().any(|(changed, _)| changed == name));
        let headers = kept.chain(change).filter(|(_, value)| !value.is_empty());
        let request = headers.fold(Request::get("/ws").version(version), |request, (name, value)| {
            request.header(*name, *value)
        });
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        let upgrade = WebSocketUpgrade::from_handshake(&mut parts, None, &["https://friend.test".to_owned()]);
        // Without a connection there is nothing to upgrade: that is checked last.
        upgrade.err().filter(|refused| *refused != HandshakeError::NotAnUpgrade || has_fault(&parts))
    }

    fn has_fault(parts: &Parts) -> bool {
        !has_token(&parts.headers, &header::UPGRADE, "websocket")
            || !has_token(&parts.headers, &header::CONNECTION, "upgrade")
            || single_value(&parts.headers, &header::SEC_WEBSOCKET_VERSION) != Some("13")
    }

    #[test]
    fn only_a_whole_handshake_is_answered() {
        type Case<'a> = (&'a [(&'a str, &'a str)], Option<HandshakeError>);
        let cases: [Case; 10] = [
            (&[], None),
            (&[("connection", "keep-alive")], Some(HandshakeError::NotAnUpgrade)),
            (&[("upgrade", "h2c")], Some(HandshakeError::NotAnUpgrade)),
            (&[("upgrade", "")], Some(HandshakeError::NotAnUpgrade)),
            (&[("sec-websocket-version", "8")], Some(HandshakeError::NotAnUpgrade)),
            (&[("sec-websocket-key", "")], Some(HandshakeError::InvalidKey)),
            (&[("sec-websocket-key", "c2hvcnQ=")], Some(HandshakeError::InvalidKey)),
            (&[("sec-websocket-key", "not base64")], Some(HandshakeError::InvalidKey)),
            (&[("origin", "https://b.test")], Some(HandshakeError::ForbiddenOrigin)),
            (&[("origin", "https://friend.test")], None),
        ];
        for (change, expected) in cases {
            assert_eq!(handshake_error(change, Version::HTTP_11), expected, "{change:?}");
        }
        assert_eq!(handshake_error(&[], Version::HTTP_2), Some(HandshakeError::Version));
    }
}
