//! What a worker remembers of a topic: its last messages, for clients that are a little behind, or come back.
//!
//! One copy of a message for all of them; each has a place in the ring and nothing else. No I/O.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::broadcast::id::MessageId;
use crate::broadcast::message::BroadcastMessage;

/// Number of the first place: older messages are put in before it.
const FIRST_POSITION: u64 = 1 << 48;

/// What a client meets at its place.
#[derive(Debug)]
pub(super) enum BufferRead {
    /// A message.
    Message(Arc<BroadcastMessage>),
    /// Some may be missing here; none after this id.
    Gap(MessageId),
    /// Nothing yet.
    End,
    /// What was there is forgotten.
    Evicted,
}

/// Where a client that has everything up to some id goes on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SeekResult {
    /// At this place.
    At(u64),
    /// Before the first message that is remembered.
    Older,
    /// It has a message that this worker does not know yet.
    Ahead,
}

#[derive(Debug)]
enum BufferItem {
    Message(Arc<BroadcastMessage>),
    Gap(MessageId),
}

/// The last messages of a topic.
#[derive(Debug)]
pub(super) struct ReplayBuffer {
    items: VecDeque<BufferItem>,
    /// Place of the oldest item.
    first: u64,
    /// Place from which ids only rise: that after the last gap.
    ascending_from: u64,
    /// All messages after this one are here, from `risen` on.
    oldest_covered: MessageId,
    /// Whether the message after `floor` is the first of its stream.
    starts_at_origin: bool,
    /// Whether there is nothing older to be had.
    reached_stream_start: bool,
    /// Whether the next older message was too heavy.
    full: bool,
    weight: usize,
    count_max: usize,
}

impl ReplayBuffer {
    /// A ring of at most `count_max` messages.
    pub(super) fn new(count_max: usize) -> Self {
        Self {
            items: VecDeque::new(),
            first: FIRST_POSITION,
            ascending_from: FIRST_POSITION,
            oldest_covered: MessageId::ZERO,
            starts_at_origin: false,
            reached_stream_start: false,
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
    pub(super) fn oldest_covered(&self) -> MessageId {
        self.oldest_covered
    }

    /// Nothing is remembered, and whatever comes after `newest` will be.
    pub(super) fn start_after(&mut self, newest: MessageId) {
        self.oldest_covered = newest;
        self.starts_at_origin = newest == MessageId::ZERO;
        self.reached_stream_start = self.starts_at_origin;
        self.full = false;
    }

    /// The youngest message; the oldest ones go, so that no more than `weight_max` bytes are kept.
    pub(super) fn push(&mut self, message: Arc<BroadcastMessage>, weight_max: usize) {
        self.weight += message.weight();
        self.items.push_back(BufferItem::Message(message));
        while self.items.len() > self.count_max || self.weight > weight_max {
            self.evict_oldest();
        }
    }

    /// Some are missing here, and after `after` none. One with the gap before it, unless that lies before `fresh`, so that
    /// clients may have read it.
    pub(super) fn push_gap(&mut self, after: MessageId, fresh: u64) {
        let merges = self.end() > fresh;
        match self.items.back_mut() {
            Some(BufferItem::Gap(known)) if merges => *known = after,
            _ => self.items.push_back(BufferItem::Gap(after)),
        }
        self.ascending_from = self.end();
        self.start_after(after);
        while self.items.len() > self.count_max {
            self.evict_oldest();
        }
    }

    /// No more than `weight_max` bytes are kept from now on.
    pub(super) fn trim(&mut self, weight_max: usize) {
        while self.weight > weight_max {
            self.evict_oldest();
        }
        self.items.shrink_to(2 * self.items.len());
    }

    fn evict_oldest(&mut self) {
        if let Some(BufferItem::Message(oldest)) = self.items.pop_front() {
            self.weight -= oldest.weight();
            if self.first >= self.ascending_from {
                (self.oldest_covered, self.starts_at_origin, self.reached_stream_start, self.full) =
                    (oldest.id(), false, false, true);
            }
        }
        self.first += 1;
        self.ascending_from = self.ascending_from.max(self.first);
    }

    /// The message at `floor`, which follows `before`; false if there is no room for it, or it is another one.
    pub(super) fn prepend(
        &mut self,
        message: Arc<BroadcastMessage>,
        before: MessageId,
        weight_max: usize,
    ) -> bool {
        let fits = self.has_room(weight_max) && self.weight + message.weight() <= weight_max;
        if !fits || message.id() != self.oldest_covered {
            return false;
        }
        self.weight += message.weight();
        (self.oldest_covered, self.starts_at_origin, self.reached_stream_start) = match before {
            MessageId::ZERO => (message.id().before(), true, true),
            before => (before, false, false),
        };
        self.items.push_front(BufferItem::Message(message));
        self.first -= 1;
        self.ascending_from -= 1;
        true
    }

    /// What lies at `floor` is no message, and follows `before`.
    pub(super) fn skip_foreign(&mut self, before: MessageId) {
        (self.oldest_covered, self.starts_at_origin, self.reached_stream_start) = (before, false, false);
    }

    /// Whether older messages can be put in: there is room, and no gap in the way.
    pub(super) fn has_room(&self, weight_max: usize) -> bool {
        !self.full
            && self.ascending_from == self.first
            && self.items.len() < self.count_max
            && self.weight < weight_max
    }

    /// The stream has nothing older than what is here.
    pub(super) fn is_at_stream_start(&self) -> bool {
        self.reached_stream_start
    }

    /// Notes that there is no room for the next older message.
    pub(super) fn set_full(&mut self) {
        self.full = true;
    }

    /// Notes that the stream has nothing older.
    pub(super) fn set_stream_start_reached(&mut self) {
        self.reached_stream_start = true;
    }

    /// Where a client goes on that has everything up to `after`.
    pub(super) fn seek(&self, after: MessageId) -> SeekResult {
        let rest = self.first_complete_index();
        if after > self.newest() {
            return SeekResult::Ahead;
        }
        let from_the_first = self.starts_at_origin && after == MessageId::ZERO;
        if !from_the_first && (after < self.oldest_covered || self.is_of_another_stream(after, rest)) {
            return SeekResult::Older;
        }
        let (mut low, mut high) = (rest, self.items.len());
        while low < high {
            let middle = low.midpoint(high);
            match &self.items[middle] {
                BufferItem::Message(message) if message.id() > after => high = middle,
                _ => low = middle + 1,
            }
        }
        SeekResult::At(self.first + low as u64)
    }

    /// The youngest message that was passed on.
    pub(super) fn newest(&self) -> MessageId {
        match self.items.back() {
            Some(BufferItem::Message(newest)) => newest.id(),
            Some(BufferItem::Gap(_)) | None => self.oldest_covered,
        }
    }

    /// Who has a message of a stream that is gone may have missed some of it.
    fn is_of_another_stream(&self, after: MessageId, rest: usize) -> bool {
        match self.items.get(rest) {
            Some(BufferItem::Message(oldest)) => self.starts_at_origin && after < oldest.id().before(),
            _ => false,
        }
    }

    /// The first place of what is whole.
    pub(super) fn first_complete(&self) -> u64 {
        self.ascending_from.max(self.first)
    }

    /// What is at a place.
    pub(super) fn get(&self, place: u64) -> BufferRead {
        let Some(index) = place.checked_sub(self.first) else { return BufferRead::Evicted };
        match usize::try_from(index).ok().and_then(|index| self.items.get(index)) {
            Some(BufferItem::Message(message)) => BufferRead::Message(Arc::clone(message)),
            Some(BufferItem::Gap(after)) => BufferRead::Gap(*after),
            None => BufferRead::End,
        }
    }

    fn first_complete_index(&self) -> usize {
        usize::try_from(self.first_complete() - self.first).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broadcast::topic::TopicName;

    const HEAVY: usize = 1 << 20;

    fn id(ms: u64) -> MessageId {
        MessageId::from((ms, 0))
    }

    fn message(at: u64) -> Arc<BroadcastMessage> {
        Arc::new(BroadcastMessage::new(&TopicName::parse("t").unwrap(), id(at), "x"))
    }

    fn ring(count: usize, after: u64, messages: std::ops::RangeInclusive<u64>) -> ReplayBuffer {
        let mut ring = ReplayBuffer::new(count);
        ring.start_after(id(after));
        messages.for_each(|at| ring.push(message(at), HEAVY));
        ring
    }

    /// What a client reads from a place on; 0 is a gap.
    fn read(ring: &ReplayBuffer, mut place: u64) -> Vec<u64> {
        let mut read = Vec::new();
        loop {
            match ring.get(place) {
                BufferRead::Message(message) => read.push(message.id().stream_id().0),
                BufferRead::Gap(_) => read.push(0),
                BufferRead::End => return read,
                BufferRead::Evicted => panic!("past"),
            }
            place += 1;
        }
    }

    fn resumed(ring: &ReplayBuffer, after: u64) -> Result<Vec<u64>, SeekResult> {
        match ring.seek(id(after)) {
            SeekResult::At(place) => Ok(read(ring, place)),
            other => Err(other),
        }
    }

    #[test]
    fn a_client_resumes_after_any_message_that_is_here() {
        let ring = ring(8, 2, 3..=6);
        for after in 2..=6 {
            assert_eq!(resumed(&ring, after), Ok((after + 1..=6).collect()));
        }
        assert_eq!(resumed(&ring, 1), Err(SeekResult::Older));
        assert_eq!(resumed(&ring, 0), Err(SeekResult::Older));
        assert_eq!(resumed(&ring, 7), Err(SeekResult::Ahead));
    }

    #[test]
    fn the_oldest_go_by_number_and_by_weight() {
        let by_number = ring(3, 0, 1..=5);
        assert_eq!((resumed(&by_number, 2), by_number.oldest_covered()), (Ok(vec![3, 4, 5]), id(2)));
        assert!(matches!(by_number.get(FIRST_POSITION), BufferRead::Evicted));
        let mut by_weight = ReplayBuffer::new(9);
        by_weight.start_after(id(0));
        let weight = message(1).weight();
        (1..=5).for_each(|at| by_weight.push(message(at), 2 * weight));
        assert_eq!((by_weight.items.len(), by_weight.weight), (2, 2 * weight));
        assert_eq!(resumed(&by_weight, 2), Err(SeekResult::Older));
        by_weight.push(message(6), 0);
        assert_eq!((by_weight.items.len(), by_weight.weight, by_weight.oldest_covered()), (0, 0, id(6)));
    }

    #[test]
    fn older_messages_are_put_in_as_long_as_they_follow_each_other() {
        let mut ring = ring(4, 5, 6..=7);
        let place = ring.end();
        assert!(!ring.prepend(message(4), id(3), HEAVY), "5 comes first");
        assert!(ring.prepend(message(5), id(4), HEAVY));
        assert!(ring.prepend(message(4), id(3), HEAVY));
        assert!(!ring.prepend(message(3), id(2), HEAVY), "it is full");
        assert_eq!((resumed(&ring, 3), resumed(&ring, 2)), (Ok(vec![4, 5, 6, 7]), Err(SeekResult::Older)));
        assert_eq!(ring.end(), place, "nobody's place moved");
    }

    #[test]
    fn a_subscriber_from_a_stream_that_is_gone_may_have_missed_something() {
        let mut ring = ring(8, 7, 8..=9);
        assert!(ring.prepend(message(7), MessageId::ZERO, HEAVY) && ring.is_at_stream_start());
        assert_eq!(resumed(&ring, 0), Ok(vec![7, 8, 9]));
        assert_eq!(resumed(&ring, 5), Err(SeekResult::Older));
        let mut empty = ReplayBuffer::new(8);
        empty.start_after(id(0));
        assert_eq!((resumed(&empty, 0), resumed(&empty, 5)), (Ok(vec![]), Err(SeekResult::Ahead)));
        let anew = self::ring(8, 0, 9..=9);
        assert_eq!((resumed(&anew, 0), resumed(&anew, 5)), (Ok(vec![9]), Err(SeekResult::Older)));
    }

    #[test]
    fn nobody_resumes_across_a_gap() {
        let mut ring = ring(4, 0, 1..=3);
        let place = ring.end();
        ring.push_gap(id(6), place);
        ring.push_gap(id(8), place);
        ring.push(message(9), HEAVY);
        assert_eq!(read(&ring, place), [0, 9]);
        assert_eq!((resumed(&ring, 8), resumed(&ring, 2)), (Ok(vec![9]), Err(SeekResult::Older)));
        assert!(!ring.has_room(HEAVY));
        (10..=12).for_each(|at| ring.push(message(at), HEAVY));
        assert_eq!((resumed(&ring, 8), ring.oldest_covered()), (Ok(vec![9, 10, 11, 12]), id(8)));
        assert_eq!(ring.first_complete(), ring.first);
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
        assert_eq!((ring.weight, ring.oldest_covered(), ring.newest()), (3 * weight, id(47), id(50)));
        assert!(ring.items.capacity() <= 8, "{}", ring.items.capacity());
    }
}
