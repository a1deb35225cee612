//! Whether a worker serves or drains, and a way to wait for the end of streams.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU8};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tokio::sync::Notify;

use crate::http::spawned_work::SpawnedWork;

/// Whether a worker serves or drains; clones share it.
#[derive(Clone, Default)]
pub struct DrainState(Arc<DrainFlags>);

#[derive(Default)]
struct DrainFlags {
    stage: AtomicU8,
    /// Whether streams are to end.
    streams_closed: AtomicBool,
    closed_notify: Notify,
    begun_notify: Notify,
    /// When what still runs is cut.
    deadline: OnceLock<Instant>,
    /// What the drain waits for besides requests.
    work: SpawnedWork,
}

impl DrainState {
    const DRAINING: u8 = 1;
    const STOPPING: u8 = 2;

    /// The worker drains and the fleet goes on: from now on every HTTP/1 response has `Connection: close`.
    pub fn start_drain(&self) {
        self.0.stage.fetch_max(Self::DRAINING, Relaxed);
        self.0.begun_notify.notify_waiters();
        self.close_streams();
    }

    /// The fleet ends, and this worker with it: readiness fails, too. Streams go on until [`DrainState::close_streams`]: as long as
    /// new connections still come here, their clients would only come back.
    pub fn start_stop(&self) {
        self.0.stage.store(Self::STOPPING, Relaxed);
        self.0.begun_notify.notify_waiters();
    }

    /// Says when what still runs is cut; before the drain begins, so that it is known to all who see that.
    pub fn set_deadline(&self, deadline: Instant) {
        let _ = self.0.deadline.set(deadline);
    }

    /// A view of it for the application.
    pub fn shutdown(&self) -> Shutdown {
        Shutdown(self.clone())
    }

    /// Work beside the requests that the drain waits for.
    pub fn work(&self) -> &SpawnedWork {
        &self.0.work
    }

    /// What has no end of its own is to end now.
    pub fn close_streams(&self) {
        self.0.streams_closed.store(true, Relaxed);
        self.0.closed_notify.notify_waiters();
    }

    /// Whether the worker leaves.
    pub fn is_draining(&self) -> bool {
        self.0.stage.load(Relaxed) >= Self::DRAINING
    }

    /// Whether the fleet ends.
    pub fn is_stopping(&self) -> bool {
        self.0.stage.load(Relaxed) == Self::STOPPING
    }

    /// Returns as soon as what has no end of its own, as a stream of events, is to end because the worker leaves.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn streams_closed(&self) {
        let notified = self.0.closed_notify.notified();
        if !self.0.streams_closed.load(Relaxed) {
            notified.await;
        }
    }
}

/// Fires when this worker begins to leave; clones are the same one.
///
/// ```
/// async fn work(shutdown: regatta::Shutdown) {
///     while !shutdown.is_requested() {
///         tokio::select! {
///             () = tokio::time::sleep(std::time::Duration::from_secs(60)) => {}
///             () = shutdown.wait() => {}
///         }
///     }
/// }
///
/// /// Whether there is time for another step of this length.
/// fn has_time(shutdown: &regatta::Shutdown, step: std::time::Duration) -> bool {
///     shutdown.deadline().is_none_or(|deadline| std::time::Instant::now() + step < deadline)
/// }
/// # let _ = has_time;
/// ```
#[derive(Clone, Debug)]
pub struct Shutdown(DrainState);

impl Shutdown {
    /// Returns as soon as the worker begins to leave; at once if it does already.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn wait(&self) {
        let notified = self.0.0.begun_notify.notified();
        if !self.0.is_draining() {
            notified.await;
        }
    }

    /// Whether the worker leaves.
    pub fn is_requested(&self) -> bool {
        self.0.is_draining()
    }

    /// When what still runs is cut; `None` while the worker serves.
    pub fn deadline(&self) -> Option<Instant> {
        self.0.0.deadline.get().copied().filter(|_| self.is_requested())
    }
}

impl fmt::Debug for DrainState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0.stage.load(Relaxed) {
            Self::STOPPING => "Stopping",
            Self::DRAINING => "Draining",
            _ => "Serving",
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn clones_of_a_phase_share_it() {
        let phase = DrainState::default();
        let other = phase.clone();
        phase.start_drain();
        assert!(other.is_draining());
    }

    #[tokio::test]
    async fn waiting_for_the_drain_returns_before_and_after_its_start() {
        let phase = DrainState::default();
        let before = phase.streams_closed();
        phase.start_drain();
        before.await;
        phase.streams_closed().await;
    }

    #[tokio::test]
    async fn a_shutdown_is_seen_before_streams_end_and_has_its_deadline() {
        let phase = DrainState::default();
        let shutdown = phase.shutdown();
        let before = shutdown.wait();
        let deadline = Instant::now();
        phase.set_deadline(deadline);
        assert!(!shutdown.is_requested() && shutdown.deadline().is_none());
        phase.start_stop();
        before.await;
        shutdown.wait().await;
        assert!(shutdown.is_requested() && shutdown.deadline() == Some(deadline));
    }

    #[tokio::test]
    async fn streams_outlive_the_beginning_of_a_stop() {
        let phase = DrainState::default();
        phase.start_stop();
        let waited = phase.streams_closed().now_or_never();
        assert!(waited.is_none());
        phase.close_streams();
        phase.streams_closed().await;
    }
}
