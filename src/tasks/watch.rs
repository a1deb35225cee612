//! Those who want to see a task change: one look at Redis for all of a worker's, however many they are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use crate::redis;
use crate::redis::RedisClient;
use crate::redis::notifications::NotificationChannel;
use crate::redis::task::{TaskId, TaskStatus};

/// Shortest time between two looks at one task.
const POLL_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Longest time between two looks: news may be lost. Shorter while none can be heard.
const POLL_INTERVAL_MAX: Duration = Duration::from_secs(1);
const POLL_WHEN_DISCONNECTED: Duration = Duration::from_millis(250);
/// Longest wait for a task's channel to be heard before the first look.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_millis(250);

/// A task as it was seen last.
#[derive(Debug, Clone)]
enum ObservedTask {
    /// No one has looked yet.
    NotYet,
    /// The first look failed.
    Failed(redis::RedisError),
    /// Like this.
    Found(Arc<TaskStatus>),
    /// There is none, or no longer.
    Gone,
}

/// All tasks that someone on this worker follows.
#[derive(Debug, Default)]
pub(super) struct TaskWatchers(Mutex<HashMap<TaskId, WatchedTask>>);

#[derive(Debug, Clone)]
struct WatchedTask {
    observed: watch::Sender<ObservedTask>,
    changed: Arc<Notify>,
}

/// A task as it changes.
#[derive(Debug)]
pub struct TaskWatch {
    observed: watch::Receiver<ObservedTask>,
    started: bool,
    finished: bool,
}

impl TaskWatch {
    /// The task as it is, and then at each change; `None` after its end, and where there is none any more.
    ///
    /// Changes that come faster than every tenth of a second are seen as one.
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

    /// A task has changed, says the news.
    pub(super) fn notify(&self, id: TaskId) {
        if let Some(followed) = self.lock().get(&id) {
            followed.changed.notify_one();
        }
    }

    /// How many tasks are followed.
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Follows a task, together with everybody who does already.
    ///
    /// # Errors
    /// Why Redis could not be asked.
    pub(super) async fn watch_task(
        self: &Arc<Self>,
        redis: &RedisClient,
        id: TaskId,
    ) -> Result<TaskWatch, redis::RedisError> {
        let mut seen = self.subscribe(redis, id);
        // The one who looks ends only after someone was told, so this is no error.
        let first = seen.wait_for(|seen| !matches!(seen, ObservedTask::NotYet)).await;
        let failed = first.ok().and_then(|seen| match &*seen {
            ObservedTask::Failed(error) => Some(error.clone()),
            _ => None,
        });
        match failed {
            Some(error) => Err(error),
            None => Ok(TaskWatch { observed: seen, started: false, finished: false }),
        }
    }

    fn subscribe(self: &Arc<Self>, redis: &RedisClient, id: TaskId) -> watch::Receiver<ObservedTask> {
        let mut all = self.lock();
        if let Some(followed) = all.get(&id) {
            return followed.observed.subscribe();
        }
        let (sender, seen) = watch::channel(ObservedTask::NotYet);
        let followed = WatchedTask { observed: sender, changed: Arc::default() };
        all.insert(id, followed.clone());
        tokio::spawn(Arc::clone(self).poll_until_finished(redis.clone(), id, followed));
        seen
    }

    /// Looks at a task until it ends or no one follows it.
    async fn poll_until_finished(self: Arc<Self>, redis: RedisClient, id: TaskId, followed: WatchedTask) {
        let (notified, name) = (Arc::clone(&followed.changed), id.to_string());
        let _subscription =
            redis.subscribe(NotificationChannel::Task(&name), Arc::new(move |_: &str| notified.notify_one()));
        // What changes after the first look has to be heard; what is not is seen at the next one.
        let _ = timeout(SUBSCRIBE_TIMEOUT, redis.wait_until_subscribed(NotificationChannel::Task(&name)))
            .await
            .is_ok();
        loop {
            let is_finished = publish(&followed.observed, redis.get_task(id).await);
            {
                // Under the same lock as joining: no one joins what is no longer watched.
                let mut all = self.lock();
                if is_finished || followed.observed.is_closed() {
                    all.remove(&id);
                    return;
                }
            }
            sleep(POLL_INTERVAL_MIN).await;
            let most = if redis.notifications_complete_since().is_some() {
                POLL_INTERVAL_MAX
            } else {
                POLL_WHEN_DISCONNECTED
            };
            let _ = timeout(most, followed.changed.notified()).await.is_ok();
        }
    }
}

/// Tells the followers what was seen; whether there is nothing more to see.
fn publish(
    followers: &watch::Sender<ObservedTask>,
    result: Result<Option<TaskStatus>, redis::RedisError>,
) -> bool {
    let seen = match result {
        Ok(Some(task)) => ObservedTask::Found(Arc::new(task)),
        Ok(None) => ObservedTask::Gone,
        // Redis is away for a moment: the one who follows waits. The one who begins to is told.
        Err(_) if !matches!(&*followers.borrow(), ObservedTask::NotYet) => return false,
        Err(error) => ObservedTask::Failed(error),
    };
    let is_finished = match &seen {
        ObservedTask::Found(task) => task.state.is_final(),
        _ => true,
    };
    followers.send_if_modified(|last| {
        let same = matches!((&*last, &seen), (ObservedTask::Found(last), ObservedTask::Found(now)) if is_same(last, now));
        *last = seen;
        !same
    });
    is_finished
}

/// Whether nothing has changed that is shown.
fn is_same(last: &TaskStatus, now: &TaskStatus) -> bool {
    let shown = |task: &TaskStatus| (task.state, task.percent, task.attempts, task.started_ms);
    shown(last) == shown(now) && last.worker == now.worker
}
