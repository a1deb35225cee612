//! The shared state: one connection a worker, one round trip a request, every failure a defined error.
//!
//! The only room that knows the client library, key names and server-side code. Everything above it sees plain data.
//! Every call passes one guard, which bounds how many wait; they wait out a short absence of Redis.

pub mod begin;
mod beside;
mod caller;
pub mod claim;
mod cluster;
pub mod commit;
pub mod count;
mod earlier;
mod endpoint;
mod error;
pub mod figures;
pub mod fleet;
mod form;
mod gather;
mod greeting;
mod guard;
pub mod index;
mod inspect;
pub mod keys;
mod lanes;
pub mod library;
pub mod limit;
mod line;
mod link;
pub mod live;
mod memory;
pub mod migrations;
pub mod news;
mod once;
mod pauses;
mod peek;
mod plain;
mod reach;
mod repeat;
mod rights;
mod secret;
mod seen;
pub mod sessions;
mod silence;
mod split;
mod standing;
pub mod task;
mod tls;
mod topology;
mod waits;

use std::fmt;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use fred::types::Value;
use futures_util::future::BoxFuture;
use tokio::sync::Notify;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::schema;
use crate::config::schema::RedisUrl;
use begin::CounterArg;
use endpoint::Endpoint;
pub use error::Error;
pub use error::Refusal;
use guard::Again;
pub use inspect::Finding;
pub use inspect::Findings;
use lanes::Kind;
pub use lanes::Lane;
pub use lanes::LaneStates;
use lanes::Lanes;
use library::Entry;
use link::Live;
pub use memory::Memory;
pub use once::once;
use repeat::Numbers;
use standing::Gate;
pub use waits::Absences;
use waits::Waits;

/// Integers below this are exact in a reply of numbers.
const EXACT: u64 = 1 << 53;

/// Longest wait in [`Redis::first_attempt`].
const FIRST_ATTEMPT_MAX: Duration = Duration::from_millis(2500);

/// Whether Redis can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// The first attempt has not ended yet.
    Connecting,
    /// Connected, and our code is there.
    Up,
    /// Not usable; attempts go on for ever.
    Down {
        /// Why, in one short sentence without any password.
        reason: String,
    },
}

/// A worker's connection to the shared state; cheap to clone.
#[derive(Clone)]
pub struct Redis {
    inner: Arc<Inner>,
}

struct Inner {
    endpoint: Endpoint,
    mode: schema::Mode,
    prefix: String,
    /// What the names of its channels begin with.
    space: String,
    name: String,
    /// Longest silence of a connection on which calls wait.
    command_timeout: Duration,
    /// How long calls wait for a connection.
    hold: Duration,
    /// What calls find.
    gate: watch::Sender<Gate>,
    waits: Waits,
    /// Starts of requests that are sent together.
    begins: gather::Begins,
    /// The same in a cluster, by slot.
    parts: gather::cluster::Parts,
    /// What they commit, likewise.
    commits: gather::Commits,
    /// Numbers under which calls are sent once or more and executed once.
    numbers: Numbers,
    /// Calls in the worker's hands.
    calls: AtomicUsize,
    /// When the server last answered, ms since `origin`.
    answered_ms: AtomicU64,
    origin: Instant,
    lanes: Lanes,
    /// Connections made so far.
    connections: AtomicU64,
    /// Whether any connection was answered as Redis answers.
    greeted: AtomicBool,
    health: watch::Sender<Health>,
    /// One healer at a time: 500 requests that miss the code must not load it 500 times.
    healing: tokio::sync::Mutex<()>,
    /// Told when a call met a server that no longer takes writes.
    doubt: Notify,
    /// What the workers tell each other.
    news: news::Listeners,
    /// Whether workers of an earlier release live.
    earlier: earlier::Earlier,
    /// Signing keys that were the fleet's, the present one first.
    secrets: RwLock<Vec<Vec<u8>>>,
    /// What this fleet's broadcasts are marked with, made of these keys.
    marks: RwLock<Vec<String>>,
    /// Whether somebody was told what mode plain loses.
    warned: AtomicBool,
    /// Grows with each new key.
    secrets_version: AtomicU64,
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The endpoint holds a password.
        f.debug_struct("Redis").field("name", &self.inner.name).field("health", &self.health()).finish()
    }
}

impl Redis {
    /// Prepares a connection; no I/O, no runtime needed. `name` is what `CLIENT LIST` shows, without spaces.
    ///
    /// # Errors
    /// [`Error::Setting`] when the URL cannot be used.
    pub fn new(settings: &schema::Redis, url: &RedisUrl, name: &str) -> Result<Self, Error> {
        let endpoint = Endpoint::new(url, &settings.access)?;
        let inner = Inner {
            space: keys::space(&settings.prefix, endpoint.database()),
            endpoint,
            mode: settings.mode,
            prefix: settings.prefix.clone(),
            name: name.to_owned(),
            command_timeout: settings.command_timeout,
            hold: standing::hold(settings.patience),
            gate: watch::Sender::new(Gate::Shut("there is no connection".into())),
            waits: Waits::default(),
            begins: gather::Begins::new(),
            parts: gather::cluster::Parts::new(),
            commits: gather::Commits::new(),
            numbers: Numbers::new(),
            calls: AtomicUsize::new(0),
            answered_ms: AtomicU64::new(0),
            origin: Instant::now(),
            lanes: Lanes::new(),
            connections: AtomicU64::new(0),
            greeted: AtomicBool::new(false),
            health: watch::Sender::new(Health::Connecting),
            healing: tokio::sync::Mutex::new(()),
            doubt: Notify::new(),
            news: news::Listeners::default(),
            earlier: earlier::Earlier::default(),
            secrets: RwLock::default(),
            marks: RwLock::default(),
            warned: AtomicBool::new(false),
            secrets_version: AtomicU64::new(0),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Connects in the background, for as long as the runtime lives; to be called once.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(&self) {
        self.inner.expect();
        tokio::spawn(gather::keep(Arc::clone(&self.inner)));
        tokio::spawn(link::keep(Arc::clone(&self.inner)));
    }

    /// Returns once the first attempt has ended, either way, or after 2.5 s.
    ///
    /// # Cancel safety
    /// Nothing is lost by dropping it.
    pub async fn first_attempt(&self) -> Health {
        let mut health = self.inner.health.subscribe();
        let ended = health.wait_for(|health| *health != Health::Connecting);
        // Whether it ended in time or not, the health says how things are.
        let _ = tokio::time::timeout(FIRST_ATTEMPT_MAX, ended).await.is_ok();
        self.health()
    }

    /// Whether Redis can be used at this moment.
    pub fn health(&self) -> Health {
        self.inner.health.borrow().clone()
    }

    /// Does everything a request needs at its start, in one round trip.
    ///
    /// # Errors
    /// See [`Error`]; after [`Error::Lost`] it may have been done.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was done.
    pub async fn begin(&self, request: &begin::Request<'_>) -> Result<begin::Reply, Error> {
        if self.is_plain() {
            return self.plainly(Kind::Begin, async |caller| plain::begin(caller, request).await).await;
        }
        if self.inner.endpoint.cluster().is_some() {
            let split: BoxFuture<'_, _> = Box::pin(split::begin(self, request));
            return split.await;
        }
        self.begin_gathered(request).await
    }

    /// Stores what a request changed in its session, in one round trip, which it may share with others.
    ///
    /// # Errors
    /// See [`Error`]; after [`Error::Lost`] it may have been stored.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was stored.
    pub async fn commit(&self, request: &commit::Request<'_>) -> Result<commit::Reply, Error> {
        if self.is_plain() {
            return self.plainly(Kind::Commit, async |caller| plain::commit(caller, request).await).await;
        }
        let bytes = request.bytes();
        if bytes <= gather::SHARED_MAX && self.inner.endpoint.cluster().is_none() {
            return self.commit_gathered(request, bytes).await;
        }
        let alone = self.run(Entry::Commit, |entry| commit::encode(request, entry));
        commit::decode(&Box::pin(alone).await?)
    }

    /// Deletes one key.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete(&self, key: &str) -> Result<(), Error> {
        if self.is_plain() {
            return self
                .plainly(Kind::Delete, async |caller| plain::delete(caller, key).await)
                .await
                .map(|_| ());
        }
        // What is large is freed beside the server's one thread.
        let call = |live: Live| async move { live.caller.call("UNLINK", [key]).await };
        self.guard_as(Kind::Delete, call).await.map(|_| ())
    }

    /// Adds to the number under this key and returns the sum; 0 only reads, and a missing number is 0.
    ///
    /// # Errors
    /// [`Error::Overflow`] when the sum does not fit; see [`Error`].
    pub async fn count(&self, key: &str, by: i64) -> Result<i64, Error> {
        let answer = match by {
            0 => {
                let call = |live: Live| async move { live.caller.call("GET", [key]).await };
                self.guard_as(Kind::Read, call).await?
            }
            by if !self.is_plain() => return self.add(key, by).await,
            by => {
                let args = vec![Value::from(key), Value::Integer(by)];
                self.guard_once(Kind::Begin, async |live| live.caller.send("INCRBY", args).await).await?
            }
        };
        match answer {
            Value::Null => Ok(0),
            other => other.as_i64().ok_or_else(|| Error::protocol("the counter holds no number")),
        }
    }

    /// Adds as a request's start does, once however often it is sent.
    async fn add(&self, key: &str, by: i64) -> Result<i64, Error> {
        let counters = [CounterArg { key: key.to_owned(), by }];
        let reply = self.begin(&begin::Request { counters: &counters, ..Default::default() }).await?;
        match reply {
            // Beyond what a double holds the reply is not exact, and is asked for once more.
            begin::Reply::Granted { counters, .. } => match counters.first() {
                Some(sum) if sum.unsigned_abs() < EXACT => Ok(*sum),
                _ => Box::pin(self.count(key, 0)).await,
            },
            begin::Reply::Denied { .. } => Err(Error::protocol("a counter was denied")),
        }
    }

    /// The fleet's signing keys that are or were kept in Redis, the present one first; none until Redis was reached.
    ///
    /// There is a second one only after Redis lost the first (`FLUSHALL`) and another worker was there before us.
    pub fn generated_secrets(&self) -> Vec<Vec<u8>> {
        self.inner.secrets.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes whenever [`Redis::generated_secrets`] does; 0 while there is none.
    pub fn secrets_version(&self) -> u64 {
        self.inner.secrets_version.load(Relaxed)
    }

    /// Calls a function; if the server does not have our code, loads it and calls once more.
    async fn run(&self, entry: Entry, encode: impl Fn(Value) -> Vec<Value>) -> Result<Value, Error> {
        let kind = match entry {
            Entry::Take | Entry::Give | Entry::See | Entry::OnceFind | Entry::Claim => Kind::Begin,
            Entry::ReadBatched | Entry::TaskOverdue | Entry::TaskSurvey => Kind::Read,
            // A full server takes these, and repeated they do the same.
            Entry::TaskRenew | Entry::TaskEnd | Entry::TaskCancel | Entry::TaskExpire => Kind::Delete,
            Entry::SessionEnd | Entry::SessionEverywhere | Entry::SessionList => Kind::Delete,
            _ => Kind::Commit,
        };
        let encode = &encode;
        let repeatable = kind.is_repeatable() || entry.is_repeatable();
        let again = if repeatable { Again::Always } else { Again::Never };
        self.guard_counted(kind, again, |live, _| async move { self.execute(&live, entry, encode).await })
            .await
    }

    /// Calls a function on this connection.
    async fn execute(
        &self,
        live: &Live,
        entry: Entry,
        encode: impl Fn(Value) -> Vec<Value>,
    ) -> Result<Value, Error> {
        let (command, name) = entry.call(live.form)?;
        let first = live.caller.send(command, encode(name.clone())).await;
        let missing = matches!(&first, Err(error) if error.code_missing());
        if !missing {
            return first;
        }
        // Boxed: every call would be as large as this, which next to none needs.
        Box::pin(self.heal(live, command, || encode(name.clone()))).await
    }

    async fn heal(
        &self,
        live: &Live,
        command: &'static str,
        args: impl Fn() -> Vec<Value>,
    ) -> Result<Value, Error> {
        let _healing = self.inner.healing.lock().await;
        // Whoever waited for the lock finds the code there.
        match live.caller.send(command, args()).await {
            Err(error) if error.code_missing() => {
                tracing::warn!("the server lost our code; loading it again");
                library::load(&live.caller, live.form).await?;
                live.caller.send(command, args()).await
            }
            other => other,
        }
    }
}
