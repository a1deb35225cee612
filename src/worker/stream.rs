//! A connection's bytes and bodies, with its entry's eyes on them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;

use bytes::Bytes;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use crate::sys::fd;
use crate::worker::connection::Entry;
use crate::worker::connection::Side;

/// A stream that reports what passes through it. It owns its connection's entry and place, which it therefore keeps
/// when the connection is upgraded and leaves hyper's hands.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) stream: TcpStream,
    pub(super) entry: Arc<Entry>,
    pub(super) _place: OwnedSemaphorePermit,
}

impl Watched {
    fn note(&self, written: &Poll<io::Result<usize>>) {
        match written {
            Poll::Ready(Ok(count)) if *count > 0 => self.entry.sent(),
            Poll::Pending => self.entry.stalls(),
            Poll::Ready(_) => {}
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
        let before = buffer.filled().len();
        let mut polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if polled.is_pending() && self.entry.connection.is_looked_at() {
            polled = look_again(&self.stream, buffer).unwrap_or(Poll::Pending);
        }
        if buffer.filled().len() > before {
            self.entry.read();
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
        self.note(&written);
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
        self.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// A request under way, until its drop.
#[derive(Debug)]
pub(super) struct UnderWay {
    entry: Arc<Entry>,
    http2: bool,
}

impl UnderWay {
    pub(super) fn begin(entry: &Arc<Entry>, http2: bool) -> Self {
        entry.asked(http2);
        Self { entry: Arc::clone(entry), http2 }
    }

    /// Its response takes the connection out of HTTP.
    pub(super) fn upgrades(&self) {
        self.entry.upgraded();
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
        let patience = Patience { header: Duration::MAX, idle: Duration::MAX };
        let entry = Arc::new(Arc::new(Connections::new(patience, scoreboard, 0, 0)).open());
        let place = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
        let mut watched = Watched { stream, entry: Arc::clone(&entry), _place: place };
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
