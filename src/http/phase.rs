//! Whether a worker serves or leaves, and who waits for its leaving.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::Notify;

/// Whether a worker serves or leaves; clones share it.
#[derive(Clone, Default)]
pub struct Phase(Arc<Stage>);

#[derive(Default)]
struct Stage {
    at: AtomicU8,
    /// Whether streams are to end.
    over: AtomicBool,
    left: Notify,
}

impl Phase {
    const DRAINING: u8 = 1;
    const STOPPING: u8 = 2;

    /// The worker leaves and the fleet goes on: from now on every HTTP/1 response asks for the connection's end.
    pub fn begin_drain(&self) {
        self.0.at.fetch_max(Self::DRAINING, Relaxed);
        self.end_streams();
    }

    /// The fleet ends, and this worker with it: readiness fails, too. Streams go on until [`Phase::end_streams`]: as long as
    /// new connections still come here, their clients would only come back.
    pub fn begin_stop(&self) {
        self.0.at.store(Self::STOPPING, Relaxed);
    }

    /// What has no end of its own is to end now.
    pub fn end_streams(&self) {
        self.0.over.store(true, Relaxed);
        self.0.left.notify_waiters();
    }

    /// Whether the worker leaves.
    pub fn is_draining(&self) -> bool {
        self.0.at.load(Relaxed) >= Self::DRAINING
    }

    /// Whether the fleet ends.
    pub fn is_stopping(&self) -> bool {
        self.0.at.load(Relaxed) == Self::STOPPING
    }

    /// Returns as soon as what has no end of its own, as a stream of events, is to end because the worker leaves.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn leaving(&self) {
        let left = self.0.left.notified();
        if !self.0.over.load(Relaxed) {
            left.await;
        }
    }
}

impl fmt::Debug for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0.at.load(Relaxed) {
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
        let phase = Phase::default();
        let other = phase.clone();
        phase.begin_drain();
        assert!(other.is_draining());
    }

    #[tokio::test]
    async fn whoever_waits_for_the_leaving_is_told_before_and_after() {
        let phase = Phase::default();
        let before = phase.leaving();
        phase.begin_drain();
        before.await;
        phase.leaving().await;
    }

    #[tokio::test]
    async fn streams_outlive_the_beginning_of_a_stop() {
        let phase = Phase::default();
        phase.begin_stop();
        let waited = phase.leaving().now_or_never();
        assert!(waited.is_none());
        phase.end_streams();
        phase.leaving().await;
    }
}
