//! What other rooms do with notifications: subscribe, and ask since when none was missed.

use std::fmt;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::redis::client::RedisClient;
use crate::redis::keys;
use crate::redis::notifications::channels::NotificationChannel;
use crate::redis::notifications::connection;
use crate::redis::notifications::subscriptions::NotificationHandler;
use crate::redis::server_info::{ServerWarning, ServerWarnings};

/// Keeps a channel subscribed until it is dropped, and a little longer.
pub struct ChannelSubscriptionGuard {
    redis: RedisClient,
    name: String,
}

impl fmt::Debug for ChannelSubscriptionGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Heard").field(&self.name).finish()
    }
}

impl Drop for ChannelSubscriptionGuard {
    fn drop(&mut self) {
        self.redis.inner.notifications.lock_subscriptions().remove_subscriber(&self.name, Instant::now());
        self.redis.inner.notifications.channels_changed.notify_one();
    }
}

impl RedisClient {
    /// Calls the handler for each notification of one kind on the common channel, for as long as this worker lives; the
    /// first handler starts the connection.
    ///
    /// The handler is called on the worker's event loop and must not take long.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn on_notification(&self, kind: char, handler: NotificationHandler) {
        let bus = &self.inner.notifications;
        bus.handlers.write().unwrap_or_else(PoisonError::into_inner).push((kind, handler));
        self.start_notifications();
    }

    /// Calls the handler for each message of a channel. A later handler of the same channel replaces it.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn subscribe(
        &self,
        channel: NotificationChannel<'_>,
        handler: NotificationHandler,
    ) -> ChannelSubscriptionGuard {
        let (bus, name) = (&self.inner.notifications, self.channel_name(channel));
        bus.lock_subscriptions().add_subscriber(&name, Some(handler), channel.lingers());
        self.start_notifications();
        bus.channels_changed.notify_one();
        ChannelSubscriptionGuard { redis: self.clone(), name }
    }

    fn start_notifications(&self) {
        let bus = &self.inner.notifications;
        if !bus.started.swap(true, Relaxed) {
            bus.connected.store(true, Relaxed);
            bus.lock_subscriptions().add_subscriber(
                &keys::notifications_channel(&self.inner.target.channel_prefix),
                None,
                false,
            );
            tokio::spawn(connection::maintain(self.clone()));
        }
    }

    /// Waits until a channel is subscribed. False if it has no subscriber, or there is no connection; when there is one
    /// again, all channels are subscribed and [`RedisClient::notifications_complete_since`] changes.
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

    /// Since when no notification was missed; `None`: some may be missed now.
    pub fn notifications_complete_since(&self) -> Option<std::time::Instant> {
        self.inner.notifications.complete_since().map(Instant::into_std)
    }

    /// Changes whenever [`RedisClient::notifications_complete_since`] does.
    pub fn notification_completeness_changes(&self) -> watch::Receiver<Option<Instant>> {
        self.inner.notifications.complete_since.subscribe()
    }

    /// Messages received so far, on all channels.
    pub fn notifications_received(&self) -> u64 {
        self.inner.notifications.message_count.load(Relaxed)
    }

    /// The rights for notifications that this user lacks, as this worker found out.
    pub fn notification_warnings(&self) -> ServerWarnings {
        self.inner.notifications.missing_right.borrow().iter().copied().collect()
    }

    /// Changes whenever [`RedisClient::notification_warnings`] does.
    pub fn notification_warning_changes(&self) -> watch::Receiver<Option<ServerWarning>> {
        self.inner.notifications.missing_right.subscribe()
    }
}
