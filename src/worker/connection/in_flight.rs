//! Requests under way, and the bodies of their responses, as their connection counts them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ::http::Version;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::http::KeepAliveTrigger;
use crate::scoreboard::refusal_reason::RefusalReason;
use crate::worker::connection::guard::ConnectionGuard;

/// A request under way, until its drop.
#[derive(Debug)]
pub(in crate::worker) struct InFlightRequest {
    guard: Arc<ConnectionGuard>,
    http2: bool,
    /// Its client ends the connection with it anyway.
    client_closes: bool,
}

impl InFlightRequest {
    /// A request has come; `client_closes`: whether its client ends the connection with it, called only where that
    /// matters.
    pub(in crate::worker) fn start(
        guard: &Arc<ConnectionGuard>,
        version: Version,
        client_closes: impl FnOnce() -> bool,
    ) -> Self {
        let http2 = version == Version::HTTP_2;
        guard.request_started(http2);
        let client_closes = !http2 && guard.has_surplus() && client_closes();
        Self { guard: Arc::clone(guard), http2, client_closes }
    }

    /// It is refused.
    pub(in crate::worker) fn count_refused(&self, reason: RefusalReason) {
        self.guard.count_refused(reason);
    }

    /// Whether it came over HTTP/2.
    pub(in crate::worker) fn is_http2(&self) -> bool {
        self.http2
    }

    /// Its response takes the connection out of HTTP.
    pub(in crate::worker) fn set_upgraded(&self) {
        self.guard.set_upgraded();
    }

    /// Its response is a stream that can be made to give a sign of life.
    pub(in crate::worker) fn add_sign_of_life(&self, sign: KeepAliveTrigger) {
        self.guard.connection.add_sign_of_life(sign);
    }

    /// Whether the connection ends with its response: something of the request's body is left unread, or the worker has
    /// too many connections and this one `may_stay`. In HTTP/2 that would end requests that have nothing to do with it.
    ///
    /// Asked once a response: the answer may use up one of those that are to end.
    pub(in crate::worker) fn must_close(&self, may_stay: impl FnOnce() -> bool) -> bool {
        !self.http2
            && (self.guard.connection.has_unread_input()
                || !self.client_closes && self.guard.take_surplus(may_stay))
    }
}

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        self.guard.response_taken();
    }
}

/// A response's body that keeps its request under way until hyper has taken all of it.
///
/// In HTTP/2 it reports whether it has something that the client gives no room for: hyper does not poll it then, and the
/// connection itself does not stall.
#[derive(Debug)]
pub(in crate::worker) struct TrackedBody<B> {
    body: B,
    request: InFlightRequest,
    blocked: bool,
}

impl<B> TrackedBody<B> {
    pub(in crate::worker) fn new(body: B, request: InFlightRequest) -> Self {
        let mut tracked = Self { body, request, blocked: false };
        tracked.set_blocked(true);
        tracked
    }

    /// Whether it now waits for the client, and no longer for its source.
    fn set_blocked(&mut self, blocked: bool) {
        if self.request.http2 {
            self.request.guard.set_body_blocked(std::mem::replace(&mut self.blocked, blocked), blocked);
        }
    }
}

impl<B> Drop for TrackedBody<B> {
    fn drop(&mut self) {
        self.set_blocked(false);
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for TrackedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        self.set_blocked(polled.is_ready());
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
