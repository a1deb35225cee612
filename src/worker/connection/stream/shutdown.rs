//! How a connection ends: its client's side first, or ours.

use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::runtime::Handle;

use crate::scoreboard::refusal_reason::RefusalReason;
use crate::sys::{fd, tcp_socket};
use crate::worker::connection::half_closed::HalfClosed;
use crate::worker::connection::linger::LingeringClose;
use crate::worker::connection::stream::TrackedStream;

impl TrackedStream {
    pub(super) fn send_refusal(&mut self, reason: RefusalReason, head_only: bool) {
        // Whatever of it does not fit into an empty buffer is for a client that reads nothing.
        let _ = fd::send_now(&self.stream, self.refusals.get(reason).bytes(head_only));
        self.guard.count_refused(reason);
        let _ = tcp_socket::shut_down_write(&self.stream);
        self.start_linger();
    }

    pub(super) fn start_linger(&mut self) {
        self.guard.start_linger();
        self.linger = Some(LingeringClose::new(self.discarded_max));
    }

    /// Waits until it may be closed; none: our side has not ended.
    pub(super) fn poll_linger(&mut self, context: &mut Context<'_>) -> Option<Poll<()>> {
        let Self { linger, stream, .. } = self;
        linger.as_mut().map(|linger| linger.poll(stream, context))
    }

    /// Whether closing it now could take its last answer back: its client is sending something that is not read.
    pub(super) fn has_unread_input(&self) -> bool {
        let is_left = self.guard.state.has_unread_input() || self.guard.state.is_http2();
        // What has left HTTP has read up to the last word of the other side, or has been left alone by it.
        is_left || matches!(fd::receive_now(&self.stream, &mut [0; 512]), Ok(1..))
    }

    /// The client has ended its side: hyper is told when all that was asked for is on its way, and would otherwise give
    /// up what it is answering.
    pub(super) fn poll_client_eof(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let connection = &self.guard.state;
        let (tick, awaits) = (self.guard.tick(), connection.awaits_answer());
        // What came just before the end of HTTP/2 is taken up after it was read, and what was answered is sent after
        // that was read again.
        let is_quiet = !self.incoming.is_http2()
            || self.half_closed.as_ref().is_some_and(|half_closed| half_closed.is_quiet(tick));
        let is_answered = !awaits && !self.unflushed && is_quiet;
        // All of a body may be here that its handler has not taken: hyper would drop it, and the answer.
        let is_cut_short = connection.is_body_starved()
            && self.half_closed.as_ref().is_some_and(|half_closed| half_closed.is_quiet(tick));
        if is_answered && !connection.is_receiving() || is_cut_short || connection.is_upgraded() {
            return Poll::Ready(Ok(()));
        }
        let half_closed = self.half_closed.get_or_insert_with(|| HalfClosed::new(tick));
        if awaits {
            half_closed.record_awaiting(tick);
        }
        half_closed.poll_gone(&self.stream, &self.guard, context).map(Err)
    }

    /// Looks whether the client of a request under way has ended its side, and has the task woken when it does: hyper
    /// reads nothing meanwhile. It flushes whenever it is polled, and so this is where it learns that a client is gone.
    pub(super) fn watch_client_eof(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.linger.is_some() || self.guard.state.is_upgraded() {
            return Ok(());
        }
        if self.half_closed.is_none() {
            match self.stream.poll_peek(context, &mut ReadBuf::new(&mut [0])) {
                Poll::Ready(Ok(0)) => {}
                // A next request that is there already, or more of a body, hides an end behind it until it is read.
                Poll::Pending | Poll::Ready(Ok(_)) => return Ok(()),
                Poll::Ready(Err(error)) => return Err(error),
            }
        }
        match self.poll_client_eof(context) {
            Poll::Ready(Err(error)) => Err(error),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    /// Refuses a header that is too large to be waited for at the moment.
    pub(super) fn refuse_header(&mut self) -> io::Result<()> {
        self.guard.clear_header_refusal();
        if self.incoming.is_http2() {
            // It has not even asked yet, so nothing of it is lost.
            self.guard.count_refused(RefusalReason::HeaderMemory);
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        self.send_refusal(RefusalReason::HeaderMemory, false);
        // Its memory is what is short, and hyper has it.
        self.linger_detached();
        Err(io::ErrorKind::ConnectionAborted.into())
    }

    /// Lingers without whatever had the stream: only the socket, its entry and its place are kept.
    fn linger_detached(&mut self) {
        let Ok(runtime) = Handle::try_current() else { return };
        let socket = self.stream.as_fd().try_clone_to_owned();
        let Ok(mut stream) = socket.and_then(|socket| TcpStream::from_std(socket.into())) else { return };
        let mut linger = self.linger.take().unwrap_or_else(|| LingeringClose::new(self.discarded_max));
        let guards = (Arc::clone(&self.guard), self.permit.take());
        runtime.spawn(async move {
            poll_fn(|context| linger.poll(&mut stream, context)).await;
            drop(guards);
        });
    }
}

impl Drop for TrackedStream {
    fn drop(&mut self) {
        self.cancel_waiting();
        let connection = &self.guard.state;
        if self.linger.is_some() || self.guard.is_aborted() {
            return;
        }
        // hyper gives a connection up without ending its side where reading the rest of a body failed, after it has
        // answered: closed at once, that answer would be lost. Our side cannot end where the client has reset it.
        let is_given_up = !self.is_shut_down
            && connection.has_unread_input()
            && !connection.is_http2()
            && tcp_socket::shut_down_write(&self.stream).is_ok();
        // What has left HTTP may go on reading after it has ended its side, and lingers when it does so no more.
        if is_given_up || self.is_shut_down && connection.is_upgraded() {
            self.guard.start_linger();
            self.linger_detached();
        }
    }
}
