//! A worker's notification handlers and subscriptions, and since when no notification was missed. No I/O.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::redis::notifications::subscriptions::{ChannelSubscriptions, NotificationHandler};
use crate::redis::server_info::ServerWarning;

/// Kinds of notifications that only workers of earlier releases send on the common channel: broadcasts, queued tasks,
/// changed tasks. Later releases have separate channels for each, and ignore these while no earlier release is running.
const EARLIER_KINDS: [char; 3] = ['b', 't', 'p'];

/// A worker name that no worker has: publishing to it only shows whether this user may publish.
pub(in crate::redis) const NO_WORKER: &str = "-";

/// A worker's handlers and subscriptions, and whether notifications may be missed.
#[derive(Default)]
pub(in crate::redis) struct NotificationBus {
    pub(super) handlers: RwLock<Vec<(char, NotificationHandler)>>,
    pub(super) subscriptions: Mutex<ChannelSubscriptions>,
    pub(super) complete_since: watch::Sender<Option<Instant>>,
    /// Changes whenever a channel becomes subscribed, and when the connection is lost.
    pub(super) confirmations: watch::Sender<u64>,
    /// The right that this user lacks, as a warning.
    pub(super) missing_right: watch::Sender<Option<ServerWarning>>,
    /// Notified when a channel gets its first subscriber or loses its last.
    pub(super) channels_changed: Notify,
    pub(super) started: AtomicBool,
    /// Whether there is a connection, or one is being opened.
    pub(super) connected: AtomicBool,
    pub(super) message_count: AtomicU64,
}

impl fmt::Debug for NotificationBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listeners").field("since", &self.complete_since()).finish_non_exhaustive()
    }
}

impl NotificationBus {
    pub(super) fn complete_since(&self) -> Option<Instant> {
        *self.complete_since.borrow()
    }

    pub(super) fn lock_subscriptions(&self) -> MutexGuard<'_, ChannelSubscriptions> {
        self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on no notification is missed.
    pub(super) fn mark_complete(&self) {
        self.complete_since.send_replace(Some(Instant::now()));
    }

    /// These channels are subscribed.
    pub(super) fn confirm(&self, names: &[String]) {
        self.lock_subscriptions().mark_subscribed(names);
        self.confirmations.send_modify(|times| *times += 1);
    }

    /// The connection is lost.
    pub(super) fn on_connection_lost(&self) {
        self.connected.store(false, Relaxed);
        self.lock_subscriptions().reset();
        self.complete_since.send_replace(None);
        self.confirmations.send_modify(|times| *times += 1);
    }

    /// A message on the common channel is a letter for its kind, a space, and a text.
    pub(super) fn dispatch(&self, message: &str, earlier: bool) {
        let mut letters = message.chars();
        let (Some(kind), Some(' ')) = (letters.next(), letters.next()) else { return };
        if EARLIER_KINDS.contains(&kind) && !earlier {
            return;
        }
        for (_, handler) in self.handlers().iter().filter(|(handled, _)| *handled == kind) {
            handler(letters.as_str());
        }
    }

    fn handlers(&self) -> Vec<(char, NotificationHandler)> {
        self.handlers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_handler_receives_its_own_kind_only() {
        let listeners = NotificationBus::default();
        let received: Arc<Mutex<Vec<String>>> = Arc::default();
        for kind in ['l', 'b'] {
            let handler = Arc::clone(&received);
            let listen: NotificationHandler =
                Arc::new(move |text: &str| handler.lock().unwrap().push(text.to_owned()));
            listeners.handlers.write().unwrap().push((kind, listen));
        }
        for message in ["l p:l:a", "x p:l:b", "l", "", "l ", "lp", "b chat 0-0 1-0 forged"] {
            listeners.dispatch(message, false);
        }
        assert_eq!(*received.lock().unwrap(), ["p:l:a", ""]);
        listeners.dispatch("b chat 0-0 1-0 x", true);
        assert_eq!(received.lock().unwrap()[2..], ["chat 0-0 1-0 x"], "an earlier release tells it there");
    }
}
