//! The chain against every order in which news and answers can come.

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

fn link(before: u64, at: u64) -> SequencedMessage<u64> {
    SequencedMessage { before: id(before), id: id(at), body: at }
}

/// A chain and what it passed on: ids, and 0 for a gap.
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

    fn with(&mut self, act: impl FnOnce(&mut MessageSequencer<u64>, &mut dyn FnMut(SequencerOutput<u64>))) {
        let out = &mut self.out;
        act(&mut self.sequencer, &mut |step| {
            out.push(match step {
                SequencerOutput::Message(link) => link.body,
                SequencerOutput::Gap { .. } => 0,
            });
        });
    }

    fn notify(&mut self, before: u64, at: u64) {
        self.with(|chain, mut emit| chain.on_notification(link(before, at), &mut emit));
    }

    fn read(&mut self, links: &[(u64, u64)], complete: bool) {
        let query = self.sequencer.next_query().unwrap();
        self.answer(query, links, complete);
    }

    fn answer(&mut self, query: StreamQuery, links: &[(u64, u64)], complete: bool) {
        let entries = links.iter().map(|(before, at)| link(*before, *at)).collect();
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
fn what_follows_is_passed_on_and_what_was_is_not() {
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
fn a_stream_that_begins_anew_goes_on() {
    let mut harness = SequencerHarness::after(5);
    harness.notify(0, 9);
    assert_eq!((harness.out(), harness.is_whole()), (vec![9], true));
    harness.sequencer.mark_incomplete(false);
    harness.gone(0);
    assert!(harness.out().is_empty(), "a quiet topic was forgotten");
    harness.notify(0, 12);
    assert_eq!((harness.out(), harness.is_whole()), (vec![12], true));
}

#[test]
fn a_stream_that_begins_anew_while_disconnected_has_a_gap() {
    let mut harness = SequencerHarness::after(5);
    harness.sequencer.mark_incomplete(true);
    harness.read(&[(0, 9)], true);
    assert_eq!(harness.out(), [0, 9]);
    harness.sequencer.mark_incomplete(true);
    harness.gone(0);
    assert_eq!(harness.out(), [0]);
    harness.sequencer.mark_incomplete(true);
    harness.read(&[], true);
    assert_eq!((harness.out(), harness.is_whole()), (vec![], true), "that it is gone is said once");
}

#[test]
fn a_stream_that_begins_anew_during_a_query_after_a_disconnection_has_a_gap() {
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
fn a_stream_that_lost_its_end_goes_on_from_there() {
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
    assert_eq!(harness.out(), [0, 9], "and what made it one is not forgotten");
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
    assert!(harness.out().is_empty(), "news came for the first time");
    for _ in 0..2 {
        harness.sequencer.mark_disconnected();
        harness.gone(0);
        assert_eq!((harness.out(), harness.is_whole()), (vec![0], true), "each absence is one");
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
    assert_eq!(harness.out(), [9, 0, 12], "the next one is another");
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

/// What happens to a topic and to a worker that follows it.
#[derive(Debug, Clone)]
enum Event {
    Publish,
    /// The next news arrive, or are lost.
    Notify(bool),
    /// Once more, as after a reconnection.
    Again,
    /// The stream is asked, or its answer arrives.
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

/// A question, the messages that answer it, and whether these are all.
type Answer = (StreamQuery, Vec<(u64, u64)>, bool);

/// A topic whose stream forgets nothing: 1, 2, 3, …
struct World {
    harness: SequencerHarness,
    stream: u64,
    /// News under way.
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
                    let links: Vec<_> = (from.max(1)..=self.stream).map(|at| (at - 1, at)).collect();
                    let complete = links.len() <= PAGE;
                    self.query = Some((query, links.into_iter().take(PAGE).collect(), complete));
                }
            }
            Event::Answer => {
                if let Some((query, links, complete)) = self.query.take() {
                    self.harness.answer(query, &links, complete);
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
