//! Work that an application leaves running beside its requests, counted so that the drain can wait for it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::Notify;

use crate::panics::panic_message;

/// Work under way; clones share it.
#[derive(Clone, Default)]
pub struct SpawnedWork(Arc<WorkCount>);

#[derive(Default)]
struct WorkCount {
    running: AtomicUsize,
    all_ended: Notify,
}

/// One piece of work; it counts until it is dropped, also where the runtime drops it unfinished.
struct RunningWork(Arc<WorkCount>);

impl Drop for RunningWork {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Relaxed) == 1 {
            self.0.all_ended.notify_waiters();
        }
    }
}

impl SpawnedWork {
    /// Runs it beside the requests; a panic is logged.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.0.running.fetch_add(1, Relaxed);
        let running = RunningWork(Arc::clone(&self.0));
        tokio::spawn(async move {
            let _running = running;
            // The runtime catches the panic of a task.
            if let Err(error) = tokio::spawn(work).await
                && let Ok(panic) = error.try_into_panic()
            {
                let reason = panic_message(&*panic);
                tracing::error!(%reason, "the application panicked in spawned work: {reason}");
            }
        });
    }

    /// How much is under way.
    pub fn running(&self) -> usize {
        self.0.running.load(Relaxed)
    }

    /// Returns when none is under way.
    ///
    /// # Cancel safety
    /// The work goes on.
    pub async fn all_ended(&self) {
        loop {
            let ended = self.0.all_ended.notified();
            if self.running() == 0 {
                return;
            }
            ended.await;
        }
    }
}

impl fmt::Debug for SpawnedWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpawnedWork").field("running", &self.running()).finish()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn the_end_of_all_work_is_waited_for_panics_and_late_ones_included() {
        let (work, release) = (SpawnedWork::default(), Arc::new(Notify::new()));
        work.all_ended().await;
        let (more, released) = (work.clone(), Arc::clone(&release));
        work.spawn(async move {
            released.notified().await;
            more.spawn(async { panic!("late") });
        });
        let waiting = work.all_ended();
        tokio::pin!(waiting);
        assert!(waiting.as_mut().now_or_never().is_none());
        assert_eq!(work.running(), 1);
        release.notify_one();
        waiting.await;
        assert_eq!(work.running(), 0);
    }
}
