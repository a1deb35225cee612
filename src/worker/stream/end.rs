//! How a connection ends: its client's side first, or ours.

use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;

use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::runtime::Handle;

use crate::scoreboard::refusal::Refusal;
use crate::sys::fd;
use crate::sys::socket;
use crate::worker::half_closed::HalfClosed;
use crate::worker::linger::Linger;
use crate::worker::stream::Watched;

impl Watched {
    pub(super) fn send_refusal(&mut self, why: Refusal, head_only: bool) {
        // Whatever of it does not fit into an empty buffer is for a client that reads nothing.
        let _ = fd::send_now(&self.stream, self.refusals.get(why).bytes(head_only));
        self.entry.turned_away(why);
        let _ = socket::finish_sending(&self.stream);
        self.begin_linger();
    }

    pub(super) fn begin_linger(&mut self) {
        self.entry.lingers();
        self.linger = Some(Linger::new(self.discarded_max));
    }

    /// Waits until it may be closed; none: our side has not ended.
    pub(super) fn poll_linger(&mut self, context: &mut Context<'_>) -> Option<Poll<()>> {
        let Self { linger, stream, .. } = self;
        linger.as_mut().map(|linger| linger.poll(stream, context))
    }

    /// Whether closing it now could take its last answer back: its client is sending something that is not read.
    pub(super) fn is_sent_to(&self) -> bool {
        let is_left = self.entry.connection.is_unread() || self.entry.connection.is_http2();
        // What has left HTTP has read up to the last word of the other side, or has been left alone by it.
        is_left || matches!(fd::receive_now(&self.stream, &mut [0; 512]), Ok(1..))
    }

    /// The client has ended its side: hyper is told when all that was asked for is on its way, and would otherwise give
    /// up what it is answering.
    pub(super) fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let connection = &self.entry.connection;
        let (tick, awaits) = (self.entry.tick(), connection.awaits_answer());
        // What came just before the end of HTTP/2 is taken up after it was read, and what was answered is sent after
        // that was read again.
        let is_settled = !self.incoming.is_http2()
            || self.half_closed.as_ref().is_some_and(|half_closed| half_closed.is_settled(tick));
        let is_answered = !awaits && !self.unflushed && is_settled;
        // All of a body may be here that its handler has not taken: hyper would drop it, and the answer.
        let is_cut_short = connection.is_starving()
            && self.half_closed.as_ref().is_some_and(|half_closed| half_closed.is_settled(tick));
        if is_answered && !connection.is_receiving() || is_cut_short || connection.is_upgraded() {
            return Poll::Ready(Ok(()));
        }
        let half_closed = self.half_closed.get_or_insert_with(|| HalfClosed::new(tick));
        if awaits {
            half_closed.awaits(tick);
        }
        half_closed.poll_gone(&self.stream, &self.entry, context).map(Err)
    }

    /// Looks whether the client of a request under way has ended its side, and has the task woken when it does: hyper
    /// reads nothing meanwhile. It flushes whenever it is polled, and so this is where it learns that a client is gone.
    pub(super) fn watch_end(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.linger.is_some() || self.entry.connection.is_upgraded() {
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
        match self.poll_end(context) {
            Poll::Ready(Err(error)) => Err(error),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    /// Refuses a header that is too large to be waited for at the moment.
    pub(super) fn refuse_header(&mut self) -> io::Result<()> {
        self.entry.header_spared();
        if self.incoming.is_http2() {
            // It has not even asked yet, so nothing of it is lost.
            self.entry.turned_away(Refusal::HeaderMemory);
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        self.send_refusal(Refusal::HeaderMemory, false);
        // Its memory is what is short, and hyper has it.
        self.linger_alone();
        Err(io::ErrorKind::ConnectionAborted.into())
    }

    /// Lingers without whatever had the stream: only the socket, its entry and its place are kept.
    fn linger_alone(&mut self) {
        let Ok(runtime) = Handle::try_current() else { return };
        let socket = self.stream.as_fd().try_clone_to_owned();
        let Ok(mut stream) = socket.and_then(|socket| TcpStream::from_std(socket.into())) else { return };
        let mut linger = self.linger.take().unwrap_or_else(|| Linger::new(self.discarded_max));
        let kept = (Arc::clone(&self.entry), self.place.take());
        runtime.spawn(async move {
            poll_fn(|context| linger.poll(&mut stream, context)).await;
            drop(kept);
        });
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.give_up_waiting();
        let connection = &self.entry.connection;
        if self.linger.is_some() || self.entry.is_cut() {
            return;
        }
        // hyper gives a connection up without ending its side where reading the rest of a body failed, after it has
        // answered: closed at once, that answer would be lost. Our side cannot end where the client has reset it.
        let is_given_up = !self.has_ended
            && connection.is_unread()
            && !connection.is_http2()
            && socket::finish_sending(&self.stream).is_ok();
        // What has left HTTP may go on reading after it has ended its side, and lingers when it does so no more.
        if is_given_up || self.has_ended && connection.is_upgraded() {
            self.entry.lingers();
            self.linger_alone();
        }
    }
}
