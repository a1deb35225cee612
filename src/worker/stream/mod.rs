//! A connection's bytes, with its entry's eyes on them.

mod end;
mod turn;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use crate::scoreboard::refusal::Closing;
use crate::sys::fd;
use crate::worker::connection::Entry;
use crate::worker::connection::Side;
use crate::worker::frames::Budget;
use crate::worker::frames::Frames;
use crate::worker::gate::Gate;
use crate::worker::gate::Ticket;
use crate::worker::half_closed::HalfClosed;
use crate::worker::linger;
use crate::worker::linger::Linger;
use crate::worker::refusals::Refusals;
use crate::worker::stream::turn::Turn;

/// A stream that reports what passes through it. It owns its connection's entry and place, which it therefore keeps
/// when the connection is upgraded and leaves hyper's hands.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) stream: TcpStream,
    pub(super) entry: Arc<Entry>,
    place: Option<OwnedSemaphorePermit>,
    /// Where its requests wait; none: they never do.
    pub(super) gate: Option<Arc<Gate>>,
    pub(super) refusals: Arc<Refusals>,
    /// Its place in the queue, while a request waits unread.
    ticket: Option<Arc<Ticket>>,
    /// What a client may still send once our side has ended.
    discarded_max: linger::Bound,
    /// Whether our side has ended.
    has_ended: bool,
    /// It has, and is waited for until the client's does.
    linger: Option<Linger>,
    /// Its client has ended its side, and waits for answers.
    half_closed: Option<HalfClosed>,
    /// Whether hyper has given it something since it last said that this was all.
    unflushed: bool,
    incoming: Frames,
    /// Its answers and what its client may send beside requests, once it is known to speak HTTP/2.
    http2: Option<(Frames, Budget)>,
}

impl Watched {
    pub(super) fn new(
        stream: TcpStream,
        entry: Arc<Entry>,
        place: OwnedSemaphorePermit,
        gate: Option<Arc<Gate>>,
        refusals: Arc<Refusals>,
        discarded_max: linger::Bound,
    ) -> Self {
        Self {
            stream,
            entry,
            place: Some(place),
            gate,
            refusals,
            ticket: None,
            discarded_max,
            has_ended: false,
            linger: None,
            half_closed: None,
            unflushed: false,
            incoming: Frames::incoming(),
            http2: None,
        }
    }

    /// Takes note of what came.
    fn note_read(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.entry.read(bytes.len());
        let seen = self.incoming.scan(bytes);
        if self.http2.is_none() && self.incoming.is_http2() {
            self.http2 = Some((Frames::outgoing(), Budget::new(self.entry.tick())));
        }
        let Some((_, budget)) = &mut self.http2 else { return Ok(()) };
        if budget.take(self.entry.tick(), seen.control) {
            return Ok(());
        }
        self.entry.closed(Closing::ControlFrames);
        Err(io::ErrorKind::ConnectionAborted.into())
    }

    /// Takes note of what went, as far as it was taken.
    fn note_written(&mut self, written: &Poll<io::Result<usize>>, bytes: &[io::IoSlice<'_>]) {
        let mut left = match written {
            Poll::Ready(Ok(count)) if *count > 0 => *count,
            Poll::Pending => return self.entry.stalls(),
            Poll::Ready(_) => return,
        };
        self.entry.sent(left);
        if let Some(half_closed) = &mut self.half_closed {
            half_closed.sent(self.entry.tick());
        }
        let Some((outgoing, budget)) = &mut self.http2 else { return };
        for piece in bytes {
            let seen = outgoing.scan(&piece[..left.min(piece.len())]);
            budget.answered(seen.useful);
            self.entry.body_sent(seen.data);
            left = left.saturating_sub(piece.len());
        }
    }

    /// Ends what has left HTTP and has to end, whichever task has it now.
    fn check(&self, side: Side, context: &Context<'_>) -> io::Result<()> {
        let connection = &self.entry.connection;
        match connection.is_upgraded() && self.entry.must_end(side, context.waker()) {
            true => Err(io::ErrorKind::ConnectionAborted.into()),
            false => Ok(()),
        }
    }
}

/// Reads past the reactor, which may not have been told yet of what the kernel has; none when that is nothing.
fn look_again(stream: &TcpStream, buffer: &mut ReadBuf<'_>) -> Option<Poll<io::Result<()>>> {
    match fd::receive_now(stream, buffer.initialize_unfilled()) {
        Ok(count) => {
            buffer.advance(count);
            Some(Poll::Ready(Ok(())))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) => Some(Poll::Ready(Err(error))),
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(Side::Reader, context)?;
        if self.half_closed.is_some() {
            return self.poll_end(context);
        }
        let mut turn = Turn::Free;
        if self.linger.is_none() && self.gate.is_some() {
            match self.entry.connection.may_wait() {
                true => turn = ready!(self.poll_turn(context))?,
                false => self.give_up_waiting(),
            }
        }
        if self.entry.connection.is_header_refused() {
            self.refuse_header()?;
        }
        if let Some(over) = self.poll_linger(context) {
            return over.map(Ok);
        }
        let before = buffer.filled().len();
        let mut polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if polled.is_pending() && self.entry.connection.is_looked_at() {
            polled = look_again(&self.stream, buffer).unwrap_or(Poll::Pending);
        }
        if buffer.filled().len() > before {
            self.note_read(&buffer.filled()[before..])?;
            if turn == Turn::Open {
                self.begin();
            }
        } else if matches!(polled, Poll::Ready(Ok(()))) {
            return self.poll_end(context);
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(Side::Writer, context)?;
        self.unflushed = true;
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note_written(&written, &[io::IoSlice::new(bytes)]);
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.unflushed = false;
        if self.incoming.is_http2() {
            return Poll::Ready(Ok(()));
        }
        if self.entry.connection.is_busy() {
            self.watch_end(context)?;
        }
        if self.half_closed.is_some() && !self.entry.connection.awaits_answer() {
            // hyper reads once more, and finds the end.
            context.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    /// The end of our side, and then, if its client may still be sending, of the connection.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(over) = self.poll_linger(context) {
            return over.map(Ok);
        }
        ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
        self.has_ended = true;
        if self.entry.connection.is_upgraded() || !self.is_sent_to() {
            return Poll::Ready(Ok(()));
        }
        self.begin_linger();
        self.poll_linger(context).unwrap_or(Poll::Ready(())).map(Ok)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(Side::Writer, context)?;
        self.unflushed = true;
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.note_written(&written, bytes);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::num::NonZeroUsize;
    use std::time::Duration;

    use tokio::net::TcpListener;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::scoreboard::Scoreboard;
    use crate::worker::connection::Connections;
    use crate::worker::connection::Patience;

    #[tokio::test]
    async fn what_the_reactor_does_not_know_yet_is_found_by_looking_closely() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let scoreboard = Arc::new(Scoreboard::create(NonZeroUsize::MIN, 1, 0).unwrap());
        let (header_memory, per_client) = (usize::MAX, usize::MAX);
        let patience = Patience { header: Duration::MAX, idle: Duration::MAX, header_memory, per_client };
        let entry = Arc::new(Arc::new(Connections::new(patience, scoreboard, 0, 0)).open(None).unwrap());
        let place = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
        let refusals = Arc::new(Refusals::new(1));
        let mut watched =
            Watched::new(stream, Arc::clone(&entry), place, None, refusals, linger::Bound::new(0));
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut bytes = [0; 16];
        let mut read = |watched: &mut Watched| {
            let mut buffer = ReadBuf::new(&mut bytes);
            let polled = Pin::new(watched).poll_read(&mut context, &mut buffer);
            polled.is_ready().then(|| buffer.filled().to_vec())
        };
        assert_eq!(read(&mut watched), None);
        client.write_all(b"request").unwrap();
        assert_eq!(read(&mut watched), None, "the reactor had no turn since");
        entry.connection.look(true);
        assert_eq!(read(&mut watched), Some(b"request".to_vec()));
        assert_eq!(read(&mut watched), None);
    }
}
