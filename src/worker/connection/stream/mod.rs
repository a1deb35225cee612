//! A connection's bytes, with its entry's eyes on them.

mod read_permission;
mod shutdown;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use crate::scoreboard::refusal_reason::ConnectionCloseReason;
use crate::sys::fd;
use crate::worker::admission::{AdmissionGate, AdmissionWaiter};
use crate::worker::connection::half_closed::HalfClosed;
use crate::worker::connection::http2_frames::{ControlFrameBudget, FrameParser};
use crate::worker::connection::linger::LingeringClose;
use crate::worker::connection::refusals::RefusalResponses;
use crate::worker::connection::stream::read_permission::ReadPermission;
use crate::worker::connection::{ConnectionGuard, UpgradedSide, linger};

/// A stream that reports what passes through it. It owns its connection's entry and place, which it therefore keeps
/// when the connection is upgraded and leaves hyper's hands.
#[derive(Debug)]
pub(in crate::worker) struct TrackedStream {
    pub(in crate::worker) stream: TcpStream,
    pub(in crate::worker) guard: Arc<ConnectionGuard>,
    permit: Option<OwnedSemaphorePermit>,
    /// Where its requests wait; none: they never do.
    pub(in crate::worker) gate: Option<Arc<AdmissionGate>>,
    pub(in crate::worker) refusals: Arc<RefusalResponses>,
    /// Its place in the queue, while a request waits unread.
    waiter: Option<Arc<AdmissionWaiter>>,
    /// What a client may still send once our side has ended.
    discarded_max: linger::DiscardLimit,
    /// Whether our side has ended.
    is_shut_down: bool,
    /// It has, and is waited for until the client's does.
    linger: Option<LingeringClose>,
    /// Its client has ended its side, and waits for answers.
    half_closed: Option<HalfClosed>,
    /// Whether hyper has given it something since it last said that this was all.
    unflushed: bool,
    incoming: FrameParser,
    /// Its answers and what its client may send beside requests, once it is known to speak HTTP/2.
    http2: Option<(FrameParser, ControlFrameBudget)>,
}

impl TrackedStream {
    pub(in crate::worker) fn new(
        stream: TcpStream,
        guard: Arc<ConnectionGuard>,
        permit: OwnedSemaphorePermit,
        gate: Option<Arc<AdmissionGate>>,
        refusals: Arc<RefusalResponses>,
        discarded_max: linger::DiscardLimit,
    ) -> Self {
        Self {
            stream,
            guard,
            permit: Some(permit),
            gate,
            refusals,
            waiter: None,
            discarded_max,
            is_shut_down: false,
            linger: None,
            half_closed: None,
            unflushed: false,
            incoming: FrameParser::incoming(),
            http2: None,
        }
    }

    /// Takes note of what came.
    fn record_read(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.guard.record_read(bytes.len());
        let counts = self.incoming.scan(bytes);
        if self.http2.is_none() && self.incoming.is_http2() {
            self.http2 = Some((FrameParser::outgoing(), ControlFrameBudget::new(self.guard.tick())));
        }
        let Some((_, budget)) = &mut self.http2 else { return Ok(()) };
        if budget.consume(self.guard.tick(), counts.control) {
            return Ok(());
        }
        self.guard.count_closed(ConnectionCloseReason::ControlFrames);
        Err(io::ErrorKind::ConnectionAborted.into())
    }

    /// Takes note of what went, as far as it was taken.
    fn record_written(&mut self, written: &Poll<io::Result<usize>>, bytes: &[io::IoSlice<'_>]) {
        let mut left = match written {
            Poll::Ready(Ok(count)) if *count > 0 => *count,
            Poll::Pending => return self.guard.send_stalled(),
            Poll::Ready(_) => return,
        };
        self.guard.record_sent(left);
        if let Some(half_closed) = &mut self.half_closed {
            half_closed.record_sent(self.guard.tick());
        }
        let Some((outgoing, budget)) = &mut self.http2 else { return };
        for piece in bytes {
            let counts = outgoing.scan(&piece[..left.min(piece.len())]);
            budget.add_answers(counts.useful);
            self.guard.record_body_sent(counts.data);
            left = left.saturating_sub(piece.len());
        }
    }

    /// Ends what has left HTTP and has to end, whichever task has it now.
    fn check_upgraded(&self, side: UpgradedSide, context: &Context<'_>) -> io::Result<()> {
        let connection = &self.guard.state;
        match connection.is_upgraded() && self.guard.must_close(side, context.waker()) {
            true => Err(io::ErrorKind::ConnectionAborted.into()),
            false => Ok(()),
        }
    }
}

/// Reads past the reactor, which may not have been told yet of what the kernel has; none when that is nothing.
fn read_past_reactor(stream: &TcpStream, buffer: &mut ReadBuf<'_>) -> Option<Poll<io::Result<()>>> {
    match fd::receive_now(stream, buffer.initialize_unfilled()) {
        Ok(count) => {
            buffer.advance(count);
            Some(Poll::Ready(Ok(())))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) => Some(Poll::Ready(Err(error))),
    }
}

impl AsyncRead for TrackedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_upgraded(UpgradedSide::Reader, context)?;
        if self.half_closed.is_some() {
            return self.poll_client_eof(context);
        }
        let mut turn = ReadPermission::Ungated;
        if self.linger.is_none() && self.gate.is_some() {
            match self.guard.state.may_wait() {
                true => turn = ready!(self.poll_read_permission(context))?,
                false => self.cancel_waiting(),
            }
        }
        if self.guard.state.is_header_refused() {
            self.refuse_header()?;
        }
        if let Some(closed) = self.poll_linger(context) {
            return closed.map(Ok);
        }
        let before = buffer.filled().len();
        let mut polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if polled.is_pending() && self.guard.state.reads_past_reactor() {
            polled = read_past_reactor(&self.stream, buffer).unwrap_or(Poll::Pending);
        }
        if buffer.filled().len() > before {
            self.record_read(&buffer.filled()[before..])?;
            if turn == ReadPermission::GateOpen {
                self.start_request();
            }
        } else if matches!(polled, Poll::Ready(Ok(()))) {
            return self.poll_client_eof(context);
        }
        polled
    }
}

impl AsyncWrite for TrackedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check_upgraded(UpgradedSide::Writer, context)?;
        self.unflushed = true;
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.record_written(&written, &[io::IoSlice::new(bytes)]);
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.unflushed = false;
        if self.incoming.is_http2() {
            return Poll::Ready(Ok(()));
        }
        if self.guard.state.is_busy() {
            self.watch_client_eof(context)?;
        }
        if self.half_closed.is_some() && !self.guard.state.awaits_answer() {
            // hyper reads once more, and finds the end.
            context.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    /// The end of our side, and then, if its client may still be sending, of the connection.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(closed) = self.poll_linger(context) {
            return closed.map(Ok);
        }
        ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
        self.is_shut_down = true;
        if self.guard.state.is_upgraded() || !self.has_unread_input() {
            return Poll::Ready(Ok(()));
        }
        self.start_linger();
        self.poll_linger(context).unwrap_or(Poll::Ready(())).map(Ok)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_upgraded(UpgradedSide::Writer, context)?;
        self.unflushed = true;
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.record_written(&written, bytes);
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
    use crate::worker::connection::{ConnectionLimits, ConnectionTable};

    #[tokio::test]
    async fn what_the_reactor_does_not_know_yet_is_read_past_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let scoreboard = Arc::new(Scoreboard::create(NonZeroUsize::MIN, 1, 0).unwrap());
        let (header_memory, per_client) = (usize::MAX, usize::MAX);
        let limits =
            ConnectionLimits { header: Duration::MAX, idle: Duration::MAX, header_memory, per_client };
        let guard = Arc::new(Arc::new(ConnectionTable::new(limits, scoreboard, 0, 0)).open(None).unwrap());
        let permit = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
        let refusals = Arc::new(RefusalResponses::new(1));
        let mut tracked = TrackedStream::new(
            stream,
            Arc::clone(&guard),
            permit,
            None,
            refusals,
            linger::DiscardLimit::new(0),
        );
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut bytes = [0; 16];
        let mut read = |tracked: &mut TrackedStream| {
            let mut buffer = ReadBuf::new(&mut bytes);
            let polled = Pin::new(tracked).poll_read(&mut context, &mut buffer);
            polled.is_ready().then(|| buffer.filled().to_vec())
        };
        assert_eq!(read(&mut tracked), None);
        client.write_all(b"request").unwrap();
        assert_eq!(read(&mut tracked), None, "the reactor had no turn since");
        guard.state.set_read_past_reactor(true);
        assert_eq!(read(&mut tracked), Some(b"request".to_vec()));
        assert_eq!(read(&mut tracked), None);
    }
}
