//! A client's place in a topic.
//!
//! Guarantees every message after the one it begins with, once and in order; where that cannot be, it says so
//! ([`Event::Gap`]). A client that comes back goes on in what the worker remembers if that reaches back far enough; if it
//! does not, one of all who wait reads older messages from the stream for all of them, as long as there is room; if there is
//! none, each reads for itself, a few at a time, until it has caught up.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::watch;

use crate::broadcast::id::MessageId;
use crate::broadcast::message::BroadcastMessage;
use crate::broadcast::replay_buffer::{BufferRead, SeekResult};
use crate::broadcast::topic::TopicName;
use crate::broadcast::topic_feed::OlderMessages;
use crate::broadcast::{SubscriberGuard, retry_delay};
use crate::redis;

/// Messages that a client reads for itself at a time, at most.
const OWN_PAGE: usize = 16;

/// As many may come before anyone had a turn on the event loop: the one who is that far behind is not slow.
const BURST: usize = 128;

/// What comes to a client.
#[derive(Debug, Clone)]
pub enum SubscriptionEvent {
    /// The next message.
    Message(Arc<BroadcastMessage>),
    /// Some messages may be missing here: Redis keeps them no longer, or lost them. What follows is whole again, after
    /// [`Subscription::last`].
    Gap,
    /// The client fell too far behind: this is the last event. It may come again and resume after [`Subscription::last`].
    Lagged,
}

/// A client's subscription to a topic, which ends with this value.
pub struct Subscription {
    guard: SubscriberGuard,
    new_messages: watch::Receiver<u64>,
    position: ReadPosition,
    last: Option<MessageId>,
}

enum ReadPosition {
    /// In what the worker remembers; `current` once it has been at the end, from when on it has to keep up.
    Buffer { at: u64, current: bool },
    /// It has everything up to here and does not know yet where to go on.
    After(MessageId),
    /// In what it read for itself.
    Page(VecDeque<Arc<BroadcastMessage>>),
    /// Nowhere any more.
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
    /// From `after` on, or from now on.
    pub(super) fn new(guard: SubscriberGuard, after: Option<MessageId>) -> Self {
        let tip = guard.feed.new_messages();
        let (place, last) = match after {
            Some(after) => (ReadPosition::After(after), Some(after)),
            None => {
                let (at, newest) = guard.feed.end_and_newest();
                (ReadPosition::Buffer { at, current: true }, Some(newest))
            }
        };
        Self { guard, new_messages: tip, position: place, last }
    }

    /// What it subscribes to.
    pub fn topic(&self) -> &TopicName {
        &self.guard.feed.topic
    }

    /// After which message this client goes on when it comes again: the one it resumed after, else the newest when it came
    /// (0-0 if there was none); then the last that came, and after a gap the one from which on it is whole again.
    pub fn last_id(&self) -> Option<MessageId> {
        self.last
    }

    /// Waits for what comes next. While Redis is away nothing comes; afterwards everything does.
    ///
    /// # Cancel safety
    /// Nothing is lost by dropping the future.
    pub async fn next(&mut self) -> SubscriptionEvent {
        loop {
            let come = match &mut self.position {
                ReadPosition::Closed => return SubscriptionEvent::Lagged,
                ReadPosition::After(after) => {
                    let after = *after;
                    // Boxed: the calls it may make take eight kilobytes, which every client would keep as long as it waits.
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
            match come {
                Some(event) => {
                    self.record_event(&event);
                    return event;
                }
                None if matches!(self.position, ReadPosition::Buffer { current: true, .. }) => {
                    // The sender lives as long as the seat.
                    let _ = self.new_messages.changed().await.is_ok();
                }
                None => {}
            }
        }
    }

    /// What is at hand; it asks Redis for nothing. Where nothing is, [`Subscription::next`] finds out what comes.
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
        let figures = &self.guard.inner.counters;
        match event {
            SubscriptionEvent::Message(message) => {
                self.last = Some(message.id());
                figures.delivered.fetch_add(1, Relaxed);
            }
            SubscriptionEvent::Gap => {
                figures.gaps.fetch_add(1, Relaxed);
            }
            SubscriptionEvent::Lagged => {
                figures.lagged.fetch_add(1, Relaxed);
            }
        }
    }

    /// What is at this client's place in what the worker remembers.
    fn read_buffer(&mut self) -> Option<SubscriptionEvent> {
        let ReadPosition::Buffer { at, current } = &mut self.position else { return None };
        self.new_messages.borrow_and_update();
        let (found, behind) = self.guard.feed.get(*at);
        let late = *current && behind > self.guard.inner.settings.max_lag.max(BURST) as u64;
        match found {
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
            // It is not behind by much, or still catching up, and what it was about to get was pushed out, because there
            // was no more room: the stream may have it.
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

    /// Finds the place after this message.
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

    /// Another worker has told this client what has not come here yet; or the stream it tells of is gone.
    async fn wait_for_feed(&mut self, after: MessageId) -> Option<SubscriptionEvent> {
        let line = &self.guard.feed;
        let mut query_done = line.query_done();
        let query = line.request_query();
        self.guard.inner.reconcile.notify_one();
        loop {
            self.new_messages.borrow_and_update();
            let is_query_done = *query_done.borrow_and_update() >= query;
            match line.seek(after) {
                SeekResult::Ahead if is_query_done => {
                    self.position = ReadPosition::Buffer { at: line.end(), current: true };
                    self.last = Some(line.newest());
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

    /// Reads older messages for all who need them.
    async fn fill_buffer(&self, after: MessageId) {
        let (line, inner) = (&self.guard.feed, &self.guard.inner);
        let turn = line.reader_lock.lock().await;
        if line.seek(after) != SeekResult::Older || line.older_messages() != OlderMessages::Fits {
            return;
        }
        let floor = line.oldest_covered();
        let read = match inner.read_permits.acquire().await {
            Ok(_permit) => {
                inner
                    .redis
                    .read_stream_backwards(line.topic.as_str(), floor.stream_id(), inner.page_size)
                    .await
            }
            Err(_) => Ok(Vec::new()),
        };
        match read {
            Ok(older) => {
                inner.warn_foreign_entry(&line.topic, &older);
                line.prepend(floor, &older);
            }
            Err(error) => {
                drop(turn);
                self.wait_after_error(&error).await;
            }
        }
    }

    /// Reads the next messages for this client alone.
    async fn read_page(&mut self, after: MessageId) -> Option<SubscriptionEvent> {
        let (line, inner) = (&self.guard.feed, &self.guard.inner);
        let query = [(line.topic.as_str(), after.stream_id())];
        let read = match inner.read_permits.acquire().await {
            Ok(_permit) => inner.redis.read_stream_from(&query, inner.page_size.min(OWN_PAGE)).await,
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
            // Nothing of what was remembered after it is in the stream any more.
            (self.position, self.last) = self.first_complete();
            return Some(SubscriptionEvent::Gap);
        };
        let before = MessageId::from(first.previous);
        let whole = before <= after && (before != MessageId::ZERO || after == MessageId::ZERO);
        inner.warn_foreign_entry(&line.topic, stored.make_contiguous());
        let messages: VecDeque<_> = stored
            .iter()
            .filter_map(|stored| BroadcastMessage::sequenced(&line.topic, stored).body)
            .collect();
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

    /// The first place after which nothing is missing, and the message before it.
    fn first_complete(&self) -> (ReadPosition, Option<MessageId>) {
        let (at, floor) = self.guard.feed.first_complete();
        (ReadPosition::Buffer { at, current: false }, Some(floor))
    }

    /// Redis cannot be asked: the client stays, and is served when it can.
    async fn wait_after_error(&self, error: &redis::RedisError) {
        tracing::debug!(%error, topic = %self.topic(), "a client waits for what it missed: {error}");
        tokio::time::sleep(retry_delay()).await;
    }
}
