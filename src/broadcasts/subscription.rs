//! A client's position in a topic.
//!
//! Guarantees every message after the one it starts with, once and in order, or reports a [`SubscriptionEvent::Gap`].
//! A client that resumes continues in the worker's replay buffer if that reaches back far enough; if it does not, one
//! of the waiting clients reads older messages from the stream into the buffer for all of them, as long as there is
//! room; without room each reads for itself, a few at a time, until it has caught up.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::watch;

use crate::broadcasts::hub_state::{SubscriberGuard, retry_delay};
use crate::broadcasts::message::{BroadcastMessage, MessageId};
use crate::broadcasts::replay_buffer::{BufferRead, SeekResult};
use crate::broadcasts::topic::TopicName;
use crate::broadcasts::topic_feed::{OlderMessages, sequenced};
use crate::redis::RedisError;

/// Most messages that a client reads for itself at a time.
const OWN_PAGE: usize = 16;

/// As many may arrive within one turn of the event loop: a client that is not further behind is not slow.
const BURST: usize = 128;

/// What a client receives.
#[derive(Debug, Clone)]
pub enum SubscriptionEvent {
    /// The next message.
    Message(Arc<BroadcastMessage>),
    /// Messages may be missing here: Redis does not retain them any longer, or lost them. What follows is complete
    /// again, after [`Subscription::last_id`].
    Gap,
    /// The client fell too far behind: the last event. It may subscribe again and resume after
    /// [`Subscription::last_id`].
    Lagged,
}

/// A client's subscription to a topic; dropping it ends the subscription.
pub struct Subscription {
    guard: SubscriberGuard,
    new_messages: watch::Receiver<u64>,
    position: ReadPosition,
    last: Option<MessageId>,
}

enum ReadPosition {
    /// In the replay buffer; `current` once it has reached the end, from when on it must keep up.
    Buffer { at: u64, current: bool },
    /// After this message, in the buffer or in the stream.
    After(MessageId),
    /// In a page that it read for itself.
    Page(VecDeque<Arc<BroadcastMessage>>),
    /// The subscription is over.
    Closed,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("topic", self.topic())
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

impl Subscription {
    /// A subscription to the messages after `after`, or from now on.
    pub(super) fn new(guard: SubscriberGuard, after: Option<MessageId>) -> Self {
        let new_messages = guard.feed.new_messages();
        let (position, last) = match after {
            Some(after) => (ReadPosition::After(after), Some(after)),
            None => {
                let (at, newest) = guard.feed.end_and_newest();
                (ReadPosition::Buffer { at, current: true }, Some(newest))
            }
        };
        Self { guard, new_messages, position, last }
    }

    /// Its topic.
    pub fn topic(&self) -> &TopicName {
        &self.guard.feed.topic
    }

    /// The message after which this client resumes if it subscribes again: the one it resumed after, else the newest
    /// when it subscribed (0-0 if there was none); then the last it received, and after a gap the one from which on
    /// messages are complete again.
    pub fn last_id(&self) -> Option<MessageId> {
        self.last
    }

    /// Waits for the next event. While Redis is unavailable none comes; afterwards all do.
    ///
    /// # Cancel safety
    /// Nothing is lost by dropping the future.
    pub async fn next(&mut self) -> SubscriptionEvent {
        loop {
            let event = match &mut self.position {
                ReadPosition::Closed => return SubscriptionEvent::Lagged,
                ReadPosition::After(after) => {
                    let after = *after;
                    // Boxed: the calls it may make take eight kilobytes, which every client would occupy as long as
                    // it waits.
                    Box::pin(self.seek(after)).await
                }
                ReadPosition::Page(page) => match page.pop_front() {
                    Some(message) => Some(SubscriptionEvent::Message(message)),
                    None => {
                        self.position = self.last.map_or(ReadPosition::Closed, ReadPosition::After);
                        None
                    }
                },
                ReadPosition::Buffer { .. } => self.read_buffer(),
            };
            match event {
                Some(event) => {
                    self.record_event(&event);
                    return event;
                }
                None if matches!(self.position, ReadPosition::Buffer { current: true, .. }) => {
                    // The sender lives as long as the guard.
                    let _ = self.new_messages.changed().await.is_ok();
                }
                None => {}
            }
        }
    }

    /// The next event that is in memory, without a call to Redis; if there is none, [`Subscription::next`] waits for
    /// it.
    pub fn try_next(&mut self) -> Option<SubscriptionEvent> {
        let event = match &mut self.position {
            ReadPosition::Closed => return Some(SubscriptionEvent::Lagged),
            ReadPosition::After(_) => None,
            ReadPosition::Page(page) => page.pop_front().map(SubscriptionEvent::Message),
            ReadPosition::Buffer { .. } => self.read_buffer(),
        }?;
        self.record_event(&event);
        Some(event)
    }

    fn record_event(&mut self, event: &SubscriptionEvent) {
        let counters = &self.guard.state.counters;
        match event {
            SubscriptionEvent::Message(message) => {
                self.last = Some(message.id());
                counters.delivered.fetch_add(1, Relaxed);
            }
            SubscriptionEvent::Gap => {
                counters.gaps.fetch_add(1, Relaxed);
            }
            SubscriptionEvent::Lagged => {
                counters.lagged.fetch_add(1, Relaxed);
            }
        }
    }

    /// The next event from the replay buffer.
    fn read_buffer(&mut self) -> Option<SubscriptionEvent> {
        let ReadPosition::Buffer { at, current } = &mut self.position else { return None };
        self.new_messages.borrow_and_update();
        let (read, behind) = self.guard.feed.get(*at);
        let late = *current && behind > self.guard.state.settings.max_lag.max(BURST) as u64;
        match read {
            BufferRead::Message(message) if !late => {
                *at += 1;
                Some(SubscriptionEvent::Message(message))
            }
            BufferRead::Gap(after) if !late => {
                *at += 1;
                self.last = Some(after);
                Some(SubscriptionEvent::Gap)
            }
            BufferRead::End => {
                *current = true;
                None
            }
            // Not far behind, or still catching up, and its next message was evicted for lack of room: the stream may
            // have it.
            BufferRead::Evicted if !late && self.last.is_some() => {
                self.position = self.last.map_or(ReadPosition::Closed, ReadPosition::After);
                None
            }
            BufferRead::Evicted | BufferRead::Message(_) | BufferRead::Gap(_) => {
                self.position = ReadPosition::Closed;
                Some(SubscriptionEvent::Lagged)
            }
        }
    }

    /// Finds the position after this message.
    async fn seek(&mut self, after: MessageId) -> Option<SubscriptionEvent> {
        match self.guard.feed.seek(after) {
            SeekResult::At(at) => self.position = ReadPosition::Buffer { at, current: false },
            SeekResult::Ahead => return self.wait_for_feed(after).await,
            SeekResult::Older => match self.guard.feed.older_messages() {
                OlderMessages::Nothing => {
                    (self.position, self.last) = self.first_complete();
                    return Some(SubscriptionEvent::Gap);
                }
                OlderMessages::Fits => self.fill_buffer(after).await,
                OlderMessages::NoRoom => return self.read_page(after).await,
            },
        }
        None
    }

    /// Another worker delivered to this client what has not arrived here yet, or its stream is gone.
    async fn wait_for_feed(&mut self, after: MessageId) -> Option<SubscriptionEvent> {
        let feed = &self.guard.feed;
        let mut query_done = feed.query_done();
        let query = feed.request_query();
        self.guard.state.reconcile.notify_one();
        loop {
            self.new_messages.borrow_and_update();
            let is_query_done = *query_done.borrow_and_update() >= query;
            match feed.seek(after) {
                SeekResult::Ahead if is_query_done => {
                    self.position = ReadPosition::Buffer { at: feed.end(), current: true };
                    self.last = Some(feed.newest());
                    return Some(SubscriptionEvent::Gap);
                }
                SeekResult::Ahead => {}
                SeekResult::At(_) | SeekResult::Older => return None,
            }
            tokio::select! {
                _ = self.new_messages.changed() => {}
                _ = query_done.changed() => {}
            }
        }
    }

    /// Reads older messages into the buffer for all clients that need them.
    async fn fill_buffer(&self, after: MessageId) {
        let (feed, state) = (&self.guard.feed, &self.guard.state);
        let reader = feed.reader_lock.lock().await;
        if feed.seek(after) != SeekResult::Older || feed.older_messages() != OlderMessages::Fits {
            return;
        }
        let floor = feed.oldest_covered();
        let read = match state.read_permits.acquire().await {
            Ok(_permit) => {
                state
                    .redis
                    .read_stream_backwards(feed.topic.as_str(), floor.stream_id(), state.page_size)
                    .await
            }
            Err(_) => Ok(Vec::new()),
        };
        match read {
            Ok(older) => {
                state.warn_foreign_entry(&feed.topic, &older);
                feed.prepend(floor, &older);
            }
            Err(error) => {
                drop(reader);
                self.wait_after_error(&error).await;
            }
        }
    }

    /// Reads the next messages for this client alone.
    async fn read_page(&mut self, after: MessageId) -> Option<SubscriptionEvent> {
        let (feed, state) = (&self.guard.feed, &self.guard.state);
        let query = [(feed.topic.as_str(), after.stream_id())];
        let read = match state.read_permits.acquire().await {
            Ok(_permit) => state.redis.read_stream_from(&query, state.page_size.min(OWN_PAGE)).await,
            Err(_) => Ok(Vec::new()),
        };
        let read = read.and_then(|topics| topics.into_iter().next().unwrap_or_else(|| Ok(Vec::new())));
        let mut stored = match read {
            Ok(stored) => VecDeque::from(stored),
            Err(error) => {
                self.wait_after_error(&error).await;
                return None;
            }
        };
        if stored.front().is_some_and(|first| MessageId::from(first.id) == after) {
            stored.pop_front();
        }
        let Some(first) = stored.front() else {
            // The stream has none of the messages after it any more.
            (self.position, self.last) = self.first_complete();
            return Some(SubscriptionEvent::Gap);
        };
        let before = MessageId::from(first.previous);
        let whole = before <= after && (before != MessageId::ZERO || after == MessageId::ZERO);
        state.warn_foreign_entry(&feed.topic, stored.make_contiguous());
        let messages: VecDeque<_> =
            stored.iter().filter_map(|stored| sequenced(&feed.topic, stored).body).collect();
        if messages.is_empty() {
            (self.position, self.last) = self.first_complete();
            return Some(SubscriptionEvent::Gap);
        }
        self.position = ReadPosition::Page(messages);
        if whole {
            return None;
        }
        self.last = Some(before);
        Some(SubscriptionEvent::Gap)
    }

    /// The first position after which nothing is missing, and the message before it.
    fn first_complete(&self) -> (ReadPosition, Option<MessageId>) {
        let (at, floor) = self.guard.feed.first_complete();
        (ReadPosition::Buffer { at, current: false }, Some(floor))
    }

    /// Redis failed: the client stays and tries again later.
    async fn wait_after_error(&self, error: &RedisError) {
        tracing::debug!(%error, topic = %self.topic(), "older messages not read yet: {error}");
        tokio::time::sleep(retry_delay()).await;
    }
}
