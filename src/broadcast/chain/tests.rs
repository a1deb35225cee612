//! The chain against every order in which news and answers can come.

use proptest::prelude::*;

use super::*;

impl Weigh for u64 {
    fn weight(&self) -> usize {
        10
    }
}

fn id(ms: u64) -> Id {
    Id::from((ms, 0))
}

fn link(before: u64, at: u64) -> Link<u64> {
    Link { before: id(before), id: id(at), body: at }
}

/// A chain and what it passed on: ids, and 0 for a gap.
struct Heard {
    chain: Chain<u64>,
    out: Vec<u64>,
}

impl Heard {
    fn after(last: u64) -> Self {
        let mut heard = Self { chain: Chain::new(), out: Vec::new() };
        heard.with(|chain, mut emit| chain.begin(id(last), &mut emit));
        heard
    }

    fn with(&mut self, act: impl FnOnce(&mut Chain<u64>, &mut dyn FnMut(Step<u64>))) {
        let out = &mut self.out;
        act(&mut self.chain, &mut |step| {
            out.push(match step {
                Step::Message(link) => link.body,
                Step::Gap { .. } => 0,
            });
        });
    }

    fn hear(&mut self, before: u64, at: u64) {
        self.with(|chain, mut emit| chain.hear(link(before, at), &mut emit));
    }

    fn read(&mut self, links: &[(u64, u64)], complete: bool) {
        let asked = self.chain.ask().unwrap();
        self.answer(asked, links, complete);
    }

    fn answer(&mut self, asked: Asked, links: &[(u64, u64)], complete: bool) {
        let entries = links.iter().map(|(before, at)| link(*before, *at)).collect();
        self.with(|chain, mut emit| chain.answer(asked, Page::Entries { entries, complete }, &mut emit));
    }

    fn gone(&mut self, newest: u64) {
        let asked = self.chain.ask().unwrap();
        self.with(|chain, mut emit| chain.answer(asked, Page::Gone { newest: id(newest) }, &mut emit));
    }

    fn out(&mut self) -> Vec<u64> {
        mem::take(&mut self.out)
    }

    fn is_whole(&mut self) -> bool {
        self.chain.ask().is_none()
    }
}

#[test]
fn what_follows_is_passed_on_and_what_was_is_not() {
    let mut heard = Heard::after(5);
    heard.hear(4, 5);
    heard.hear(5, 7);
    heard.hear(5, 7);
    heard.hear(7, 8);
    assert_eq!((heard.out(), heard.is_whole()), (vec![7, 8], true));
}

#[test]
fn what_is_missing_is_read_before_what_was_heard() {
    let mut heard = Heard::after(5);
    heard.hear(6, 7);
    heard.hear(7, 8);
    assert!(heard.out().is_empty());
    heard.read(&[(4, 5), (5, 6), (6, 7)], false);
    assert_eq!(heard.out(), [6, 7, 8]);
    heard.read(&[(7, 8)], true);
    assert_eq!((heard.out(), heard.is_whole()), (vec![], true));
}

#[test]
fn news_that_come_while_it_is_read_are_neither_lost_nor_twice() {
    let mut heard = Heard::after(5);
    heard.hear(6, 7);
    let asked = heard.chain.ask().unwrap();
    heard.hear(7, 8);
    heard.hear(9, 10);
    heard.answer(asked, &[(4, 5), (5, 6), (6, 7), (7, 8)], true);
    assert_eq!(heard.out(), [6, 7, 8], "9 was neither heard nor there when it was read");
    heard.read(&[(7, 8), (8, 9), (9, 10)], true);
    assert_eq!((heard.out(), heard.is_whole()), (vec![9, 10], true));
}

#[test]
fn news_before_the_beginning_wait_for_it() {
    let mut heard = Heard { chain: Chain::new(), out: Vec::new() };
    heard.hear(4, 5);
    heard.hear(5, 6);
    assert!(heard.chain.ask().is_none() && heard.chain.last().is_none());
    heard.with(|chain, mut emit| chain.begin(id(5), &mut emit));
    assert_eq!((heard.out(), heard.is_whole()), (vec![6], true));
}

#[test]
fn what_was_trimmed_is_a_gap() {
    let mut heard = Heard::after(5);
    heard.hear(9, 10);
    heard.read(&[(8, 9), (9, 10)], true);
    assert_eq!((heard.out(), heard.is_whole()), (vec![0, 9, 10], true));
}

#[test]
fn what_was_heard_and_is_gone_from_the_stream_is_passed_on_after_a_gap() {
    let mut heard = Heard::after(5);
    heard.hear(8, 9);
    heard.hear(9, 10);
    heard.gone(0);
    assert_eq!(heard.out().iter().filter(|at| **at > 0).copied().collect::<Vec<_>>(), [9, 10]);
    heard.hear(0, 11);
    assert_eq!((heard.out(), heard.is_whole()), (vec![11], true));
}

#[test]
fn a_stream_that_begins_anew_goes_on() {
    let mut heard = Heard::after(5);
    heard.hear(0, 9);
    assert_eq!((heard.out(), heard.is_whole()), (vec![9], true));
    heard.chain.doubt(false);
    heard.gone(0);
    assert!(heard.out().is_empty(), "a quiet topic was forgotten");
    heard.hear(0, 12);
    assert_eq!((heard.out(), heard.is_whole()), (vec![12], true));
}

#[test]
fn a_stream_that_begins_anew_while_nobody_listened_has_a_gap() {
    let mut heard = Heard::after(5);
    heard.chain.doubt(true);
    heard.read(&[(0, 9)], true);
    assert_eq!(heard.out(), [0, 9]);
    heard.chain.doubt(true);
    heard.gone(0);
    assert_eq!(heard.out(), [0]);
    heard.chain.doubt(true);
    heard.read(&[], true);
    assert_eq!((heard.out(), heard.is_whole()), (vec![], true), "that it is gone is said once");
}

#[test]
fn a_stream_that_begins_anew_while_it_is_asked_why_it_was_silent_has_a_gap() {
    let mut heard = Heard::after(5);
    heard.chain.doubt(true);
    let asked = heard.chain.ask().unwrap();
    heard.hear(0, 9);
    assert_eq!(heard.out(), [0, 9]);
    heard.answer(asked, &[(0, 9)], true);
    heard.hear(0, 12);
    assert_eq!((heard.out(), heard.is_whole()), (vec![12], true));
}

#[test]
fn a_stream_that_lost_its_end_goes_on_from_there() {
    let mut heard = Heard::after(9);
    heard.chain.doubt(false);
    heard.gone(7);
    assert_eq!(heard.out(), [0]);
    heard.hear(7, 8);
    assert_eq!((heard.out(), heard.is_whole()), (vec![8], true));
}

#[test]
fn what_was_written_between_two_looks_is_looked_at_once_more() {
    let mut heard = Heard::after(9);
    heard.chain.doubt(false);
    heard.gone(12);
    assert!(heard.out().is_empty());
    heard.read(&[(0, 12)], true);
    assert_eq!((heard.out(), heard.is_whole()), (vec![12], true));
}

#[test]
fn a_question_without_an_answer_is_asked_again() {
    let mut heard = Heard::after(5);
    heard.chain.doubt(true);
    let asked = heard.chain.ask().unwrap();
    assert!(heard.is_whole());
    heard.chain.fail(asked);
    heard.read(&[(0, 9)], true);
    assert_eq!(heard.out(), [0, 9], "and what made it one is not forgotten");
}

#[test]
fn more_news_than_wait_are_read() {
    let mut heard = Heard::after(1);
    let last = 10 + PENDING_MAX as u64 + 5;
    for at in 10..=last {
        heard.hear(at - 1, at);
    }
    let stream: Vec<_> = (1..=last).map(|at| (at - 1, at)).collect();
    heard.read(&stream[..9], false);
    let passed = heard.out();
    assert_eq!(passed, (2..10 + PENDING_MAX as u64).collect::<Vec<_>>());
    heard.read(&stream[passed.len()..], true);
    assert_eq!((heard.out().last(), heard.is_whole()), (Some(&last), true));
}

#[test]
fn news_that_are_too_heavy_to_wait_are_read() {
    let mut heard = Heard::after(1);
    heard.chain.set_room(25);
    (4..=8).for_each(|at| heard.hear(at - 1, at));
    assert_eq!((heard.chain.pending.len(), heard.chain.weight), (2, 20));
    heard.chain.set_room(15);
    assert_eq!((heard.chain.pending.len(), heard.chain.weight), (1, 10));
    heard.read(&[(0, 1), (1, 2), (2, 3)], false);
    assert_eq!((heard.out(), heard.chain.weight), (vec![2, 3, 4], 0));
    heard.read(&[(3, 4), (4, 5), (5, 6), (6, 7), (7, 8)], true);
    assert_eq!((heard.out(), heard.is_whole()), (vec![5, 6, 7, 8], true));
}

#[test]
fn what_was_empty_and_is_again_may_have_held_something_while_news_were_away() {
    let mut heard = Heard::after(0);
    heard.chain.doubt(true);
    heard.gone(0);
    assert!(heard.out().is_empty(), "news came for the first time");
    for _ in 0..2 {
        heard.chain.doubt_all();
        heard.gone(0);
        assert_eq!((heard.out(), heard.is_whole()), (vec![0], true), "each absence is one");
    }
    heard.chain.doubt_all();
    heard.read(&[(0, 9)], true);
    assert_eq!(heard.out(), [0, 9]);
    heard.chain.doubt_all();
    heard.read(&[(0, 9), (9, 10)], true);
    assert_eq!((heard.out(), heard.is_whole()), (vec![10], true), "9 is there: nothing was lost");
}

#[test]
fn an_absence_is_told_once() {
    let mut heard = Heard::after(5);
    heard.chain.doubt(true);
    heard.gone(0);
    heard.chain.doubt_all();
    heard.gone(0);
    assert_eq!(heard.out(), [0]);
    heard.hear(0, 9);
    heard.chain.doubt_all();
    heard.read(&[(0, 12)], true);
    assert_eq!(heard.out(), [9, 0, 12], "the next one is another");
}

#[test]
fn a_message_below_what_a_failover_lost_is_told_by_the_next_one() {
    let mut heard = Heard::after(5);
    heard.hear(5, 9);
    heard.hear(5, 8);
    assert_eq!(heard.out(), [9], "8 cannot be passed on any more");
    heard.hear(8, 10);
    assert_eq!((heard.out(), heard.is_whole()), (vec![0, 10], true));
}

/// What happens to a topic and to a worker that follows it.
#[derive(Debug, Clone)]
enum Event {
    Publish,
    /// The next news arrive, or are lost.
    Hear(bool),
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
        6 => any::<bool>().prop_map(Event::Hear),
        1 => Just(Event::Again),
        3 => Just(Event::Ask),
        3 => Just(Event::Answer),
        1 => Just(Event::Fail),
        1 => Just(Event::Doubt),
    ]
}

const PAGE: usize = 3;

/// A question, the messages that answer it, and whether these are all.
type Answer = (Asked, Vec<(u64, u64)>, bool);

/// A topic whose stream forgets nothing: 1, 2, 3, …
struct World {
    heard: Heard,
    stream: u64,
    /// News under way.
    wire: VecDeque<u64>,
    last_news: u64,
    asked: Option<Answer>,
}

impl World {
    fn happen(&mut self, event: &Event) {
        match event {
            Event::Publish => {
                self.stream += 1;
                self.wire.push_back(self.stream);
            }
            Event::Hear(arrives) => {
                if let Some(at) = self.wire.pop_front().filter(|_| *arrives) {
                    self.last_news = at;
                    self.heard.hear(at - 1, at);
                }
            }
            Event::Again if self.last_news > 0 => self.heard.hear(self.last_news - 1, self.last_news),
            Event::Ask if self.asked.is_none() => {
                if let Some(asked) = self.heard.chain.ask() {
                    let from = asked.from.stamp().0;
                    let links: Vec<_> = (from.max(1)..=self.stream).map(|at| (at - 1, at)).collect();
                    let complete = links.len() <= PAGE;
                    self.asked = Some((asked, links.into_iter().take(PAGE).collect(), complete));
                }
            }
            Event::Answer => {
                if let Some((asked, links, complete)) = self.asked.take() {
                    self.heard.answer(asked, &links, complete);
                }
            }
            Event::Fail => {
                if let Some((asked, ..)) = self.asked.take() {
                    self.heard.chain.fail(asked);
                }
            }
            Event::Doubt => self.heard.chain.doubt(true),
            Event::Again | Event::Ask => {}
        }
    }
}

proptest! {
    #[test]
    fn whatever_comes_when_everything_is_passed_on_once_in_order_and_without_a_gap(
        events in prop::collection::vec(event(), 0..120)
    ) {
        let heard = Heard::after(0);
        let mut world = World { heard, stream: 0, wire: VecDeque::new(), last_news: 0, asked: None };
        for event in &events {
            world.happen(event);
            let expected: Vec<u64> = (1..=world.heard.out.len() as u64).collect();
            prop_assert_eq!(&world.heard.out, &expected, "after {:?}", event);
        }
        world.heard.chain.doubt(false);
        for _ in 0..=events.len() {
            world.happen(&Event::Answer);
            world.happen(&Event::Ask);
        }
        prop_assert_eq!(world.heard.out.len() as u64, world.stream);
        prop_assert!(world.heard.is_whole());
    }
}
