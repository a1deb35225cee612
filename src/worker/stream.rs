//! A connection's bytes, with its entry's eyes on them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Instant;

use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use crate::scoreboard::refusal::Closing;
use crate::scoreboard::refusal::Refusal;
use crate::sys::fd;
use crate::sys::socket;
use crate::worker::connection::Entry;
use crate::worker::connection::Side;
use crate::worker::frames::Budget;
use crate::worker::frames::Frames;
use crate::worker::frames::PREFACE;
use crate::worker::gate::Arrival;
use crate::worker::gate::Gate;
use crate::worker::gate::Ticket;
use crate::worker::gate::Verdict;
use crate::worker::refusals::Refusals;
use crate::worker::refusals::Rendered;

/// A stream that reports what passes through it. It owns its connection's entry and place, which it therefore keeps
/// when the connection is upgraded and leaves hyper's hands.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) stream: TcpStream,
    pub(super) entry: Arc<Entry>,
    pub(super) _place: OwnedSemaphorePermit,
    /// Where its requests wait; none: they never do.
    pub(super) gate: Option<Arc<Gate>>,
    pub(super) refusals: Arc<Refusals>,
    /// Its place in the queue, while a request waits unread.
    ticket: Option<Arc<Ticket>>,
    /// Bytes discarded since it was refused; none: it was not.
    discarded: Option<usize>,
    incoming: Frames,
    /// Its answers and what its client may send beside requests, once it is known to speak HTTP/2.
    http2: Option<(Frames, Budget)>,
}

/// Bytes that a refused client may still send. Closing while something of it is unread would have the kernel reset the
/// connection, and the refusal be lost with it (RFC 9112 §9.6).
const DISCARDED_MAX: usize = 256 << 10;

impl Watched {
    pub(super) fn new(
        stream: TcpStream,
        entry: Arc<Entry>,
        place: OwnedSemaphorePermit,
        gate: Option<Arc<Gate>>,
        refusals: Arc<Refusals>,
    ) -> Self {
        let incoming = Frames::incoming();
        let (ticket, discarded, http2) = (None, None, None);
        Self { stream, entry, _place: place, gate, refusals, ticket, discarded, incoming, http2 }
    }

    /// Waits until the next request may be read; it stays in the kernel until then.
    ///
    /// Returns whether it was let in from the queue, or found the gate open; none: it was refused.
    fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Turn>> {
        let Some(gate) = &self.gate else { return Poll::Ready(Ok(Turn::Free)) };
        let verdict = match &self.ticket {
            Some(ticket) => {
                let verdict = ready!(ticket.poll(context));
                self.ticket = None;
                self.entry.resume();
                verdict
            }
            None if gate.is_open() => return Poll::Ready(Ok(Turn::Open)),
            None => {
                // Only what has something to read waits.
                ready!(self.stream.poll_read_ready(context))?;
                match gate.arrive() {
                    Arrival::Refused => Verdict::Refused,
                    Arrival::Waits(ticket) => {
                        self.entry.wait();
                        let waits = ticket.poll(context).map(|_| Ok(Turn::Admitted));
                        self.ticket = Some(ticket);
                        return waits;
                    }
                }
            }
        };
        match verdict {
            Verdict::Admitted => {
                self.entry.connection.admit();
                Poll::Ready(Ok(Turn::Admitted))
            }
            Verdict::Refused if self.refuse(Refusal::Overload) => Poll::Ready(Ok(Turn::Refused)),
            Verdict::Refused => Poll::Ready(Ok(Turn::Open)),
        }
    }

    /// Answers the request that waits unread, and says that nothing else will come; whether there was one.
    ///
    /// Not what is no request: an end, an error, or the beginning of HTTP/2, where hyper has to speak first.
    fn refuse(&mut self, why: Refusal) -> bool {
        let begun = Instant::now();
        let mut bytes = [0; PREFACE.len()];
        let request = match fd::peek_now(&self.stream, &mut bytes) {
            Ok(count @ 1..) => &bytes[..count],
            Ok(0) | Err(_) => return false,
        };
        if self.entry.connection.is_new() && PREFACE.starts_with(request) {
            return false;
        }
        self.send_refusal(why, request.starts_with(b"HEAD "));
        if let Some(gate) = &self.gate {
            gate.refused(begun.elapsed());
        }
        true
    }

    fn send_refusal(&mut self, why: Refusal, head_only: bool) {
        // Whatever of it does not fit into an empty buffer is for a client that reads nothing.
        let _ = fd::send_now(&self.stream, self.refusals.get(why).bytes(head_only));
        let _ = socket::finish_sending(&self.stream);
        self.entry.refused(why);
        self.discarded = Some(0);
    }

    /// Reads on until the client of a refused connection closes it, has sent too much, or is cut for lingering.
    fn poll_discard(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut bytes = [0; 4096];
        loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
            let read = buffer.filled().len();
            let discarded = self.discarded.unwrap_or(0) + read;
            self.discarded = Some(discarded);
            if read == 0 || discarded > DISCARDED_MAX {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// A request begins that found the gate open.
    fn begin(&self) {
        if let Some(gate) = &self.gate {
            gate.enter();
            self.entry.connection.admit();
        }
    }

    /// It does not wait for its turn any more.
    fn give_up_waiting(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            ticket.give_up();
            self.entry.resume();
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
        let Some((outgoing, budget)) = &mut self.http2 else { return };
        for piece in bytes {
            let seen = outgoing.scan(&piece[..left.min(piece.len())]);
            budget.answered(seen.useful);
            self.entry.body_sent(seen.data);
            left = left.saturating_sub(piece.len());
        }
    }

    /// Refuses a header that is too large to be waited for at the moment.
    fn refuse_header(&mut self) -> io::Result<()> {
        self.entry.header_spared();
        if self.incoming.is_http2() {
            // It has not even asked yet, so nothing of it is lost.
            self.entry.turned_away(Refusal::HeaderMemory);
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        self.send_refusal(Refusal::HeaderMemory, false);
        // Its memory is what is short: it is not waited for until its client closes, only what has come is discarded, so
        // that the kernel has nothing unread for which it would reset the connection.
        let mut bytes = [0; 4096];
        let discarded = (0..64).take_while(|_| matches!(fd::receive_now(&self.stream, &mut bytes), Ok(1..)));
        tracing::debug!(pieces = discarded.count(), "a large unfinished header was refused");
        Err(io::ErrorKind::ConnectionAborted.into())
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

impl Drop for Watched {
    fn drop(&mut self) {
        self.give_up_waiting();
    }
}

/// Under what terms a connection is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Nothing of it has to wait.
    Free,
    /// The gate is open: what begins now is counted.
    Open,
    /// It waited and was let in.
    Admitted,
    /// It was refused.
    Refused,
}

/// Answers the first request of a connection that was never served, and closes it.
pub(super) async fn turn_away(stream: TcpStream, refusal: &Rendered) -> io::Result<()> {
    let mut bytes = [0; 4096];
    let read = stream.peek(&mut bytes).await?;
    if read > 0 && !PREFACE.starts_with(&bytes[..read.min(PREFACE.len())]) {
        fd::send_now(&stream, refusal.bytes(bytes.starts_with(b"HEAD ")))?;
    }
    socket::finish_sending(&stream)?;
    let mut discarded = 0;
    while discarded < DISCARDED_MAX {
        stream.readable().await?;
        match stream.try_read(&mut bytes) {
            Ok(0) => break,
            Ok(count) => discarded += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
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
        let mut turn = Turn::Free;
        if self.discarded.is_none() && self.gate.is_some() {
            match self.entry.connection.may_wait() {
                true => turn = ready!(self.poll_turn(context))?,
                false => self.give_up_waiting(),
            }
        }
        if self.entry.connection.is_header_refused() {
            self.refuse_header()?;
        }
        if self.discarded.is_some() {
            return self.poll_discard(context);
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
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note_written(&written, &[io::IoSlice::new(bytes)]);
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(Side::Writer, context)?;
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
        let mut watched = Watched::new(stream, Arc::clone(&entry), place, None, refusals);
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
