//! What a worker's subscribers share: the topics they follow, the memory for them, and what arrives on their channels.
//!
//! Guarantees that a topic's memory and channel exist exactly as long as it has subscribers here. No lock is held over an
//! `.await`.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rand::TryRngCore;
use rand::rngs::OsRng;
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;

use crate::broadcasts::commands::StreamEntry;
use crate::broadcasts::error::BroadcastError;
use crate::broadcasts::presence::PresenceTracker;
use crate::broadcasts::topic::TopicName;
use crate::broadcasts::topic_feed::TopicFeed;
use crate::broadcasts::{commands, keys, message, sequencer};
use crate::config::settings::BroadcastConfig;
use crate::redis::RedisClient;
use crate::redis::notifications::ChannelSubscriptionGuard;
use crate::sys::clock;

/// Bytes of messages that a worker buffers, of all topics together. The largest message of every topic must fit, so this
/// bounds the number of topics: all that are allowed by default.
const MEMORY_MAX: usize = 48 << 20;

/// A topic's share grows only when it would become this many times as large: topics that come and go change nothing.
const SHARE_GROWTH: usize = 4;

/// Bytes of one reply of Redis, or two messages if these are more; and messages in it.
const PAGE_BYTES: usize = 1 << 20;
const PAGE_MAX: usize = 128;

/// Reads of older messages at the same time.
const READS: usize = 8;

/// Shortest and longest delay before Redis is called again after an error.
const RETRY_DELAY_MS: [u32; 2] = [100, 1000];

/// Longest wait for a topic's channel to be subscribed before the topic's end is read; what comes later is reconciled.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_millis(250);

/// The state behind a worker's hub.
pub(super) struct HubState {
    pub(super) redis: RedisClient,
    pub(super) settings: BroadcastConfig,
    topics: Mutex<HashMap<TopicName, TopicEntry>>,
    subscribers: AtomicUsize,
    /// Bytes that each topic may buffer.
    topic_memory: Arc<AtomicUsize>,
    /// Messages in one reply of Redis.
    pub(super) page_size: usize,
    legacy_subscribed: AtomicBool,
    foreign_entry_warned: AtomicBool,
    /// Wakes the reconciler: a stream has to be queried, or there is a first topic.
    pub(super) reconcile: Notify,
    pub(super) read_permits: Semaphore,
    pub(super) presence: Arc<PresenceTracker>,
    pub(super) counters: HubCounters,
}

/// A topic and how many subscribe to it here.
struct TopicEntry {
    feed: Arc<TopicFeed>,
    subscribers: usize,
    _subscription: ChannelSubscriptionGuard,
}

/// A subscriber's place in its topic, freed on drop.
pub(super) struct SubscriberGuard {
    pub(super) state: Arc<HubState>,
    pub(super) feed: Arc<TopicFeed>,
}

/// What [`crate::broadcasts::BroadcastTotals`] shows.
#[derive(Debug, Default)]
pub(super) struct HubCounters {
    pub(super) published: AtomicU64,
    pub(super) delivered: AtomicU64,
    pub(super) gaps: AtomicU64,
    pub(super) catch_up_reads: AtomicU64,
    pub(super) lagged: AtomicU64,
}

impl HubState {
    pub(super) fn new(redis: RedisClient, settings: &BroadcastConfig) -> Self {
        let largest = settings.max_message_size.max(1);
        Self {
            redis,
            page_size: (PAGE_BYTES / largest).clamp(2, PAGE_MAX),
            settings: settings.clone(),
            topics: Mutex::default(),
            subscribers: AtomicUsize::new(0),
            topic_memory: Arc::new(AtomicUsize::new(MEMORY_MAX)),
            legacy_subscribed: AtomicBool::new(false),
            foreign_entry_warned: AtomicBool::new(false),
            reconcile: Notify::new(),
            read_permits: Semaphore::new(READS),
            presence: Arc::new(PresenceTracker::new()),
            counters: HubCounters::default(),
        }
    }

    fn topics(&self) -> MutexGuard<'_, HashMap<TopicName, TopicEntry>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn topic_count(&self) -> usize {
        self.topics().len()
    }

    pub(super) fn feeds(&self) -> Vec<Arc<TopicFeed>> {
        self.topics().values().map(|entry| Arc::clone(&entry.feed)).collect()
    }

    pub(super) fn subscribers(&self) -> usize {
        self.subscribers.load(Relaxed)
    }

    pub(super) fn subscriber_counts(&self) -> Vec<(TopicName, u64)> {
        self.topics().iter().map(|(topic, entry)| (topic.clone(), entry.subscribers as u64)).collect()
    }

    /// Adds a subscriber to a topic; the first one creates its feed.
    pub(super) fn join(self: &Arc<Self>, topic: &TopicName) -> Result<SubscriberGuard, BroadcastError> {
        let BroadcastConfig { max_subscribers, max_topics, max_lag, retention_messages, .. } = self.settings;
        let max_topics = max_topics.min((MEMORY_MAX / self.largest_message_size()).max(1));
        if self.subscribers() >= max_subscribers {
            return Err(BroadcastError::TooManySubscribers { limit: max_subscribers });
        }
        let mut topics = self.topics();
        if !topics.contains_key(topic) {
            if topics.len() >= max_topics {
                return Err(BroadcastError::TooManyTopics { limit: max_topics });
            }
            // All that Redis retains fits, so that a client that resumes causes no read, and all that may come at once.
            let retained = usize::try_from(retention_messages).unwrap_or(usize::MAX);
            let count = retained.max(max_lag).saturating_add(sequencer::PENDING_MAX + 2 * PAGE_MAX);
            let feed = Arc::new(TopicFeed::new(topic, count, &self.topic_memory));
            let subscription = self.subscribe_topic_channel(&feed);
            let entry = TopicEntry { feed, subscribers: 0, _subscription: subscription };
            topics.insert(topic.clone(), entry);
            self.rebalance_memory(&topics);
            self.presence.wake();
        }
        let Some(entry) = topics.get_mut(topic) else {
            return Err(BroadcastError::TooManyTopics { limit: max_topics });
        };
        entry.subscribers += 1;
        self.subscribers.fetch_add(1, Relaxed);
        Ok(SubscriberGuard { state: Arc::clone(self), feed: Arc::clone(&entry.feed) })
    }

    /// Divides the memory among the topics. Shares change at powers of two only, so that a new topic rarely makes all
    /// others evict messages.
    fn rebalance_memory(&self, topics: &HashMap<TopicName, TopicEntry>) {
        let present = self.topic_memory.load(Relaxed);
        let share = (MEMORY_MAX / topics.len().next_power_of_two()).max(self.largest_message_size());
        if share < present {
            self.topic_memory.store(share, Relaxed);
            topics.values().for_each(|entry| entry.feed.trim());
        } else if share / SHARE_GROWTH >= present || topics.is_empty() {
            self.topic_memory.store(share, Relaxed);
        }
    }

    /// Bytes that the largest message takes in memory.
    fn largest_message_size(&self) -> usize {
        message::weight(self.settings.max_message_size)
    }

    /// Logs once that a topic's stream holds an entry that is no message.
    pub(super) fn warn_foreign_entry(&self, topic: &TopicName, read: &[StreamEntry]) {
        if read.iter().any(|stored| stored.text.is_none()) && !self.foreign_entry_warned.swap(true, Relaxed) {
            tracing::warn!(%topic, "foreign entry in a topic's stream skipped");
        }
    }

    /// Finds the end of a topic's stream; one subscriber does so for all that wait.
    pub(super) async fn start_feed(self: &Arc<Self>, feed: &Arc<TopicFeed>) -> Result<(), BroadcastError> {
        self.subscribe_legacy_channel();
        let _reader = feed.reader_lock.lock().await;
        if feed.is_started() {
            return Ok(());
        }
        // Subscribed first: a message after the stream's end must not be missed.
        let channel = keys::channel(feed.topic.as_str());
        if timeout(SUBSCRIBE_TIMEOUT, self.redis.wait_until_subscribed(channel)).await.is_err() {
            tokio::spawn(mark_incomplete_when_subscribed(Arc::downgrade(self), Arc::downgrade(feed)));
        }
        let newest = match self.read_permits.acquire().await {
            Ok(_permit) => self.redis.latest_stream_id(feed.topic.as_str()).await?,
            Err(_) => commands::StreamId::default(),
        };
        feed.start_after(newest.into());
        self.reconcile.notify_one();
        Ok(())
    }

    /// Subscribes to the channel on which workers of earlier releases announce messages, from the first subscriber on.
    fn subscribe_legacy_channel(self: &Arc<Self>) {
        if self.legacy_subscribed.swap(true, Relaxed) {
            return;
        }
        let state = Arc::downgrade(self);
        let handler = move |text: &str| {
            if let Some(state) = state.upgrade() {
                state.on_legacy_notification(text);
            }
        };
        self.redis.on_notification(commands::MESSAGE_PUBLISHED, Arc::new(handler));
    }

    fn on_legacy_notification(&self, text: &str) {
        let Some((topic, before, id, text)) = commands::decode_legacy_notification(text) else {
            return;
        };
        let feed = self.topics().get(topic).map(|entry| Arc::clone(&entry.feed));
        if feed.is_some_and(|feed| feed.on_notification(before.into(), id.into(), text)) {
            self.reconcile.notify_one();
        }
    }

    /// Subscribes to a topic's channel for as long as the returned guard lives.
    fn subscribe_topic_channel(self: &Arc<Self>, feed: &Arc<TopicFeed>) -> ChannelSubscriptionGuard {
        let (state, target) = (Arc::downgrade(self), Arc::downgrade(feed));
        let handler = move |text: &str| {
            if let Some((state, feed)) = state.upgrade().zip(target.upgrade()) {
                state.on_notification(&feed, text);
            }
        };
        self.redis.subscribe(keys::channel(feed.topic.as_str()), Arc::new(handler))
    }

    /// A text arrived on a topic's channel. One without the fleet's mark causes no more than a query of the stream now
    /// and then: anyone with access to Redis may send it.
    fn on_notification(&self, feed: &TopicFeed, text: &str) {
        let is_incomplete = match self.redis.decode_notification(text) {
            Some((before, id, text)) => feed.on_notification(before.into(), id.into(), text),
            None => feed.on_foreign_notification(clock::monotonic()),
        };
        if is_incomplete {
            self.reconcile.notify_one();
        }
    }
}

impl Drop for SubscriberGuard {
    fn drop(&mut self) {
        let mut topics = self.state.topics();
        if let Some(entry) = topics.get_mut(&self.feed.topic) {
            entry.subscribers -= 1;
            if entry.subscribers == 0 {
                topics.remove(&self.feed.topic);
                self.state.rebalance_memory(&topics);
            }
        }
        self.state.subscribers.fetch_sub(1, Relaxed);
    }
}

/// A topic's channel was not subscribed when the topic's end was read: messages in between were missed.
async fn mark_incomplete_when_subscribed(state: Weak<HubState>, feed: Weak<TopicFeed>) {
    let Some((redis, topic)) =
        state.upgrade().zip(feed.upgrade()).map(|(state, feed)| (state.redis.clone(), feed.topic.clone()))
    else {
        return;
    };
    // Without a connection the reconciler marks all topics when there is one.
    if redis.wait_until_subscribed(keys::channel(topic.as_str())).await
        && let Some((state, feed)) = state.upgrade().zip(feed.upgrade())
    {
        feed.mark_incomplete(true);
        state.reconcile.notify_one();
    }
}

/// Delay before Redis is called again after an error: random, so that not all workers call at once.
pub(super) fn retry_delay() -> Duration {
    let [shortest, longest] = RETRY_DELAY_MS;
    let random = OsRng.try_next_u32().unwrap_or(0);
    Duration::from_millis(u64::from(shortest + random % (longest - shortest)))
}
