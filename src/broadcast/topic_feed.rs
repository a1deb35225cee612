//! One topic in one worker: what came of it, and what is remembered of it, for all who subscribe here.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::broadcast::id::MessageId;
use crate::broadcast::message::BroadcastMessage;
use crate::broadcast::replay_buffer::{BufferRead, ReplayBuffer, SeekResult};
use crate::broadcast::sequencer::{
    MessageSequencer, SequencedMessage, SequencerOutput, StreamPage, StreamQuery,
};
use crate::broadcast::topic::TopicName;
use crate::redis::broadcast_commands::StreamEntry;

/// News that wait for what is missing before them take at most this part of a topic's room, on top of it.
const PENDING_DIVISOR: usize = 4;

/// Shortest time between two looks at a stream for the sake of news that are not this fleet's.
const FOREIGN_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// What comes of a stream: a message, unless someone else wrote it.
pub(super) type MessageBody = Option<Arc<BroadcastMessage>>;

/// A topic that someone subscribes to.
#[derive(Debug)]
pub(super) struct TopicFeed {
    pub(super) topic: TopicName,
    state: Mutex<FeedState>,
    /// Bytes that may be remembered.
    memory_limit: Arc<AtomicUsize>,
    /// Changes with everything that is passed on.
    new_messages: watch::Sender<u64>,
    /// Number of the question to the stream that was answered last. Apart, because next to no one waits for that.
    query_done: watch::Sender<u64>,
    /// Held by the caller that reads what is older than what is remembered, or where the stream stands: one for all.
    pub(super) reader_lock: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct FeedState {
    sequencer: MessageSequencer<Option<Arc<BroadcastMessage>>>,
    buffer: ReplayBuffer,
    /// The ring's end before what came last, in one piece: no one can have seen that yet.
    previous_end: u64,
    /// Questions to the stream so far.
    queries: u64,
    /// When news came last that were not this fleet's, and the stream was asked for it.
    last_foreign: Option<Duration>,
}

/// A question to the stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct PendingQuery {
    query: StreamQuery,
    number: u64,
}

impl PendingQuery {
    /// What there is from this message on, itself included.
    pub(super) fn from(&self) -> MessageId {
        self.query.from
    }
}

impl TopicFeed {
    pub(super) fn new(topic: &TopicName, count_max: usize, room: &Arc<AtomicUsize>) -> Self {
        let ring = ReplayBuffer::new(count_max);
        let core = FeedState {
            sequencer: MessageSequencer::new(),
            previous_end: ring.end(),
            buffer: ring,
            queries: 0,
            last_foreign: None,
        };
        Self {
            topic: topic.clone(),
            state: Mutex::new(core),
            memory_limit: Arc::clone(room),
            new_messages: watch::Sender::new(0),
            query_done: watch::Sender::new(0),
            reader_lock: tokio::sync::Mutex::default(),
        }
    }

    fn lock_state(&self) -> MutexGuard<'_, FeedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the chain, and what it passes on into the ring; returns whether the stream is to be asked.
    fn apply(
        &self,
        act: impl FnOnce(&mut MessageSequencer<MessageBody>, &mut dyn FnMut(SequencerOutput<MessageBody>)),
    ) -> bool {
        let room = self.memory_limit.load(Relaxed);
        let mut core = self.lock_state();
        let FeedState { sequencer: chain, buffer: ring, previous_end, .. } = &mut *core;
        let before = ring.end();
        chain.set_pending_bytes_max(room / PENDING_DIVISOR);
        act(chain, &mut |step| match step {
            SequencerOutput::Message(link) => {
                link.body.into_iter().for_each(|message| ring.push(message, room))
            }
            SequencerOutput::Gap { after } => ring.push_gap(after, before),
        });
        let (end, doubtful) = (ring.end(), chain.is_incomplete());
        if end != before {
            *previous_end = before;
        }
        drop(core);
        self.new_messages.send_if_modified(|tip| std::mem::replace(tip, end) != end);
        doubtful
    }

    /// A message was heard; returns whether the stream is to be asked.
    pub(super) fn on_notification(&self, before: MessageId, id: MessageId, text: &str) -> bool {
        let body = Some(Arc::new(BroadcastMessage::new(&self.topic, id, text)));
        self.apply(|chain, mut emit| chain.on_notification(SequencedMessage { before, id, body }, &mut emit))
    }

    /// Something came that is not this fleet's news; returns whether the stream is to be asked, which it is once a second
    /// at most, however much of it comes.
    pub(super) fn on_foreign_notification(&self, now: Duration) -> bool {
        let mut core = self.lock_state();
        if core.last_foreign.is_some_and(|last| now.saturating_sub(last) < FOREIGN_CHECK_INTERVAL) {
            return false;
        }
        core.last_foreign = Some(now);
        core.sequencer.mark_incomplete(false);
        core.sequencer.is_incomplete()
    }

    /// Whether it is known where the stream stands.
    pub(super) fn is_started(&self) -> bool {
        self.lock_state().sequencer.last().is_some()
    }

    /// The stream stands at `newest`; returns whether it is to be asked.
    pub(super) fn start_after(&self, newest: MessageId) -> bool {
        if !self.is_started() {
            self.lock_state().buffer.start_after(newest);
        }
        self.apply(|chain, mut emit| chain.start_after(newest, &mut emit))
    }

    /// The stream may hold more than was heard.
    pub(super) fn mark_incomplete(&self, lossy: bool) {
        self.lock_state().sequencer.mark_incomplete(lossy);
    }

    /// News are heard again after they were not for a time.
    pub(super) fn mark_disconnected(&self) {
        self.lock_state().sequencer.mark_disconnected();
    }

    /// What was taken from the stream last; none until it is known where it stands.
    pub(super) fn last(&self) -> Option<MessageId> {
        self.lock_state().sequencer.last()
    }

    /// Keeps no more than there is room for now.
    pub(super) fn trim(&self) {
        let room = self.memory_limit.load(Relaxed);
        let mut core = self.lock_state();
        core.buffer.trim(room);
        core.sequencer.set_pending_bytes_max(room / PENDING_DIVISOR);
    }

    /// What is to be asked of the stream, if anything.
    pub(super) fn next_query(&self) -> Option<PendingQuery> {
        let mut core = self.lock_state();
        let query = core.sequencer.next_query()?;
        core.queries += 1;
        Some(PendingQuery { query, number: core.queries })
    }

    /// There was no answer.
    pub(super) fn query_failed(&self, question: PendingQuery) {
        self.lock_state().sequencer.query_failed(question.query);
    }

    /// The stream's answer.
    pub(super) fn apply_page(&self, question: PendingQuery, page: StreamPage<MessageBody>) {
        self.apply(|chain, mut emit| chain.apply_page(question.query, page, &mut emit));
        self.query_done.send_replace(question.number);
    }

    /// Number of the next question to the stream, which is asked for by this.
    pub(super) fn request_query(&self) -> u64 {
        let mut core = self.lock_state();
        core.sequencer.mark_incomplete(false);
        core.queries + 1
    }

    /// Number of the question that was answered last.
    pub(super) fn query_done(&self) -> watch::Receiver<u64> {
        self.query_done.subscribe()
    }

    pub(super) fn new_messages(&self) -> watch::Receiver<u64> {
        self.new_messages.subscribe()
    }

    /// What is at a place, and how many messages there were from there on before the last ones came.
    pub(super) fn get(&self, place: u64) -> (BufferRead, u64) {
        let core = self.lock_state();
        (core.buffer.get(place), core.previous_end.saturating_sub(place))
    }

    /// The place after the youngest message.
    pub(super) fn end(&self) -> u64 {
        self.lock_state().buffer.end()
    }

    /// The same, and that message: also where the stream was forgotten since, because it is remembered here.
    pub(super) fn end_and_newest(&self) -> (u64, MessageId) {
        let core = self.lock_state();
        (core.buffer.end(), core.buffer.newest())
    }

    /// The first place after which nothing is missing, and the message before it.
    pub(super) fn first_complete(&self) -> (u64, MessageId) {
        let core = self.lock_state();
        (core.buffer.first_complete(), core.buffer.oldest_covered())
    }

    /// Where a client goes on that has everything up to `after`.
    pub(super) fn seek(&self, after: MessageId) -> SeekResult {
        self.lock_state().buffer.seek(after)
    }

    /// The youngest message that was passed on.
    pub(super) fn newest(&self) -> MessageId {
        self.lock_state().buffer.newest()
    }

    /// All messages after this one are remembered.
    pub(super) fn oldest_covered(&self) -> MessageId {
        self.lock_state().buffer.oldest_covered()
    }

    /// What is older than all that is remembered.
    pub(super) fn older_messages(&self) -> OlderMessages {
        let core = self.lock_state();
        match (core.buffer.is_at_stream_start(), core.buffer.has_room(self.memory_limit.load(Relaxed))) {
            (true, _) => OlderMessages::Nothing,
            (false, true) => OlderMessages::Fits,
            (false, false) => OlderMessages::NoRoom,
        }
    }

    /// What the stream holds up to `floor`, the youngest first.
    pub(super) fn prepend(&self, floor: MessageId, older: &[StreamEntry]) {
        let room = self.memory_limit.load(Relaxed);
        let mut core = self.lock_state();
        // Others may have been forgotten meanwhile: then it does not fit any more.
        if core.buffer.oldest_covered() != floor {
            return;
        }
        for stored in older {
            let (id, before) = (MessageId::from(stored.id), MessageId::from(stored.previous));
            if id != core.buffer.oldest_covered() || core.buffer.is_at_stream_start() {
                break;
            }
            let Some(message) = BroadcastMessage::sequenced(&self.topic, stored).body else {
                core.buffer.skip_foreign(before);
                continue;
            };
            if !core.buffer.prepend(message, before, room) {
                return core.buffer.set_full();
            }
        }
        if core.buffer.oldest_covered() == floor {
            core.buffer.set_stream_start_reached();
        }
    }
}

/// What there is of a topic that is older than what is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OlderMessages {
    /// It may be read, and there is room for it.
    Fits,
    /// It may be read, and there is none.
    NoRoom,
    /// Nothing any more.
    Nothing,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(ms: u64) -> MessageId {
        MessageId::from((ms, 0))
    }

    fn line(room: usize) -> TopicFeed {
        let line = TopicFeed::new(&TopicName::parse("t").unwrap(), 99, &Arc::new(AtomicUsize::new(room)));
        line.start_after(id(1));
        line
    }

    #[test]
    fn an_answer_without_messages_wakes_only_the_subscriber_that_waits_for_it() {
        let line = line(1 << 20);
        let (tip, query_done) = (line.new_messages(), line.query_done());
        line.mark_incomplete(false);
        let question = line.next_query().unwrap();
        line.apply_page(question, StreamPage::Entries { entries: Vec::new(), complete: true });
        assert_eq!((tip.has_changed().unwrap(), query_done.has_changed().unwrap()), (false, true));
        line.on_notification(id(1), id(2), "x");
        assert!(tip.has_changed().unwrap());
    }

    #[test]
    fn foreign_notifications_cause_a_query_once_a_second() {
        let (line, now) = (line(1 << 20), Duration::from_secs(9));
        let queries =
            (0..30).filter(|tenth| line.on_foreign_notification(now + Duration::from_millis(100 * tenth)));
        assert_eq!(queries.collect::<Vec<_>>(), [0, 10, 20]);
        assert_eq!(line.newest(), id(1), "nothing of it is passed on");
    }

    #[test]
    fn a_subscriber_of_an_expired_topic_starts_after_what_is_buffered() {
        let line = line(1 << 20);
        line.on_notification(id(1), id(2), "x");
        line.mark_incomplete(false);
        let question = line.next_query().unwrap();
        line.apply_page(question, StreamPage::Gone { newest: MessageId::ZERO });
        let (place, last) = line.end_and_newest();
        assert_eq!((last, line.seek(last)), (id(2), SeekResult::At(place)));
    }

    #[test]
    fn foreign_entries_are_skipped() {
        let line = line(1 << 20);
        let stored = |before: u64, at: u64, text: Option<&str>| StreamEntry {
            previous: (before, 0),
            id: (at, 0),
            text: text.map(Into::into),
        };
        line.mark_incomplete(false);
        let question = line.next_query().unwrap();
        let rows = [stored(1, 2, Some("x")), stored(2, 3, None), stored(3, 4, Some("y"))];
        let entries = rows.iter().map(|stored| BroadcastMessage::sequenced(&line.topic, stored)).collect();
        let (place, _) = line.end_and_newest();
        line.apply_page(question, StreamPage::Entries { entries, complete: true });
        assert!(matches!(line.get(place + 1), (BufferRead::Message(message), _) if message.text() == "y"));
        let behind = TopicFeed::new(&line.topic, 99, &line.memory_limit);
        behind.start_after(id(3));
        behind.prepend(id(3), &[stored(2, 3, None), stored(1, 2, Some("x"))]);
        assert_eq!((behind.oldest_covered(), behind.seek(id(1))), (id(1), SeekResult::At(behind.end() - 1)));
    }
}
