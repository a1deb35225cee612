//! The shared state: one connection a worker, one round trip a request, every failure a defined error.
//!
//! The only room that knows the client library, key names and server-side code. Everything above it sees plain data.
//! Every call passes one guard, which bounds how many wait; they wait out a short absence of Redis.

mod acl_rules;
mod availability;
mod batching;
pub mod begin;
mod begin_cluster;
mod breakers;
pub mod broadcast_commands;
mod call_numbers;
mod call_tracker;
mod client;
mod cluster;
pub mod commit;
mod connection;
pub mod counter_commands;
mod diagnosis;
mod earlier_releases;
mod endpoint;
mod error;
pub mod functions;
mod hash_slots;
pub mod idempotency;
mod inspect;
pub mod instance_figures;
mod invocation_mode;
pub mod keys;
pub mod limiter_commands;
pub mod migrations;
pub mod notifications;
mod one_shot;
mod outage_stats;
mod plain;
mod reach;
mod reconnect_pauses;
pub mod registry;
mod server_memory;
mod session_activity;
pub mod session_commands;
pub mod session_index;
mod session_read;
mod signing_keys;
mod silence_detector;
mod silence_failover;
pub mod task;
mod tls;
mod transport;

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use availability::RedisAvailability;
use begin::CounterIncrement;
pub use breakers::{BreakerStates, BreakerStatus};
use breakers::{CallKind, RedisBreakers};
use call_numbers::CallNumbers;
use client::RepeatPolicy;
use connection::ActiveConnection;
use endpoint::RedisEndpoint;
pub use error::{RedisError, ServerRejection};
use fred::types::Value;
use functions::ServerFunction;
use futures_util::future::BoxFuture;
pub use inspect::{ServerWarning, ServerWarnings};
pub use one_shot::run_once;
pub use outage_stats::OutageStats;
use outage_stats::ReconnectWaits;
pub use server_memory::ServerMemory;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::config::settings;
use crate::config::settings::RedisUrl;

/// Integers below this are exact in a reply of numbers.
const MAX_EXACT_INTEGER: u64 = 1 << 53;

/// Longest wait in [`Redis::first_attempt`].
const FIRST_ATTEMPT_TIMEOUT: Duration = Duration::from_millis(2500);

/// Whether Redis can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisStatus {
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
pub struct RedisClient {
    inner: Arc<ClientInner>,
}

struct ClientInner {
    endpoint: RedisEndpoint,
    mode: settings::ScriptingMode,
    prefix: String,
    /// What the names of its channels begin with.
    channel_prefix: String,
    name: String,
    /// Longest silence of a connection on which calls wait.
    command_timeout: Duration,
    /// How long calls wait for a connection.
    reconnect_wait: Duration,
    /// What calls find.
    availability: watch::Sender<RedisAvailability>,
    reconnect_waits: ReconnectWaits,
    /// Starts of requests that are sent together.
    begin_batches: batching::BeginQueue,
    /// The same in a cluster, by slot.
    cluster_batches: batching::cluster_queue::ClusterBeginQueue,
    /// What they commit, likewise.
    commit_batches: batching::CommitQueue,
    /// Numbers under which calls are sent once or more and executed once.
    call_numbers: CallNumbers,
    /// Calls in the worker's hands.
    calls_in_flight: AtomicUsize,
    /// When the server last answered, ms since `origin`.
    last_response_ms: AtomicU64,
    origin: Instant,
    breakers: RedisBreakers,
    /// Connections made so far.
    connections_opened: AtomicU64,
    /// Whether any connection was answered as Redis answers.
    identified_as_redis: AtomicBool,
    status: watch::Sender<RedisStatus>,
    /// One healer at a time: 500 requests that miss the code must not load it 500 times.
    function_reload: tokio::sync::Mutex<()>,
    /// Told when a call met a server that no longer takes writes.
    failover_suspected: Notify,
    /// What the workers tell each other.
    notifications: notifications::NotificationBus,
    /// Whether workers of an earlier release live.
    earlier_releases: earlier_releases::EarlierReleaseTracker,
    /// Signing keys that were the fleet's, the present one first.
    signing_keys: RwLock<Vec<Vec<u8>>>,
    /// What this fleet's broadcasts are marked with, made of these keys.
    broadcast_marks: RwLock<Vec<String>>,
    /// Whether somebody was told what mode plain loses.
    plain_mode_warned: AtomicBool,
    /// Grows with each new key.
    signing_keys_version: AtomicU64,
}

impl fmt::Debug for RedisClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The endpoint holds a password.
        f.debug_struct("Redis").field("name", &self.inner.name).field("health", &self.status()).finish()
    }
}

impl RedisClient {
    /// Prepares a connection; no I/O, no runtime needed. `name` is what `CLIENT LIST` shows, without spaces.
    ///
    /// # Errors
    /// [`Error::Setting`] when the URL cannot be used.
    pub fn new(settings: &settings::RedisConfig, url: &RedisUrl, name: &str) -> Result<Self, RedisError> {
        let endpoint = RedisEndpoint::new(url, &settings.credentials)?;
        let inner = ClientInner {
            channel_prefix: keys::channel_prefix(&settings.prefix, endpoint.database()),
            endpoint,
            mode: settings.scripting,
            prefix: settings.prefix.clone(),
            name: name.to_owned(),
            command_timeout: settings.silence_timeout,
            reconnect_wait: availability::reconnect_wait(settings.reconnect_wait),
            availability: watch::Sender::new(RedisAvailability::Unavailable("there is no connection".into())),
            reconnect_waits: ReconnectWaits::default(),
            begin_batches: batching::BeginQueue::new(),
            cluster_batches: batching::cluster_queue::ClusterBeginQueue::new(),
            commit_batches: batching::CommitQueue::new(),
            call_numbers: CallNumbers::new(),
            calls_in_flight: AtomicUsize::new(0),
            last_response_ms: AtomicU64::new(0),
            origin: Instant::now(),
            breakers: RedisBreakers::new(),
            connections_opened: AtomicU64::new(0),
            identified_as_redis: AtomicBool::new(false),
            status: watch::Sender::new(RedisStatus::Connecting),
            function_reload: tokio::sync::Mutex::new(()),
            failover_suspected: Notify::new(),
            notifications: notifications::NotificationBus::default(),
            earlier_releases: earlier_releases::EarlierReleaseTracker::default(),
            signing_keys: RwLock::default(),
            broadcast_marks: RwLock::default(),
            plain_mode_warned: AtomicBool::new(false),
            signing_keys_version: AtomicU64::new(0),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Connects in the background, for as long as the runtime lives; to be called once.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(&self) {
        self.inner.expect_first_connection();
        tokio::spawn(batching::run(Arc::clone(&self.inner)));
        tokio::spawn(connection::maintain(Arc::clone(&self.inner)));
    }

    /// Returns once the first attempt has ended, either way, or after 2.5 s.
    ///
    /// # Cancel safety
    /// Nothing is lost by dropping it.
    pub async fn wait_for_first_attempt(&self) -> RedisStatus {
        let mut health = self.inner.status.subscribe();
        let finished = health.wait_for(|health| *health != RedisStatus::Connecting);
        // Whether it ended in time or not, the health says how things are.
        let _ = tokio::time::timeout(FIRST_ATTEMPT_TIMEOUT, finished).await.is_ok();
        self.status()
    }

    /// Whether Redis can be used at this moment.
    pub fn status(&self) -> RedisStatus {
        self.inner.status.borrow().clone()
    }

    /// Does everything a request needs at its start, in one round trip.
    ///
    /// # Errors
    /// See [`Error`]; after [`Error::Lost`] it may have been done.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was done.
    pub async fn begin(&self, request: &begin::BeginRequest<'_>) -> Result<begin::BeginReply, RedisError> {
        if self.is_plain() {
            return self
                .call_plain(CallKind::Begin, async |caller| plain::begin(caller, request).await)
                .await;
        }
        if self.inner.endpoint.cluster_seeds().is_some() {
            let split: BoxFuture<'_, _> = Box::pin(begin_cluster::begin(self, request));
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
    pub async fn commit(
        &self,
        request: &commit::CommitSession<'_>,
    ) -> Result<commit::CommitOutcome, RedisError> {
        if self.is_plain() {
            return self
                .call_plain(CallKind::Write, async |caller| plain::commit_session(caller, request).await)
                .await;
        }
        let bytes = request.bytes();
        if bytes <= batching::SHARED_MAX && self.inner.endpoint.cluster_seeds().is_none() {
            return self.commit_gathered(request, bytes).await;
        }
        let alone = self.call(ServerFunction::Commit, |entry| commit::encode(request, entry));
        commit::decode(&Box::pin(alone).await?)
    }

    /// Deletes one key.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete(&self, key: &str) -> Result<(), RedisError> {
        if self.is_plain() {
            return self
                .call_plain(CallKind::Delete, async |caller| plain::delete_session(caller, key).await)
                .await
                .map(|_| ());
        }
        // What is large is freed beside the server's one thread.
        let call = |live: ActiveConnection| async move { live.transport.call("UNLINK", [key]).await };
        self.send(CallKind::Delete, call).await.map(|_| ())
    }

    /// Adds to the number under this key and returns the sum; 0 only reads, and a missing number is 0.
    ///
    /// # Errors
    /// [`Error::Overflow`] when the sum does not fit; see [`Error`].
    pub async fn increment(&self, key: &str, by: i64) -> Result<i64, RedisError> {
        let answer = match by {
            0 => {
                let call = |live: ActiveConnection| async move { live.transport.call("GET", [key]).await };
                self.send(CallKind::Read, call).await?
            }
            by if !self.is_plain() => return self.increment_once(key, by).await,
            by => {
                let args = vec![Value::from(key), Value::Integer(by)];
                self.send_once(CallKind::Begin, async |live| live.transport.send("INCRBY", args).await)
                    .await?
            }
        };
        match answer {
            Value::Null => Ok(0),
            other => other.as_i64().ok_or_else(|| RedisError::protocol("the counter holds no number")),
        }
    }

    /// Adds as a request's start does, once however often it is sent.
    async fn increment_once(&self, key: &str, by: i64) -> Result<i64, RedisError> {
        let counters = [CounterIncrement { key: key.to_owned(), by }];
        let reply = self.begin(&begin::BeginRequest { counters: &counters, ..Default::default() }).await?;
        match reply {
            // Beyond what a double holds the reply is not exact, and is asked for once more.
            begin::BeginReply::Granted { counters, .. } => match counters.first() {
                Some(sum) if sum.unsigned_abs() < MAX_EXACT_INTEGER => Ok(*sum),
                _ => Box::pin(self.increment(key, 0)).await,
            },
            begin::BeginReply::Denied { .. } => Err(RedisError::protocol("a counter was denied")),
        }
    }

    /// The fleet's signing keys that are or were kept in Redis, the present one first; none until Redis was reached.
    ///
    /// There is a second one only after Redis lost the first (`FLUSHALL`) and another worker was there before us.
    pub fn generated_signing_keys(&self) -> Vec<Vec<u8>> {
        self.inner.signing_keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes whenever [`Redis::generated_secrets`] does; 0 while there is none.
    pub fn signing_keys_version(&self) -> u64 {
        self.inner.signing_keys_version.load(Relaxed)
    }

    /// Calls a function; if the server does not have our code, loads it and calls once more.
    async fn call(
        &self,
        entry: ServerFunction,
        encode: impl Fn(Value) -> Vec<Value>,
    ) -> Result<Value, RedisError> {
        let kind = match entry {
            ServerFunction::CounterTake
            | ServerFunction::CounterGiveBack
            | ServerFunction::CounterInsert
            | ServerFunction::IdempotencyFind
            | ServerFunction::IdempotencyClaim => CallKind::Begin,
            ServerFunction::CounterReadBatched | ServerFunction::TaskOverdue | ServerFunction::TaskStats => {
                CallKind::Read
            }
            // A full server takes these, and repeated they do the same.
            ServerFunction::TaskRenew
            | ServerFunction::TaskFinish
            | ServerFunction::TaskCancel
            | ServerFunction::TaskExpire => CallKind::Delete,
            ServerFunction::SessionDestroy
            | ServerFunction::SessionDestroyAll
            | ServerFunction::SessionList => CallKind::Delete,
            _ => CallKind::Write,
        };
        let encode = &encode;
        let repeatable = kind.is_repeatable() || entry.is_repeatable();
        let again = if repeatable { RepeatPolicy::Always } else { RepeatPolicy::Never };
        self.send_with_policy(kind, again, |live, _| async move { self.invoke(&live, entry, encode).await })
            .await
    }

    /// Calls a function on this connection.
    async fn invoke(
        &self,
        live: &ActiveConnection,
        entry: ServerFunction,
        encode: impl Fn(Value) -> Vec<Value>,
    ) -> Result<Value, RedisError> {
        let (command, name) = entry.invocation(live.mode)?;
        let first = live.transport.send(command, encode(name.clone())).await;
        let missing = matches!(&first, Err(error) if error.is_function_missing());
        if !missing {
            return first;
        }
        // Boxed: every call would be as large as this, which next to none needs.
        Box::pin(self.reload_functions(live, command, || encode(name.clone()))).await
    }

    async fn reload_functions(
        &self,
        live: &ActiveConnection,
        command: &'static str,
        args: impl Fn() -> Vec<Value>,
    ) -> Result<Value, RedisError> {
        let _healing = self.inner.function_reload.lock().await;
        // Whoever waited for the lock finds the code there.
        match live.transport.send(command, args()).await {
            Err(error) if error.is_function_missing() => {
                tracing::warn!("the server lost our code; loading it again");
                functions::load(&live.transport, live.mode).await?;
                live.transport.send(command, args()).await
            }
            other => other,
        }
    }
}
