//! What a job and its worker tell each other while it runs: how far it is, and whether anybody still needs it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::Notify;

/// A step that is told at once, in percent; smaller ones wait for the pause after the last one.
const STEP: u8 = 5;

/// A job's side of its execution.
///
/// A job that runs for more than a moment says how far it is and asks now and then whether it is still needed: a thread
/// cannot be taken back, so one that never asks keeps its place until it ends by itself.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    shared: Arc<Shared>,
    attempt: u64,
}

#[derive(Debug, Default)]
struct Shared {
    percent: AtomicU8,
    stopped: AtomicBool,
    moved: Notify,
    stop: Notify,
}

impl Progress {
    pub(super) fn new(attempt: u64) -> Self {
        Self { shared: Arc::default(), attempt }
    }

    /// Says how much is done, 0 to 100. It costs next to nothing and may be said at every step; less than was said
    /// before changes nothing.
    pub fn percent(&self, percent: u8) {
        let percent = percent.min(100);
        if self.shared.percent.fetch_max(percent, Relaxed) < percent {
            self.shared.moved.notify_one();
        }
    }

    /// Whether nobody needs the result any more: it was cancelled, has run for too long, its worker leaves, or another
    /// one has taken it over. Whatever the job returns then is dropped.
    pub fn is_cancelled(&self) -> bool {
        self.shared.stopped.load(Relaxed)
    }

    /// Number of the attempt, from 1; 0 in a test of a job.
    pub fn attempt(&self) -> u64 {
        self.attempt
    }

    /// Tells the job that nobody needs it.
    pub(super) fn stop(&self) {
        self.shared.stopped.store(true, Relaxed);
        self.shared.stop.notify_one();
    }

    /// Returns when the job was told; one waits at a time.
    pub(super) async fn stopped(&self) {
        if !self.is_cancelled() {
            self.shared.stop.notified().await;
        }
    }

    /// Returns when the job has said something new since the last time; one waits at a time.
    pub(super) async fn moved(&self) {
        self.shared.moved.notified().await;
    }

    /// What is to be told now, if anything: `told` was last, and `quiet` says whether the pause after it is over.
    pub(super) fn due(&self, told: u8, quiet: bool) -> Option<u8> {
        let percent = self.shared.percent.load(Relaxed);
        let step = if quiet { 1 } else { STEP };
        (percent >= told.saturating_add(step)).then_some(percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_steps_are_told_at_once_and_small_ones_after_a_pause() {
        let progress = Progress::new(1);
        assert_eq!(progress.due(0, true), None);
        progress.percent(4);
        assert_eq!((progress.due(0, false), progress.due(0, true)), (None, Some(4)));
        progress.percent(2);
        assert_eq!(progress.due(4, true), None, "it never goes back");
        progress.percent(9);
        assert_eq!(progress.due(4, false), Some(9));
        progress.percent(200);
        assert_eq!(progress.due(9, false), Some(100));
        assert_eq!(progress.due(100, true), None);
    }

    #[tokio::test]
    async fn a_stop_is_heard_whenever_it_was_said() {
        let progress = Progress::new(1);
        let other = progress.clone();
        other.stop();
        progress.stopped().await;
        assert!(progress.is_cancelled());
        progress.stopped().await;
    }
}
