//! What a worker remembers of a topic: its last messages, for clients that are a little behind, or come back.
//!
//! One copy of a message for all of them; each has a place in the ring and nothing else. No I/O.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::broadcast::id::Id;
use crate::broadcast::message::Message;

/// Number of the first place: older messages are put in before it.
const FIRST: u64 = 1 << 48;

/// What a client meets at its place.
#[derive(Debug)]
pub(super) enum Found {
    /// A message.
    Message(Arc<Message>),
    /// Some may be missing here; none after this id.
    Gap(Id),
    /// Nothing yet.
    End,
    /// What was there is forgotten.
    Past,
}

/// Where a client that has everything up to some id goes on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seek {
    /// At this place.
    At(u64),
    /// Before the first message that is remembered.
    Older,
    /// It has a message that this worker does not know yet.
    Ahead,
}

#[derive(Debug)]
enum Item {
    Message(Arc<Message>),
    Gap(Id),
}

/// The last messages of a topic.
#[derive(Debug)]
pub(super) struct Ring {
    items: VecDeque<Item>,
    /// Place of the oldest item.
    first: u64,
    /// Place from which ids only rise: that after the last gap.
    risen: u64,
    /// All messages after this one are here, from `risen` on.
    floor: Id,
    /// Whether the message after `floor` is the first of its stream.
    origin: bool,
    /// Whether there is nothing older to be had.
    bottom: bool,
    /// Whether the next older message was too heavy.
    full: bool,
    weight: usize,
    count_max: usize,
}

impl Ring {
    /// A ring of at most `count_max` messages.
    pub(super) fn new(count_max: usize) -> Self {
        Self {
            items: VecDeque::new(),
            first: FIRST,
            risen: FIRST,
            floor: Id::ZERO,
            origin: false,
            bottom: false,
            full: false,
            weight: 0,
            count_max,
        }
    }

    /// The place after the youngest message.
    pub(super) fn end(&self) -> u64 {
        self.first + self.items.len() as u64
    }

    /// All messages after this one are remembered.
    pub(super) fn floor(&self) -> Id {
        self.floor
    }

    /// Nothing is remembered, and whatever comes after `newest` will be.
    pub(super) fn begin(&mut self, newest: Id) {
        self.floor = newest;
        self.origin = newest == Id::ZERO;
        self.bottom = self.origin;
        self.full = false;
    }

    /// The youngest message; the oldest ones go, so that no more than `weight_max` bytes are kept.
    pub(super) fn push(&mut self, message: Arc<Message>, weight_max: usize) {
        self.weight += message.weight();
        self.items.push_back(Item::Message(message));
        while self.items.len() > self.count_max || self.weight > weight_max {
            self.forget_oldest();
        }
    }

    /// Some are missing here, and after `after` none. One with the gap before it, unless that lies before `fresh`, so that
    /// clients may have read it.
    pub(super) fn push_gap(&mut self, after: Id, fresh: u64) {
        let merges = self.end() > fresh;
        match self.items.back_mut() {
            Some(Item::Gap(known)) if merges => *known = after,
            _ => self.items.push_back(Item::Gap(after)),
        }
        self.risen = self.end();
        self.begin(after);
        while self.items.len() > self.count_max {
            self.forget_oldest();
        }
    }

    /// No more than `weight_max` bytes are kept from now on.
    pub(super) fn trim(&mut self, weight_max: usize) {
        while self.weight > weight_max {
            self.forget_oldest();
        }
        self.items.shrink_to(2 * self.items.len());
    }

    fn forget_oldest(&mut self) {
        if let Some(Item::Message(oldest)) = self.items.pop_front() {
            self.weight -= oldest.weight();
            if self.first >= self.risen {
                (self.floor, self.origin, self.bottom, self.full) = (oldest.id(), false, false, true);
            }
        }
        self.first += 1;
        self.risen = self.risen.max(self.first);
    }

    /// The message at `floor`, which follows `before`; false if there is no room for it, or it is another one.
    pub(super) fn prepend(&mut self, message: Arc<Message>, before: Id, weight_max: usize) -> bool {
        let fits = self.has_room(weight_max) && self.weight + message.weight() <= weight_max;
        if !fits || message.id() != self.floor {
            return false;
        }
        self.weight += message.weight();
        (self.floor, self.origin, self.bottom) = match before {
            Id::ZERO => (message.id().before(), true, true),
            before => (before, false, false),
        };
        self.items.push_front(Item::Message(message));
        self.first -= 1;
        self.risen -= 1;
        true
    }

    /// What lies at `floor` is no message, and follows `before`.
    pub(super) fn pass_over(&mut self, before: Id) {
        (self.floor, self.origin, self.bottom) = (before, false, false);
    }

    /// Whether older messages can be put in: there is room, and no gap in the way.
    pub(super) fn has_room(&self, weight_max: usize) -> bool {
        !self.full
            && self.risen == self.first
            && self.items.len() < self.count_max
            && self.weight < weight_max
    }

    /// The stream has nothing older than what is here.
    pub(super) fn at_bottom(&self) -> bool {
        self.bottom
    }

    /// Notes that there is no room for the next older message.
    pub(super) fn set_full(&mut self) {
        self.full = true;
    }

    /// Notes that the stream has nothing older.
    pub(super) fn set_bottom(&mut self) {
        self.bottom = true;
    }

    /// Where a client goes on that has everything up to `after`.
    pub(super) fn seek(&self, after: Id) -> Seek {
        let rest = self.rest();
        if after > self.newest() {
            return Seek::Ahead;
        }
        let from_the_first = self.origin && after == Id::ZERO;
        if !from_the_first && (after < self.floor || self.is_of_another_stream(after, rest)) {
            return Seek::Older;
        }
        let (mut low, mut high) = (rest, self.items.len());
        while low < high {
            let middle = low.midpoint(high);
            match &self.items[middle] {
                Item::Message(message) if message.id() > after => high = middle,
                _ => low = middle + 1,
            }
        }
        Seek::At(self.first + low as u64)
    }

    /// The youngest message that was passed on.
    pub(super) fn newest(&self) -> Id {
        match self.items.back() {
            Some(Item::Message(newest)) => newest.id(),
            Some(Item::Gap(_)) | None => self.floor,
        }
    }

    /// Who has a message of a stream that is gone may have missed some of it.
    fn is_of_another_stream(&self, after: Id, rest: usize) -> bool {
        match self.items.get(rest) {
            Some(Item::Message(oldest)) => self.origin && after < oldest.id().before(),
            _ => false,
        }
    }

    /// The first place of what is whole.
    pub(super) fn whole_from(&self) -> u64 {
        self.risen.max(self.first)
    }

    /// What is at a place.
    pub(super) fn get(&self, place: u64) -> Found {
        let Some(index) = place.checked_sub(self.first) else { return Found::Past };
        match usize::try_from(index).ok().and_then(|index| self.items.get(index)) {
            Some(Item::Message(message)) => Found::Message(Arc::clone(message)),
            Some(Item::Gap(after)) => Found::Gap(*after),
            None => Found::End,
        }
    }

    fn rest(&self) -> usize {
        usize::try_from(self.whole_from() - self.first).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broadcast::topic::Topic;

    const HEAVY: usize = 1 << 20;

    fn id(ms: u64) -> Id {
        Id::from((ms, 0))
    }

    fn message(at: u64) -> Arc<Message> {
        Arc::new(Message::new(&Topic::parse("t").unwrap(), id(at), "x"))
    }

    fn ring(count: usize, after: u64, messages: std::ops::RangeInclusive<u64>) -> Ring {
        let mut ring = Ring::new(count);
        ring.begin(id(after));
        messages.for_each(|at| ring.push(message(at), HEAVY));
        ring
    }

    /// What a client reads from a place on; 0 is a gap.
    fn read(ring: &Ring, mut place: u64) -> Vec<u64> {
        let mut read = Vec::new();
        loop {
            match ring.get(place) {
                Found::Message(message) => read.push(message.id().stamp().0),
                Found::Gap(_) => read.push(0),
                Found::End => return read,
                Found::Past => panic!("past"),
            }
            place += 1;
        }
    }

    fn resumed(ring: &Ring, after: u64) -> Result<Vec<u64>, Seek> {
        match ring.seek(id(after)) {
            Seek::At(place) => Ok(read(ring, place)),
            other => Err(other),
        }
    }

    #[test]
    fn a_client_resumes_after_any_message_that_is_here() {
        let ring = ring(8, 2, 3..=6);
        for after in 2..=6 {
            assert_eq!(resumed(&ring, after), Ok((after + 1..=6).collect()));
        }
        assert_eq!(resumed(&ring, 1), Err(Seek::Older));
        assert_eq!(resumed(&ring, 0), Err(Seek::Older));
        assert_eq!(resumed(&ring, 7), Err(Seek::Ahead));
    }

    #[test]
    fn the_oldest_go_by_number_and_by_weight() {
        let by_number = ring(3, 0, 1..=5);
        assert_eq!((resumed(&by_number, 2), by_number.floor()), (Ok(vec![3, 4, 5]), id(2)));
        assert!(matches!(by_number.get(FIRST), Found::Past));
        let mut by_weight = Ring::new(9);
        by_weight.begin(id(0));
        let weight = message(1).weight();
        (1..=5).for_each(|at| by_weight.push(message(at), 2 * weight));
        assert_eq!((by_weight.items.len(), by_weight.weight), (2, 2 * weight));
        assert_eq!(resumed(&by_weight, 2), Err(Seek::Older));
        by_weight.push(message(6), 0);
        assert_eq!((by_weight.items.len(), by_weight.weight, by_weight.floor()), (0, 0, id(6)));
    }

    #[test]
    fn older_messages_are_put_in_as_long_as_they_follow_each_other() {
        let mut ring = ring(4, 5, 6..=7);
        let place = ring.end();
        assert!(!ring.prepend(message(4), id(3), HEAVY), "5 comes first");
        assert!(ring.prepend(message(5), id(4), HEAVY));
        assert!(ring.prepend(message(4), id(3), HEAVY));
        assert!(!ring.prepend(message(3), id(2), HEAVY), "it is full");
        assert_eq!((resumed(&ring, 3), resumed(&ring, 2)), (Ok(vec![4, 5, 6, 7]), Err(Seek::Older)));
        assert_eq!(ring.end(), place, "nobody's place moved");
    }

    #[test]
    fn who_comes_from_a_stream_that_is_gone_may_have_missed_something() {
        let mut ring = ring(8, 7, 8..=9);
        assert!(ring.prepend(message(7), Id::ZERO, HEAVY) && ring.at_bottom());
        assert_eq!(resumed(&ring, 0), Ok(vec![7, 8, 9]));
        assert_eq!(resumed(&ring, 5), Err(Seek::Older));
        let mut empty = Ring::new(8);
        empty.begin(id(0));
        assert_eq!((resumed(&empty, 0), resumed(&empty, 5)), (Ok(vec![]), Err(Seek::Ahead)));
        let anew = self::ring(8, 0, 9..=9);
        assert_eq!((resumed(&anew, 0), resumed(&anew, 5)), (Ok(vec![9]), Err(Seek::Older)));
    }

    #[test]
    fn nobody_resumes_across_a_gap() {
        let mut ring = ring(4, 0, 1..=3);
        let place = ring.end();
        ring.push_gap(id(6), place);
        ring.push_gap(id(8), place);
        ring.push(message(9), HEAVY);
        assert_eq!(read(&ring, place), [0, 9]);
        assert_eq!((resumed(&ring, 8), resumed(&ring, 2)), (Ok(vec![9]), Err(Seek::Older)));
        assert!(!ring.has_room(HEAVY));
        (10..=12).for_each(|at| ring.push(message(at), HEAVY));
        assert_eq!((resumed(&ring, 8), ring.floor()), (Ok(vec![9, 10, 11, 12]), id(8)));
        assert_eq!(ring.whole_from(), ring.first);
    }

    #[test]
    fn a_gap_that_may_have_been_read_is_not_the_next_one() {
        let mut ring = ring(8, 0, 1..=3);
        ring.push_gap(id(6), ring.end());
        let read_up_to = ring.end();
        ring.push_gap(id(8), read_up_to);
        ring.push(message(9), HEAVY);
        assert_eq!(read(&ring, read_up_to), [0, 9]);
    }

    #[test]
    fn a_smaller_share_takes_effect_at_once() {
        let mut ring = ring(99, 0, 1..=50);
        let weight = message(1).weight();
        ring.trim(3 * weight);
        assert_eq!((ring.weight, ring.floor(), ring.newest()), (3 * weight, id(47), id(50)));
        assert!(ring.items.capacity() <= 8, "{}", ring.items.capacity());
    }
}
