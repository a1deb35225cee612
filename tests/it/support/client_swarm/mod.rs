//! Thousands of clients in one thread, in a closed or an open loop, that check every answer.
//!
//! A closed loop sends a client's next request when it has the last answer; an open loop sends requests at a rate,
//! whatever was answered. A status of 200 is no success yet: an answer with `Session-State`, a count that is not one
//! more than the client's last, or a status that the loop does not allow is an error. Latency runs from the moment at
//! which a request is sent; what was due in an open loop and never found a free client is counted apart, because no
//! server can know of it.
//!
//! The benchmarks include this module by its path; it uses nothing else of the tests' support.

mod client;
mod connection;
mod report;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use client::SwarmClient;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
pub(crate) use report::SwarmReport;
use tokio::runtime::Builder;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Connections that are being made at once: more would overflow the queue of a listener before any load began.
const CONNECTING: usize = 128;

/// How often an open loop looks how many requests are due.
const TICK: Duration = Duration::from_millis(1);

/// What every request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SwarmRequest {
    /// `/` as text: the answer's count is checked.
    View,
    /// `/` as a browser's page: the answer's count is checked; the connection closes after each answer.
    Page,
    /// Any path that answers 200.
    Path(&'static str),
}

/// How requests are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum SwarmPace {
    /// The next one after the last answer.
    Closed,
    /// The next one this long after the last answer.
    Paused(Duration),
    /// So many a second over all clients, for as long as the crowd lasts.
    Open(f64),
}

/// Who comes, what for and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SwarmPlan {
    pub(crate) address: SocketAddr,
    /// Clients, each with one connection and one cookie.
    pub(crate) clients: usize,
    pub(crate) request: SwarmRequest,
    pub(crate) pace: SwarmPace,
    /// Whether each request comes over a connection of its own.
    pub(crate) fresh: bool,
    /// Source addresses, from 127.1.0.1 on; 0: the kernel's choice.
    pub(crate) sources: u16,
}

impl SwarmPlan {
    /// Clients in a closed loop.
    pub(crate) fn closed(address: SocketAddr, clients: usize, request: SwarmRequest) -> Self {
        Self { address, clients, request, pace: SwarmPace::Closed, fresh: false, sources: 0 }
    }

    /// Clients on which requests are spread that come at this rate.
    pub(crate) fn open(address: SocketAddr, clients: usize, request: SwarmRequest, rate: f64) -> Self {
        Self { address, clients, request, pace: SwarmPace::Open(rate), fresh: false, sources: 0 }
    }

    /// The address from which a client comes, if it is not the kernel's choice.
    fn source(&self, client: usize) -> Option<IpAddr> {
        let number = u16::try_from(client % usize::from(self.sources.max(1))).unwrap_or(0);
        let [high, low] = number.to_be_bytes();
        (self.sources > 0).then(|| Ipv4Addr::new(127, 1, high, low.saturating_add(1)).into())
    }
}

/// What all clients of a crowd share.
#[derive(Debug)]
struct SwarmState {
    plan: SwarmPlan,
    begin: Instant,
    is_stopped: AtomicBool,
    answered: AtomicU64,
    failed: AtomicU64,
    connecting: Semaphore,
    /// In an open loop a permit is a request that is due.
    due: Semaphore,
}

/// A crowd that goes on until it is finished.
#[derive(Debug)]
pub(crate) struct ClientSwarm {
    shared: Arc<SwarmState>,
    thread: JoinHandle<SwarmReport>,
}

impl ClientSwarm {
    /// The crowd comes; its requests begin as soon as all are connected.
    pub(crate) fn start(plan: SwarmPlan) -> Self {
        // Each client is a descriptor, and a shell's soft limit is often 1,024.
        if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
            setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("as many descriptors as are allowed");
        }
        let shared = Arc::new(SwarmState {
            plan,
            begin: Instant::now(),
            is_stopped: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            connecting: Semaphore::new(CONNECTING),
            due: Semaphore::new(0),
        });
        let all = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(run(all))
        });
        Self { shared, thread }
    }

    /// Requests answered as they should be by now.
    pub(crate) fn answered(&self) -> u64 {
        self.shared.answered.load(Relaxed)
    }

    /// Requests refused or failed by now.
    pub(crate) fn failed(&self) -> u64 {
        self.shared.failed.load(Relaxed)
    }

    /// Time since it came.
    pub(crate) fn age(&self) -> Duration {
        self.shared.begin.elapsed()
    }

    /// Ends it once every client has had its last answer.
    pub(crate) fn finish(self) -> SwarmReport {
        self.shared.is_stopped.store(true, Relaxed);
        self.shared.due.close();
        self.thread.join().expect("the crowd panicked")
    }

    /// Lets it go on for this long, and ends it.
    pub(crate) fn last(self, lasting: Duration) -> SwarmReport {
        std::thread::sleep(lasting);
        self.finish()
    }
}

async fn run(shared: Arc<SwarmState>) -> SwarmReport {
    let mut clients = JoinSet::new();
    for number in 0..shared.plan.clients {
        clients.spawn(client(Arc::clone(&shared), number));
    }
    if let SwarmPace::Open(rate) = shared.plan.pace {
        tokio::spawn(fall_due(Arc::clone(&shared), rate));
    }
    let mut report = SwarmReport::default();
    while let Some(one) = clients.join_next().await {
        report.add(one.expect("a client panicked"));
    }
    report.never_sent = shared.due.available_permits() as u64;
    report
}

/// Makes requests fall due at a rate.
async fn fall_due(shared: Arc<SwarmState>, rate: f64) {
    let begin = Instant::now();
    let mut fallen = 0u64;
    let mut ticks = tokio::time::interval(TICK);
    while !shared.is_stopped.load(Relaxed) {
        ticks.tick().await;
        let due = (begin.elapsed().as_secs_f64() * rate) as u64;
        shared.due.add_permits(usize::try_from(due - fallen).unwrap_or(0));
        fallen = due;
    }
}

/// One client's life.
async fn client(shared: Arc<SwarmState>, number: usize) -> SwarmReport {
    let mut visitor = SwarmClient::new(shared.plan, number);
    let mut report = SwarmReport::default();
    visitor.connect(&shared.connecting, &mut report).await;
    while !shared.is_stopped.load(Relaxed) {
        match shared.plan.pace {
            SwarmPace::Closed => {}
            SwarmPace::Paused(pause) => tokio::time::sleep(pause).await,
            SwarmPace::Open(_) => match shared.due.acquire().await {
                Ok(permit) => permit.forget(),
                Err(_) => break,
            },
        }
        let sent = Instant::now();
        let came = visitor.come(&shared.connecting, &mut report).await;
        let count = if came.is_answered() { &shared.answered } else { &shared.failed };
        count.fetch_add(1, Relaxed);
        report.record(came, sent.saturating_duration_since(shared.begin), sent.elapsed());
    }
    visitor.leave(&mut report);
    report
}
