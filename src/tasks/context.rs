//! What a job and its worker tell each other while it runs: how far it is, and whether anyone still needs it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU8};

use tokio::sync::Notify;

/// A job's side of its execution.
///
/// A job that runs for more than a moment says how far it is and asks now and then whether it is still needed: a thread
/// cannot be taken back, so one that never asks keeps its place until it ends by itself.
#[derive(Debug, Clone, Default)]
pub struct TaskContext {
    state: Arc<ProgressState>,
    attempt: u64,
}

#[derive(Debug, Default)]
struct ProgressState {
    percent: AtomicU8,
    stopped: AtomicBool,
    changed: Notify,
    check_requested: Notify,
}

impl TaskContext {
    pub(super) fn new(attempt: u64) -> Self {
        Self { state: Arc::default(), attempt }
    }

    /// Says how much is done, 0 to 100. It costs next to nothing and may be said at every step; less than was said
    /// before changes nothing.
    pub fn percent(&self, percent: u8) {
        let percent = percent.min(100);
        if self.state.percent.fetch_max(percent, Relaxed) < percent {
            self.state.changed.notify_one();
        }
    }

    /// Whether no one needs the result any more: it was cancelled, has run for too long, its worker leaves, or another
    /// one has taken it over. Whatever the job returns then is dropped.
    pub fn is_cancelled(&self) -> bool {
        self.state.stopped.load(Relaxed)
    }

    /// Number of the attempt, from 1; 0 in a test of a job.
    pub fn attempt(&self) -> u64 {
        self.attempt
    }

    /// Tells the job that no one needs it.
    pub(super) fn stop(&self) {
        self.state.stopped.store(true, Relaxed);
    }

    /// Has it found out whether the job is still needed.
    pub(super) fn request_check(&self) {
        self.state.check_requested.notify_one();
    }

    /// Returns when that is to be found out; one waits at a time.
    pub(super) async fn check_requested(&self) {
        self.state.check_requested.notified().await;
    }

    /// Returns when the job has said something new since the last time; one waits at a time.
    pub(super) async fn changed(&self) {
        self.state.changed.notified().await;
    }

    /// What is to be told, if anything: `told` was last.
    pub(super) fn next_report(&self, reported: u8) -> Option<u8> {
        let percent = self.state.percent.load(Relaxed);
        (percent > reported).then_some(percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_report_is_more_than_the_last() {
        let progress = TaskContext::new(1);
        assert_eq!(progress.next_report(0), None);
        progress.percent(4);
        assert_eq!(progress.next_report(0), Some(4));
        progress.percent(2);
        assert_eq!(progress.next_report(4), None, "it never goes back");
        progress.percent(200);
        assert_eq!((progress.next_report(4), progress.next_report(100)), (Some(100), None));
    }

    #[tokio::test]
    async fn a_requested_check_is_received_whenever_it_was_requested() {
        let progress = TaskContext::new(1);
        progress.clone().request_check();
        progress.check_requested().await;
        assert!(!progress.is_cancelled(), "what was only said stops nothing");
        progress.clone().stop();
        assert!(progress.is_cancelled());
    }
}
