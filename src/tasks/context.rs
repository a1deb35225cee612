//! What a job and its worker exchange while it runs: progress, and whether the result is still needed.

use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::{Notify, watch};

use crate::tasks::task_status::TaskId;

/// A job's view of its execution.
///
/// A job that runs for more than a moment should report its progress and check [`TaskContext::is_cancelled`] now and
/// then: a thread cannot be stopped, so a job that never checks holds its permit until it ends by itself.
///
/// ```
/// use regatta::task::TaskContext;
///
/// fn draw(frames: u8, task: &TaskContext) -> Result<u8, &'static str> {
///     for frame in 0..frames {
///         if task.is_cancelled() {
///             return Err("not needed any more");
///         }
///         task.percent(frame);
///     }
///     Ok(frames)
/// }
///
/// // In a test of the job.
/// assert_eq!(draw(3, &TaskContext::detached()), Ok(3));
/// ```
#[derive(Debug, Clone)]
pub struct TaskContext {
    state: Arc<ProgressState>,
    id: TaskId,
    attempt: u32,
}

#[derive(Debug, Default)]
struct ProgressState {
    percent: AtomicU8,
    stopped: watch::Sender<bool>,
    changed: Notify,
    check_requested: Notify,
}

impl TaskContext {
    pub(super) fn new(id: TaskId, attempt: u64) -> Self {
        Self { state: Arc::default(), id, attempt: u32::try_from(attempt).unwrap_or(u32::MAX) }
    }

    /// One of no task, for a test of a job.
    pub fn detached() -> Self {
        Self::new(TaskId::ZERO, 0)
    }

    /// The task's id; 32 zeros in a test of a job.
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// Reports how much is done, 0 to 100. It is cheap enough for every step; a smaller number than before changes
    /// nothing.
    pub fn percent(&self, percent: u8) {
        let percent = percent.min(100);
        if self.state.percent.fetch_max(percent, Relaxed) < percent {
            self.state.changed.notify_one();
        }
    }

    /// Whether the result is not needed: the task was cancelled, ran for too long, was released, or was reclaimed by
    /// another worker. What the job returns then is dropped.
    pub fn is_cancelled(&self) -> bool {
        *self.state.stopped.borrow()
    }

    /// Returns when the result is not needed, as [`Self::is_cancelled`] says; at once if it is not already. An async job
    /// that goes on for ten seconds after that is dropped at its next await.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn cancelled(&self) {
        let mut stopped = self.state.stopped.subscribe();
        // The sender is in `self`, so the channel is open.
        let _ = stopped.wait_for(|stopped| *stopped).await.is_ok();
    }

    /// Number of the attempt, from 1; 0 in a test of a job.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Cancels the job.
    pub(super) fn stop(&self) {
        self.state.stopped.send_replace(true);
    }

    /// Requests a check in Redis whether the task is cancelled.
    pub(super) fn request_check(&self) {
        self.state.check_requested.notify_one();
    }

    /// Waits for [`Self::request_check`]; for one caller at a time.
    pub(super) async fn check_requested(&self) {
        self.state.check_requested.notified().await;
    }

    /// Returns when the job has reported progress since the last call; for one caller at a time.
    pub(super) async fn changed(&self) {
        self.state.changed.notified().await;
    }

    /// The progress to report, if it is more than what was `reported` last.
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
        let context = TaskContext::new(TaskId::ZERO, 1);
        assert_eq!(context.next_report(0), None);
        context.percent(4);
        assert_eq!(context.next_report(0), Some(4));
        context.percent(2);
        assert_eq!(context.next_report(4), None, "it never goes back");
        context.percent(200);
        assert_eq!((context.next_report(4), context.next_report(100)), (Some(100), None));
    }

    #[tokio::test]
    async fn a_check_that_is_requested_before_the_wait_is_not_lost() {
        let context = TaskContext::new(TaskId::ZERO, 1);
        context.clone().request_check();
        context.check_requested().await;
        assert!(!context.is_cancelled(), "a request alone stops nothing");
        context.clone().stop();
        assert!(context.is_cancelled());
    }
}
