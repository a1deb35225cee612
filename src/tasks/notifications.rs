//! What a worker is told of tasks: on its own channel, and by workers of earlier releases on the common one.
//!
//! What is told is hearsay: it has this worker look, and nothing more.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::redis::notifications::{ChannelSubscriptionGuard, NotificationChannel};
use crate::redis::task::{TASK_CHANGED, TASK_QUEUED, TaskState};
use crate::tasks::TaskService;

impl TaskService {
    /// Hears from now on which tasks change, as far as workers of earlier releases tell it to all.
    pub(super) fn subscribe_changes(self: &Arc<Self>) {
        if self.changes_subscribed.swap(true, Relaxed) {
            return;
        }
        let inner = Arc::downgrade(self);
        let listener = move |text: &str| {
            if let Some(inner) = inner.upgrade() {
                inner.on_task_changed(text);
            }
        };
        self.redis.on_notification(TASK_CHANGED, Arc::new(listener));
    }

    /// What is told to this worker, for as long as the returned value lives.
    pub(super) fn subscribe_worker_channel(self: &Arc<Self>) -> ChannelSubscriptionGuard {
        let inner = Arc::downgrade(self);
        let listener = move |text: &str| {
            let Some(inner) = inner.upgrade() else { return };
            let mut letters = text.chars();
            match (letters.next(), letters.next()) {
                (Some(TASK_QUEUED), Some(' ')) => inner.on_task_queued(letters.as_str()),
                (Some(TASK_CHANGED), Some(' ')) => inner.on_task_changed(letters.as_str()),
                _ => {}
            }
        };
        self.redis.subscribe(NotificationChannel::Worker(&self.worker_channel), Arc::new(listener))
    }

    /// Takes the word that a task has changed: an id, a space and a state.
    fn on_task_changed(&self, text: &str) {
        let Some((id, state)) = text.split_once(' ') else { return };
        let Ok(id) = id.parse() else { return };
        // What is said here is no reason to give up work: Redis is asked whether it is true.
        if state == TaskState::Cancelled.name()
            && let Some(progress) = self.running_tasks().get(&id)
        {
            progress.request_check();
        }
        self.watchers.notify(id);
    }

    /// Takes the word that there is something of this kind to take.
    pub(super) fn on_task_queued(&self, kind: &str) {
        if self.jobs().contains_key(kind) {
            self.wake.notify_one();
        }
    }
}
