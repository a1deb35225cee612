//! What comes to a worker's topics: on each topic's channel, and from workers of earlier releases on the common one.
//!
//! A channel is heard before it is read where its topic stands, so that nothing falls between the two.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::timeout;

use crate::broadcast::topic_feed::TopicFeed;
use crate::broadcast::{BroadcastError, BroadcastHub, HubState};
use crate::redis::broadcast_commands;
use crate::redis::notifications::{ChannelSubscriptionGuard, NotificationChannel};
use crate::sys::clock;

/// Longest wait for a topic's channel to be heard before it is read where the topic stands; what comes later is doubted.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_millis(250);

impl BroadcastHub {
    /// Finds out where the topic stands; one subscriber does so for all that wait.
    pub(super) async fn start_feed(&self, line: &Arc<TopicFeed>) -> Result<(), BroadcastError> {
        self.subscribe_legacy_channel();
        let _turn = line.reader_lock.lock().await;
        if line.is_started() {
            return Ok(());
        }
        // What comes after the place where the topic stands has to be heard.
        let subscribed =
            self.inner.redis.wait_until_subscribed(NotificationChannel::Topic(line.topic.as_str()));
        if timeout(SUBSCRIBE_TIMEOUT, subscribed).await.is_err() {
            tokio::spawn(mark_incomplete_when_subscribed(Arc::downgrade(&self.inner), Arc::downgrade(line)));
        }
        let newest = match self.inner.read_permits.acquire().await {
            Ok(_permit) => self.inner.redis.latest_stream_id(line.topic.as_str()).await?,
            Err(_) => broadcast_commands::StreamId::default(),
        };
        line.start_after(newest.into());
        self.inner.reconcile.notify_one();
        Ok(())
    }

    /// Listens to what workers of earlier releases tell, from the first subscriber on.
    fn subscribe_legacy_channel(&self) {
        if self.inner.legacy_subscribed.swap(true, Relaxed) {
            return;
        }
        let inner = Arc::downgrade(&self.inner);
        let handler = move |text: &str| {
            if let Some(inner) = inner.upgrade() {
                inner.on_legacy_notification(text);
            }
        };
        self.inner.redis.on_notification(broadcast_commands::MESSAGE_PUBLISHED, Arc::new(handler));
    }
}

impl HubState {
    fn on_legacy_notification(&self, text: &str) {
        let Some((topic, before, id, text)) = broadcast_commands::decode_legacy_notification(text) else {
            return;
        };
        let line = self.topics().get(topic).map(|table| Arc::clone(&table.feed));
        if line.is_some_and(|line| line.on_notification(before.into(), id.into(), text)) {
            self.reconcile.notify_one();
        }
    }

    /// What came on a topic's channel. What is not of this fleet is no reason for more than a look at the stream now and
    /// then.
    fn on_notification(&self, line: &TopicFeed, text: &str) {
        let doubtful = match self.redis.decode_notification(text) {
            Some((before, id, text)) => line.on_notification(before.into(), id.into(), text),
            None => line.on_foreign_notification(clock::monotonic()),
        };
        if doubtful {
            self.reconcile.notify_one();
        }
    }

    /// Hears a topic's channel for as long as the returned value lives.
    pub(super) fn subscribe_topic_channel(
        self: &Arc<Self>,
        line: &Arc<TopicFeed>,
    ) -> ChannelSubscriptionGuard {
        let (inner, of) = (Arc::downgrade(self), Arc::downgrade(line));
        let listener = move |text: &str| {
            if let Some((inner, line)) = inner.upgrade().zip(of.upgrade()) {
                inner.on_notification(&line, text);
            }
        };
        self.redis.subscribe(NotificationChannel::Topic(line.topic.as_str()), Arc::new(listener))
    }
}

/// A topic's channel was not heard when it was read where the topic stands: what came in between was missed.
async fn mark_incomplete_when_subscribed(inner: Weak<HubState>, line: Weak<TopicFeed>) {
    let Some((redis, topic)) =
        inner.upgrade().zip(line.upgrade()).map(|(inner, line)| (inner.redis.clone(), line.topic.clone()))
    else {
        return;
    };
    // Where there is no connection, all topics are doubted when there is one.
    if redis.wait_until_subscribed(NotificationChannel::Topic(topic.as_str())).await
        && let Some((inner, line)) = inner.upgrade().zip(line.upgrade())
    {
        line.mark_incomplete(true);
        inner.reconcile.notify_one();
    }
}
