//! The hub: what applications call to publish and subscribe.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tokio::task::AbortHandle;

use crate::broadcasts::error::BroadcastError;
use crate::broadcasts::hub_state::{HubCounters, HubState};
use crate::broadcasts::message::MessageId;
use crate::broadcasts::presence::Presence;
use crate::broadcasts::subscription::Subscription;
use crate::broadcasts::topic::TopicName;
use crate::broadcasts::{presence_reporter, reconciler};
use crate::config::settings::BroadcastConfig;
use crate::redis::broadcast_commands::PublishMessage;
use crate::redis::{RedisClient, RedisError};

/// A worker's broadcasts; clones share them.
#[derive(Clone)]
pub struct BroadcastHub {
    state: Arc<HubState>,
}

/// Totals of a worker's broadcasts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BroadcastTotals {
    /// Clients that subscribe now.
    pub subscribers: u64,
    /// Topics to which they subscribe.
    pub topics: u64,
    /// Messages published through this worker.
    pub published: u64,
    /// Messages delivered, once for each client.
    pub delivered: u64,
    /// Gaps reported to clients.
    pub gaps: u64,
    /// Reads of messages whose notification did not arrive.
    pub catch_up_reads: u64,
    /// Clients dropped because they fell too far behind.
    pub lagged: u64,
}

impl fmt::Debug for BroadcastHub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BroadcastHub").field("totals", &self.totals()).finish_non_exhaustive()
    }
}

impl BroadcastHub {
    /// A hub over this connection; no I/O, no runtime needed.
    pub fn new(redis: RedisClient, settings: &BroadcastConfig) -> Self {
        Self { state: Arc::new(HubState::new(redis, settings)) }
    }

    /// Starts reconciling topics and reporting presence, for as long as the runtime lives or until both tasks are
    /// aborted. Call it once.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(&self) -> [AbortHandle; 2] {
        let reconciler = tokio::spawn(reconciler::run(Arc::clone(&self.state)));
        let reporter = tokio::spawn(presence_reporter::run(Arc::clone(&self.state)));
        [reconciler.abort_handle(), reporter.abort_handle()]
    }

    /// Publishes a message to all subscribers of the topic in the whole fleet.
    ///
    /// # Errors
    /// [`BroadcastError::TooLarge`] and [`BroadcastError::Redis`]; after its `Timeout` and `ConnectionLost` the message
    /// may have been published, and repeating it may publish it twice.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was published.
    pub async fn publish(&self, topic: &TopicName, text: &str) -> Result<MessageId, BroadcastError> {
        let BroadcastConfig { max_message_size: limit, retention_messages, retention, .. } =
            self.state.settings;
        if text.len() > limit {
            return Err(BroadcastError::TooLarge { len: text.len(), limit });
        }
        let message = PublishMessage { topic: topic.as_str(), text, history: retention_messages, retention };
        let id = self.state.redis.publish_message(&message).await?;
        self.state.counters.published.fetch_add(1, Relaxed);
        Ok(id.into())
    }

    /// Subscribes to a topic: to every message after `after`, the last one that a resuming client got, or from now on.
    ///
    /// # Errors
    /// [`BroadcastError::TooManySubscribers`] and [`BroadcastError::TooManyTopics`] when this worker has no room;
    /// [`BroadcastError::Redis`] when it is the topic's first subscriber here and Redis cannot report the topic's end.
    ///
    /// # Cancel safety
    /// Dropping the future ends the subscription.
    pub async fn subscribe(
        &self,
        topic: &TopicName,
        after: Option<MessageId>,
    ) -> Result<Subscription, BroadcastError> {
        if self.state.redis.is_plain() {
            return Err(BroadcastError::Redis(RedisError::Unsupported { what: "a broadcast" }));
        }
        let guard = self.state.join(topic)?;
        if !guard.feed.is_started() {
            self.state.start_feed(&guard.feed).await?;
        }
        Ok(Subscription::new(guard, after))
    }

    /// How many subscribe to a topic in the whole fleet.
    pub fn presence(&self, topic: &TopicName) -> Presence {
        Presence::new(&self.state.presence, topic)
    }

    /// Clients of this worker that subscribe to any topic.
    pub fn subscribers(&self) -> usize {
        self.state.subscribers()
    }

    /// Totals since this worker started.
    pub fn totals(&self) -> BroadcastTotals {
        let HubCounters { published, delivered, gaps, catch_up_reads, lagged } = &self.state.counters;
        BroadcastTotals {
            subscribers: self.subscribers() as u64,
            topics: self.state.topic_count() as u64,
            published: published.load(Relaxed),
            delivered: delivered.load(Relaxed),
            gaps: gaps.load(Relaxed),
            catch_up_reads: catch_up_reads.load(Relaxed),
            lagged: lagged.load(Relaxed),
        }
    }

    /// Withdraws what this worker reported to presence, because it exits; takes 200 ms at most.
    ///
    /// # Cancel safety
    /// What is not withdrawn expires ten seconds later.
    pub async fn shut_down(&self) {
        presence_reporter::withdraw(&self.state).await;
    }
}
