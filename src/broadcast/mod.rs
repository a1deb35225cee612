//! Messages to all subscribers of a topic, whichever worker of whichever machine they are connected to.
//!
//! A topic is a capped stream in Redis, which is the truth; news only wake workers up. Guarantees each subscriber every
//! message after the one it begins with, once and in the order of ids, whatever happens to connections, workers and Redis
//! itself, or tells it that there is a gap; and that a slow one neither holds up another nor takes memory without bound.
//! A topic without subscribers here costs a worker nothing: each has a channel of its own, which only workers with
//! subscribers hear. What comes there is believed if it bears the fleet's mark.

mod error;
mod id;
mod message;
mod notifications;
mod presence;
mod reconciler;
mod replay_buffer;
mod sequencer;
mod subscription;
mod topic;
mod topic_feed;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use error::BroadcastError;
pub use id::{InvalidMessageId, MessageId};
pub use message::BroadcastMessage;
pub use presence::Presence;
use presence::PresenceTracker;
pub use subscription::{Subscription, SubscriptionEvent};
use tokio::sync::{Notify, Semaphore};
pub use topic::{InvalidTopicName, TOPIC_NAME_MAX, TopicName};
use topic_feed::TopicFeed;

use crate::backoff::pause_between;
use crate::config::settings;
use crate::redis;
use crate::redis::RedisClient;
use crate::redis::broadcast_commands::{PublishMessage, StreamEntry};
use crate::redis::notifications::ChannelSubscriptionGuard;
use crate::sys::random;

/// Bytes of messages that a worker remembers, of all topics together. The largest message of every topic must fit, so there
/// are no more topics than that allows: all that are allowed by default.
const MEMORY_MAX: usize = 48 << 20;
/// A topic's share grows when it would become this many times as large: topics that come and go change nothing.
const SHARE_GROWTH: usize = 4;
/// Bytes of one answer of Redis, or two messages if these are more; and messages in it.
const PAGE_BYTES: usize = 1 << 20;
const PAGE_MAX: usize = 128;
/// Reads of older messages at the same time.
const READS: usize = 8;
/// Shortest and longest pause before Redis is asked again after it could not answer.
const RETRY_PAUSE: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];

/// A worker's broadcasts; clones are the same one.
#[derive(Clone)]
pub struct BroadcastHub {
    inner: Arc<HubState>,
}

struct HubState {
    redis: RedisClient,
    settings: settings::BroadcastConfig,
    topics: Mutex<HashMap<TopicName, TopicEntry>>,
    subscribers: AtomicUsize,
    /// Bytes that each topic may have remembered.
    topic_memory: Arc<AtomicUsize>,
    /// Messages in one answer of Redis.
    page_size: usize,
    legacy_subscribed: AtomicBool,
    /// Whether it was said that a topic holds something that is no message.
    foreign_entry_warned: AtomicBool,
    /// Told when a stream is to be asked, or there is a first topic.
    reconcile: Notify,
    read_permits: Semaphore,
    presence: PresenceTracker,
    counters: HubCounters,
}

/// A topic, and how many subscribe to it here.
struct TopicEntry {
    feed: Arc<TopicFeed>,
    subscribers: usize,
    _subscription: ChannelSubscriptionGuard,
}

/// A subscriber's right to his topic.
struct SubscriberGuard {
    inner: Arc<HubState>,
    feed: Arc<TopicFeed>,
}

#[derive(Debug, Default)]
struct HubCounters {
    published: AtomicU64,
    delivered: AtomicU64,
    gaps: AtomicU64,
    catch_up_reads: AtomicU64,
    lagged: AtomicU64,
}

/// What a worker's broadcasts did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BroadcastTotals {
    /// Clients that subscribe now.
    pub subscribers: u64,
    /// Topics to which they do.
    pub topics: u64,
    /// Messages published through this worker.
    pub published: u64,
    /// Messages passed on, once for each client.
    pub delivered: u64,
    /// Clients told that messages may be missing.
    pub gaps: u64,
    /// Times that messages were read which had not been heard.
    pub catch_up_reads: u64,
    /// Clients dropped because they were too slow.
    pub lagged: u64,
}

impl fmt::Debug for BroadcastHub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("figures", &self.totals()).finish_non_exhaustive()
    }
}

impl BroadcastHub {
    /// Over this connection; no I/O, no runtime needed.
    pub fn new(redis: RedisClient, settings: &settings::BroadcastConfig) -> Self {
        let largest = settings.max_message_size.max(1);
        let inner = HubState {
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
            presence: PresenceTracker::new(),
            counters: HubCounters::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Begins to keep topics whole, for as long as the runtime lives; to be called once.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(&self) {
        tokio::spawn(reconciler::run(Arc::clone(&self.inner)));
        tokio::spawn(presence::run(Arc::clone(&self.inner)));
    }

    /// Publishes a message to everybody who subscribes to the topic, in the whole fleet.
    ///
    /// # Errors
    /// [`Error::TooLong`], and [`Error::Redis`]; after its `Timeout` and `Lost` the message may have been published, and
    /// repeating it may publish it twice.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was published.
    pub async fn publish(&self, topic: &TopicName, text: &str) -> Result<MessageId, BroadcastError> {
        let settings::BroadcastConfig {
            max_message_size: message_limit,
            retention_messages: history,
            retention: keep,
            ..
        } = self.inner.settings;
        if text.len() > message_limit {
            return Err(BroadcastError::TooLarge { len: text.len(), limit: message_limit });
        }
        let message = PublishMessage { topic: topic.as_str(), text, history, retention: keep };
        let id = self.inner.redis.publish_message(&message).await?;
        self.inner.counters.published.fetch_add(1, Relaxed);
        Ok(id.into())
    }

    /// Subscribes to a topic: to every message after `after`, which the one who comes back has seen, or from now on.
    ///
    /// # Errors
    /// [`Error::Subscribers`] and [`Error::Topics`] when there is no room in this worker; [`Error::Redis`] when no one
    /// subscribes to the topic here yet and Redis cannot say where it stands.
    ///
    /// # Cancel safety
    /// Dropping the future ends the subscription.
    pub async fn subscribe(
        &self,
        topic: &TopicName,
        after: Option<MessageId>,
    ) -> Result<Subscription, BroadcastError> {
        if self.inner.redis.is_plain() {
            return Err(BroadcastError::Redis(redis::RedisError::Unsupported { what: "a broadcast" }));
        }
        let guard = self.inner.join(topic)?;
        if !guard.feed.is_started() {
            self.start_feed(&guard.feed).await?;
        }
        Ok(Subscription::new(guard, after))
    }

    /// How many subscribe to a topic in the whole fleet.
    pub fn presence(&self, topic: &TopicName) -> Presence {
        Presence::new(&self.inner, topic)
    }

    /// Clients that subscribe to anything in this worker.
    pub fn subscribers(&self) -> usize {
        self.inner.subscribers.load(Relaxed)
    }

    /// What this worker's broadcasts did so far.
    pub fn totals(&self) -> BroadcastTotals {
        let HubCounters { published, delivered, gaps, catch_up_reads: gaps_read, lagged: slow } =
            &self.inner.counters;
        BroadcastTotals {
            subscribers: self.subscribers() as u64,
            topics: self.inner.topics().len() as u64,
            published: published.load(Relaxed),
            delivered: delivered.load(Relaxed),
            gaps: gaps.load(Relaxed),
            catch_up_reads: gaps_read.load(Relaxed),
            lagged: slow.load(Relaxed),
        }
    }

    /// Takes back what this worker said of who is here, because it ends; waits for 200 ms at most.
    ///
    /// # Cancel safety
    /// The one who does not hear of it forgets this worker ten seconds later.
    pub async fn shut_down(&self) {
        presence::withdraw(&self.inner).await;
    }
}

impl HubState {
    fn topics(&self) -> MutexGuard<'_, HashMap<TopicName, TopicEntry>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn feeds(&self) -> Vec<Arc<TopicFeed>> {
        self.topics().values().map(|table| Arc::clone(&table.feed)).collect()
    }

    fn subscriber_counts(&self) -> Vec<(TopicName, u64)> {
        self.topics().iter().map(|(topic, table)| (topic.clone(), table.subscribers as u64)).collect()
    }

    /// Takes a seat at a topic's table, which is set up for the first one.
    fn join(self: &Arc<Self>, topic: &TopicName) -> Result<SubscriberGuard, BroadcastError> {
        let settings::BroadcastConfig {
            max_subscribers: subscribers,
            max_topics: topics_max,
            max_lag: buffer,
            retention_messages: history,
            ..
        } = self.settings;
        let topics_max = topics_max.min((MEMORY_MAX / self.largest_message_size()).max(1));
        if self.subscribers() >= subscribers {
            return Err(BroadcastError::TooManySubscribers { limit: subscribers });
        }
        let mut topics = self.topics();
        if !topics.contains_key(topic) {
            if topics.len() >= topics_max {
                return Err(BroadcastError::TooManyTopics { limit: topics_max });
            }
            // All that Redis keeps fits, so that a client that comes back reads nothing itself; and all that may come at once.
            let history = usize::try_from(history).unwrap_or(usize::MAX);
            let count = history.max(buffer).saturating_add(sequencer::PENDING_MAX + 2 * PAGE_MAX);
            let line = Arc::new(TopicFeed::new(topic, count, &self.topic_memory));
            let subscription = self.subscribe_topic_channel(&line);
            topics.insert(
                topic.clone(),
                TopicEntry { feed: line, subscribers: 0, _subscription: subscription },
            );
            self.rebalance_memory(&topics);
            self.presence.wake();
        }
        let Some(table) = topics.get_mut(topic) else {
            return Err(BroadcastError::TooManyTopics { limit: topics_max });
        };
        table.subscribers += 1;
        self.subscribers.fetch_add(1, Relaxed);
        Ok(SubscriberGuard { inner: Arc::clone(self), feed: Arc::clone(&table.feed) })
    }

    fn subscribers(&self) -> usize {
        self.subscribers.load(Relaxed)
    }

    /// Divides the memory among the topics. Shares change at powers of two only, so that it costs a topic next to nothing
    /// that all others have to give something up.
    fn rebalance_memory(&self, topics: &HashMap<TopicName, TopicEntry>) {
        let present = self.topic_memory.load(Relaxed);
        let room = (MEMORY_MAX / topics.len().next_power_of_two()).max(self.largest_message_size());
        if room < present {
            self.topic_memory.store(room, Relaxed);
            topics.values().for_each(|table| table.feed.trim());
        } else if room / SHARE_GROWTH >= present || topics.is_empty() {
            self.topic_memory.store(room, Relaxed);
        }
    }

    /// Bytes that the largest message takes in memory.
    fn largest_message_size(&self) -> usize {
        message::weight(self.settings.max_message_size)
    }

    /// Says once that a topic holds something that is no message.
    fn warn_foreign_entry(&self, topic: &TopicName, read: &[StreamEntry]) {
        if read.iter().any(|stored| stored.text.is_none()) && !self.foreign_entry_warned.swap(true, Relaxed) {
            tracing::warn!(%topic, "a topic's stream holds something that is no message; it is passed over");
        }
    }
}

impl Drop for SubscriberGuard {
    fn drop(&mut self) {
        let mut topics = self.inner.topics();
        if let Some(table) = topics.get_mut(&self.feed.topic) {
            table.subscribers -= 1;
            if table.subscribers == 0 {
                topics.remove(&self.feed.topic);
                self.inner.rebalance_memory(&topics);
            }
        }
        self.inner.subscribers.fetch_sub(1, Relaxed);
    }
}

/// How long to wait before Redis is asked again: random, so that not all who wait ask at once.
fn retry_delay() -> Duration {
    pause_between(RETRY_PAUSE, random::jitter())
}
