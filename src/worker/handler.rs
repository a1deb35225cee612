//! What answers the requests of a connection.

use ::http::Response;
use ::http::request::Parts;
use bytes::Bytes;

use crate::http;
use crate::http::real_ip::ConnectionPeer;
use crate::http::{HttpService, ResponseFuture};
use crate::worker::connection::incoming_body::IncomingBody;

/// What answers requests: the application, or the operators' routes.
pub(super) trait RequestHandler: Clone + Send + Sync + 'static {
    /// Body of a response.
    type HandlerBody: http_body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
        + From<http::Body>
        + Send
        + Unpin
        + 'static;

    /// A request until there is its response. Small, because hyper moves it about before it polls it.
    type HandlerFuture: Future<Output = Response<Self::HandlerBody>> + Send + Unpin + 'static;

    /// Answers one request of the client at `peer`.
    fn handle(&self, head: Parts, body: IncomingBody, peer: ConnectionPeer) -> Self::HandlerFuture;
}

impl RequestHandler for HttpService {
    type HandlerBody = http::Body;
    type HandlerFuture = ResponseFuture;

    fn handle(&self, head: Parts, body: IncomingBody, peer: ConnectionPeer) -> ResponseFuture {
        self.call(head, body, peer)
    }
}
