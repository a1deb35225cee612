//! Clients of every kind at once, the outcome of each request counted: what "no request fails" is measured with.
//!
//! The rules are strict. Nothing is ever sent twice. A request on a connection that was idle counts as reset when the
//! connection ends, however politely, before the first byte of its answer. The only excuse is the one that every pool
//! of connections has: a connection that was seen closed *before* anything was sent is replaced by a new one.

mod http1;
mod http2;
mod report;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub(crate) use report::{LoadReport, RequestLoss};

use crate::support::{soak, wait};

/// Between two requests of one client, so that the clients leave the fleet something of two cores.
fn pace() -> Duration {
    soak::length(Duration::from_millis(5), Duration::from_millis(2))
}

/// After a failure: a client that is refused must not do nothing else.
const AFTER_FAILURE: Duration = Duration::from_millis(20);

/// The counter to which every posting client adds 1 per request.
pub(crate) const COUNTER: &str = "laps";

/// Bytes of a posted body.
pub(crate) const POSTED: usize = 16 * 1024;

/// How a client behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ClientKind {
    /// Small answers over one connection.
    KeepAlive,
    /// A connection for every request.
    Close,
    /// Bodies of 16 KB over one connection, each counted in Redis.
    Post,
    /// As `Post`, after the connection has been idle for up to 400 ms.
    Idle,
    /// As `Idle`, header and body in pieces with pauses between them.
    SlowSender,
    /// Four streams at a time over one HTTP/2 connection, one of them a `Post`.
    Http2,
    /// Half a megabyte, read slowly through a narrow window.
    SlowReader,
    /// Answers that come in pieces for up to 1.5 s, as server-sent events do.
    Stream,
}

/// A few of each kind.
pub(crate) const MIX: &[(ClientKind, usize)] = &[
    (ClientKind::KeepAlive, 2),
    (ClientKind::Close, 2),
    (ClientKind::Post, 1),
    (ClientKind::Idle, 4),
    (ClientKind::SlowSender, 4),
    (ClientKind::Http2, 1),
    (ClientKind::SlowReader, 1),
    (ClientKind::Stream, 3),
];

/// One client's next request or requests, noted in its tally.
type ClientAction = Box<dyn FnMut(&mut ClientJournal) + Send>;

impl ClientKind {
    /// Whether its answers take long because it wants them to.
    fn takes_its_time(self) -> bool {
        matches!(self, Self::SlowSender | Self::SlowReader | Self::Stream)
    }

    fn client(self, address: SocketAddr) -> ClientAction {
        match self {
            Self::KeepAlive => http1::keep_alive(address),
            Self::Close => http1::close(address),
            Self::Post => http1::post(address, Duration::ZERO),
            Self::Idle => http1::post(address, Duration::from_millis(400)),
            Self::SlowSender => http1::slow_sender(address, Duration::from_millis(400)),
            Self::Http2 => http2::streams(address),
            Self::SlowReader => http1::slow_reader(address),
            Self::Stream => http1::stream(address),
        }
    }
}

/// The worker that answered, or how the request was lost.
type RequestOutcome = Result<u32, (RequestLoss, String)>;

/// What one client writes into while it works.
struct ClientJournal {
    kind: ClientKind,
    tally: LoadReport,
    answered: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
}

impl ClientJournal {
    /// One request's outcome: who answered it, or how it was lost.
    fn record(&mut self, begin: Instant, outcome: RequestOutcome) {
        let count = if outcome.is_ok() { &self.answered } else { &self.failed };
        count.fetch_add(1, Ordering::Relaxed);
        self.tally.record(self.kind, begin, outcome);
    }

    /// As `note`, of a request that adds to the counter.
    fn record_posted(&mut self, begin: Instant, outcome: RequestOutcome) {
        self.tally.posted += u64::from(outcome.is_ok());
        self.record(begin, outcome);
    }
}

/// Clients that go on until they are stopped.
#[derive(Debug)]
pub(crate) struct LoadGenerator {
    is_stopped: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    clients: Vec<JoinHandle<LoadReport>>,
}

impl LoadGenerator {
    /// So many clients of each kind.
    pub(crate) fn start(address: SocketAddr, mix: &[(ClientKind, usize)]) -> Self {
        let is_stopped = Arc::new(AtomicBool::new(false));
        let (answered, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let kinds = mix.iter().flat_map(|(kind, count)| std::iter::repeat_n(*kind, *count));
        let clients = kinds
            .map(|kind| {
                let is_stopped = Arc::clone(&is_stopped);
                let (answered, failed) = (Arc::clone(&answered), Arc::clone(&failed));
                let mut book = ClientJournal { kind, tally: LoadReport::default(), answered, failed };
                thread::spawn(move || {
                    let mut act = kind.client(address);
                    while !is_stopped.load(Ordering::Relaxed) {
                        let failed = book.tally.failed();
                        act(&mut book);
                        thread::sleep(if book.tally.failed() > failed { AFTER_FAILURE } else { pace() });
                    }
                    book.tally
                })
            })
            .collect();
        Self { is_stopped, answered, failed, clients }
    }

    /// Requests that were answered by now.
    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Requests that failed by now.
    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Waits until so many more requests are answered.
    #[track_caller]
    pub(crate) fn more(&self, count: u64) {
        let enough = self.answered() + count;
        wait::until("requests are answered", wait::LONG, || self.answered() >= enough);
    }

    /// Ends it once every client has had its last answer.
    pub(crate) fn finish(self) -> LoadReport {
        self.is_stopped.store(true, Ordering::Relaxed);
        let tallies = self.clients.into_iter().map(|client| client.join().expect("a client panicked"));
        tallies.fold(LoadReport::default(), LoadReport::with)
    }
}
