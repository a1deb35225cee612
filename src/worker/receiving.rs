//! The body of a request, with its connection's eyes on it: whether something of it is still to come.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::worker::connection::Entry;
use crate::worker::linger;

/// Rest of a body that is read so that its connection can be used again; of more than that the connection ends.
const REST_MAX: u64 = 64 << 10;

/// How long that rest may take.
const REST_TIME: Duration = linger::TIME;

/// A request's body, until its end or until it is given up.
///
/// What a handler leaves unread of an HTTP/1 body is read and thrown away if it is little: the next request comes
/// behind it. It costs a task, which nothing waits for. HTTP/2 cancels a stream by itself.
#[derive(Debug)]
pub(super) struct Receiving {
    body: Option<Incoming>,
    /// None: nothing is to come.
    coming: Option<Coming>,
}

/// A body that is to come, on its connection's books.
#[derive(Debug)]
struct Coming {
    entry: Arc<Entry>,
    http2: bool,
    /// Whether the client waits to be told before it sends it: then it may never come.
    announced: bool,
    /// Whether its handler waits for more than has come.
    starves: bool,
}

impl Receiving {
    /// `announced`: its client has said that it waits for 100 (Continue).
    pub(super) fn new(body: Incoming, entry: &Arc<Entry>, http2: bool, announced: bool) -> Self {
        let coming = (!body.is_end_stream()).then(|| {
            entry.body_begins();
            Coming { entry: Arc::clone(entry), http2, announced, starves: false }
        });
        Self { body: Some(body), coming }
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.starves(false);
        self.entry.body_ended();
    }
}

impl Coming {
    fn starves(&mut self, starves: bool) {
        if std::mem::replace(&mut self.starves, starves) != starves {
            self.entry.body_starves(starves);
        }
    }

    /// Nothing more of it is read.
    fn give_up(self) {
        if !self.http2 {
            self.entry.left_unread();
        }
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        let (Some(coming), Some(body)) = (self.coming.take(), self.body.take()) else { return };
        let is_little = body.size_hint().lower() <= REST_MAX;
        match Handle::try_current() {
            Ok(runtime) if is_little && !coming.http2 && !coming.announced => {
                runtime.spawn(throw_away(body, coming));
            }
            _ => coming.give_up(),
        }
    }
}

/// Reads the rest of a body, if there is little of it and it comes soon.
async fn throw_away(mut body: Incoming, coming: Coming) {
    let whole = async {
        let mut left = REST_MAX;
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
    if timeout(REST_TIME, whole).await != Ok(true) {
        // Before hyper sees that it is given up, and closes.
        coming.give_up();
    }
}

impl Body for Receiving {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        let polled = Pin::new(&mut *body).poll_frame(context);
        if let Some(coming) = &mut this.coming {
            coming.starves(polled.is_pending());
        }
        match &polled {
            Poll::Ready(Some(Ok(_))) if !body.is_end_stream() => {}
            Poll::Ready(Some(Ok(_)) | None) => this.coming = None,
            Poll::Ready(Some(Err(_))) => {
                if let Some(coming) = this.coming.take() {
                    coming.give_up();
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
