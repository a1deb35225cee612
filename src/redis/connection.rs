//! One connection: opened, checked, and watched until it is lost.
//!
//! The client library can reconnect by itself, but some of its failures leave a task that is stuck or dead while the client
//! still reports "connected". Therefore a client here lives exactly as long as its one connection, and `maintain.rs` opens
//! the next one.
//!
//! A silent connection is kept, with its calls, for as long as requests wait: a server that was suspended continues, and
//! nothing is lost. Meanwhile another connection is tried; if the server answers there, the silent one is given up.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::types::ConnectHandle;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::config::redis_url::HostPort;
use crate::config::settings::ScriptingMode;
use crate::redis::call_tracker::{self, CallTracker};
use crate::redis::client::ClientInner;
use crate::redis::error::RedisError;
use crate::redis::functions::{self, LIBRARY_PATTERN};
use crate::redis::invocation_mode::InvocationMode;
use crate::redis::node_transport::NodeTransport;
use crate::redis::silence_failover::{CloseOnSilenceGuard, SilenceOutcome, silent_error, watch_and_replace};
use crate::redis::transport::RedisTransport;
use crate::redis::{diagnosis, endpoint};
use crate::sys::clock;

/// How often an idle connection is checked with `PING`.
const PING_INTERVAL: Duration = clock::TICK.saturating_mul(20);
/// Every n-th check refreshes the signing key instead: after `FLUSHALL` the workers would otherwise sign with different
/// keys.
const PINGS_PER_KEY_REFRESH: u32 = 5;
/// Pause after a refusal that only another password or setting ends.
pub(super) const REJECTED_PAUSE: Duration = Duration::from_secs(1);
/// A connection that lived this long resets the reconnect pauses.
pub(super) const STABLE_AFTER: Duration = Duration::from_millis(100);
/// How long a replaced connection stays open for the calls that are under way on it.
pub(super) const LINGER: Duration = Duration::from_secs(1);

/// Whether a connection refreshes the fleet's signing key while it is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyRefresh {
    Periodic,
    /// In a cluster one task refreshes it for all nodes.
    Elsewhere,
}

/// An open connection and the client's task behind it.
pub(super) struct RedisConnection {
    client: Client,
    task: ConnectHandle,
    tracker: Arc<CallTracker>,
    silence_task: JoinHandle<()>,
    /// Closes the connection when it falls silent, until `run_until_lost` watches it.
    silence_guard: Option<CloseOnSilenceGuard>,
}

impl Drop for RedisConnection {
    fn drop(&mut self) {
        // A stuck client does not react to a quit; ending its task closes the connection.
        self.task.abort();
        self.silence_task.abort();
        self.tracker.close("the connection was given up");
    }
}

impl RedisConnection {
    /// Connects once: to the server, or to one node of a cluster.
    ///
    /// # Errors
    /// Why it could not, e.g. refused or wrong password.
    pub(super) async fn open(inner: &ClientInner, node: Option<&HostPort>) -> Result<Self, RedisError> {
        let error = match Self::try_connect(inner, node).await {
            Ok(connection) if inner.history.identified_as_redis.load(Relaxed) => return Ok(connection),
            // The client reports "connected" even if the connection was closed during the handshake.
            Ok(connection) => match connection.verify_replies(inner.target.mode).await {
                Err(error) if error.is_unclear() => error,
                Ok(()) | Err(_) => {
                    inner.history.identified_as_redis.store(true, Relaxed);
                    return Ok(connection);
                }
            },
            Err(error) => inner.target.endpoint.explain(error),
        };
        // A server that answered as Redis before is not probed again: it may be in trouble, and probes add load.
        if !error.is_unclear() || inner.history.identified_as_redis.load(Relaxed) {
            return Err(error);
        }
        let (tls, login) = inner.target.endpoint.tls_and_login();
        let Some(address) = inner.target.endpoint.probe_address(node) else { return Err(error) };
        Err(diagnosis::diagnose(&address, tls, login).await.map_or(error, RedisError::unavailable))
    }

    /// Sends commands that a worker sends anyway, to learn whether there are replies at all. Other commands could be
    /// forbidden to the user of this mode, and the server would log the refusal (`ACL LOG`).
    async fn verify_replies(&self, mode: ScriptingMode) -> Result<(), RedisError> {
        let transport = self.setup_transport();
        transport.call("PING", []).await?;
        match mode {
            ScriptingMode::Auto => self.detect_mode(mode).await.map(|_| ()),
            ScriptingMode::Fcall => {
                transport.call("FUNCTION", ["LIST", "LIBRARYNAME", LIBRARY_PATTERN]).await.map(|_| ())
            }
            ScriptingMode::Evalsha => transport.call("EVAL", ["return 1", "0"]).await.map(|_| ()),
            ScriptingMode::Plain => Ok(()),
        }
    }

    async fn try_connect(inner: &ClientInner, node: Option<&HostPort>) -> Result<Self, RedisError> {
        let config = inner.target.endpoint.config(node)?;
        let performance = endpoint::performance_config();
        let client = Client::new(config, Some(performance), Some(endpoint::connection_config()), None);
        let task = client.connect();
        let tracker = CallTracker::new(inner.target.command_timeout);
        let silence_task = tokio::spawn(call_tracker::watch_for_silence(Arc::clone(&tracker)));
        let silence_guard = Some(CloseOnSilenceGuard::new(&tracker));
        let connection = Self { client, task, tracker, silence_task, silence_guard };
        let connected = connection.client.wait_for_connect();
        match tokio::time::timeout(inner.target.endpoint.connect_timeout(), connected).await {
            Err(_) | Ok(Err(_)) if connection.task.is_finished() => Err(connection.failure_reason().await),
            Err(_) => Err(RedisError::Timeout),
            Ok(outcome) => outcome.map(|()| connection).map_err(RedisError::from),
        }
    }

    /// Why the task ended; its error is more specific than that of the wait.
    async fn failure_reason(mut self) -> RedisError {
        exit_reason((&mut self.task).await)
    }

    /// The transport for requests, whose calls end when another connection proves that this one is silent.
    pub(super) fn node_transport(&self) -> NodeTransport {
        NodeTransport::new(&self.client, &self.tracker)
    }

    /// As [`RedisConnection::node_transport`].
    pub(super) fn transport(&self) -> RedisTransport {
        RedisTransport::standalone(self.node_transport())
    }

    /// The transport for work outside requests, some of which takes longer. Until `run_until_lost` watches the connection
    /// its calls end when the connection falls silent.
    pub(super) fn setup_transport(&self) -> RedisTransport {
        self.transport().with_long_timeout()
    }

    /// Finds out how server-side code is called on this connection.
    pub(super) async fn detect_mode(&self, requested: ScriptingMode) -> Result<InvocationMode, RedisError> {
        functions::detect_mode(&self.setup_transport(), requested).await
    }

    /// Returns when the connection has ended, with the start of the outage and the reason; or with what `connect_another`
    /// made while this connection was silent. `on_silence_change` is called when a silence begins and when it ends.
    pub(super) async fn run_until_lost<T, F>(
        &mut self,
        inner: &ClientInner,
        key_refresh: KeyRefresh,
        on_silence_change: impl Fn(Option<Instant>),
        connect_another: impl Fn() -> F,
    ) -> Result<T, (Instant, RedisError)>
    where
        F: Future<Output = Result<T, RedisError>>,
    {
        self.silence_guard = None;
        let (tracker, transport) = (Arc::clone(&self.tracker), self.transport());
        tokio::select! {
            biased;
            exited = &mut self.task => Err((Instant::now(), exit_reason(exited))),
            outcome = watch_and_replace(&inner.state, &tracker, on_silence_change, connect_another) => match outcome {
                SilenceOutcome::Replaced(next) => Ok(next),
                SilenceOutcome::TimedOut(since) => Err((since, silent_error())),
            },
            error = ping_loop(inner, &tracker, &transport, key_refresh) => Err((Instant::now(), error)),
        }
    }
}

/// Why the client's task has ended.
fn exit_reason(exited: Result<Result<(), fred::error::Error>, JoinError>) -> RedisError {
    match exited {
        Ok(Err(error)) => error.into(),
        Ok(Ok(())) | Err(_) => RedisError::unavailable("the connection was closed"),
    }
}

/// Checks an idle connection for ever; returns when it has ended.
async fn ping_loop(
    inner: &ClientInner,
    tracker: &CallTracker,
    transport: &RedisTransport,
    key_refresh: KeyRefresh,
) -> RedisError {
    let slow_transport = transport.with_long_timeout();
    let mut ticks = interval_at(Instant::now() + clock::until_tick(PING_INTERVAL), PING_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    for count in 1_u32.. {
        ticks.tick().await;
        let reply = if key_refresh == KeyRefresh::Periodic && count.is_multiple_of(PINGS_PER_KEY_REFRESH) {
            inner.signing_keys.refresh(&slow_transport, &inner.target.prefix).await.map(|_| ())
        } else if tracker.waiting_since().elapsed() < PING_INTERVAL {
            // A recent response already shows that the connection works.
            continue;
        } else {
            transport.call("PING", []).await.map(|_| ())
        };
        match reply {
            Err(error @ (RedisError::Unavailable { .. } | RedisError::ConnectionLost { .. })) => {
                return error;
            }
            // Any response proves the connection: reconnecting to a busy or full server makes its trouble worse.
            Ok(()) | Err(_) => inner.state.record_response(),
        }
    }
    std::future::pending().await
}
