//! Requests under way, and the bodies of their responses, with their connection's eyes on them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;

use ::http::Version;
use bytes::Bytes;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;

use crate::http::SignOfLife;
use crate::scoreboard::refusal::Refusal;
use crate::worker::connection::Entry;

/// A request under way, until its drop.
#[derive(Debug)]
pub(super) struct UnderWay {
    entry: Arc<Entry>,
    http2: bool,
    /// Its client ends the connection with it anyway.
    ends: bool,
}

impl UnderWay {
    /// A request has come; `ends` says whether its client ends the connection with it, and is asked only where that
    /// matters.
    pub(super) fn begin(entry: &Arc<Entry>, version: Version, ends: impl FnOnce() -> bool) -> Self {
        let http2 = version == Version::HTTP_2;
        entry.asked(http2);
        let ends = !http2 && entry.has_surplus() && ends();
        Self { entry: Arc::clone(entry), http2, ends }
    }

    /// It is refused.
    pub(super) fn turned_away(&self, why: Refusal) {
        self.entry.turned_away(why);
    }

    /// Whether it came over HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        self.http2
    }

    /// Its response takes the connection out of HTTP.
    pub(super) fn upgrades(&self) {
        self.entry.upgraded();
    }

    /// Its response is a stream that can be told to give a sign of life.
    pub(super) fn can_sign(&self, sign: SignOfLife) {
        self.entry.connection.keep_sign(sign);
    }

    /// Whether the connection ends with its response: something of the request's body is left unread, or the worker has
    /// too many connections and this one `may_stay`. In HTTP/2 that would end requests that have nothing to do with it.
    ///
    /// Asked once a response: the answer may use up one of those that are to end.
    pub(super) fn must_close(&self, may_stay: impl FnOnce() -> bool) -> bool {
        !self.http2 && (self.entry.connection.is_unread() || !self.ends && self.entry.takes_end(may_stay))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.entry.answered();
    }
}

/// A response's body that keeps its request under way until hyper has taken all of it.
///
/// In HTTP/2 it says whether it has something that the client gives no room for: hyper does not ask for it then, and
/// the connection itself does not stall.
#[derive(Debug)]
pub(super) struct Sending<B> {
    body: B,
    under_way: UnderWay,
    held: bool,
}

impl<B> Sending<B> {
    pub(super) fn new(body: B, under_way: UnderWay) -> Self {
        let mut sending = Self { body, under_way, held: false };
        sending.hold(true);
        sending
    }

    /// Whether it now waits for the client, and no longer for its source.
    fn hold(&mut self, held: bool) {
        if self.under_way.http2 {
            self.under_way.entry.body_moved(std::mem::replace(&mut self.held, held), held);
        }
    }
}

impl<B> Drop for Sending<B> {
    fn drop(&mut self) {
        self.hold(false);
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Sending<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        self.hold(polled.is_ready());
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
