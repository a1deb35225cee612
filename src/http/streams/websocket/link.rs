//! What a handler's WebSocket and the pump that reads and writes its connection share: one message each way, and how the
//! socket ends.
//!
//! Guarantees that a socket holds at most one received message beyond the connection's own buffer, and one that was given
//! to it to send: a client that sends without end waits for the handler, and a handler for a client that reads nothing.
//! It knows no connection and no time.

use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use axum::extract::ws::{CloseFrame, Message};

use crate::http::streams::websocket::error::SocketError;

/// How a handler wants its socket closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CloseRequest(pub(super) Option<CloseFrame>);

#[derive(Debug, Default)]
pub(super) struct Link(Mutex<LinkState>);

#[derive(Debug, Default)]
struct LinkState {
    phase: LinkPhase,
    /// Received, and not yet taken by the handler.
    inbox: Option<Message>,
    /// Given by the handler, and not yet taken by the pump.
    outbox: Option<Message>,
    /// Something that was given was not written to the connection yet.
    is_unflushed: bool,
    /// Why it failed, until the handler has seen it.
    failure: Option<SocketError>,
    close_request: Option<CloseRequest>,
    /// The handler's end is gone: what is received is dropped.
    is_abandoned: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    pump: Option<Waker>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum LinkPhase {
    /// Messages go both ways.
    #[default]
    Open,
    /// Nothing more is taken from the handler; what the client sent before it learnt of it still comes.
    Closing,
    /// Nothing more comes.
    Ended,
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

fn remember(slot: &mut Option<Waker>, context: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(context.waker()),
        None => *slot = Some(context.waker().clone()),
    }
}

/// The handler's side.
impl Link {
    fn lock(&self) -> MutexGuard<'_, LinkState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next message; none once the socket has ended.
    pub(super) fn poll_receive(&self, context: &Context<'_>) -> Poll<Option<Result<Message, SocketError>>> {
        let mut state = self.lock();
        if let Some(message) = state.inbox.take() {
            wake(&mut state.pump);
            return Poll::Ready(Some(Ok(message)));
        }
        if let Some(failure) = state.failure.take() {
            return Poll::Ready(Some(Err(failure)));
        }
        if state.phase == LinkPhase::Ended {
            return Poll::Ready(None);
        }
        remember(&mut state.reader, context);
        Poll::Pending
    }

    /// Whether a message can be given.
    pub(super) fn poll_ready(&self, context: &Context<'_>) -> Poll<Result<(), SocketError>> {
        let mut state = self.lock();
        if state.phase != LinkPhase::Open || state.close_request.is_some() {
            return Poll::Ready(Err(SocketError::Closed));
        }
        if state.outbox.is_none() {
            return Poll::Ready(Ok(()));
        }
        remember(&mut state.writer, context);
        Poll::Pending
    }

    /// Gives a message; a close frame asks for the end.
    pub(super) fn give(&self, message: Message) -> Result<(), SocketError> {
        if let Message::Close(frame) = message {
            return match self.request_close(frame) {
                true => Ok(()),
                false => Err(SocketError::Closed),
            };
        }
        let mut state = self.lock();
        if state.phase != LinkPhase::Open || state.close_request.is_some() || state.outbox.is_some() {
            return Err(SocketError::Closed);
        }
        state.outbox = Some(message);
        state.is_unflushed = true;
        wake(&mut state.pump);
        Ok(())
    }

    /// Whether all that was given was written.
    pub(super) fn poll_flush(&self, context: &Context<'_>) -> Poll<Result<(), SocketError>> {
        let mut state = self.lock();
        if !state.is_unflushed {
            return Poll::Ready(Ok(()));
        }
        if state.phase == LinkPhase::Ended {
            return Poll::Ready(Err(SocketError::Closed));
        }
        remember(&mut state.writer, context);
        Poll::Pending
    }

    /// Whether the socket has ended.
    pub(super) fn poll_ended(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.phase == LinkPhase::Ended {
            return Poll::Ready(());
        }
        remember(&mut state.writer, context);
        Poll::Pending
    }

    /// Asks for the end, once; whether it was the first to do so.
    pub(super) fn request_close(&self, frame: Option<CloseFrame>) -> bool {
        let mut state = self.lock();
        let is_first = state.phase == LinkPhase::Open && state.close_request.is_none();
        if is_first {
            state.close_request = Some(CloseRequest(frame));
            wake(&mut state.pump);
        }
        is_first
    }

    /// The handler reads nothing any more.
    pub(super) fn abandon(&self) {
        let mut state = self.lock();
        state.is_abandoned = true;
        state.inbox = None;
        wake(&mut state.pump);
    }
}

/// The pump's side.
impl Link {
    /// Has what the handler does next wake the pump.
    pub(super) fn watch(&self, context: &Context<'_>) {
        remember(&mut self.lock().pump, context);
    }

    /// Whether a message can be delivered; if not, taking the last one wakes the pump.
    pub(super) fn has_room(&self) -> bool {
        self.lock().inbox.is_none()
    }

    /// Delivers a received message; there has to be room.
    pub(super) fn deliver(&self, message: Message) {
        let mut state = self.lock();
        if !state.is_abandoned {
            state.inbox = Some(message);
            wake(&mut state.reader);
        }
    }

    /// The message that is to be sent next.
    pub(super) fn take_outgoing(&self) -> Option<Message> {
        let mut state = self.lock();
        let message = state.outbox.take()?;
        wake(&mut state.writer);
        Some(message)
    }

    /// Whether a message waits to be sent.
    pub(super) fn has_outgoing(&self) -> bool {
        self.lock().outbox.is_some()
    }

    /// All that was taken was written.
    pub(super) fn set_flushed(&self) {
        let mut state = self.lock();
        if state.outbox.is_none() && mem::take(&mut state.is_unflushed) {
            wake(&mut state.writer);
        }
    }

    /// How the handler wants the socket closed, if it does.
    pub(super) fn close_request(&self) -> Option<CloseRequest> {
        self.lock().close_request.clone()
    }

    /// Takes nothing more from the handler, which is told of a failure after what was received before it.
    pub(super) fn start_closing(&self, failure: Option<SocketError>) {
        let mut state = self.lock();
        state.phase = LinkPhase::Closing;
        state.failure = failure;
        wake(&mut state.reader);
        wake(&mut state.writer);
    }

    /// Nothing more comes.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.phase = LinkPhase::Ended;
        state.outbox = None;
        wake(&mut state.reader);
        wake(&mut state.writer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> Context<'static> {
        Context::from_waker(Waker::noop())
    }

    #[test]
    fn one_message_each_way_and_no_more() {
        let link = Link::default();
        assert!(link.poll_receive(&context()).is_pending() && link.has_room());
        link.deliver(Message::text("one"));
        assert!(!link.has_room());
        assert_eq!(link.poll_receive(&context()), Poll::Ready(Some(Ok(Message::text("one")))));
        assert!(link.poll_ready(&context()).is_ready());
        link.give(Message::text("two")).unwrap();
        assert!(link.poll_ready(&context()).is_pending() && link.poll_flush(&context()).is_pending());
        assert_eq!(link.take_outgoing(), Some(Message::text("two")));
        assert!(link.poll_ready(&context()).is_ready() && link.poll_flush(&context()).is_pending());
        link.set_flushed();
        assert_eq!(link.poll_flush(&context()), Poll::Ready(Ok(())));
    }

    #[test]
    fn what_was_received_comes_before_the_failure_and_the_end() {
        let link = Link::default();
        link.deliver(Message::text("last"));
        link.start_closing(Some(SocketError::Disconnected));
        link.end();
        assert_eq!(link.poll_receive(&context()), Poll::Ready(Some(Ok(Message::text("last")))));
        assert_eq!(link.poll_receive(&context()), Poll::Ready(Some(Err(SocketError::Disconnected))));
        assert_eq!(link.poll_receive(&context()), Poll::Ready(None));
        assert_eq!(link.poll_receive(&context()), Poll::Ready(None), "it stays at its end");
        assert_eq!(link.give(Message::text("too late")), Err(SocketError::Closed));
    }

    #[test]
    fn the_first_request_to_close_counts() {
        let link = Link::default();
        let frame = CloseFrame { code: 4000, reason: "".into() };
        link.give(Message::Close(Some(frame.clone()))).unwrap();
        assert!(!link.request_close(None));
        assert_eq!(link.close_request(), Some(CloseRequest(Some(frame))));
        assert_eq!(link.poll_ready(&context()), Poll::Ready(Err(SocketError::Closed)));
    }

    #[test]
    fn nothing_is_kept_for_a_handler_that_is_gone() {
        let link = Link::default();
        link.deliver(Message::text("one"));
        link.abandon();
        assert!(link.has_room());
        link.deliver(Message::text("two"));
        assert!(link.has_room());
    }
}
