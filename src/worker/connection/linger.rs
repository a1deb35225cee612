//! How a connection is closed whose client may still be sending (RFC 9112 §9.6).
//!
//! To close with something unread would have the kernel reset the connection, and the last answer be lost with it. So
//! only our side ends first; what still comes is read and thrown away, until the client closes or a bound is reached.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// Longest time for which is read on.
pub(in crate::worker) const LINGER_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes that may be thrown away at least; more where a handler would take a larger body.
const DISCARD_MIN: usize = 1 << 20;

/// Read at once.
const READ_SIZE: usize = 16 << 10;

/// How much is thrown away before a connection is closed whatever comes.
#[derive(Debug, Clone, Copy)]
pub(in crate::worker) struct DiscardLimit(usize);

impl DiscardLimit {
    /// What any handler would take costs no more when none takes it.
    pub(in crate::worker) fn new(body_limit: usize) -> Self {
        Self(body_limit.max(DISCARD_MIN))
    }
}

/// A connection's last moments, from the end of our side on.
#[derive(Debug)]
pub(in crate::worker) struct LingeringClose {
    left: usize,
    deadline: Pin<Box<Sleep>>,
}

impl LingeringClose {
    pub(in crate::worker) fn new(DiscardLimit(left): DiscardLimit) -> Self {
        Self { left, deadline: Box::pin(sleep(LINGER_TIMEOUT)) }
    }

    /// Waits until the stream may be closed.
    ///
    /// Beyond the bound in bytes nothing is read any more, and the client still has the rest of the time: one that
    /// reads while it sends finds the answer, and that there is nothing else.
    pub(in crate::worker) fn poll(&mut self, stream: &mut TcpStream, context: &mut Context<'_>) -> Poll<()> {
        if self.deadline.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let mut bytes = [0; READ_SIZE];
        while self.left > 0 {
            let mut buffer = ReadBuf::new(&mut bytes);
            let read = ready!(Pin::new(&mut *stream).poll_read(context, &mut buffer));
            let count = buffer.filled().len();
            if read.is_err() || count == 0 {
                return Poll::Ready(());
            }
            self.left = self.left.saturating_sub(count);
        }
        Poll::Pending
    }
}
