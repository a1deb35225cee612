//! What becomes of a connection that is silent: while requests wait for it another one is tried beside it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::redis::ClientInner;
use crate::redis::call_tracker::{CallTracker, YIELDS_BEFORE_TIMEOUT};
use crate::redis::error::RedisError;
use crate::redis::reconnect_pauses::{pause_between, random_unit};

/// Pause between two connections that are tried beside one that is silent.
const ATTEMPT_PAUSE: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(100)];
/// Where a silence led.
pub(super) enum SilenceOutcome<T> {
    /// The server answers on another connection.
    Replaced(T),
    /// The server does not answer, and no call waits any longer; since when it has been silent.
    TimedOut(Instant),
}

/// Why a connection ended on which nothing was answered.
const SILENT_REASON: &str = "it does not answer although the connection is open";

/// Why a connection ended that was silent for too long.
pub(super) fn silent_error() -> RedisError {
    RedisError::unavailable(SILENT_REASON)
}

/// Ends a task of its own with this value.
pub(super) struct CloseOnSilenceGuard(JoinHandle<()>);

impl CloseOnSilenceGuard {
    pub(super) fn new(line: &Arc<CallTracker>) -> Self {
        let (line, mut silences) = (Arc::clone(line), line.silence_changes());
        Self(tokio::spawn(async move {
            if silences.wait_for(|silent| *silent).await.is_ok() {
                line.close(SILENT_REASON);
            }
        }))
    }
}

impl Drop for CloseOnSilenceGuard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Waits for a silence, and for what becomes of it: the connection goes on, and nothing was lost; or another one that is
/// made beside it is answered, and this one is dead; or neither until no call waits any longer.
pub(super) async fn watch_and_replace<T, F>(
    inner: &ClientInner,
    line: &CallTracker,
    on_silence_change: impl Fn(Option<Instant>),
    connect_another: impl Fn() -> F,
) -> SilenceOutcome<T>
where
    F: Future<Output = Result<T, RedisError>>,
{
    let mut silences = line.silence_changes();
    loop {
        if silences.wait_for(|silent| *silent).await.is_err() {
            // The line is there for as long as its connection, whose end is told elsewhere.
            std::future::pending::<()>().await;
        }
        let since = line.waiting_since();
        inner.reconnect_waits.silences.fetch_add(1, Relaxed);
        on_silence_change(Some(since));
        let another = async {
            loop {
                match connect_another().await {
                    Ok(another) => return another,
                    Err(_) => tokio::time::sleep(pause_between(ATTEMPT_PAUSE, random_unit())).await,
                }
            }
        };
        let given_up = async {
            tokio::time::sleep_until(since + inner.reconnect_wait).await;
            for _ in 0..YIELDS_BEFORE_TIMEOUT {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            _ = silences.wait_for(|silent| !silent) => on_silence_change(None),
            another = another => return SilenceOutcome::Replaced(another),
            () = given_up => return SilenceOutcome::TimedOut(since),
        }
    }
}
