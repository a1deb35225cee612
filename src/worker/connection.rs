//! One open connection as the worker sees it: what it is doing, since when, and how to end it.
//!
//! Deadlines cost nothing per request: a connection only stores the tick in which it last changed, and one sweep a
//! tick ends those that overstayed. hyper's own header timer would allocate and arm a timer for every request, and
//! would count the idle time between two requests as slow header.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// Length of a tick; deadlines are met within one.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// What a connection is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Nothing: go on.
    Serve,
    /// End when the request under way is answered, at once if there is none.
    Finish,
    /// End now.
    Cut,
}

/// How long a connection may do what it does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// From a header's first byte (or the accept) to its end.
    pub(super) header: Duration,
    /// Without a request under way.
    pub(super) idle: Duration,
}

/// What a connection does while no request is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    /// It was accepted and waits for its turn, for which it cannot be blamed.
    Waiting,
    /// A header is being read: from its first byte on, or from the connection's start.
    Header,
    /// Nothing has come since the last request.
    Idle,
}

/// One connection's state.
#[derive(Debug)]
pub(super) struct Connection {
    /// Requests being answered; more than one only in HTTP/2.
    active: AtomicU32,
    /// What it does while no request is under way, as [`Pause`].
    pause: AtomicU8,
    /// Tick of the last change of the two above.
    since: AtomicU64,
    order: AtomicU8,
    told: Notify,
}

impl Connection {
    fn new(now: u64) -> Self {
        Self {
            active: AtomicU32::new(0),
            pause: AtomicU8::new(Pause::Waiting as u8),
            since: AtomicU64::new(now),
            order: AtomicU8::new(Order::Serve as u8),
            told: Notify::new(),
        }
    }

    /// Waits for the next order.
    ///
    /// # Cancel safety
    /// An order is kept until it is read.
    pub(super) async fn told(&self) -> Order {
        self.told.notified().await;
        match self.order.load(Relaxed) {
            0 => Order::Serve,
            1 => Order::Finish,
            _ => Order::Cut,
        }
    }

    fn tell(&self, order: Order) {
        self.order.fetch_max(order as u8, Relaxed);
        self.told.notify_one();
    }

    fn is_busy(&self) -> bool {
        self.active.load(Relaxed) > 0
    }
}

/// Every open connection of this worker, and the tick they measure time in.
#[derive(Debug)]
pub(super) struct Connections {
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    next: AtomicU64,
    tick: AtomicU64,
    patience: Patience,
    ended: Notify,
}

impl Connections {
    pub(super) fn new(patience: Patience) -> Self {
        Self {
            open: Mutex::default(),
            next: AtomicU64::new(0),
            tick: AtomicU64::new(1),
            patience,
            ended: Notify::new(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        // The map is whole after any panic: each use is one insertion, removal or walk.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a new connection until the entry is dropped.
    pub(super) fn open(self: &Arc<Self>) -> Entry {
        let connection = Arc::new(Connection::new(self.tick.load(Relaxed)));
        let number = self.next.fetch_add(1, Relaxed);
        self.lock().insert(number, Arc::clone(&connection));
        Entry { number, connection, all: Arc::clone(self) }
    }

    /// Open connections.
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Tells every connection.
    pub(super) fn tell_all(&self, order: Order) {
        self.lock().values().for_each(|connection| connection.tell(order));
    }

    /// Waits until no connection is open.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub(super) async fn empty(&self) {
        loop {
            let ended = self.ended.notified();
            if self.len() == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Ends one tick: whoever overstayed is cut.
    pub(super) fn sweep(&self) {
        let now = self.tick.fetch_add(1, Relaxed) + 1;
        let ticks = |patience: Duration| {
            u64::try_from(patience.as_millis().div_ceil(TICK.as_millis())).unwrap_or(u64::MAX)
        };
        let (header, idle) = (ticks(self.patience.header), ticks(self.patience.idle));
        for connection in self.lock().values().filter(|connection| !connection.is_busy()) {
            let patience = match connection.pause.load(Relaxed) {
                waiting if waiting == Pause::Waiting as u8 => continue,
                reading if reading == Pause::Header as u8 => header,
                _ => idle,
            };
            if now.saturating_sub(connection.since.load(Relaxed)) > patience {
                connection.tell(Order::Cut);
            }
        }
    }
}

/// A connection's place among all; leaves with its drop.
#[derive(Debug)]
pub(super) struct Entry {
    number: u64,
    pub(super) connection: Arc<Connection>,
    all: Arc<Connections>,
}

impl Entry {
    /// Its turn has come: from now on its first header is waited for.
    pub(super) fn seat(&self) {
        self.connection.since.store(self.all.tick.load(Relaxed), Relaxed);
        self.connection.pause.store(Pause::Header as u8, Relaxed);
    }

    /// A request's header is complete; it is under way until the guard is dropped.
    pub(super) fn request(&self) -> UnderWay {
        UnderWay::begin(&self.connection, &self.all)
    }

    /// The stream with this entry's eyes on it.
    pub(super) fn watch(&self, stream: TcpStream) -> Watched {
        Watched { stream, connection: Arc::clone(&self.connection), all: Arc::clone(&self.all) }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.all.lock().remove(&self.number);
        self.all.ended.notify_one();
    }
}

/// A request under way.
#[derive(Debug)]
pub(super) struct UnderWay {
    connection: Arc<Connection>,
    all: Arc<Connections>,
}

impl UnderWay {
    fn begin(connection: &Arc<Connection>, all: &Arc<Connections>) -> Self {
        connection.active.fetch_add(1, Relaxed);
        connection.pause.store(Pause::Idle as u8, Relaxed);
        Self { connection: Arc::clone(connection), all: Arc::clone(all) }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.connection.active.fetch_sub(1, Relaxed);
        self.connection.since.store(self.all.tick.load(Relaxed), Relaxed);
    }
}

/// A response's body that keeps its request under way until it is sent.
#[derive(Debug)]
pub(super) struct Sending<B> {
    pub(super) body: B,
    pub(super) _under_way: UnderWay,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Sending<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream whose first byte after a pause begins a header.
#[derive(Debug)]
pub(super) struct Watched {
    stream: TcpStream,
    connection: Arc<Connection>,
    all: Arc<Connections>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before
            && !self.connection.is_busy()
            && self.connection.pause.load(Relaxed) == Pause::Idle as u8
        {
            self.connection.pause.store(Pause::Header as u8, Relaxed);
            self.connection.since.store(self.all.tick.load(Relaxed), Relaxed);
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
        Pin::new(&mut self.stream).poll_write(context, bytes)
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
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections() -> Arc<Connections> {
        Arc::new(Connections::new(Patience { header: TICK * 3, idle: TICK * 10 }))
    }

    fn order(entry: &Entry) -> u8 {
        entry.connection.order.load(Relaxed)
    }

    #[test]
    fn a_header_that_never_ends_is_cut_and_a_long_request_is_not() {
        let all = connections();
        let (slow, busy, waiting) = (all.open(), all.open(), all.open());
        slow.seat();
        busy.seat();
        let under_way = busy.request();
        for _ in 0..20 {
            all.sweep();
        }
        assert_eq!(order(&slow), Order::Cut as u8);
        assert_eq!(order(&busy), Order::Serve as u8);
        assert_eq!(order(&waiting), Order::Serve as u8);
        drop(under_way);
        for _ in 0..10 {
            all.sweep();
        }
        assert_eq!(order(&busy), Order::Serve as u8);
        all.sweep();
        assert_eq!(order(&busy), Order::Cut as u8);
    }

    #[test]
    fn an_entry_leaves_with_its_drop() {
        let all = connections();
        let entry = all.open();
        assert_eq!(all.len(), 1);
        drop(entry);
        assert_eq!(all.len(), 0);
    }
}
