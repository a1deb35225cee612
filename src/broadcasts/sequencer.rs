//! Which message of a topic comes next, and whether one is missing before it. No I/O.
//!
//! Every message names the one before it. Notifications, which may be lost, late or duplicated, and pages of the
//! stream, which is the truth, come in any order; messages go out once each in the order of their ids, with a gap
//! where one is missing for good.

use std::collections::VecDeque;
use std::mem;

use crate::broadcasts::message::MessageId;

/// Most notifications that wait for a missing message; more are read with it.
pub(super) const PENDING_MAX: usize = 256;

/// A body with a size.
pub(super) trait MemorySize {
    /// About how many bytes it takes.
    fn memory_size(&self) -> usize;
}

/// A message, and the id of the one before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SequencedMessage<T> {
    /// Id of the message before it; zero for the stream's first.
    pub(super) before: MessageId,
    /// Its own id.
    pub(super) id: MessageId,
    /// Its content.
    pub(super) body: T,
}

/// What goes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SequencerOutput<T> {
    /// The next message.
    Message(SequencedMessage<T>),
    /// Messages may be missing here; none after `after`.
    Gap { after: MessageId },
}

/// What notifications may have missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Completeness {
    /// Nothing that is known of.
    Complete,
    /// The stream may hold more messages.
    Incomplete,
    /// Notifications were missed: also a stream that starts anew may have held more.
    Lossy,
    /// Notifications were interrupted and arrive again: also a stream that was empty before and after may have held
    /// messages.
    Disconnected,
}

/// A query of the stream: its entries from `from` on.
#[derive(Debug, Clone, Copy)]
pub(super) struct StreamQuery {
    /// The last message that went out; queried too, because its presence proves that nothing was removed.
    pub(super) from: MessageId,
    completeness: Completeness,
    received: u64,
}

/// The reply to a query.
#[derive(Debug, Clone)]
pub(super) enum StreamPage<T> {
    /// Entries from `from` on, itself included if it is still there.
    Entries {
        /// In the order of their ids.
        entries: Vec<SequencedMessage<T>>,
        /// Whether these are all.
        complete: bool,
    },
    /// There are none: the stream is gone, or lost its end. Its newest message, zero if there is none.
    Gone { newest: MessageId },
}

/// The order of one topic in this worker.
#[derive(Debug)]
pub(super) struct MessageSequencer<T> {
    /// The last message that went out; `None` until the stream's end is known.
    last: Option<MessageId>,
    /// Notifications before which a message is missing, each with its number.
    pending: VecDeque<(u64, SequencedMessage<T>)>,
    /// Their bytes, and the most they may take.
    pending_bytes: usize,
    pending_bytes_max: usize,
    /// Notifications so far.
    received: u64,
    completeness: Completeness,
    /// Why the query in flight was sent.
    query_reason: Completeness,
    /// Whether a loss was reported while notifications were interrupted, and no message went out since.
    loss_reported: bool,
}

impl<T: MemorySize> MessageSequencer<T> {
    pub(super) fn new() -> Self {
        Self {
            last: None,
            pending: VecDeque::new(),
            pending_bytes: 0,
            pending_bytes_max: usize::MAX,
            received: 0,
            completeness: Completeness::Complete,
            query_reason: Completeness::Complete,
            loss_reported: false,
        }
    }

    /// Sets the most bytes of pending notifications; those above it are read with what is missing.
    pub(super) fn set_pending_bytes_max(&mut self, room: usize) {
        self.pending_bytes_max = room;
        while self.pending_bytes > room {
            // The newest, because the oldest go out next.
            let Some((_, message)) = self.pending.pop_back() else { break };
            self.pending_bytes -= message.body.memory_size();
            self.mark_incomplete(false);
        }
    }

    /// The last message that went out, or after which the topic starts.
    pub(super) fn last(&self) -> Option<MessageId> {
        self.last
    }

    /// Starts after `newest`, the stream's end at a moment since which notifications arrive.
    pub(super) fn start_after(&mut self, newest: MessageId, emit: &mut impl FnMut(SequencerOutput<T>)) {
        if self.last.is_none() {
            self.last = Some(newest);
            self.emit_pending(0, emit);
        }
    }

    /// A notification of a message.
    pub(super) fn on_notification(
        &mut self,
        message: SequencedMessage<T>,
        emit: &mut impl FnMut(SequencerOutput<T>),
    ) {
        self.received += 1;
        match self.last {
            Some(last) if message.id <= last => {}
            Some(last) if message.before <= last => {
                self.emit(message, last, self.completeness.max(self.query_reason), emit);
                self.emit_pending(0, emit);
            }
            known => {
                let weight = self.pending_bytes + message.body.memory_size();
                if self.pending.len() < PENDING_MAX && weight <= self.pending_bytes_max {
                    self.pending_bytes = weight;
                    self.pending.push_back((self.received, message));
                    // Before the start nothing is incomplete: the start takes pending notifications.
                    self.mark_incomplete_if(known.is_some());
                } else {
                    self.mark_incomplete_if(true);
                }
            }
        }
    }

    /// The stream may hold more; `lossy` if notifications were missed.
    pub(super) fn mark_incomplete(&mut self, lossy: bool) {
        self.completeness =
            self.completeness.max(if lossy { Completeness::Lossy } else { Completeness::Incomplete });
    }

    /// Notifications arrive again after an interruption.
    pub(super) fn mark_disconnected(&mut self) {
        self.completeness = Completeness::Disconnected;
    }

    /// Whether the stream has to be queried, now or after the present query.
    pub(super) fn is_incomplete(&self) -> bool {
        self.last.is_some() && self.completeness != Completeness::Complete
    }

    /// The next query, if one is needed. The reply goes to [`Self::apply_page`] or [`Self::query_failed`].
    pub(super) fn next_query(&mut self) -> Option<StreamQuery> {
        let from = self.last.filter(|_| self.completeness != Completeness::Complete)?;
        let completeness = mem::replace(&mut self.completeness, Completeness::Complete);
        self.query_reason = completeness;
        Some(StreamQuery { from, completeness, received: self.received })
    }

    /// The query failed.
    pub(super) fn query_failed(&mut self, query: StreamQuery) {
        self.completeness = self.completeness.max(query.completeness);
        self.query_reason = Completeness::Complete;
    }

    /// The reply to a query.
    pub(super) fn apply_page(
        &mut self,
        query: StreamQuery,
        page: StreamPage<T>,
        emit: &mut impl FnMut(SequencerOutput<T>),
    ) {
        self.query_reason = Completeness::Complete;
        let complete = match page {
            StreamPage::Gone { newest } => {
                if newest > query.from {
                    // A message was added between the two reads of the query.
                    return self.query_failed(query);
                }
                // Otherwise notifications have led on since, and the next query decides.
                if self.last == Some(query.from) {
                    self.restart_at(newest, query.completeness, emit);
                }
                true
            }
            StreamPage::Entries { entries, complete } => {
                for message in entries {
                    match self.last {
                        Some(last) if message.id > last => self.emit(message, last, query.completeness, emit),
                        _ => {}
                    }
                }
                self.mark_incomplete_if(!complete);
                complete
            }
        };
        self.emit_pending(if complete { query.received } else { 0 }, emit);
    }

    fn mark_incomplete_if(&mut self, incomplete: bool) {
        if incomplete {
            self.mark_incomplete(false);
        }
    }

    /// The stream ends before the last message that went out. A stream that expired or was emptied by hand is no gap
    /// as long as no notification was missed.
    fn restart_at(
        &mut self,
        newest: MessageId,
        completeness: Completeness,
        emit: &mut impl FnMut(SequencerOutput<T>),
    ) {
        let last = self.last.unwrap_or(MessageId::ZERO);
        if newest == last {
            if newest == MessageId::ZERO && self.may_have_been_lost(last, completeness) {
                emit(SequencerOutput::Gap { after: newest });
            }
            return;
        }
        if newest != MessageId::ZERO || completeness >= Completeness::Lossy || !self.pending.is_empty() {
            self.loss_reported = newest == MessageId::ZERO && completeness != Completeness::Disconnected;
            emit(SequencerOutput::Gap { after: newest });
        }
        self.last = Some(newest);
    }

    /// Whether a stream that is empty, or starts anew, may have held other messages since `last`. An interruption is
    /// reported once, although the stream may be queried several times in it.
    fn may_have_been_lost(&mut self, last: MessageId, completeness: Completeness) -> bool {
        match completeness {
            Completeness::Disconnected => !mem::take(&mut self.loss_reported),
            Completeness::Lossy => last != MessageId::ZERO,
            Completeness::Incomplete | Completeness::Complete => false,
        }
    }

    fn emit(
        &mut self,
        message: SequencedMessage<T>,
        last: MessageId,
        completeness: Completeness,
        emit: &mut impl FnMut(SequencerOutput<T>),
    ) {
        if message.before == MessageId::ZERO {
            if self.may_have_been_lost(last, completeness) {
                emit(SequencerOutput::Gap { after: message.id.before() });
            }
        } else if message.before != last {
            // After a newer one a message is missing; after an older one `last` was lost, and perhaps others with it.
            emit(SequencerOutput::Gap { after: message.before });
        }
        self.loss_reported = false;
        self.last = Some(message.id);
        emit(SequencerOutput::Message(message));
    }

    /// Sends out what waited, as far as nothing is missing. A message that is not in the stream although it was
    /// notified by number `read` is missing for good.
    fn emit_pending(&mut self, read: u64, emit: &mut impl FnMut(SequencerOutput<T>)) {
        while let Some((number, message)) = self.pending.pop_front() {
            let weight = message.body.memory_size();
            self.pending_bytes -= weight;
            let last = self.last.unwrap_or(MessageId::ZERO);
            if message.id <= last {
                continue;
            }
            if message.before > last && number > read {
                self.pending_bytes += weight;
                self.pending.push_front((number, message));
                return self.mark_incomplete(false);
            }
            self.emit(message, last, Completeness::Complete, emit);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl MemorySize for u64 {
        fn memory_size(&self) -> usize {
            10
        }
    }

    fn id(ms: u64) -> MessageId {
        MessageId::from((ms, 0))
    }

    fn message(before: u64, at: u64) -> SequencedMessage<u64> {
        SequencedMessage { before: id(before), id: id(at), body: at }
    }

    /// A sequencer and its output: ids, and 0 for a gap.
    struct SequencerHarness {
        sequencer: MessageSequencer<u64>,
        out: Vec<u64>,
    }

    impl SequencerHarness {
        fn after(last: u64) -> Self {
            let mut harness = Self { sequencer: MessageSequencer::new(), out: Vec::new() };
            harness.with(|chain, mut emit| chain.start_after(id(last), &mut emit));
            harness
        }

        fn with(
            &mut self,
            act: impl FnOnce(&mut MessageSequencer<u64>, &mut dyn FnMut(SequencerOutput<u64>)),
        ) {
            let out = &mut self.out;
            act(&mut self.sequencer, &mut |step| {
                out.push(match step {
                    SequencerOutput::Message(message) => message.body,
                    SequencerOutput::Gap { .. } => 0,
                });
            });
        }

        fn notify(&mut self, before: u64, at: u64) {
            self.with(|chain, mut emit| chain.on_notification(message(before, at), &mut emit));
        }

        fn read(&mut self, messages: &[(u64, u64)], complete: bool) {
            let query = self.sequencer.next_query().unwrap();
            self.answer(query, messages, complete);
        }

        fn answer(&mut self, query: StreamQuery, messages: &[(u64, u64)], complete: bool) {
            let entries = messages.iter().map(|(before, at)| message(*before, *at)).collect();
            self.with(|chain, mut emit| {
                chain.apply_page(query, StreamPage::Entries { entries, complete }, &mut emit)
            });
        }

        fn gone(&mut self, newest: u64) {
            let query = self.sequencer.next_query().unwrap();
            self.with(|chain, mut emit| {
                chain.apply_page(query, StreamPage::Gone { newest: id(newest) }, &mut emit)
            });
        }

        fn out(&mut self) -> Vec<u64> {
            mem::take(&mut self.out)
        }

        fn is_whole(&mut self) -> bool {
            self.sequencer.next_query().is_none()
        }
    }

    #[test]
    fn what_follows_is_emitted_and_what_was_emitted_is_not() {
        let mut harness = SequencerHarness::after(5);
        harness.notify(4, 5);
        harness.notify(5, 7);
        harness.notify(5, 7);
        harness.notify(7, 8);
        assert_eq!((harness.out(), harness.is_whole()), (vec![7, 8], true));
    }

    #[test]
    fn what_is_missing_is_read_before_what_was_received() {
        let mut harness = SequencerHarness::after(5);
        harness.notify(6, 7);
        harness.notify(7, 8);
        assert!(harness.out().is_empty());
        harness.read(&[(4, 5), (5, 6), (6, 7)], false);
        assert_eq!(harness.out(), [6, 7, 8]);
        harness.read(&[(7, 8)], true);
        assert_eq!((harness.out(), harness.is_whole()), (vec![], true));
    }

    #[test]
    fn notifications_during_a_read_are_neither_lost_nor_duplicated() {
        let mut harness = SequencerHarness::after(5);
        harness.notify(6, 7);
        let query = harness.sequencer.next_query().unwrap();
        harness.notify(7, 8);
        harness.notify(9, 10);
        harness.answer(query, &[(4, 5), (5, 6), (6, 7), (7, 8)], true);
        assert_eq!(harness.out(), [6, 7, 8], "9 was neither heard nor there when it was read");
        harness.read(&[(7, 8), (8, 9), (9, 10)], true);
        assert_eq!((harness.out(), harness.is_whole()), (vec![9, 10], true));
    }

    #[test]
    fn notifications_before_the_start_wait_for_it() {
        let mut harness = SequencerHarness { sequencer: MessageSequencer::new(), out: Vec::new() };
        harness.notify(4, 5);
        harness.notify(5, 6);
        assert!(harness.sequencer.next_query().is_none() && harness.sequencer.last().is_none());
        harness.with(|chain, mut emit| chain.start_after(id(5), &mut emit));
        assert_eq!((harness.out(), harness.is_whole()), (vec![6], true));
    }

    #[test]
    fn what_was_trimmed_is_a_gap() {
        let mut harness = SequencerHarness::after(5);
        harness.notify(9, 10);
        harness.read(&[(8, 9), (9, 10)], true);
        assert_eq!((harness.out(), harness.is_whole()), (vec![0, 9, 10], true));
    }

    #[test]
    fn what_was_received_and_is_gone_from_the_stream_is_emitted_after_a_gap() {
        let mut harness = SequencerHarness::after(5);
        harness.notify(8, 9);
        harness.notify(9, 10);
        harness.gone(0);
        assert_eq!(harness.out().iter().filter(|at| **at > 0).copied().collect::<Vec<_>>(), [9, 10]);
        harness.notify(0, 11);
        assert_eq!((harness.out(), harness.is_whole()), (vec![11], true));
    }

    #[test]
    fn a_stream_that_starts_anew_continues() {
        let mut harness = SequencerHarness::after(5);
        harness.notify(0, 9);
        assert_eq!((harness.out(), harness.is_whole()), (vec![9], true));
        harness.sequencer.mark_incomplete(false);
        harness.gone(0);
        assert!(harness.out().is_empty(), "a quiet topic expired");
        harness.notify(0, 12);
        assert_eq!((harness.out(), harness.is_whole()), (vec![12], true));
    }

    #[test]
    fn a_stream_that_starts_anew_while_disconnected_has_a_gap() {
        let mut harness = SequencerHarness::after(5);
        harness.sequencer.mark_incomplete(true);
        harness.read(&[(0, 9)], true);
        assert_eq!(harness.out(), [0, 9]);
        harness.sequencer.mark_incomplete(true);
        harness.gone(0);
        assert_eq!(harness.out(), [0]);
        harness.sequencer.mark_incomplete(true);
        harness.read(&[], true);
        assert_eq!((harness.out(), harness.is_whole()), (vec![], true), "the loss is reported once");
    }

    #[test]
    fn a_stream_that_starts_anew_during_a_query_after_a_disconnection_has_a_gap() {
        let mut harness = SequencerHarness::after(5);
        harness.sequencer.mark_incomplete(true);
        let query = harness.sequencer.next_query().unwrap();
        harness.notify(0, 9);
        assert_eq!(harness.out(), [0, 9]);
        harness.answer(query, &[(0, 9)], true);
        harness.notify(0, 12);
        assert_eq!((harness.out(), harness.is_whole()), (vec![12], true));
    }

    #[test]
    fn a_stream_that_lost_its_end_continues_from_there() {
        let mut harness = SequencerHarness::after(9);
        harness.sequencer.mark_incomplete(false);
        harness.gone(7);
        assert_eq!(harness.out(), [0]);
        harness.notify(7, 8);
        assert_eq!((harness.out(), harness.is_whole()), (vec![8], true));
    }

    #[test]
    fn what_was_written_between_two_queries_is_queried_once_more() {
        let mut harness = SequencerHarness::after(9);
        harness.sequencer.mark_incomplete(false);
        harness.gone(12);
        assert!(harness.out().is_empty());
        harness.read(&[(0, 12)], true);
        assert_eq!((harness.out(), harness.is_whole()), (vec![12], true));
    }

    #[test]
    fn a_query_without_an_answer_is_sent_again() {
        let mut harness = SequencerHarness::after(5);
        harness.sequencer.mark_incomplete(true);
        let query = harness.sequencer.next_query().unwrap();
        assert!(harness.is_whole());
        harness.sequencer.query_failed(query);
        harness.read(&[(0, 9)], true);
        assert_eq!(harness.out(), [0, 9], "and the reason for it is kept");
    }

    #[test]
    fn more_notifications_than_fit_are_read() {
        let mut harness = SequencerHarness::after(1);
        let last = 10 + PENDING_MAX as u64 + 5;
        for at in 10..=last {
            harness.notify(at - 1, at);
        }
        let stream: Vec<_> = (1..=last).map(|at| (at - 1, at)).collect();
        harness.read(&stream[..9], false);
        let passed = harness.out();
        assert_eq!(passed, (2..10 + PENDING_MAX as u64).collect::<Vec<_>>());
        harness.read(&stream[passed.len()..], true);
        assert_eq!((harness.out().last(), harness.is_whole()), (Some(&last), true));
    }

    #[test]
    fn notifications_that_are_too_heavy_to_wait_are_read() {
        let mut harness = SequencerHarness::after(1);
        harness.sequencer.set_pending_bytes_max(25);
        (4..=8).for_each(|at| harness.notify(at - 1, at));
        assert_eq!((harness.sequencer.pending.len(), harness.sequencer.pending_bytes), (2, 20));
        harness.sequencer.set_pending_bytes_max(15);
        assert_eq!((harness.sequencer.pending.len(), harness.sequencer.pending_bytes), (1, 10));
        harness.read(&[(0, 1), (1, 2), (2, 3)], false);
        assert_eq!((harness.out(), harness.sequencer.pending_bytes), (vec![2, 3, 4], 0));
        harness.read(&[(3, 4), (4, 5), (5, 6), (6, 7), (7, 8)], true);
        assert_eq!((harness.out(), harness.is_whole()), (vec![5, 6, 7, 8], true));
    }

    #[test]
    fn what_was_empty_and_is_again_may_have_held_something_while_disconnected() {
        let mut harness = SequencerHarness::after(0);
        harness.sequencer.mark_incomplete(true);
        harness.gone(0);
        assert!(harness.out().is_empty(), "notifications arrive for the first time");
        for _ in 0..2 {
            harness.sequencer.mark_disconnected();
            harness.gone(0);
            assert_eq!((harness.out(), harness.is_whole()), (vec![0], true), "each interruption is one gap");
        }
        harness.sequencer.mark_disconnected();
        harness.read(&[(0, 9)], true);
        assert_eq!(harness.out(), [0, 9]);
        harness.sequencer.mark_disconnected();
        harness.read(&[(0, 9), (9, 10)], true);
        assert_eq!((harness.out(), harness.is_whole()), (vec![10], true), "9 is there: nothing was lost");
    }

    #[test]
    fn a_disconnection_is_reported_once() {
        let mut harness = SequencerHarness::after(5);
        harness.sequencer.mark_incomplete(true);
        harness.gone(0);
        harness.sequencer.mark_disconnected();
        harness.gone(0);
        assert_eq!(harness.out(), [0]);
        harness.notify(0, 9);
        harness.sequencer.mark_disconnected();
        harness.read(&[(0, 12)], true);
        assert_eq!(harness.out(), [9, 0, 12], "the next one is another gap");
    }

    #[test]
    fn a_message_below_what_a_failover_lost_is_detected_by_the_next_one() {
        let mut harness = SequencerHarness::after(5);
        harness.notify(5, 9);
        harness.notify(5, 8);
        assert_eq!(harness.out(), [9], "8 cannot be passed on any more");
        harness.notify(8, 10);
        assert_eq!((harness.out(), harness.is_whole()), (vec![0, 10], true));
    }

    /// Events of a topic and of a worker with subscribers.
    #[derive(Debug, Clone)]
    enum Event {
        Publish,
        /// The next notification arrives, or is lost.
        Notify(bool),
        /// A duplicate, as after a reconnection.
        Again,
        /// A query is sent, or its reply arrives.
        Ask,
        Answer,
        Fail,
        Doubt,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => Just(Event::Publish),
            6 => any::<bool>().prop_map(Event::Notify),
            1 => Just(Event::Again),
            3 => Just(Event::Ask),
            3 => Just(Event::Answer),
            1 => Just(Event::Fail),
            1 => Just(Event::Doubt),
        ]
    }

    const PAGE: usize = 3;

    /// A query, the messages of its reply, and whether these are all.
    type Answer = (StreamQuery, Vec<(u64, u64)>, bool);

    /// A topic whose stream loses nothing: 1, 2, 3, …
    struct World {
        harness: SequencerHarness,
        stream: u64,
        /// Notifications in flight.
        wire: VecDeque<u64>,
        last_notification: u64,
        query: Option<Answer>,
    }

    impl World {
        fn happen(&mut self, event: &Event) {
            match event {
                Event::Publish => {
                    self.stream += 1;
                    self.wire.push_back(self.stream);
                }
                Event::Notify(arrives) => {
                    if let Some(at) = self.wire.pop_front().filter(|_| *arrives) {
                        self.last_notification = at;
                        self.harness.notify(at - 1, at);
                    }
                }
                Event::Again if self.last_notification > 0 => {
                    self.harness.notify(self.last_notification - 1, self.last_notification)
                }
                Event::Ask if self.query.is_none() => {
                    if let Some(query) = self.harness.sequencer.next_query() {
                        let from = query.from.stream_id().0;
                        let messages: Vec<_> = (from.max(1)..=self.stream).map(|at| (at - 1, at)).collect();
                        let complete = messages.len() <= PAGE;
                        self.query = Some((query, messages.into_iter().take(PAGE).collect(), complete));
                    }
                }
                Event::Answer => {
                    if let Some((query, messages, complete)) = self.query.take() {
                        self.harness.answer(query, &messages, complete);
                    }
                }
                Event::Fail => {
                    if let Some((query, ..)) = self.query.take() {
                        self.harness.sequencer.query_failed(query);
                    }
                }
                Event::Doubt => self.harness.sequencer.mark_incomplete(true),
                Event::Again | Event::Ask => {}
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_when_everything_is_passed_on_once_in_order_and_without_a_gap(
            events in prop::collection::vec(event(), 0..120)
        ) {
            let harness = SequencerHarness::after(0);
            let mut world = World { harness, stream: 0, wire: VecDeque::new(), last_notification: 0, query: None };
            for event in &events {
                world.happen(event);
                let expected: Vec<u64> = (1..=world.harness.out.len() as u64).collect();
                prop_assert_eq!(&world.harness.out, &expected, "after {:?}", event);
            }
            world.harness.sequencer.mark_incomplete(false);
            for _ in 0..=events.len() {
                world.happen(&Event::Answer);
                world.happen(&Event::Ask);
            }
            prop_assert_eq!(world.harness.out.len() as u64, world.stream);
            prop_assert!(world.harness.is_whole());
        }
    }
}
