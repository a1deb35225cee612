//! A connection's bytes: what passes through is reported to its guard, and requests wait here before they are read.

use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;

use crate::scoreboard::refusal_reason::{ConnectionCloseReason, RefusalReason};
use crate::sys::{fd, tcp_socket};
use crate::worker::admission::{AdmissionGate, AdmissionOutcome, AdmissionWaiter, ArrivalOutcome};
use crate::worker::connection::guard::ConnectionGuard;
use crate::worker::connection::half_closed::HalfClosed;
use crate::worker::connection::http2_frames::{ControlFrameBudget, FrameParser, PREFACE};
use crate::worker::connection::linger::{DiscardLimit, LingeringClose};
use crate::worker::connection::record::UpgradedSide;
use crate::worker::connection::refusals::RefusalResponses;

/// Under what terms a connection is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadPermission {
    /// Nothing of it has to wait.
    Ungated,
    /// The gate is open: what begins now is counted.
    GateOpen,
    /// It waited and was let in.
    Admitted,
    /// It was refused.
    Refused,
}

/// A stream that reports what passes through it. It owns its connection's guard and permit, and so keeps them when the
/// connection is upgraded and hyper gives it away.
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
    discarded_max: DiscardLimit,
    /// Whether our side has ended.
    is_shut_down: bool,
    /// It has, and is waited for until the client's does.
    linger: Option<LingeringClose>,
    /// Its client has ended its side, and waits for answers.
    half_closed: Option<HalfClosed>,
    /// Whether hyper has written something since it last flushed.
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
        discarded_max: DiscardLimit,
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

    /// Records what came.
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

    /// Records what went, as far as the kernel took it.
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

    /// Waits until the next request may be read; it stays in the kernel until then.
    ///
    /// Returns whether it was let in from the queue, or found the gate open; none: it was refused.
    fn poll_read_permission(&mut self, context: &mut Context<'_>) -> Poll<io::Result<ReadPermission>> {
        let Some(gate) = &self.gate else { return Poll::Ready(Ok(ReadPermission::Ungated)) };
        let outcome = match &self.waiter {
            Some(waiter) => {
                let outcome = ready!(waiter.poll(context));
                self.waiter = None;
                self.guard.leave_queue();
                outcome
            }
            None if gate.is_open() => return Poll::Ready(Ok(ReadPermission::GateOpen)),
            None => {
                // Only what has something to read waits.
                ready!(self.stream.poll_read_ready(context))?;
                match gate.enqueue() {
                    ArrivalOutcome::Refused => AdmissionOutcome::Refused,
                    ArrivalOutcome::Queued(waiter) => {
                        self.guard.enter_queue();
                        let permission = waiter.poll(context).map(|_| Ok(ReadPermission::Admitted));
                        self.waiter = Some(waiter);
                        return permission;
                    }
                }
            }
        };
        match outcome {
            AdmissionOutcome::Admitted => {
                self.guard.connection.set_admitted();
                Poll::Ready(Ok(ReadPermission::Admitted))
            }
            AdmissionOutcome::Refused if self.refuse(RefusalReason::Overload) => {
                Poll::Ready(Ok(ReadPermission::Refused))
            }
            AdmissionOutcome::Refused => Poll::Ready(Ok(ReadPermission::GateOpen)),
        }
    }

    /// Answers the request that waits unread, and ends this side; whether there was one.
    ///
    /// An end, an error, or the beginning of HTTP/2, where hyper has to send first, is no request.
    fn refuse(&mut self, reason: RefusalReason) -> bool {
        let started = Instant::now();
        let mut bytes = [0; PREFACE.len()];
        let request = match fd::receive_copy_now(&self.stream, &mut bytes) {
            Ok(count @ 1..) => &bytes[..count],
            Ok(0) | Err(_) => return false,
        };
        if self.guard.connection.is_new() && PREFACE.starts_with(request) {
            return false;
        }
        self.send_refusal(reason, request.starts_with(b"HEAD "));
        if let Some(gate) = &self.gate {
            gate.record_refusal(started.elapsed());
        }
        true
    }

    /// A request begins that found the gate open.
    fn start_request(&self) {
        if let Some(gate) = &self.gate {
            gate.start_request();
            self.guard.connection.set_admitted();
        }
    }

    /// It does not wait for its turn any more.
    fn cancel_waiting(&mut self) {
        if let Some(waiter) = self.waiter.take() {
            waiter.cancel();
            self.guard.leave_queue();
        }
    }

    fn send_refusal(&mut self, reason: RefusalReason, head_only: bool) {
        // Whatever of it does not fit into an empty buffer is for a client that reads nothing.
        let _ = fd::send_now(&self.stream, self.refusals.get(reason).bytes(head_only));
        self.guard.count_refused(reason);
        let _ = tcp_socket::shut_down_write(&self.stream);
        self.start_linger();
    }

    fn start_linger(&mut self) {
        self.guard.start_linger();
        self.linger = Some(LingeringClose::new(self.discarded_max));
    }

    /// Waits until it may be closed; none: our side has not ended.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Option<Poll<()>> {
        let Self { linger, stream, .. } = self;
        linger.as_mut().map(|linger| linger.poll(stream, context))
    }

    /// Whether closing it now could take its last answer back: its client is sending something that is not read.
    fn has_unread_input(&self) -> bool {
        let is_left = self.guard.connection.has_unread_input() || self.guard.connection.is_http2();
        // What has left HTTP has read up to the last word of the other side, or has been left alone by it.
        is_left || matches!(fd::receive_now(&self.stream, &mut [0; 512]), Ok(1..))
    }

    /// The client has ended its side. hyper reads the end only when all answers are on their way; before that it would give
    /// up what it is answering.
    fn poll_client_eof(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let connection = &self.guard.connection;
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
    fn watch_client_eof(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.linger.is_some() || self.guard.connection.is_upgraded() {
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
    fn refuse_header(&mut self) -> io::Result<()> {
        self.guard.clear_header_refusal();
        if self.incoming.is_http2() {
            // It has sent no request yet, so nothing of it is lost.
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

    /// Ends what has left HTTP and has to end, whichever task has it now.
    fn check_upgraded(&self, side: UpgradedSide, context: &Context<'_>) -> io::Result<()> {
        let connection = &self.guard.connection;
        match connection.is_upgraded() && self.guard.must_close(side, context.waker()) {
            true => Err(io::ErrorKind::ConnectionAborted.into()),
            false => Ok(()),
        }
    }
}

/// Reads from the kernel what the reactor may not know of yet; none when there is nothing.
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
            match self.guard.connection.may_wait() {
                true => turn = ready!(self.poll_read_permission(context))?,
                false => self.cancel_waiting(),
            }
        }
        if self.guard.connection.is_header_refused() {
            self.refuse_header()?;
        }
        if let Some(closed) = self.poll_linger(context) {
            return closed.map(Ok);
        }
        let before = buffer.filled().len();
        let mut polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if polled.is_pending() && self.guard.connection.reads_past_reactor() {
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
        if self.guard.connection.is_busy() {
            self.watch_client_eof(context)?;
        }
        if self.half_closed.is_some() && !self.guard.connection.awaits_answer() {
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
        if self.guard.connection.is_upgraded() || !self.has_unread_input() {
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

impl Drop for TrackedStream {
    fn drop(&mut self) {
        self.cancel_waiting();
        let connection = &self.guard.connection;
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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::num::NonZeroUsize;
    use std::time::Duration;

    use tokio::net::TcpListener;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::scoreboard::Scoreboard;
    use crate::worker::connection::table::{ConnectionLimits, ConnectionTable};

    #[tokio::test]
    async fn what_the_reactor_does_not_know_yet_is_read_past_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let scoreboard = Arc::new(Scoreboard::create(NonZeroUsize::MIN, 1, 0).unwrap());
        let (header_memory, per_client) = (usize::MAX, usize::MAX);
        let limits =
            ConnectionLimits { header: Duration::MAX, idle: Duration::MAX, header_memory, per_client };
        let guard = Arc::new(
            ConnectionGuard::open(&Arc::new(ConnectionTable::new(limits, scoreboard, 0, 0)), None).unwrap(),
        );
        let permit = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
        let refusals = Arc::new(RefusalResponses::new(1));
        let mut tracked =
            TrackedStream::new(stream, Arc::clone(&guard), permit, None, refusals, DiscardLimit::new(0));
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
        guard.connection.set_read_past_reactor(true);
        assert_eq!(read(&mut tracked), Some(b"request".to_vec()));
        assert_eq!(read(&mut tracked), None);
    }
}
