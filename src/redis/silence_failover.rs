//! Handles a silent connection: while requests wait for it, another one is tried.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::redis::call_tracker::{CallTracker, YIELDS_BEFORE_TIMEOUT};
use crate::redis::connection_state::ConnectionState;
use crate::redis::error::RedisError;
use crate::redis::reconnect_pauses::{pause_between, random_unit};

/// Pause between attempts to open another connection.
const ATTEMPT_PAUSE: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(100)];
/// How a silence ended.
pub(super) enum SilenceOutcome<T> {
    /// The server answers on another connection.
    Replaced(T),
    /// The server does not answer, and calls no longer wait; the start of the silence.
    TimedOut(Instant),
}

/// The reason reported for a connection that was silent for too long.
const SILENT_REASON: &str = "it does not answer although the connection is open";

/// The error of a connection that was silent for too long.
pub(super) fn silent_error() -> RedisError {
    RedisError::unavailable(SILENT_REASON)
}

/// Aborts its task when it is dropped.
pub(super) struct CloseOnSilenceGuard(JoinHandle<()>);

impl CloseOnSilenceGuard {
    pub(super) fn new(tracker: &Arc<CallTracker>) -> Self {
        let (tracker, mut silences) = (Arc::clone(tracker), tracker.silence_changes());
        Self(tokio::spawn(async move {
            if silences.wait_for(|silent| *silent).await.is_ok() {
                tracker.close(SILENT_REASON);
            }
        }))
    }
}

impl Drop for CloseOnSilenceGuard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Waits for a silence and for its end: the connection answers again, and nothing was lost; or another connection is
/// answered, and this one is given up; or calls no longer wait.
pub(super) async fn watch_and_replace<T, F>(
    state: &ConnectionState,
    tracker: &CallTracker,
    on_silence_change: impl Fn(Option<Instant>),
    connect_another: impl Fn() -> F,
) -> SilenceOutcome<T>
where
    F: Future<Output = Result<T, RedisError>>,
{
    let mut silences = tracker.silence_changes();
    loop {
        if silences.wait_for(|silent| *silent).await.is_err() {
            // The tracker has been closed, which the connection's owner notices by itself.
            std::future::pending::<()>().await;
        }
        let since = tracker.waiting_since();
        state.waits.count_silence();
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
            tokio::time::sleep_until(since + state.reconnect_wait).await;
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
