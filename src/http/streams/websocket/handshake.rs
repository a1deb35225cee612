//! The opening handshake of a WebSocket (RFC 6455 §4), and which pages may open one.
//!
//! Guarantees that a page of another site opens none in a visitor's name (§10.2): a browser sends cookies with the
//! handshake without any preflight request. Only HTTP/1.1 carries WebSockets here (RFC 8441 is not supported).

use std::borrow::Cow;
use std::pin::Pin;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode, Version, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::http::body::UpgradePermits;
use crate::http::error::RequestError;
use crate::http::origin_check::{self, single_value};
use crate::http::problem::Problem;
use crate::http::real_ip::ClientInfo;
use crate::http::request_head::has_token;
use crate::http::streams::on_drain::{OnDrain, until_leaving};
use crate::http::streams::websocket::conversation;
use crate::http::streams::websocket::metered_io::MeteredIo;
use crate::http::streams::websocket::open_socket::WebSocket;
use crate::http::streams::websocket::socket::{self, TextSocket};
use crate::http::streams::websocket::terms::SocketTerms;

/// When a socket is to end because its worker leaves.
pub(crate) type Leaving = Pin<Box<dyn Future<Output = ()> + Send>>;

const UPGRADE_WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// A complete handshake of a supported version; axum's extractor in names and shape, for sockets that drain.
///
/// It rejects all others: 426 to requests that are no handshake, 505 over HTTP/2. [`WebSocketUpgrade::on_upgrade`] answers
/// 403 to pages of other origins, and 503 while the worker has as many streams as `broadcast.max_subscribers`.
///
/// *Outside a fleet* it needs no Redis; settings have their defaults then, and no worker leaves.
///
/// ```
/// use axum::response::Response;
/// use regatta::ws::{Message, WebSocket, WebSocketUpgrade};
///
/// async fn join(upgrade: WebSocketUpgrade) -> Response {
///     let upgrade = upgrade.protocols(["chat.v2", "chat.v1"]).max_message_size(4096);
///     upgrade.allow_origins(["https://example.org"]).on_upgrade(greet)
/// }
///
/// async fn greet(mut socket: WebSocket) {
///     let text = format!("ahoy, by {:?}", socket.protocol());
///     let _ = socket.send(Message::text(text)).await;
///     socket.close(None).await;
/// }
/// # let _: axum::Router = axum::Router::new().route("/join", axum::routing::any(join));
/// ```
#[derive(Debug)]
pub struct WebSocketUpgrade {
    upgraded: OnUpgrade,
    accept: HeaderValue,
    terms: SocketTerms,
    origin: RequestOrigin,
    /// What the client speaks, as it sent it.
    offered_protocols: Vec<HeaderValue>,
    protocol: Option<HeaderValue>,
    on_drain: OnDrain,
}

/// Whether a page may open a socket.
#[derive(Debug)]
enum RequestOrigin {
    /// One of the requested host or of `websocket.allowed_origins`, or a program.
    Allowed,
    /// Another one, by its name if it has one.
    Foreign(Option<String>),
}

impl WebSocketUpgrade {
    /// The protocols that this side speaks, the one it likes best first; the first that the client offers is used.
    #[must_use]
    pub fn protocols<P: Into<Cow<'static, str>>>(mut self, protocols: impl IntoIterator<Item = P>) -> Self {
        let offered = || self.offered_protocols.iter().filter_map(|offer| offer.to_str().ok());
        let is_offered =
            |ours: &str| offered().flat_map(|offer| offer.split(',')).any(|one| one.trim() == ours);
        let spoken = protocols.into_iter().map(Into::into).find(|ours: &Cow<'static, str>| is_offered(ours));
        self.protocol = spoken.and_then(|protocol| HeaderValue::from_str(&protocol).ok());
        self
    }

    /// Largest message that the client may send, bytes; then the socket is closed with 1009. Without it:
    /// `websocket.max_message_size`.
    #[must_use]
    pub fn max_message_size(mut self, bytes: usize) -> Self {
        self.terms.max_message_size = bytes;
        self
    }

    /// Pages of these origins, such as `https://example.org`, may open it, too.
    #[must_use]
    pub fn allow_origins<O: AsRef<str>>(mut self, origins: impl IntoIterator<Item = O>) -> Self {
        if let RequestOrigin::Foreign(Some(origin)) = &self.origin
            && origins.into_iter().any(|allowed| allowed.as_ref().eq_ignore_ascii_case(origin))
        {
            self.origin = RequestOrigin::Allowed;
        }
        self
    }

    /// What becomes of the socket when its worker leaves; without it [`OnDrain::Close`].
    ///
    /// With [`OnDrain::Finish`] it goes on, and its handler watches `Shutdown`.
    #[must_use]
    pub fn on_drain(mut self, what: OnDrain) -> Self {
        self.on_drain = what;
        self
    }

    /// Answers the handshake; `talk` starts when the client has the answer, in a task of its own.
    ///
    /// The request's concurrency permits are held until `talk` and the socket have ended. The worker that leaves waits for
    /// both: for `talk` five seconds longer than for the socket, and for neither longer than `drain.timeout`.
    pub fn on_upgrade<F, Fut>(self, talk: F) -> Response
    where
        F: FnOnce(WebSocket) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        if let Some(refusal) = self.refuse_foreign_page() {
            return refusal;
        }
        let Some(place) = self.terms.streams.take_place() else {
            return RequestError::TooManySubscribers.into_response();
        };
        let config = socket::websocket_config(self.terms.max_message_size, usize::MAX);
        let (terms, protocol, leaving) = (self.terms.clone(), self.protocol.clone(), self.leaving());
        self.answer(move |upgraded| async move {
            let io = MeteredIo::new(TokioIo::new(upgraded));
            let stream = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
            conversation::hold(stream, terms.pump_limits(), protocol, leaving, talk).await;
            drop(place);
        })
    }

    /// The same for a topic: its messages are texts, and it is bounded by its subscribers.
    ///
    /// The request's concurrency permits are held until `handler` has ended.
    pub(crate) fn on_topic_upgrade<F>(
        self,
        max_sent: usize,
        handler: impl FnOnce(TextSocket, Leaving) -> F + Send + 'static,
    ) -> Response
    where
        F: Future<Output = ()> + Send,
    {
        let config = socket::websocket_config(self.terms.max_message_size, max_sent);
        let (place, leaving) = (self.terms.streams.count(), self.leaving());
        self.answer(move |upgraded| async move {
            let stream =
                WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
            handler(TextSocket::new(stream), leaving).await;
            drop(place);
        })
    }

    /// The answer to a page that may not open a socket; none to all others.
    pub(crate) fn refuse_foreign_page(&self) -> Option<Response> {
        match self.origin {
            RequestOrigin::Allowed => None,
            RequestOrigin::Foreign(_) => {
                let detail = "pages of this origin may not open a WebSocket here";
                Some(Problem::new(StatusCode::FORBIDDEN, detail).into_response())
            }
        }
    }

    /// When the socket is to end because its worker leaves.
    fn leaving(&self) -> Leaving {
        Box::pin(until_leaving(self.terms.streams.drain.clone(), self.on_drain))
    }

    /// Answers the handshake, and runs `work` with what the connection has become.
    fn answer<F>(self, work: impl FnOnce(Upgraded) -> F + Send + 'static) -> Response
    where
        F: Future<Output = ()> + Send,
    {
        let Self { upgraded, accept, protocol, .. } = self;
        let permits = UpgradePermits::default();
        let held_permits = permits.clone();
        tokio::spawn(async move {
            match upgraded.await {
                Ok(upgraded) => work(upgraded).await,
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
        if let Some(protocol) = protocol {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        response
    }

    /// # Errors
    /// It is no handshake, or not one that is answered.
    pub(crate) fn from_handshake(
        parts: &mut Parts,
        client: Option<&ClientInfo>,
        terms: SocketTerms,
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
        let origin = match origin_check::is_same_origin(headers, &parts.uri, client, &terms.allowed_origins) {
            true => RequestOrigin::Allowed,
            false => RequestOrigin::Foreign(single_value(headers, &header::ORIGIN).map(str::to_owned)),
        };
        let offered_protocols = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().cloned().collect();
        let upgraded = parts.extensions.remove::<OnUpgrade>().ok_or(HandshakeError::NotAnUpgrade)?;
        Ok(Self {
            upgraded,
            accept,
            terms,
            origin,
            offered_protocols,
            protocol: None,
            on_drain: OnDrain::Close,
        })
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
        let upgrade = WebSocketUpgrade::from_handshake(&mut parts, None, SocketTerms::detached());
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
        let cases: [Case; 8] = [
            (&[], None),
            (&[("connection", "keep-alive")], Some(HandshakeError::NotAnUpgrade)),
            (&[("upgrade", "h2c")], Some(HandshakeError::NotAnUpgrade)),
            (&[("upgrade", "")], Some(HandshakeError::NotAnUpgrade)),
            (&[("sec-websocket-version", "8")], Some(HandshakeError::NotAnUpgrade)),
            (&[("sec-websocket-key", "")], Some(HandshakeError::InvalidKey)),
            (&[("sec-websocket-key", "c2hvcnQ=")], Some(HandshakeError::InvalidKey)),
            (&[("sec-websocket-key", "not base64")], Some(HandshakeError::InvalidKey)),
        ];
        for (change, expected) in cases {
            assert_eq!(handshake_error(change, Version::HTTP_11), expected, "{change:?}");
        }
        assert_eq!(handshake_error(&[], Version::HTTP_2), Some(HandshakeError::Version));
    }
}
