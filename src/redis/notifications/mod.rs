//! What workers must know at once: one connection that only listens, to the channels that have listeners here.
//!
//! Guarantees that a worker hears what was asked for on it and no more, that a channel is heard when [`Redis::confirmed`]
//! says so, and that a listener can tell whether it may have missed something: [`Redis::news_since`] says from when on
//! everything was heard, and says so only while the connection answers. The connection is made for the first
//! listener, and made anew for ever, with the pauses of the other one. News that came faster than it was heard is
//! missed like any other. Whatever is published there is hearsay: each listener checks what it acts on.

mod connection;
mod subscriptions;

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use subscriptions::ChannelSubscriptions;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::redis::inspect::ServerWarning;
use crate::redis::{ClientInner, RedisClient, ServerWarnings, keys};

/// Kinds of news that only workers of earlier releases tell on the fleet's one channel: broadcasts, tasks to take, tasks
/// that changed. Later ones have channels of their own for each, and believe none of these while no earlier one lives.
const EARLIER_KINDS: [char; 3] = ['b', 't', 'p'];

/// No worker has this name: what is told to it only shows whether this user may tell anything.
pub(super) const NO_WORKER: &str = "-";

/// Hears the text of one kind of news.
pub type NotificationHandler = Arc<dyn Fn(&str) + Send + Sync>;

/// A channel beside the fleet's common one.
#[derive(Debug, Clone, Copy)]
pub enum NotificationChannel<'a> {
    /// A topic's messages.
    Topic(&'a str),
    /// A task's changes.
    Task(&'a str),
    /// What is told to one worker.
    Worker(&'a str),
}

/// A worker's listeners, and how far they can rely on hearing everything.
#[derive(Default)]
pub(super) struct NotificationBus {
    handlers: RwLock<Vec<(char, NotificationHandler)>>,
    subscriptions: Mutex<ChannelSubscriptions>,
    complete_since: watch::Sender<Option<Instant>>,
    /// Changes whenever a channel is heard that was not, and when none is any more.
    confirmations: watch::Sender<u64>,
    /// What of the user's rights is missing, as a finding.
    missing_right: watch::Sender<Option<ServerWarning>>,
    /// Told when a channel is wanted, or no longer.
    channels_changed: Notify,
    started: AtomicBool,
    /// Whether there is a connection, or one is being made.
    connected: AtomicBool,
    message_count: AtomicU64,
}

impl fmt::Debug for NotificationBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listeners").field("since", &self.complete_since()).finish_non_exhaustive()
    }
}

impl NotificationBus {
    fn complete_since(&self) -> Option<Instant> {
        *self.complete_since.borrow()
    }

    fn lock_subscriptions(&self) -> MutexGuard<'_, ChannelSubscriptions> {
        self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that is wanted is heard from now on.
    fn mark_complete(&self) {
        self.complete_since.send_replace(Some(Instant::now()));
    }

    /// These channels are heard.
    fn confirm(&self, names: &[String]) {
        self.lock_subscriptions().mark_subscribed(names);
        self.confirmations.send_modify(|times| *times += 1);
    }

    /// The connection is gone.
    fn on_connection_lost(&self) {
        self.connected.store(false, Relaxed);
        self.lock_subscriptions().reset();
        self.complete_since.send_replace(None);
        self.confirmations.send_modify(|times| *times += 1);
    }

    /// A message on the fleet's common channel is a letter for its kind, a space, and a text.
    fn dispatch(&self, message: &str, earlier: bool) {
        let mut letters = message.chars();
        let (Some(kind), Some(' ')) = (letters.next(), letters.next()) else { return };
        if EARLIER_KINDS.contains(&kind) && !earlier {
            return;
        }
        for (_, listener) in self.handlers().iter().filter(|(handled, _)| *handled == kind) {
            listener(letters.as_str());
        }
    }

    fn handlers(&self) -> Vec<(char, NotificationHandler)> {
        self.handlers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A channel is heard as long as this value lives, and a little longer.
pub struct ChannelSubscriptionGuard {
    inner: Arc<ClientInner>,
    name: String,
}

impl fmt::Debug for ChannelSubscriptionGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Heard").field(&self.name).finish()
    }
}

impl Drop for ChannelSubscriptionGuard {
    fn drop(&mut self) {
        self.inner.notifications.lock_subscriptions().remove_subscriber(&self.name, Instant::now());
        self.inner.notifications.channels_changed.notify_one();
    }
}

impl RedisClient {
    /// Calls the listener for each message of one kind of common news, for as long as this worker lives; the first
    /// listener starts the connection.
    ///
    /// The listener is called on the worker's event loop and must not take long.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn on_notification(&self, kind: char, listener: NotificationHandler) {
        let bus = &self.inner.notifications;
        bus.handlers.write().unwrap_or_else(PoisonError::into_inner).push((kind, listener));
        self.start_notifications();
    }

    /// Calls the listener for each message of a channel. A later listener to the same channel takes its place.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn subscribe(
        &self,
        channel: NotificationChannel<'_>,
        listener: NotificationHandler,
    ) -> ChannelSubscriptionGuard {
        let (bus, name) = (&self.inner.notifications, self.channel_name(channel));
        // A page that is loaded anew subscribes to its topic again in a moment; a task that ended is not followed again.
        let lingers = matches!(channel, NotificationChannel::Topic(_));
        bus.lock_subscriptions().add_subscriber(&name, Some(listener), lingers);
        self.start_notifications();
        bus.channels_changed.notify_one();
        ChannelSubscriptionGuard { inner: Arc::clone(&self.inner), name }
    }

    fn start_notifications(&self) {
        let bus = &self.inner.notifications;
        if !bus.started.swap(true, Relaxed) {
            bus.connected.store(true, Relaxed);
            bus.lock_subscriptions().add_subscriber(
                &keys::notifications_channel(&self.inner.channel_prefix),
                None,
                false,
            );
            tokio::spawn(connection::maintain(Arc::clone(&self.inner)));
        }
    }

    /// Waits until a channel is heard. False: it has no listener, or there is no connection; all that have listeners are
    /// heard when there is one, and [`Redis::news_since`] changes then.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn wait_until_subscribed(&self, channel: NotificationChannel<'_>) -> bool {
        let (bus, name) = (&self.inner.notifications, self.channel_name(channel));
        let mut confirmations = bus.confirmations.subscribe();
        loop {
            if bus.lock_subscriptions().is_subscribed(&name) {
                return true;
            }
            let may_come = bus.connected.load(Relaxed) && bus.lock_subscriptions().has_subscriber(&name);
            if !may_come || confirmations.changed().await.is_err() {
                return false;
            }
        }
    }

    fn channel_name(&self, channel: NotificationChannel<'_>) -> String {
        let space = &self.inner.channel_prefix;
        match channel {
            NotificationChannel::Topic(topic) => keys::topic_channel(space, topic),
            NotificationChannel::Task(id) => keys::task_channel(space, id),
            NotificationChannel::Worker(worker) => keys::worker_channel(space, worker),
        }
    }

    /// From when on all news was heard; `None`: some may be missed at this moment.
    pub fn notifications_complete_since(&self) -> Option<std::time::Instant> {
        self.inner.notifications.complete_since().map(Instant::into_std)
    }

    /// Changes whenever [`Redis::news_since`] does.
    pub fn notification_completeness_changes(&self) -> watch::Receiver<Option<Instant>> {
        self.inner.notifications.complete_since.subscribe()
    }

    /// Messages that came so far, on all channels.
    pub fn notifications_received(&self) -> u64 {
        self.inner.notifications.message_count.load(Relaxed)
    }

    /// What of the user's rights is missing for news, as this worker found out by itself.
    pub fn notification_warnings(&self) -> ServerWarnings {
        self.inner.notifications.missing_right.borrow().iter().copied().collect()
    }

    /// Changes whenever [`Redis::news_findings`] does.
    pub fn notification_warning_changes(&self) -> watch::Receiver<Option<ServerWarning>> {
        self.inner.notifications.missing_right.subscribe()
    }

    /// The fleet's common channel, for what is told now.
    ///
    /// Workers of earlier releases listen to that of database 0, whatever their own. As long as one lives, later ones
    /// listen to both and tell there.
    pub(super) async fn common_channel(&self) -> String {
        let inner = &self.inner;
        if inner.channel_prefix != inner.prefix && self.earlier_release_sighting().await.needs_publish() {
            return keys::notifications_channel(&inner.prefix);
        }
        keys::notifications_channel(&inner.channel_prefix)
    }

    /// Where workers of earlier releases hear of broadcasts and tasks; empty while there is none.
    pub(super) async fn earlier_release_channel(&self) -> String {
        match self.earlier_release_sighting().await.needs_publish() {
            true => keys::notifications_channel(&self.inner.prefix),
            false => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn a_handler_receives_its_own_kind_only() {
        let listeners = NotificationBus::default();
        let received: Arc<Mutex<Vec<String>>> = Arc::default();
        for kind in ['l', 'b'] {
            let listener = Arc::clone(&received);
            let listen: NotificationHandler =
                Arc::new(move |text: &str| listener.lock().unwrap().push(text.to_owned()));
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
