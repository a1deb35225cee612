//! One topic in one worker: its order, its replay buffer and its queries, for all who subscribe here.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::broadcasts::message::{BroadcastMessage, MessageId};
use crate::broadcasts::replay_buffer::{BufferRead, ReplayBuffer, SeekResult};
use crate::broadcasts::sequencer::{
    MemorySize, MessageSequencer, SequencedMessage, SequencerOutput, StreamPage, StreamQuery,
};
use crate::broadcasts::topic::TopicName;
use crate::redis::broadcast_commands::StreamEntry;

/// Messages that wait for a missing one may take this part of a topic's memory, in addition to it.
const PENDING_DIVISOR: usize = 4;

/// Shortest time between two queries of a stream because of foreign notifications.
const FOREIGN_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The body of an entry: a message, unless another program wrote the entry.
pub(super) type MessageBody = Option<Arc<BroadcastMessage>>;

impl MemorySize for MessageBody {
    fn memory_size(&self) -> usize {
        self.as_ref().map_or(0, |message| message.weight())
    }
}

/// An entry of a stream for the sequencer; without a body if it is no message.
pub(super) fn sequenced(topic: &TopicName, stored: &StreamEntry) -> SequencedMessage<MessageBody> {
    let id = stored.id.into();
    let body = stored.text.as_deref().map(|text| Arc::new(BroadcastMessage::new(topic, id, text)));
    SequencedMessage { before: stored.previous.into(), id, body }
}

/// A topic that has subscribers.
#[derive(Debug)]
pub(super) struct TopicFeed {
    pub(super) topic: TopicName,
    state: Mutex<FeedState>,
    /// Bytes that may be buffered.
    memory_limit: Arc<AtomicUsize>,
    /// Changes with every delivered message or gap.
    new_messages: watch::Sender<u64>,
    /// Number of the last answered query. A channel of its own, because hardly any subscriber waits for it.
    query_done: watch::Sender<u64>,
    /// Held while older messages or the stream's end are read: one reader for all.
    pub(super) reader_lock: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct FeedState {
    sequencer: MessageSequencer<MessageBody>,
    buffer: ReplayBuffer,
    /// The buffer's end before the last batch of messages: no subscriber can have read that yet.
    previous_end: u64,
    /// Queries so far.
    queries: u64,
    /// When a foreign notification last caused a query.
    last_foreign: Option<Duration>,
}

/// A query of the stream that is in flight.
#[derive(Debug, Clone, Copy)]
pub(super) struct PendingQuery {
    query: StreamQuery,
    number: u64,
}

impl PendingQuery {
    /// The query is for the messages from this one on, itself included.
    pub(super) fn from(&self) -> MessageId {
        self.query.from
    }
}

impl TopicFeed {
    pub(super) fn new(topic: &TopicName, count_max: usize, memory_limit: &Arc<AtomicUsize>) -> Self {
        let buffer = ReplayBuffer::new(count_max);
        let state = FeedState {
            sequencer: MessageSequencer::new(),
            previous_end: buffer.end(),
            buffer,
            queries: 0,
            last_foreign: None,
        };
        Self {
            topic: topic.clone(),
            state: Mutex::new(state),
            memory_limit: Arc::clone(memory_limit),
            new_messages: watch::Sender::new(0),
            query_done: watch::Sender::new(0),
            reader_lock: tokio::sync::Mutex::default(),
        }
    }

    fn lock_state(&self) -> MutexGuard<'_, FeedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a step of the sequencer and buffers its output; returns whether the stream has to be queried.
    fn apply(
        &self,
        act: impl FnOnce(&mut MessageSequencer<MessageBody>, &mut dyn FnMut(SequencerOutput<MessageBody>)),
    ) -> bool {
        let room = self.memory_limit.load(Relaxed);
        let mut state = self.lock_state();
        let FeedState { sequencer, buffer, previous_end, .. } = &mut *state;
        let before = buffer.end();
        sequencer.set_pending_bytes_max(room / PENDING_DIVISOR);
        act(sequencer, &mut |output| match output {
            SequencerOutput::Message(link) => {
                link.body.into_iter().for_each(|message| buffer.push(message, room))
            }
            SequencerOutput::Gap { after } => buffer.push_gap(after, before),
        });
        let (end, is_incomplete) = (buffer.end(), sequencer.is_incomplete());
        if end != before {
            *previous_end = before;
        }
        drop(state);
        self.new_messages.send_if_modified(|tip| std::mem::replace(tip, end) != end);
        is_incomplete
    }

    /// A notification of a message; returns whether the stream has to be queried.
    pub(super) fn on_notification(&self, before: MessageId, id: MessageId, text: &str) -> bool {
        let body = Some(Arc::new(BroadcastMessage::new(&self.topic, id, text)));
        self.apply(|sequencer, mut emit| {
            sequencer.on_notification(SequencedMessage { before, id, body }, &mut emit)
        })
    }

    /// A notification without the fleet's mark; returns whether the stream has to be queried, which is once a second
    /// at most, however many arrive.
    pub(super) fn on_foreign_notification(&self, now: Duration) -> bool {
        let mut state = self.lock_state();
        if state.last_foreign.is_some_and(|last| now.saturating_sub(last) < FOREIGN_CHECK_INTERVAL) {
            return false;
        }
        state.last_foreign = Some(now);
        state.sequencer.mark_incomplete(false);
        state.sequencer.is_incomplete()
    }

    /// Whether the stream's end is known.
    pub(super) fn is_started(&self) -> bool {
        self.lock_state().sequencer.last().is_some()
    }

    /// The stream ends at `newest`; returns whether it has to be queried.
    pub(super) fn start_after(&self, newest: MessageId) -> bool {
        if !self.is_started() {
            self.lock_state().buffer.start_after(newest);
        }
        self.apply(|sequencer, mut emit| sequencer.start_after(newest, &mut emit))
    }

    /// The stream may hold more than was notified.
    pub(super) fn mark_incomplete(&self, lossy: bool) {
        self.lock_state().sequencer.mark_incomplete(lossy);
    }

    /// Notifications arrive again after an interruption.
    pub(super) fn mark_disconnected(&self) {
        self.lock_state().sequencer.mark_disconnected();
    }

    /// The last message taken from the stream; `None` until its end is known.
    pub(super) fn last(&self) -> Option<MessageId> {
        self.lock_state().sequencer.last()
    }

    /// Evicts what exceeds the present memory limit.
    pub(super) fn trim(&self) {
        let room = self.memory_limit.load(Relaxed);
        let mut state = self.lock_state();
        state.buffer.trim(room);
        state.sequencer.set_pending_bytes_max(room / PENDING_DIVISOR);
    }

    /// The next query, if one is needed.
    pub(super) fn next_query(&self) -> Option<PendingQuery> {
        let mut state = self.lock_state();
        let query = state.sequencer.next_query()?;
        state.queries += 1;
        Some(PendingQuery { query, number: state.queries })
    }

    /// The query failed.
    pub(super) fn query_failed(&self, query: PendingQuery) {
        self.lock_state().sequencer.query_failed(query.query);
    }

    /// The reply to a query.
    pub(super) fn apply_page(&self, query: PendingQuery, page: StreamPage<MessageBody>) {
        self.apply(|sequencer, mut emit| sequencer.apply_page(query.query, page, &mut emit));
        self.query_done.send_replace(query.number);
    }

    /// Requests a query and returns its number.
    pub(super) fn request_query(&self) -> u64 {
        let mut state = self.lock_state();
        state.sequencer.mark_incomplete(false);
        state.queries + 1
    }

    /// Number of the last answered query.
    pub(super) fn query_done(&self) -> watch::Receiver<u64> {
        self.query_done.subscribe()
    }

    pub(super) fn new_messages(&self) -> watch::Receiver<u64> {
        self.new_messages.subscribe()
    }

    /// What is at a position, and how many messages followed it before the last batch.
    pub(super) fn get(&self, place: u64) -> (BufferRead, u64) {
        let state = self.lock_state();
        (state.buffer.get(place), state.previous_end.saturating_sub(place))
    }

    /// The position after the newest message.
    pub(super) fn end(&self) -> u64 {
        self.lock_state().buffer.end()
    }

    /// The same, and that message; valid also if the stream has expired since, because the message is buffered.
    pub(super) fn end_and_newest(&self) -> (u64, MessageId) {
        let state = self.lock_state();
        (state.buffer.end(), state.buffer.newest())
    }

    /// The first position after which nothing is missing, and the message before it.
    pub(super) fn first_complete(&self) -> (u64, MessageId) {
        let state = self.lock_state();
        (state.buffer.first_complete(), state.buffer.oldest_covered())
    }

    /// Where a client continues that has everything up to `after`.
    pub(super) fn seek(&self, after: MessageId) -> SeekResult {
        self.lock_state().buffer.seek(after)
    }

    /// The newest message that was delivered.
    pub(super) fn newest(&self) -> MessageId {
        self.lock_state().buffer.newest()
    }

    /// All messages after this one are buffered.
    pub(super) fn oldest_covered(&self) -> MessageId {
        self.lock_state().buffer.oldest_covered()
    }

    /// What there is that is older than the buffer.
    pub(super) fn older_messages(&self) -> OlderMessages {
        let state = self.lock_state();
        match (state.buffer.is_at_stream_start(), state.buffer.has_room(self.memory_limit.load(Relaxed))) {
            (true, _) => OlderMessages::Nothing,
            (false, true) => OlderMessages::Fits,
            (false, false) => OlderMessages::NoRoom,
        }
    }

    /// Buffers what the stream holds up to `floor`, the newest first.
    pub(super) fn prepend(&self, floor: MessageId, older: &[StreamEntry]) {
        let room = self.memory_limit.load(Relaxed);
        let mut state = self.lock_state();
        // The oldest ones were evicted meanwhile: these do not connect any more.
        if state.buffer.oldest_covered() != floor {
            return;
        }
        for stored in older {
            let (id, before) = (MessageId::from(stored.id), MessageId::from(stored.previous));
            if id != state.buffer.oldest_covered() || state.buffer.is_at_stream_start() {
                break;
            }
            let Some(message) = sequenced(&self.topic, stored).body else {
                state.buffer.skip_foreign(before);
                continue;
            };
            if !state.buffer.prepend(message, before, room) {
                return state.buffer.set_full();
            }
        }
        if state.buffer.oldest_covered() == floor {
            state.buffer.set_stream_start_reached();
        }
    }
}

/// Messages that are older than the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OlderMessages {
    /// There may be some, and there is room.
    Fits,
    /// There may be some, and there is no room.
    NoRoom,
    /// There are none.
    Nothing,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(ms: u64) -> MessageId {
        MessageId::from((ms, 0))
    }

    fn feed(room: usize) -> TopicFeed {
        let feed = TopicFeed::new(&TopicName::parse("t").unwrap(), 99, &Arc::new(AtomicUsize::new(room)));
        feed.start_after(id(1));
        feed
    }

    #[test]
    fn an_answer_without_messages_wakes_only_the_subscriber_that_waits_for_it() {
        let feed = feed(1 << 20);
        let (new_messages, query_done) = (feed.new_messages(), feed.query_done());
        feed.mark_incomplete(false);
        let query = feed.next_query().unwrap();
        feed.apply_page(query, StreamPage::Entries { entries: Vec::new(), complete: true });
        assert_eq!((new_messages.has_changed().unwrap(), query_done.has_changed().unwrap()), (false, true));
        feed.on_notification(id(1), id(2), "x");
        assert!(new_messages.has_changed().unwrap());
    }

    #[test]
    fn foreign_notifications_cause_a_query_once_a_second() {
        let (feed, now) = (feed(1 << 20), Duration::from_secs(9));
        let queries =
            (0..30).filter(|tenth| feed.on_foreign_notification(now + Duration::from_millis(100 * tenth)));
        assert_eq!(queries.collect::<Vec<_>>(), [0, 10, 20]);
        assert_eq!(feed.newest(), id(1), "nothing of it is passed on");
    }

    #[test]
    fn a_subscriber_of_an_expired_topic_starts_after_what_is_buffered() {
        let feed = feed(1 << 20);
        feed.on_notification(id(1), id(2), "x");
        feed.mark_incomplete(false);
        let query = feed.next_query().unwrap();
        feed.apply_page(query, StreamPage::Gone { newest: MessageId::ZERO });
        let (place, last) = feed.end_and_newest();
        assert_eq!((last, feed.seek(last)), (id(2), SeekResult::At(place)));
    }

    #[test]
    fn foreign_entries_are_skipped() {
        let feed = feed(1 << 20);
        let stored = |before: u64, at: u64, text: Option<&str>| StreamEntry {
            previous: (before, 0),
            id: (at, 0),
            text: text.map(Into::into),
        };
        feed.mark_incomplete(false);
        let query = feed.next_query().unwrap();
        let rows = [stored(1, 2, Some("x")), stored(2, 3, None), stored(3, 4, Some("y"))];
        let entries = rows.iter().map(|stored| sequenced(&feed.topic, stored)).collect();
        let (place, _) = feed.end_and_newest();
        feed.apply_page(query, StreamPage::Entries { entries, complete: true });
        assert!(matches!(feed.get(place + 1), (BufferRead::Message(message), _) if message.text() == "y"));
        let behind = TopicFeed::new(&feed.topic, 99, &feed.memory_limit);
        behind.start_after(id(3));
        behind.prepend(id(3), &[stored(2, 3, None), stored(1, 2, Some("x"))]);
        assert_eq!((behind.oldest_covered(), behind.seek(id(1))), (id(1), SeekResult::At(behind.end() - 1)));
    }
}
