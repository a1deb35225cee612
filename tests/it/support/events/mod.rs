//! Hundreds of clients of event streams, a few publishers, and the books that are compared at the end.
//!
//! Every client behaves as a browser's `EventSource`: it keeps the last id, waits as long as the server says, comes
//! again with `Last-Event-ID`, and never looks at the same message twice to be kind. What it got is written down as it
//! came. The publishers note what was answered. [`delivery_audit::judge`] finds every loss, repetition and disorder.
//!
//! Nothing here names the rest of the harness: `benches/live` uses it too.

mod client;
pub(crate) mod delivery_audit;
pub(crate) mod parse;
pub(crate) mod publisher;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

pub(crate) use self::parse::Id;

/// Threads that all clients share.
const THREADS: usize = 2;

/// Between two clients that come for the first time: thousands at once are a test of the listen queue.
const APART: Duration = Duration::from_micros(300);

/// One clock for publishers and subscribers: texts carry it, so that its reader knows how long it took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Microseconds since the start.
    pub(crate) fn micros(self) -> u64 {
        u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// Where a client goes and what it asks for.
#[derive(Debug, Clone)]
pub(crate) struct SubscribePlan {
    /// Tried in turn: the next one after each stream that ended.
    pub(crate) addresses: Vec<SocketAddr>,
    /// Path and query.
    pub(crate) target: String,
    /// The topic as publishers name it.
    pub(crate) topic: String,
}

impl SubscribePlan {
    /// The application's stream of a topic.
    pub(crate) fn topic(addresses: &[SocketAddr], topic: &str) -> Self {
        Self {
            addresses: addresses.to_vec(),
            target: format!("/events?topic={topic}"),
            topic: topic.to_owned(),
        }
    }

    /// So many clients, spread evenly over topics and addresses.
    pub(crate) fn spread(addresses: &[SocketAddr], topics: &[String], clients: usize) -> Vec<Self> {
        let plan = |number: usize| {
            let mut addresses = addresses.to_vec();
            let places = addresses.len();
            addresses.rotate_left(number / topics.len() % places);
            Self::topic(&addresses, &topics[number % topics.len()])
        };
        (0..clients).map(plan).collect()
    }
}

/// One message as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReceivedMessage {
    pub(crate) id: Id,
    /// Of its text.
    pub(crate) hash: u64,
    /// From the publisher's call to this client, microseconds; none in a text without a time.
    pub(crate) late_us: Option<u32>,
}

/// What one client met with.
#[derive(Debug, Clone, Default)]
pub(crate) struct SubscriberRecord {
    pub(crate) topic: String,
    pub(crate) seen: Vec<ReceivedMessage>,
    /// Events of other names than `message`, each with its data.
    pub(crate) others: Vec<(String, String)>,
    /// What it would send as `Last-Event-ID`.
    pub(crate) last: String,
    /// The server's latest wish, milliseconds.
    pub(crate) retry_ms: Option<u64>,
    /// Comments: heartbeats.
    pub(crate) comments: u64,
    /// Streams that began.
    pub(crate) opened: u64,
    /// Streams that were ended by the server as it should.
    pub(crate) finished: u64,
    /// Streams that broke off.
    pub(crate) cut: u64,
    /// Attempts that led to no stream, each with its reason; the first few.
    pub(crate) refused: Vec<String>,
    /// Whatever must never happen.
    pub(crate) faults: Vec<String>,
    /// The worker it hangs on now, by `X-Worker-Id`.
    pub(crate) worker: Option<u32>,
    /// Bytes of bodies.
    pub(crate) bytes: u64,
}

impl SubscriberRecord {
    /// How often an event of this name came.
    pub(crate) fn times(&self, name: &str) -> usize {
        self.others.iter().filter(|(other, _)| other == name).count()
    }

    /// Whether it has this message.
    pub(crate) fn has(&self, id: Id) -> bool {
        self.seen.last().is_some_and(|last| last.id >= id)
    }
}

/// A record that a client writes and others look at.
pub(crate) type SharedRecord = Arc<Mutex<SubscriberRecord>>;

fn lock(record: &Mutex<SubscriberRecord>) -> MutexGuard<'_, SubscriberRecord> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Clients that listen until they are stopped.
#[derive(Debug)]
pub(crate) struct SubscriberGroup {
    records: Vec<SharedRecord>,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

impl SubscriberGroup {
    /// Starts a client for every aim.
    pub(crate) fn start(clock: Clock, plans: &[SubscribePlan]) -> Self {
        let (stop, stopped) = watch::channel(false);
        let record = |plan: &SubscribePlan| {
            Arc::new(Mutex::new(SubscriberRecord {
                topic: plan.topic.clone(),
                ..SubscriberRecord::default()
            }))
        };
        let records: Vec<SharedRecord> = plans.iter().map(record).collect();
        let mut shares = vec![Vec::new(); THREADS];
        for (number, (plan, record)) in plans.iter().cloned().zip(&records).enumerate() {
            shares[number % THREADS].push((number as u32, plan, Arc::clone(record)));
        }
        let thread = |share: Vec<(u32, SubscribePlan, SharedRecord)>| {
            let stopped = stopped.clone();
            thread::spawn(move || run(clock, share, stopped))
        };
        let threads = shares.into_iter().map(thread).collect();
        Self { records, stop, threads }
    }

    /// How many clients are of this kind now.
    pub(crate) fn count(&self, is: impl Fn(&SubscriberRecord) -> bool) -> usize {
        self.records.iter().filter(|record| is(&lock(record))).count()
    }

    /// Whether all are of this kind now.
    pub(crate) fn all(&self, are: impl Fn(&SubscriberRecord) -> bool) -> bool {
        self.records.iter().all(|record| are(&lock(record)))
    }

    /// How many are in a stream now.
    pub(crate) fn listening(&self) -> usize {
        self.count(|record| record.worker.is_some())
    }

    /// Whether every client is in a stream now.
    pub(crate) fn listens(&self) -> bool {
        self.listening() == self.records.len()
    }

    /// How many have got how far, in one line for a failure.
    pub(crate) fn summary(&self) -> String {
        let (listening, all) = (self.listening(), self.records.len());
        let seen: usize = self.records.iter().map(|record| lock(record).seen.len()).sum();
        let first = |pick: fn(&SubscriberRecord) -> &Vec<String>| {
            self.records.iter().find_map(|record| pick(&lock(record)).last().cloned()).unwrap_or_default()
        };
        let (refused, fault) = (first(|record| &record.refused), first(|record| &record.faults));
        format!("{listening} of {all} listen, {seen} messages came, {refused:?}, {fault:?}")
    }

    /// Every record as it is now.
    pub(crate) fn records(&self) -> Vec<SubscriberRecord> {
        self.records.iter().map(|record| lock(record).clone()).collect()
    }

    /// Ends all clients; what they met with.
    pub(crate) fn stop(mut self) -> Vec<SubscriberRecord> {
        self.leave();
        self.records()
    }

    fn leave(&mut self) {
        let _ = self.stop.send(true);
        for thread in self.threads.drain(..) {
            assert!(thread.join().is_ok() || thread::panicking(), "a client panicked");
        }
    }
}

impl Drop for SubscriberGroup {
    fn drop(&mut self) {
        self.leave();
    }
}

fn run(clock: Clock, share: Vec<(u32, SubscribePlan, SharedRecord)>, mut stopped: watch::Receiver<bool>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.unwrap_or_else(|error| panic!("no runtime for clients: {error}"));
    let clients = async {
        for (number, plan, record) in share {
            tokio::spawn(client::subscribe(clock, plan, record, APART * number));
        }
        // Sender gone or order given: either is the end. Tasks end with the runtime.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    runtime.block_on(clients);
}
