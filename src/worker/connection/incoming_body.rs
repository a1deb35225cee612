//! The body of a request, as its connection counts it: whether something of it is still to come.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::worker::connection::guard::ConnectionGuard;
use crate::worker::connection::linger;

/// Rest of a body that is read so that its connection can be used again; of more than that the connection ends.
const DISCARD_MAX: u64 = 64 << 10;

/// How long that rest may take.
const DISCARD_TIMEOUT: Duration = linger::LINGER_TIMEOUT;

/// A request's body, until its end or until it is given up.
///
/// What a handler leaves unread of an HTTP/1 body is read and thrown away if it is little: the next request comes
/// behind it. It costs a task, which nothing waits for. HTTP/2 cancels a stream by itself.
#[derive(Debug)]
pub(in crate::worker) struct IncomingBody {
    body: Option<Incoming>,
    /// None: nothing is to come.
    pending: Option<PendingBody>,
}

/// A body that is to come, as its connection counts it.
#[derive(Debug)]
struct PendingBody {
    guard: Arc<ConnectionGuard>,
    http2: bool,
    /// Whether the client waits for 100 (Continue) before it sends it: then it may never come.
    expects_continue: bool,
    /// Whether its handler waits for more than has come.
    starved: bool,
}

impl IncomingBody {
    /// `expects_continue`: its client waits for 100 (Continue).
    pub(in crate::worker) fn new(
        body: Incoming,
        guard: &Arc<ConnectionGuard>,
        http2: bool,
        expects_continue: bool,
    ) -> Self {
        let pending = (!body.is_end_stream()).then(|| {
            guard.request_body_started();
            PendingBody { guard: Arc::clone(guard), http2, expects_continue, starved: false }
        });
        Self { body: Some(body), pending }
    }
}

impl Drop for PendingBody {
    fn drop(&mut self) {
        self.set_starved(false);
        self.guard.request_body_finished();
    }
}

impl PendingBody {
    fn set_starved(&mut self, starved: bool) {
        if std::mem::replace(&mut self.starved, starved) != starved {
            self.guard.set_body_starved(starved);
        }
    }

    /// Nothing more of it is read.
    fn abandon(self) {
        if !self.http2 {
            self.guard.mark_unread();
        }
    }
}

impl Drop for IncomingBody {
    fn drop(&mut self) {
        let (Some(pending), Some(body)) = (self.pending.take(), self.body.take()) else { return };
        let is_little = body.size_hint().lower() <= DISCARD_MAX;
        match Handle::try_current() {
            Ok(runtime) if is_little && !pending.http2 && !pending.expects_continue => {
                runtime.spawn(discard_rest(body, pending));
            }
            _ => pending.abandon(),
        }
    }
}

/// Reads the rest of a body, if there is little of it and it comes soon.
async fn discard_rest(mut body: Incoming, pending: PendingBody) {
    let whole = async {
        let mut left = DISCARD_MAX;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return false };
            let length = frame.data_ref().map_or(0, Bytes::len);
            let Some(rest) = left.checked_sub(u64::try_from(length).unwrap_or(u64::MAX)) else {
                return false;
            };
            left = rest;
        }
        true
    };
    if timeout(DISCARD_TIMEOUT, whole).await != Ok(true) {
        // Before hyper sees that it is given up, and closes.
        pending.abandon();
    }
}

impl Body for IncomingBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        let polled = Pin::new(&mut *body).poll_frame(context);
        if let Some(pending) = &mut this.pending {
            pending.set_starved(polled.is_pending());
        }
        match &polled {
            Poll::Ready(Some(Ok(_))) if !body.is_end_stream() => {}
            Poll::Ready(Some(Ok(_)) | None) => this.pending = None,
            Poll::Ready(Some(Err(_))) => {
                if let Some(pending) = this.pending.take() {
                    pending.abandon();
                }
            }
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}
