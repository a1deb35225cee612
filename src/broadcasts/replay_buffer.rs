//! The last messages of a topic, for clients that are a little behind, or resume.
//!
//! All clients share one copy of a message and have a position in the buffer. No I/O.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::broadcasts::message::{BroadcastMessage, MessageId};

/// The first position: older messages are put before it.
const FIRST_POSITION: u64 = 1 << 48;

/// What is at a client's position.
#[derive(Debug)]
pub(super) enum BufferRead {
    /// A message.
    Message(Arc<BroadcastMessage>),
    /// Messages may be missing here, none after this id.
    Gap(MessageId),
    /// No message yet.
    End,
    /// A message that is not buffered any more.
    Evicted,
}

/// Where a client that has everything up to an id continues.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SeekResult {
    /// At this position.
    At(u64),
    /// Before the oldest buffered message.
    Older,
    /// It has a message that has not arrived here yet.
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
    /// Position of the oldest item.
    first: u64,
    /// Position from which ids only rise: after the last gap.
    ascending_from: u64,
    /// All messages after this one are buffered, from `ascending_from` on.
    oldest_covered: MessageId,
    /// Whether the message after `oldest_covered` is the first of its stream.
    starts_at_origin: bool,
    /// Whether the stream has nothing older.
    reached_stream_start: bool,
    /// Whether the next older message did not fit.
    full: bool,
    weight: usize,
    count_max: usize,
}

impl ReplayBuffer {
    /// An empty buffer for at most `count_max` messages.
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

    /// The position after the newest message.
    pub(super) fn end(&self) -> u64 {
        self.first + self.items.len() as u64
    }

    /// All messages after this one are buffered.
    pub(super) fn oldest_covered(&self) -> MessageId {
        self.oldest_covered
    }

    /// Empties the range: all messages after `newest` will be buffered.
    pub(super) fn start_after(&mut self, newest: MessageId) {
        self.oldest_covered = newest;
        self.starts_at_origin = newest == MessageId::ZERO;
        self.reached_stream_start = self.starts_at_origin;
        self.full = false;
    }

    /// Adds the newest message; evicts the oldest ones above `weight_max` bytes.
    pub(super) fn push(&mut self, message: Arc<BroadcastMessage>, weight_max: usize) {
        self.weight += message.weight();
        self.items.push_back(BufferItem::Message(message));
        while self.items.len() > self.count_max || self.weight > weight_max {
            self.evict_oldest();
        }
    }

    /// Adds a gap, after which no message after `after` is missing. It replaces a gap right before it, unless that
    /// lies before `fresh`: clients may have read that one.
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

    /// Evicts the oldest messages above `weight_max` bytes.
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

    /// Puts the message at `oldest_covered`, which follows `before`, in front; false if it does not fit or is another
    /// one.
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

    /// The entry at `oldest_covered` is foreign, and follows `before`.
    pub(super) fn skip_foreign(&mut self, before: MessageId) {
        (self.oldest_covered, self.starts_at_origin, self.reached_stream_start) = (before, false, false);
    }

    /// Whether older messages can be put in front: there is room, and no gap.
    pub(super) fn has_room(&self, weight_max: usize) -> bool {
        !self.full
            && self.ascending_from == self.first
            && self.items.len() < self.count_max
            && self.weight < weight_max
    }

    /// Whether the stream has nothing older than the buffer.
    pub(super) fn is_at_stream_start(&self) -> bool {
        self.reached_stream_start
    }

    /// The next older message does not fit.
    pub(super) fn set_full(&mut self) {
        self.full = true;
    }

    /// The stream has nothing older.
    pub(super) fn set_stream_start_reached(&mut self) {
        self.reached_stream_start = true;
    }

    /// Where a client continues that has everything up to `after`.
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

    /// The newest message that was delivered.
    pub(super) fn newest(&self) -> MessageId {
        match self.items.back() {
            Some(BufferItem::Message(newest)) => newest.id(),
            Some(BufferItem::Gap(_)) | None => self.oldest_covered,
        }
    }

    /// Whether a client's last message is of an earlier stream: it may have missed some of the present one.
    fn is_of_another_stream(&self, after: MessageId, rest: usize) -> bool {
        match self.items.get(rest) {
            Some(BufferItem::Message(oldest)) => self.starts_at_origin && after < oldest.id().before(),
            _ => false,
        }
    }

    /// The first position after the last gap.
    pub(super) fn first_complete(&self) -> u64 {
        self.ascending_from.max(self.first)
    }

    /// What is at a position.
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
    use crate::broadcasts::topic::TopicName;

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

    /// What a client reads from a position on; 0 is a gap.
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
    fn a_client_resumes_after_any_buffered_message() {
        let ring = ring(8, 2, 3..=6);
        for after in 2..=6 {
            assert_eq!(resumed(&ring, after), Ok((after + 1..=6).collect()));
        }
        assert_eq!(resumed(&ring, 1), Err(SeekResult::Older));
        assert_eq!(resumed(&ring, 0), Err(SeekResult::Older));
        assert_eq!(resumed(&ring, 7), Err(SeekResult::Ahead));
    }

    #[test]
    fn the_oldest_are_evicted_by_count_and_by_weight() {
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
    fn older_messages_are_prepended_as_long_as_they_connect() {
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
    fn a_subscriber_of_an_earlier_stream_may_have_missed_messages() {
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
    fn no_client_resumes_across_a_gap() {
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
    fn a_gap_that_may_have_been_read_is_not_merged() {
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
