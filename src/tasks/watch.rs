//! Watching a task change: one poll of Redis serves all watchers of a task on a worker.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use crate::redis::{RedisClient, RedisError};
use crate::tasks::{TaskId, TaskStatus, keys};

/// Shortest time between two polls of one task.
const POLL_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Longest time between two polls, because notifications may be lost; and while none arrive.
const POLL_INTERVAL_MAX: Duration = Duration::from_secs(1);
const POLL_WHEN_DISCONNECTED: Duration = Duration::from_millis(250);

/// Longest wait for the subscription to a task's channel before the first poll.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_millis(250);

/// The last poll of a task.
#[derive(Debug, Clone)]
enum ObservedTask {
    /// There was none yet.
    NotYet,
    /// The first one failed.
    Failed(RedisError),
    /// The task.
    Found(Arc<TaskStatus>),
    /// There is no such task, or its record has expired.
    Gone,
}

/// The tasks that are watched on this worker.
#[derive(Debug, Default)]
pub(super) struct TaskWatchers(Mutex<HashMap<TaskId, WatchedTask>>);

#[derive(Debug, Clone)]
struct WatchedTask {
    observed: watch::Sender<ObservedTask>,
    changed: Arc<Notify>,
}

/// The changes of one task.
#[derive(Debug)]
pub struct TaskWatch {
    observed: watch::Receiver<ObservedTask>,
    started: bool,
    finished: bool,
}

impl TaskWatch {
    /// The task as it is, and then at each change; `None` after its final state, or when its record is gone.
    ///
    /// Changes within a tenth of a second may arrive as one.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn next(&mut self) -> Option<Arc<TaskStatus>> {
        if self.finished || (self.started && self.observed.changed().await.is_err()) {
            return None;
        }
        self.started = true;
        let ObservedTask::Found(task) = &*self.observed.borrow_and_update() else {
            self.finished = true;
            return None;
        };
        self.finished = task.state.is_final();
        Some(Arc::clone(task))
    }
}

impl TaskWatchers {
    fn lock(&self) -> MutexGuard<'_, HashMap<TaskId, WatchedTask>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A notification says that a task has changed.
    pub(super) fn notify(&self, id: TaskId) {
        if let Some(watched) = self.lock().get(&id) {
            watched.changed.notify_one();
        }
    }

    /// How many tasks are watched.
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Watches a task, together with its other watchers on this worker.
    ///
    /// # Errors
    /// The error of the first poll.
    pub(super) async fn watch_task(
        self: &Arc<Self>,
        redis: &RedisClient,
        id: TaskId,
    ) -> Result<TaskWatch, RedisError> {
        let mut observed = self.subscribe(redis, id);
        // The poll sends a result before it ends, so the channel is open.
        let first = observed.wait_for(|task| !matches!(task, ObservedTask::NotYet)).await;
        let failed = first.ok().and_then(|task| match &*task {
            ObservedTask::Failed(error) => Some(error.clone()),
            _ => None,
        });
        match failed {
            Some(error) => Err(error),
            None => Ok(TaskWatch { observed, started: false, finished: false }),
        }
    }

    fn subscribe(self: &Arc<Self>, redis: &RedisClient, id: TaskId) -> watch::Receiver<ObservedTask> {
        let mut all = self.lock();
        if let Some(watched) = all.get(&id) {
            return watched.observed.subscribe();
        }
        let (sender, observed) = watch::channel(ObservedTask::NotYet);
        let watched = WatchedTask { observed: sender, changed: Arc::default() };
        all.insert(id, watched.clone());
        tokio::spawn(Arc::clone(self).poll_until_finished(redis.clone(), id, watched));
        observed
    }

    /// Polls a task until it is final or has no watchers.
    async fn poll_until_finished(self: Arc<Self>, redis: RedisClient, id: TaskId, watched: WatchedTask) {
        let (notified, name) = (Arc::clone(&watched.changed), id.to_string());
        let _subscription =
            redis.subscribe(keys::channel(&name), Arc::new(move |_: &str| notified.notify_one()));
        // Subscribed before the first poll, so that no later change waits for the next one.
        let _ = timeout(SUBSCRIBE_TIMEOUT, redis.wait_until_subscribed(keys::channel(&name))).await.is_ok();
        loop {
            let is_finished = publish(&watched.observed, redis.get_task(id).await);
            {
                // Under the lock of `subscribe`: no watcher may join a task that is no longer polled.
                let mut all = self.lock();
                if is_finished || watched.observed.is_closed() {
                    all.remove(&id);
                    return;
                }
            }
            sleep(POLL_INTERVAL_MIN).await;
            let longest = if redis.notifications_complete_since().is_some() {
                POLL_INTERVAL_MAX
            } else {
                POLL_WHEN_DISCONNECTED
            };
            let _ = timeout(longest, watched.changed.notified()).await.is_ok();
        }
    }
}

/// Sends a poll to the watchers; returns whether it is the last.
fn publish(watchers: &watch::Sender<ObservedTask>, result: Result<Option<TaskStatus>, RedisError>) -> bool {
    let observed = match result {
        Ok(Some(task)) => ObservedTask::Found(Arc::new(task)),
        Ok(None) => ObservedTask::Gone,
        // Watchers wait for Redis; only a failed first poll is an error.
        Err(_) if !matches!(&*watchers.borrow(), ObservedTask::NotYet) => return false,
        Err(error) => ObservedTask::Failed(error),
    };
    let is_finished = match &observed {
        ObservedTask::Found(task) => task.state.is_final(),
        _ => true,
    };
    watchers.send_if_modified(|last| {
        let same = matches!((&*last, &observed), (ObservedTask::Found(last), ObservedTask::Found(now)) if is_same(last, now));
        *last = observed;
        !same
    });
    is_finished
}

/// Whether nothing has changed that watchers see.
fn is_same(last: &TaskStatus, now: &TaskStatus) -> bool {
    let shown = |task: &TaskStatus| (task.state, task.percent, task.attempts, task.started_ms);
    shown(last) == shown(now) && last.worker == now.worker
}
