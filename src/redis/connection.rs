//! One connection, kept: made, made ready, watched, and replaced as a whole whenever it is in doubt.
//!
//! The client library can reconnect by itself, but some of its failures leave a task that is wedged or dead while it
//! still says "connected". Therefore a client here lives exactly as long as its one connection, and this loop makes
//! the next. It never ends, and its pauses are random so that a fleet does not come back as one.
//!
//! A connection that is silent is kept, with its calls, for as long as requests wait: a server that stood still goes on
//! where it stopped, and nothing was lost. Meanwhile another one is tried beside it, and if the server answers there, the
//! silent one is dead.

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
use crate::redis::call_tracker::CallTracker;
use crate::redis::error::{RedisError, ServerRejection};
use crate::redis::functions::{InvocationMode, LIBRARY_PATTERN};
use crate::redis::reconnect_pauses::{ReconnectPauses, pause_between, random_unit};
use crate::redis::silence_failover::{CloseOnSilenceGuard, SilenceOutcome, silent_error, watch_and_replace};
use crate::redis::transport::RedisTransport;
use crate::redis::{
    ClientInner, call_numbers, call_tracker, cluster, diagnosis, endpoint, migrations, signing_keys,
};
use crate::sys::clock;

/// How often a connection at rest is asked whether it lives.
const PING_INTERVAL: Duration = clock::TICK.saturating_mul(20);
/// The signing key is offered again at every n-th question: `FLUSHALL` must not split the fleet.
const PINGS_PER_KEY_OFFER: u32 = 5;
/// Pause after a refusal that only another password or another setting ends: one attempt a second, and no more.
pub(super) const REJECTED_PAUSE: Duration = Duration::from_secs(1);
/// A connection that lived this long begins counting pauses anew.
pub(super) const STABLE_AFTER: Duration = Duration::from_millis(100);
/// Pause before another connection is looked for while this one only reads: at most two attempts a second.
const FIND_WRITABLE_PAUSE: [Duration; 2] = [Duration::from_millis(500), Duration::from_millis(800)];
/// A connection that was replaced stays for the calls that are under way on it.
pub(super) const LINGER: Duration = Duration::from_secs(1);

/// A connection on which requests may call.
#[derive(Clone)]
pub(super) struct ActiveConnection {
    pub(super) transport: RedisTransport,
    pub(super) mode: InvocationMode,
    /// Which of this worker's connections it is, from 1.
    pub(super) number: u64,
    /// Whether calls can be noted, so that they may be sent again.
    pub(super) deduplicates: bool,
}

impl ActiveConnection {
    /// The same for calls whose answers may be large.
    pub(super) fn with_long_timeout(self) -> Self {
        Self { transport: self.transport.with_long_timeout(), ..self }
    }

    /// The same for calls that are made in pieces where their keys lie on two nodes: that is an answer to them.
    pub(super) fn without_cross_slot_retry(self) -> Self {
        Self { transport: self.transport.without_cross_slot_retry(), ..self }
    }
}

/// A connection that is ready, and what the server said if it takes no writes.
struct ReadyConnection {
    connection: RedisConnection,
    active: ActiveConnection,
    write_rejection: Option<RedisError>,
}

impl ReadyConnection {
    fn is_read_only(&self) -> bool {
        self.write_rejection.as_ref().is_some_and(suggests_failover)
    }
}

/// Why a connection is left.
enum ConnectionExit {
    /// It has ended, or was silent for too long; since when there is none.
    Lost(Instant, RedisError),
    /// Another one takes writes, and this one does not.
    ReplacedByWritable(Box<ReadyConnection>),
    /// Another one answers, and this one is silent: what is out on it is lost.
    ReplacedWhileSilent(Box<ReadyConnection>),
}

/// A connection and the task behind it, which ends with this value.
pub(super) struct RedisConnection {
    client: Client,
    task: ConnectHandle,
    tracker: Arc<CallTracker>,
    silence_task: JoinHandle<()>,
    /// Ends the connection when it falls silent, until `mind` watches it.
    silence_guard: Option<CloseOnSilenceGuard>,
}

impl Drop for RedisConnection {
    fn drop(&mut self) {
        // A wedged client cannot be asked to quit; ending its task closes the connection.
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
            Ok(link) if inner.identified_as_redis.load(Relaxed) => return Ok(link),
            // The client takes a connection that was closed in its greeting for one that is there.
            Ok(link) => match link.verify_replies(inner.mode).await {
                Err(error) if error.is_unclear() => error,
                Ok(()) | Err(_) => {
                    inner.identified_as_redis.store(true, Relaxed);
                    return Ok(link);
                }
            },
            Err(error) => inner.endpoint.explain(error),
        };
        // What was Redis once is Redis, and a Redis in trouble is not to be asked more than need be.
        if !error.is_unclear() || inner.identified_as_redis.load(Relaxed) {
            return Err(error);
        }
        let (tls, login) = inner.endpoint.tls_and_login();
        let Some(door) = inner.endpoint.probe_address(node) else { return Err(error) };
        Err(diagnosis::diagnose(&door, tls, login).await.map_or(error, RedisError::unavailable))
    }

    /// Asks what a worker's first questions are, to learn whether there are answers at all; nothing that a user of this
    /// mode may not ask, because the server writes that down (`ACL LOG`).
    async fn verify_replies(&self, mode: ScriptingMode) -> Result<(), RedisError> {
        let caller = self.setup_transport();
        caller.call("PING", []).await?;
        match mode {
            ScriptingMode::Auto => self.detect_mode(mode).await.map(|_| ()),
            ScriptingMode::Fcall => {
                caller.call("FUNCTION", ["LIST", "LIBRARYNAME", LIBRARY_PATTERN]).await.map(|_| ())
            }
            ScriptingMode::Evalsha => caller.call("EVAL", ["return 1", "0"]).await.map(|_| ()),
            ScriptingMode::Plain => Ok(()),
        }
    }

    async fn try_connect(inner: &ClientInner, node: Option<&HostPort>) -> Result<Self, RedisError> {
        let config = inner.endpoint.config(node)?;
        let performance = endpoint::performance_config();
        let client = Client::new(config, Some(performance), Some(endpoint::connection_config()), None);
        let task = client.connect();
        let line = CallTracker::new(inner.command_timeout);
        let watch = tokio::spawn(call_tracker::watch_for_silence(Arc::clone(&line)));
        let strict = Some(CloseOnSilenceGuard::new(&line));
        let link = Self { client, task, tracker: line, silence_task: watch, silence_guard: strict };
        let connected = link.client.wait_for_connect();
        match tokio::time::timeout(inner.endpoint.connect_timeout(), connected).await {
            Err(_) | Ok(Err(_)) if link.task.is_finished() => Err(link.failure_reason().await),
            Err(_) => Err(RedisError::Timeout),
            Ok(outcome) => outcome.map(|()| link).map_err(RedisError::from),
        }
    }

    /// Why the task ended; the message of its end says more than that of the wait.
    async fn failure_reason(mut self) -> RedisError {
        match (&mut self.task).await {
            Ok(Err(error)) => error.into(),
            Ok(Ok(())) | Err(_) => RedisError::unavailable("the connection was closed"),
        }
    }

    /// A caller for requests, whose calls end when another connection proves that this one is silent.
    pub(super) fn transport(&self) -> RedisTransport {
        RedisTransport::new(&self.client, &self.tracker)
    }

    /// A caller for work outside requests, some of which takes longer. Before `mind` watches the connection its
    /// calls end when it falls silent.
    pub(super) fn setup_transport(&self) -> RedisTransport {
        self.transport().with_long_timeout()
    }

    /// Makes a connection ready for requests: name, code, ledger, signing key.
    async fn prepare(self, inner: &ClientInner) -> Result<ReadyConnection, RedisError> {
        let patient = self.setup_transport();
        // The name only helps people who read CLIENT LIST; a server that forbids it is usable all the same.
        let _ = patient.call("CLIENT", ["SETNAME", &inner.name]).await;
        let mut form = self.detect_mode(inner.mode).await?;
        match migrations::ensure_applied(&patient, form, &inner.prefix, &inner.name).await {
            // Functions may be called but not loaded, and nobody has loaded them.
            Err(error)
                if error.is_unknown_command()
                    && inner.mode == ScriptingMode::Auto
                    && form == InvocationMode::Function =>
            {
                form = InvocationMode::Script;
                migrations::ensure_applied(&patient, form, &inner.prefix, &inner.name).await?;
            }
            other => other?,
        }
        let refused = signing_keys::refresh_signing_keys(&patient, inner).await?;
        inner.warn_plain_mode(form);
        let deduplicates = call_numbers::supports_batch_ledger(&patient, form).await?;
        let number = inner.connections_opened.fetch_add(1, Relaxed) + 1;
        let live = ActiveConnection { transport: self.transport(), mode: form, number, deduplicates };
        Ok(ReadyConnection { connection: self, active: live, write_rejection: refused })
    }

    /// Returns when the connection can no longer be used, or there is a better one.
    async fn monitor(
        &mut self,
        inner: &Arc<ClientInner>,
        live: &ActiveConnection,
        only_reads: bool,
    ) -> ConnectionExit {
        self.silence_guard = None;
        let patient = self.setup_transport();
        let (line, prober) = (Arc::clone(&self.tracker), self.transport());
        let fell = |since: Option<Instant>| match since {
            Some(since) => inner.set_lost(since, true, &silent_error()),
            None => inner.resume_after_silence(live),
        };
        tokio::select! {
            biased;
            exited = &mut self.task => ConnectionExit::Lost(Instant::now(), exit_reason(exited)),
            left = watch_and_replace(inner, &line, fell, || connect_and_prepare(inner)) => match left {
                SilenceOutcome::Replaced(ready) => ConnectionExit::ReplacedWhileSilent(Box::new(ready)),
                SilenceOutcome::TimedOut(since) => ConnectionExit::Lost(since, silent_error()),
            },
            ready = find_writable(inner, only_reads) => ConnectionExit::ReplacedByWritable(Box::new(ready)),
            error = ping_loop(inner, &line, Some(&patient), &prober) => ConnectionExit::Lost(Instant::now(), error),
        }
    }

    /// Returns when the connection to one node among several has ended, with since when and the reason; or with another
    /// one, made by `beside`, when that answers and this one is silent. `fell` is told when a silence begins and ends.
    pub(super) async fn run_until_lost<T, F>(
        &mut self,
        inner: &ClientInner,
        on_silence_change: impl Fn(Option<Instant>),
        connect_another: impl Fn() -> F,
    ) -> Result<T, (Instant, RedisError)>
    where
        F: Future<Output = Result<T, RedisError>>,
    {
        self.silence_guard = None;
        let (line, prober) = (Arc::clone(&self.tracker), self.transport());
        tokio::select! {
            biased;
            exited = &mut self.task => Err((Instant::now(), exit_reason(exited))),
            left = watch_and_replace(inner, &line, on_silence_change, connect_another) => match left {
                SilenceOutcome::Replaced(next) => Ok(next),
                SilenceOutcome::TimedOut(since) => Err((since, silent_error())),
            },
            error = ping_loop(inner, &line, None, &prober) => Err((Instant::now(), error)),
        }
    }
}

/// Why a connection's task has ended.
fn exit_reason(exited: Result<Result<(), fred::error::Error>, JoinError>) -> RedisError {
    match exited {
        Ok(Err(error)) => error.into(),
        Ok(Ok(())) | Err(_) => RedisError::unavailable("the connection was closed"),
    }
}

/// Asks for ever whether a connection at rest lives; returns when it has ended. `patient` offers the signing key
/// meanwhile.
async fn ping_loop(
    inner: &ClientInner,
    line: &CallTracker,
    patient: Option<&RedisTransport>,
    prober: &RedisTransport,
) -> RedisError {
    let mut ticks = interval_at(Instant::now() + clock::until_tick(PING_INTERVAL), PING_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    for count in 1_u32.. {
        ticks.tick().await;
        let answer = match patient.filter(|_| count.is_multiple_of(PINGS_PER_KEY_OFFER)) {
            Some(patient) => signing_keys::refresh_signing_keys(patient, inner).await.map(|_| ()),
            // An answer that came lately proves that the connection lives: no PING is sent.
            None if line.waiting_since().elapsed() < PING_INTERVAL => continue,
            None => prober.call("PING", []).await.map(|_| ()),
        };
        match answer {
            Err(error @ (RedisError::Unavailable { .. } | RedisError::ConnectionLost { .. })) => {
                return error;
            }
            // An answer is an answer: reconnecting to a server that is busy or full makes it worse.
            Ok(()) | Err(_) => inner.record_response(),
        }
    }
    std::future::pending().await
}

/// While this connection only reads, looks for one that writes too: the same server after its promotion, or the one
/// that the name now leads to. Reading goes on meanwhile.
async fn find_writable(inner: &ClientInner, only_reads: bool) -> ReadyConnection {
    if !only_reads {
        inner.failover_suspected.notified().await;
    }
    loop {
        tokio::time::sleep(pause_between(FIND_WRITABLE_PAUSE, random_unit())).await;
        match connect_and_prepare(inner).await {
            Ok(ready) if !ready.is_read_only() => return ready,
            Ok(_) | Err(_) => {}
        }
    }
}

/// Keeps a connection for as long as the runtime lives.
pub(super) async fn maintain(inner: Arc<ClientInner>) {
    if let Some(seeds) = inner.endpoint.cluster_seeds().map(<[HostPort]>::to_vec) {
        return cluster::maintain(inner, seeds).await;
    }
    let mut pauses = ReconnectPauses::new(inner.reconnect_wait, Instant::now());
    loop {
        let mut refused = false;
        match connect_and_prepare(&inner).await {
            Ok(ready) => {
                let since = Instant::now();
                let (lost, reason) = serve_until_lost(&inner, ready).await;
                inner.set_lost(lost, false, &reason);
                pauses.on_lost(lost, since.elapsed() >= STABLE_AFTER);
            }
            Err(error) => {
                refused = error.is_misconfiguration();
                inner.on_attempt_failed(&error);
            }
        }
        let pause = match refused {
            true => REJECTED_PAUSE,
            false => pauses.next_pause(Instant::now(), random_unit()),
        };
        tokio::time::sleep(pause).await;
    }
}

/// Uses a connection, and whichever takes its place without a gap, until one is lost; since when, and why.
async fn serve_until_lost(inner: &Arc<ClientInner>, mut ready: ReadyConnection) -> (Instant, RedisError) {
    loop {
        inner.set_up(ready.active.clone(), ready.write_rejection.as_ref());
        let (live, only_reads) = (ready.active.clone(), ready.is_read_only());
        match ready.connection.monitor(inner, &live, only_reads).await {
            ConnectionExit::Lost(since, reason) => return (since, reason),
            ConnectionExit::ReplacedWhileSilent(next) => ready = *next,
            ConnectionExit::ReplacedByWritable(next) => {
                let before = std::mem::replace(&mut ready, *next);
                tokio::spawn(async move {
                    tokio::time::sleep(LINGER).await;
                    drop(before);
                });
            }
        }
    }
}

async fn connect_and_prepare(inner: &ClientInner) -> Result<ReadyConnection, RedisError> {
    RedisConnection::open(inner, None).await?.prepare(inner).await
}

/// Whether a server that said this no longer takes what it took: a new connection may find the new primary.
pub(super) fn suggests_failover(error: &RedisError) -> bool {
    matches!(error, RedisError::Rejected { rejection: ServerRejection::ReadOnly, .. })
}
