//! What a worker is told of tasks: on its own channel, and by workers of earlier releases on the common one.
//!
//! What is told is hearsay: it has this worker look, and nothing more.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::redis::news::Channel;
use crate::redis::news::Heard;
use crate::redis::task::CHANGED;
use crate::redis::task::TO_TAKE;
use crate::redis::task::TaskState;
use crate::task::Inner;

impl Inner {
    /// Hears from now on which tasks change, as far as workers of earlier releases tell it to all.
    pub(super) fn hear(self: &Arc<Self>) {
        if self.hears.swap(true, Relaxed) {
            return;
        }
        let inner = Arc::downgrade(self);
        let listener = move |text: &str| {
            if let Some(inner) = inner.upgrade() {
                inner.changed(text);
            }
        };
        self.redis.listen(CHANGED, Arc::new(listener));
    }

    /// What is told to this worker, for as long as the returned value lives.
    pub(super) fn hear_own(self: &Arc<Self>) -> Heard {
        let inner = Arc::downgrade(self);
        let listener = move |text: &str| {
            let Some(inner) = inner.upgrade() else { return };
            let mut letters = text.chars();
            match (letters.next(), letters.next()) {
                (Some(TO_TAKE), Some(' ')) => inner.woken(letters.as_str()),
                (Some(CHANGED), Some(' ')) => inner.changed(letters.as_str()),
                _ => {}
            }
        };
        self.redis.hear(Channel::Worker(&self.waker), Arc::new(listener))
    }

    /// Takes the word that a task has changed: an id, a space and a state.
    fn changed(&self, text: &str) {
        let Some((id, state)) = text.split_once(' ') else { return };
        let Ok(id) = id.parse() else { return };
        // What is said here is no reason to give up work: Redis is asked whether it is true.
        if state == TaskState::Cancelled.name()
            && let Some(progress) = self.present().get(&id)
        {
            progress.ask();
        }
        self.follows.changed(id);
    }

    /// Takes the word that there is something of this kind to take.
    pub(super) fn woken(&self, kind: &str) {
        if self.kinds().contains_key(kind) {
            self.wake.notify_one();
        }
    }
}
