//! Keeps a worker connected: opens a connection, prepares it, and replaces it as a whole when it is lost.
//!
//! It never ends, and its pauses are random so that the workers of a fleet do not reconnect at the same moment.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::config::redis_url::HostPort;
use crate::config::settings::ScriptingMode;
use crate::redis::client::{ClientInner, RedisClient};
use crate::redis::connection::{KeyRefresh, LINGER, REJECTED_PAUSE, RedisConnection, STABLE_AFTER};
use crate::redis::error::RedisError;
use crate::redis::invocation_mode::InvocationMode;
use crate::redis::reconnect_pauses::{ReconnectPauses, pause_between, random_unit};
use crate::redis::silence_failover::silent_error;
use crate::redis::transport::ActiveConnection;
use crate::redis::{cluster, deduplication, migrations};

/// Pause between searches for a writable server while this one only reads: at most two attempts a second.
const FIND_WRITABLE_PAUSE: [Duration; 2] = [Duration::from_millis(500), Duration::from_millis(800)];

/// A connection that is ready, and the server's error if it takes no writes.
struct ReadyConnection {
    connection: RedisConnection,
    active: ActiveConnection,
    write_rejection: Option<RedisError>,
}

impl ReadyConnection {
    fn is_read_only(&self) -> bool {
        self.write_rejection.as_ref().is_some_and(RedisError::suggests_failover)
    }
}

/// Why a connection is no longer used.
enum ConnectionExit {
    /// It has ended, or was silent for too long; the start of the outage and the reason.
    Lost(Instant, RedisError),
    /// Another server takes writes, and this one does not.
    ReplacedByWritable(Box<ReadyConnection>),
    /// Another connection is answered, and this one is silent: its calls are lost.
    ReplacedWhileSilent(Box<ReadyConnection>),
}

impl RedisClient {
    /// Connects in the background, for as long as the runtime lives or until the task is aborted; to be called once.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(&self) -> AbortHandle {
        self.inner.state.expect_first_connection();
        tokio::spawn(maintain(Arc::clone(&self.inner))).abort_handle()
    }
}

async fn maintain(inner: Arc<ClientInner>) {
    if let Some(seeds) = inner.target.endpoint.cluster_seeds().map(<[HostPort]>::to_vec) {
        return cluster::maintain(inner, seeds).await;
    }
    let mut pauses = ReconnectPauses::new(inner.state.reconnect_wait, Instant::now());
    loop {
        let mut misconfigured = false;
        match connect_and_prepare(&inner).await {
            Ok(ready) => {
                let started = Instant::now();
                let (lost, reason) = serve_until_lost(&inner, ready).await;
                inner.state.set_lost(lost, false, &reason);
                pauses.on_lost(lost, started.elapsed() >= STABLE_AFTER);
            }
            Err(error) => {
                misconfigured = error.is_misconfiguration();
                inner.state.on_attempt_failed(&error);
            }
        }
        let pause = match misconfigured {
            true => REJECTED_PAUSE,
            false => pauses.next_pause(Instant::now(), random_unit()),
        };
        tokio::time::sleep(pause).await;
    }
}

/// Uses a connection, and those that replace it without a gap, until one is lost; the start of the outage and the reason.
async fn serve_until_lost(inner: &Arc<ClientInner>, mut ready: ReadyConnection) -> (Instant, RedisError) {
    loop {
        inner.state.set_up(ready.active.clone(), ready.write_rejection.as_ref());
        match monitor(inner, &mut ready).await {
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

/// Returns when the connection can no longer be used, or there is a better one.
async fn monitor(inner: &Arc<ClientInner>, ready: &mut ReadyConnection) -> ConnectionExit {
    let only_reads = ready.is_read_only();
    let ReadyConnection { connection, active, .. } = ready;
    let on_silence_change = |since: Option<Instant>| match since {
        Some(since) => inner.state.set_lost(since, true, &silent_error()),
        None => inner.state.resume_after_silence(active),
    };
    let connect_another = || connect_and_prepare(inner);
    tokio::select! {
        biased;
        outcome = connection.run_until_lost(inner, KeyRefresh::Periodic, on_silence_change, connect_another) => {
            match outcome {
                Ok(next) => ConnectionExit::ReplacedWhileSilent(Box::new(next)),
                Err((since, reason)) => ConnectionExit::Lost(since, reason),
            }
        }
        next = find_writable(inner, only_reads) => ConnectionExit::ReplacedByWritable(Box::new(next)),
    }
}

/// Looks for a server that takes writes while this one only reads: the same one after its promotion, or the one that the
/// host name leads to now. Reads go on meanwhile.
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

/// Opens a connection and makes it ready for requests: name, code, ledger, signing key.
async fn connect_and_prepare(inner: &ClientInner) -> Result<ReadyConnection, RedisError> {
    let connection = RedisConnection::open(inner, None).await?;
    let transport = connection.setup_transport();
    // The name only serves readers of CLIENT LIST; a server that forbids it is usable all the same.
    let _ = transport.call("CLIENT", ["SETNAME", &inner.target.name]).await;
    let mut mode = connection.detect_mode(inner.target.mode).await?;
    match migrations::ensure_applied(&transport, mode, &inner.target.prefix, &inner.target.name).await {
        // This user may call functions but not load them, and the fleet's are not there.
        Err(error)
            if error.is_unknown_command()
                && inner.target.mode == ScriptingMode::Auto
                && mode == InvocationMode::Function =>
        {
            mode = InvocationMode::Script;
            migrations::ensure_applied(&transport, mode, &inner.target.prefix, &inner.target.name).await?;
        }
        other => other?,
    }
    let write_rejection = inner.signing_keys.refresh(&transport, &inner.target.prefix).await?;
    inner.warn_plain_mode(mode);
    let deduplicates = deduplication::supports_batch_ledger(&transport, mode).await?;
    let number = inner.history.connections_opened.fetch_add(1, Relaxed) + 1;
    let active = ActiveConnection { transport: connection.transport(), mode, number, deduplicates };
    Ok(ReadyConnection { connection, active, write_rejection })
}
