//! The client of a worker: every call passes here and is counted, held back, or sent again.
//!
//! Guarantees that at most [`MAX_CALLS`] calls are under way, that a call which finds no connection waits while the outage is
//! short and fails at once when it is not, and that nothing is sent twice that may have been executed, unless repeating it
//! changes nothing.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::time::Duration;

use fred::types::Value;
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;

use crate::config::settings::{RedisConfig, RedisUrl, ScriptingMode};
use crate::redis::breakers::{BreakerStates, CallKind};
use crate::redis::connection_state::{ConnectionState, RedisStatus};
use crate::redis::endpoint::RedisEndpoint;
use crate::redis::error::RedisError;
use crate::redis::functions::ServerFunction;
use crate::redis::invocation_mode::InvocationMode;
use crate::redis::notifications::{EarlierReleaseTracker, NotificationBus};
use crate::redis::outage_stats::OutageStats;
use crate::redis::signing_keys::SigningKeys;
use crate::redis::transport::{ActiveConnection, RedisTransport};
use crate::redis::{functions, keys};

/// How often one call loads code that the server has lost.
const FUNCTION_LOADS_MAX: usize = 3;

/// Calls that may be under way or wait at the same time, per worker; more are refused at once. A waiting call holds its
/// request, some 10 KiB with its connection: 16,384 are about 160 MiB.
const MAX_CALLS: usize = 16_384;

/// Pause before a call is sent to a cluster again, so that the loss of the node's connection is noticed first.
const CLUSTER_RETRY_PAUSE: Duration = Duration::from_millis(3);

/// Whether a call may be sent again when it is unknown whether it was executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepeatPolicy {
    /// No.
    Never,
    /// Where Redis records batches by their number.
    WhenDeduplicated,
    /// Yes: twice is the same as once.
    Always,
}

/// A worker's connection to the shared state; cheap to clone.
#[derive(Clone)]
pub struct RedisClient {
    pub(super) inner: Arc<ClientInner>,
}

pub(super) struct ClientInner {
    pub(super) target: RedisTarget,
    pub(super) history: ConnectionHistory,
    pub(super) state: Arc<ConnectionState>,
    calls_in_flight: AtomicUsize,
    /// Held while the code is loaded: 500 calls that miss it must not load it 500 times.
    function_reload: Mutex<()>,
    /// Notified when a server refused a write because it is a replica.
    pub(super) failover_suspected: Notify,
    pub(super) notifications: NotificationBus,
    pub(super) earlier_releases: EarlierReleaseTracker,
    pub(super) signing_keys: SigningKeys,
}

/// Where a client connects to, and the names it uses there; it never changes.
pub(super) struct RedisTarget {
    /// The address as it was given.
    url: RedisUrl,
    pub(super) endpoint: RedisEndpoint,
    pub(super) mode: ScriptingMode,
    pub(super) prefix: String,
    /// The prefix of channel names, which differs from `prefix` in databases other than 0.
    pub(super) channel_prefix: String,
    /// The name that `CLIENT LIST` shows.
    pub(super) name: String,
    /// Longest silence of a connection on which calls wait.
    pub(super) command_timeout: Duration,
}

/// What the connections so far have shown.
#[derive(Default)]
pub(super) struct ConnectionHistory {
    /// Connections opened so far.
    pub(super) connections_opened: AtomicU64,
    /// Whether any connection has answered as Redis does.
    pub(super) identified_as_redis: AtomicBool,
    /// Whether the limitations of mode plain were logged.
    plain_mode_warned: AtomicBool,
}

impl fmt::Debug for RedisClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The endpoint is left out because it holds a password.
        f.debug_struct("RedisClient")
            .field("name", &self.inner.target.name)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

impl RedisClient {
    /// Prepares a client; no I/O, no runtime needed. `name` is shown by `CLIENT LIST` and has no spaces.
    ///
    /// # Errors
    /// [`RedisError::InvalidSetting`] when the URL cannot be used.
    pub fn new(settings: &RedisConfig, url: &RedisUrl, name: &str) -> Result<Self, RedisError> {
        let endpoint = RedisEndpoint::new(url, &settings.credentials)?;
        let target = RedisTarget {
            url: url.clone(),
            channel_prefix: keys::channel_prefix(&settings.prefix, endpoint.database()),
            endpoint,
            mode: settings.scripting,
            prefix: settings.prefix.clone(),
            name: name.to_owned(),
            command_timeout: settings.silence_timeout,
        };
        let inner = ClientInner {
            target,
            history: ConnectionHistory::default(),
            state: Arc::new(ConnectionState::new(settings.reconnect_wait)),
            calls_in_flight: AtomicUsize::new(0),
            function_reload: Mutex::new(()),
            failover_suspected: Notify::new(),
            notifications: NotificationBus::default(),
            earlier_releases: EarlierReleaseTracker::default(),
            signing_keys: SigningKeys::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The address as it was given.
    pub fn url(&self) -> &RedisUrl {
        &self.inner.target.url
    }

    /// Returns once the first attempt has ended, or after 2.5 s.
    ///
    /// # Cancel safety
    /// Nothing is lost by dropping it.
    pub async fn wait_for_first_attempt(&self) -> RedisStatus {
        self.inner.state.wait_for_first_attempt().await
    }

    /// Whether Redis can be used now.
    pub fn status(&self) -> RedisStatus {
        self.inner.state.status()
    }

    /// The states of the breakers for reads and for writes.
    pub fn breaker_states(&self) -> BreakerStates {
        self.inner.state.breakers.states()
    }

    /// How long ago the server last answered anything, a `PING` included; `None` if it never did.
    pub fn time_since_response(&self) -> Option<Duration> {
        self.inner.state.time_since_response()
    }

    /// What outages of Redis have cost so far.
    pub fn outage_stats(&self) -> OutageStats {
        self.inner.state.waits.stats()
    }

    /// The fleet's signing keys that are or were kept in Redis, the current one first; empty until Redis was reached.
    ///
    /// There is a second one only after Redis lost the first (`FLUSHALL`) and another worker stored its own before this
    /// one did.
    pub fn generated_signing_keys(&self) -> Vec<Vec<u8>> {
        self.inner.signing_keys.all()
    }

    /// Changes whenever [`RedisClient::generated_signing_keys`] does; 0 while there is none.
    pub fn signing_keys_version(&self) -> u64 {
        self.inner.signing_keys.version()
    }

    /// First part of every key.
    pub fn prefix(&self) -> &str {
        &self.inner.target.prefix
    }

    /// First part of every channel's name, which has the database's number, see [`keys::channel_prefix`].
    pub fn channel_prefix(&self) -> &str {
        &self.inner.target.channel_prefix
    }

    /// Whether Redis is a cluster, whose keys are on several nodes.
    pub fn is_cluster(&self) -> bool {
        self.inner.target.endpoint.cluster_seeds().is_some()
    }

    /// The state of the connection, or of a cluster's connections: another number after every change.
    pub fn connection_version(&self) -> u64 {
        self.inner.state.connection_version()
    }

    /// The mark of this fleet's notifications; empty until Redis was reached. It is derived from the signing key, so that
    /// a publisher that cannot read this database cannot forge it.
    pub fn notification_mark(&self) -> String {
        self.inner.signing_keys.broadcast_mark()
    }

    /// Whether `mark` is this fleet's, from the current signing key or one before it.
    pub fn is_own_mark(&self, mark: &str) -> bool {
        self.inner.signing_keys.is_own_mark(mark)
    }

    /// Whether this server or user allows no server-side code, so that plain commands are used.
    pub fn is_plain(&self) -> bool {
        let inner = &self.inner;
        let active = inner.state.with_active(|active| active.mode == InvocationMode::Plain);
        // During an outage the mode of the last connection counts.
        active.unwrap_or_else(|| {
            inner.target.mode == ScriptingMode::Plain || inner.history.plain_mode_warned.load(Relaxed)
        })
    }
}

impl RedisClient {
    /// Counts a call that is made later with [`RedisClient::send_admitted`].
    ///
    /// # Errors
    /// `Unavailable` when too many calls wait already.
    pub fn acquire_call_permit(&self) -> Result<CallPermit<'_>, RedisError> {
        self.inner.acquire_call_permit()
    }

    /// Returns at once while there is a connection, and otherwise as soon as calls are sent again.
    ///
    /// # Errors
    /// Why no call is sent, once the outage lasts too long to wait for its end.
    pub async fn wait_while_held(&self) -> Result<(), RedisError> {
        self.inner.state.wait_while_held().await
    }

    /// Calls a function; if the server lacks the code, loads it and calls again.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn call(
        &self,
        function: ServerFunction,
        encode: impl Fn(Value) -> Vec<Value>,
    ) -> Result<Value, RedisError> {
        let encode = &encode;
        let kind = function.call_kind();
        let repeatable = kind.is_repeatable() || function.is_repeatable();
        let policy = if repeatable { RepeatPolicy::Always } else { RepeatPolicy::Never };
        self.send_with_policy(kind, policy, |active, _| async move {
            self.invoke(&active, function, encode).await
        })
        .await
    }

    /// Runs several plain commands as one call, which is never repeated.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn call_plain<T>(
        &self,
        kind: CallKind,
        work: impl AsyncFnOnce(&RedisTransport) -> Result<T, RedisError>,
    ) -> Result<T, RedisError> {
        // Boxed: otherwise every request's future reserves room for it.
        self.send_once(kind, async |active| Box::pin(work(&active.transport)).await).await
    }

    /// Makes a call once; it may have been executed when it fails.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn send_once<T>(
        &self,
        kind: CallKind,
        call: impl AsyncFnOnce(ActiveConnection) -> Result<T, RedisError>,
    ) -> Result<T, RedisError> {
        let inner = &*self.inner;
        let _permit = inner.acquire_call_permit()?;
        let active = inner.state.wait_for_connection().await?;
        inner.attempt(kind, call(active)).await
    }

    /// Makes a call, again if it was not sent, or if its kind may be repeated and its connection was lost.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn send<T, F>(
        &self,
        kind: CallKind,
        call: impl Fn(ActiveConnection) -> F,
    ) -> Result<T, RedisError>
    where
        F: Future<Output = Result<T, RedisError>>,
    {
        let policy = if kind.is_repeatable() { RepeatPolicy::Always } else { RepeatPolicy::Never };
        self.send_with_policy(kind, policy, |active, _| call(active)).await
    }

    /// As [`RedisClient::send`] with an explicit policy. `call` learns whether it may have been executed before.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn send_with_policy<T, F>(
        &self,
        kind: CallKind,
        policy: RepeatPolicy,
        call: impl Fn(ActiveConnection, bool) -> F,
    ) -> Result<T, RedisError>
    where
        F: Future<Output = Result<T, RedisError>>,
    {
        let _permit = self.inner.acquire_call_permit()?;
        self.send_admitted(kind, policy, call).await
    }

    /// As [`RedisClient::send_with_policy`] for a call that has its permit already.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn send_admitted<T, F>(
        &self,
        kind: CallKind,
        policy: RepeatPolicy,
        call: impl Fn(ActiveConnection, bool) -> F,
    ) -> Result<T, RedisError>
    where
        F: Future<Output = Result<T, RedisError>>,
    {
        let inner = &*self.inner;
        let (mut lost, mut end) = (None, None);
        loop {
            let active = match inner.state.wait_for_connection().await {
                Ok(active) if kind.is_large_read() => active.with_long_timeout(),
                Ok(active) => active,
                Err(error) => return Err(lost.unwrap_or(error)),
            };
            let number = active.number;
            let standalone = active.transport.is_standalone();
            let repeatable = policy == RepeatPolicy::Always
                || policy == RepeatPolicy::WhenDeduplicated && active.deduplicates;
            let error = match inner.attempt(kind, call(active, lost.is_some())).await {
                Err(error @ RedisError::ConnectionLost { .. }) if repeatable => lost.insert(error).clone(),
                Err(error @ RedisError::Unavailable { .. }) if standalone => error,
                // A rejected repetition does not show whether the first sending has written.
                Err(error @ (RedisError::Unavailable { .. } | RedisError::Rejected { .. })) => {
                    return Err(lost.filter(|_| kind.writes()).unwrap_or(error));
                }
                reply => return reply,
            };
            // Bounded in time: connections that are opened and lost at once would hold the call for ever.
            let end = *end.get_or_insert_with(|| Instant::now() + inner.state.reconnect_wait);
            if Instant::now() >= end {
                return Err(lost.unwrap_or(error));
            }
            let replaced = match standalone {
                true => inner.state.wait_until_replaced(number, end).await,
                false => {
                    tokio::time::sleep(CLUSTER_RETRY_PAUSE).await;
                    true
                }
            };
            if !replaced {
                return Err(lost.unwrap_or(error));
            }
        }
    }

    /// Calls a function on this connection; if the server lacks the code, loads it and calls again.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn invoke(
        &self,
        active: &ActiveConnection,
        function: ServerFunction,
        encode: impl Fn(Value) -> Vec<Value>,
    ) -> Result<Value, RedisError> {
        let (command, name) = function.invocation(active.mode)?;
        let first = active.transport.send(command, encode(name.clone())).await;
        let missing = matches!(&first, Err(error) if error.is_function_missing());
        if !missing {
            return first;
        }
        // Boxed: otherwise every call reserves room for a case that hardly ever happens.
        Box::pin(self.reload_functions(active, command, || encode(name.clone()))).await
    }

    async fn reload_functions(
        &self,
        active: &ActiveConnection,
        command: &'static str,
        args: impl Fn() -> Vec<Value>,
    ) -> Result<Value, RedisError> {
        let _reload = self.inner.function_reload.lock().await;
        // Tried again first: another call may have loaded the code while this one waited for the lock. And more than once:
        // the server may lose it again before the call comes, as under a deployment that flushes scripts.
        for _ in 0..FUNCTION_LOADS_MAX {
            match active.transport.send(command, args()).await {
                Err(error) if error.is_function_missing() => {
                    tracing::warn!("the server lost our code; loading it again");
                    functions::load(&active.transport, active.mode).await?;
                }
                other => return other,
            }
        }
        active.transport.send(command, args()).await
    }
}

/// Counts a call among those under way until it is dropped.
pub struct CallPermit<'a>(&'a ClientInner);

impl fmt::Debug for CallPermit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CallPermit")
    }
}

impl Drop for CallPermit<'_> {
    fn drop(&mut self) {
        self.0.calls_in_flight.fetch_sub(1, Relaxed);
    }
}

impl ClientInner {
    pub(super) fn acquire_call_permit(&self) -> Result<CallPermit<'_>, RedisError> {
        let permit = CallPermit(self);
        match self.calls_in_flight.fetch_add(1, Relaxed) {
            calls if calls < MAX_CALLS => Ok(permit),
            _ => Err(RedisError::unavailable(format!("{MAX_CALLS} calls wait already"))),
        }
    }

    async fn attempt<T>(
        &self,
        kind: CallKind,
        call: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, RedisError> {
        let guard = self.state.breakers.acquire(kind)?;
        let result = call.await;
        let failed = result.as_ref().err();
        guard.record_outcome(failed);
        match failed {
            Some(error) if error.suggests_failover() => self.failover_suspected.notify_one(),
            // A rejection is a response too.
            None | Some(RedisError::Rejected { .. }) => self.state.record_response(),
            Some(_) => {}
        }
        result
    }

    /// Logs once what mode plain cannot do.
    pub(super) fn warn_plain_mode(&self, mode: InvocationMode) {
        if mode == InvocationMode::Plain && !self.history.plain_mode_warned.swap(true, Relaxed) {
            tracing::warn!(
                "the shared state is kept by plain commands (redis.mode plain), because server-side code is not used \
                 or not allowed: changes to one session at the same moment may undo each other, limits count in fixed \
                 windows, and what needs server-side code is answered with 501"
            );
        }
    }
}
