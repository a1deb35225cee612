//! A queue for each hash slot: entries of one slot can share a call, entries of two cannot. No I/O.
//!
//! Guarantees for each slot's entries what `caller_table.rs` guarantees for one server's. A queue is made by its first
//! entry and removed with its last one, so there are never more of them than slots with something under way.

use std::collections::HashMap;
use std::task::{Poll, Waker};
use std::time::Instant;

use crate::request_state::batching::call_pacer::CallPacer;
use crate::request_state::batching::caller_table::{BatchItem, CallerTable};

/// Empty queues that are kept for the next slot, so that the usual request costs no allocation here.
const SPARE_MAX: usize = 64;

/// Where an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::request_state) struct QueuePosition {
    /// The cluster's slot.
    pub(super) hash_slot: u16,
    /// Its index in that slot's queue.
    pub(super) at: usize,
}

/// When a call was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CallStart {
    /// The state of the cluster: another number after every change of its map or of a connection.
    pub(super) connection_version: u64,
    pub(super) at: Instant,
}

/// One slot's entries, and its calls that are under way.
#[derive(Debug)]
struct Queue<T, A> {
    entries: CallerTable<T, A>,
    out: Vec<CallStart>,
    pace: CallPacer,
}

impl<T, A> Queue<T, A> {
    fn new() -> Self {
        Self { entries: CallerTable::new(), out: Vec::new(), pace: CallPacer::default() }
    }
}

/// The queues of all slots in which something is under way.
#[derive(Debug)]
pub(super) struct HashSlotQueues<T, A> {
    queues: HashMap<u16, Queue<T, A>>,
    /// Slots with new entries since the sender looked.
    ready_slots: Vec<u16>,
    spare: Vec<Queue<T, A>>,
}

impl<T, A> HashSlotQueues<T, A> {
    pub(super) fn new() -> Self {
        Self { queues: HashMap::new(), ready_slots: Vec::new(), spare: Vec::new() }
    }

    /// Queues an entry; returns where it is, and whether the sender must be woken, which only the first entry of a turn
    /// does.
    pub(super) fn push(&mut self, slot: u16, entry: T, bytes: usize) -> (QueuePosition, bool) {
        let spare = &mut self.spare;
        let queue = self.queues.entry(slot).or_insert_with(|| spare.pop().unwrap_or_else(Queue::new));
        let (at, first) = queue.entries.push(entry, bytes);
        let wake = first && self.ready_slots.is_empty();
        if first {
            self.ready_slots.push(slot);
        }
        (QueuePosition { hash_slot: slot, at }, wake)
    }

    /// The reply for the caller of this entry; taking it frees the entry's place.
    pub(super) fn poll(&mut self, position: QueuePosition, caller: &Waker) -> Poll<A> {
        let Some(queue) = self.queues.get_mut(&position.hash_slot) else { return Poll::Pending };
        let answer = queue.entries.poll(position.at, caller);
        if answer.is_ready() {
            self.remove_if_unused(position.hash_slot);
        }
        answer
    }

    /// This entry's caller leaves without its reply.
    pub(super) fn abandon(&mut self, position: QueuePosition) {
        if let Some(queue) = self.queues.get_mut(&position.hash_slot) {
            queue.entries.abandon(position.at);
            self.remove_if_unused(position.hash_slot);
        }
    }

    /// Whether the entry is in no batch yet.
    pub(super) fn is_waiting(&self, position: QueuePosition) -> bool {
        self.queues.get(&position.hash_slot).is_some_and(|queue| queue.entries.is_waiting(position.at))
    }

    /// The slots with new entries since the last call.
    pub(super) fn drain_ready_slots(&mut self) -> Vec<u16> {
        std::mem::take(&mut self.ready_slots)
    }

    /// The next batch of a slot, if one is due. Calls that were sealed in another state of the cluster may be slow, so
    /// entries do not wait for them, nor if `urgent`.
    pub(super) fn seal(&mut self, slot: u16, now: CallStart, urgent: bool) -> Option<Vec<BatchItem<T>>> {
        let queue = self.queues.get_mut(&slot)?;
        let changed = || queue.out.iter().any(|started| started.connection_version != now.connection_version);
        let paced = || queue.pace.is_due(now.at);
        let batch = queue.entries.seal(queue.out.len(), || urgent || changed() || paced());
        match batch {
            Some(_) => {
                queue.out.push(now);
                queue.pace.sent(now.at);
            }
            None => self.remove_if_unused(slot),
        }
        batch
    }

    /// Removes entries whose callers have left from a batch that is not sent yet.
    pub(super) fn retain(&mut self, slot: u16, batch: &mut Vec<BatchItem<T>>) {
        if let Some(queue) = self.queues.get_mut(&slot) {
            queue.entries.retain(batch);
        }
    }

    /// Answers the entries of a call that was sealed at `start`.
    pub(super) fn answer(
        &mut self,
        slot: u16,
        started: CallStart,
        now: Instant,
        answers: impl Iterator<Item = (usize, A)>,
    ) {
        let Some(queue) = self.queues.get_mut(&slot) else { return };
        if let Some(at) = queue.out.iter().position(|it| *it == started) {
            queue.out.swap_remove(at);
            queue.pace.answered(now.saturating_duration_since(started.at));
        }
        for (at, answer) in answers {
            queue.entries.answer(at, answer);
        }
        self.remove_if_unused(slot);
    }

    /// Removes a slot's queue if nothing is left in it.
    fn remove_if_unused(&mut self, slot: u16) {
        let unused = |queue: &Queue<T, A>| queue.out.is_empty() && queue.entries.is_unused();
        if self.queues.get(&slot).is_some_and(unused)
            && let Some(queue) = self.queues.remove(&slot)
            && self.spare.len() < SPARE_MAX
            // A queue that has grown large would keep its memory for ever.
            && queue.entries.is_small()
        {
            // The next slot's node may be closer, so the pace starts anew.
            self.spare.push(Queue { pace: CallPacer::default(), ..queue });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Queues = HashSlotQueues<u32, u32>;

    fn entries(batch: Option<Vec<BatchItem<u32>>>) -> Vec<u32> {
        batch.unwrap_or_default().into_iter().map(|item| item.entry).collect()
    }

    /// All at one instant, except where the pace is tested.
    fn call_start(state: u64) -> CallStart {
        static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        CallStart { connection_version: state, at: *START }
    }

    fn seal(queues: &mut Queues, slot: u16, state: u64, urgent: bool) -> Option<Vec<BatchItem<u32>>> {
        queues.seal(slot, call_start(state), urgent)
    }

    fn answer(queues: &mut Queues, slot: u16, state: u64, batch: &[BatchItem<u32>]) {
        let answers: Vec<_> = batch.iter().map(|item| (item.at, item.entry)).collect();
        queues.answer(slot, call_start(state), call_start(state).at, answers.into_iter());
    }

    #[test]
    fn with_a_distant_server_entries_wait_for_a_part_of_the_round_trip() {
        let (mut queues, first) = (Queues::new(), call_start(0));
        queues.push(7, 0, 10);
        let sent = queues.seal(7, first, false).unwrap();
        queues.push(7, 1, 10);
        let at = |ms: u64| CallStart { at: first.at + std::time::Duration::from_millis(ms), ..first };
        let second = queues.seal(7, at(2), false).unwrap();
        queues.answer(7, first, at(24).at, sent.iter().map(|item| (item.at, item.entry)));
        queues.push(7, 2, 10);
        assert!(queues.seal(7, at(3), false).is_none());
        assert_eq!(entries(queues.seal(7, at(5), false)), [2], "an eighth of the way after the last one");
        assert_eq!(entries(Some(second)), [1]);
    }

    #[test]
    fn entries_of_one_slot_share_a_call_and_the_sender_is_woken_once_a_turn() {
        let mut queues = Queues::new();
        let woken: Vec<_> =
            [7, 7, 9, 7].iter().enumerate().map(|(at, slot)| queues.push(*slot, at as u32, 10).1).collect();
        assert_eq!(woken, [true, false, false, false]);
        assert_eq!(queues.drain_ready_slots(), [7, 9]);
        assert_eq!(entries(seal(&mut queues, 7, 0, false)), [0, 1, 3]);
        assert!(seal(&mut queues, 7, 0, false).is_none());
        assert_eq!(entries(seal(&mut queues, 9, 0, false)), [2], "another slot's call is not waited for");
        assert!(queues.drain_ready_slots().is_empty());
    }

    #[test]
    fn a_call_from_before_a_map_change_delays_nothing() {
        let mut queues = Queues::new();
        queues.push(7, 0, 10);
        let first = seal(&mut queues, 7, 1, false).unwrap();
        let (position, _) = queues.push(7, 1, 10);
        assert!(seal(&mut queues, 7, 1, false).is_none(), "it waits for the answer");
        assert!(queues.is_waiting(position));
        let second = seal(&mut queues, 7, 2, false).unwrap();
        assert!(!queues.is_waiting(position));
        answer(&mut queues, 7, 1, &first);
        queues.push(7, 2, 10);
        assert!(seal(&mut queues, 7, 2, false).is_none(), "the call that is out is as new as the map");
        answer(&mut queues, 7, 2, &second);
        assert_eq!(entries(seal(&mut queues, 7, 2, true)), [2]);
    }

    #[test]
    fn a_queue_is_removed_with_its_last_entry() {
        let mut queues = Queues::new();
        let (left, _) = queues.push(1, 0, 10);
        queues.abandon(left);
        let (answered, _) = queues.push(2, 1, 10);
        for slot in queues.drain_ready_slots() {
            while let Some(batch) = seal(&mut queues, slot, 0, false) {
                answer(&mut queues, slot, 0, &batch);
            }
        }
        assert_eq!(queues.queues.len(), 1, "its caller has not looked yet");
        assert_eq!(queues.poll(answered, Waker::noop()), Poll::Ready(1));
        assert_eq!((queues.queues.len(), queues.spare.len()), (0, 2));
        assert!(queues.push(3, 2, 10).1, "one that is used again wakes the keeper again");
    }

    proptest! {
        /// In any order of events each entry is answered to its own caller or was abandoned, each batch has entries of
        /// one slot only, and no queue is left in the end.
        #[test]
        fn each_answer_reaches_its_own_caller(steps in proptest::collection::vec((0..7_u8, 0..3_u16, any::<prop::sample::Index>()), 1..400)) {
            let (mut queues, mut callers) = (Queues::new(), Vec::new());
            let (mut out, mut next) = (Vec::<(u16, Vec<BatchItem<u32>>)>::new(), 0);
            let noop = Waker::noop();
            for (step, slot, index) in steps {
                match step {
                    0 | 1 => {
                        // An entry's number encodes its slot.
                        let entry = next * 3 + u32::from(slot);
                        callers.push((queues.push(slot, entry, 300).0, entry));
                        next += 1;
                    }
                    2 if !callers.is_empty() => {
                        let (position, _) = callers.swap_remove(index.index(callers.len()));
                        queues.abandon(position);
                    }
                    3 => {
                        for slot in queues.drain_ready_slots() {
                            if let Some(mut batch) = seal(&mut queues, slot, 0, true) {
                                queues.retain(slot, &mut batch);
                                out.push((slot, batch));
                            }
                        }
                    }
                    4 => {
                        if let Some(batch) = seal(&mut queues, slot, 0, true) {
                            out.push((slot, batch));
                        }
                    }
                    5 if !out.is_empty() => {
                        let (slot, batch) = out.swap_remove(index.index(out.len()));
                        prop_assert!(batch.iter().all(|item| item.entry % 3 == u32::from(slot)));
                        answer(&mut queues, slot, 0, &batch);
                    }
                    _ => callers.retain(|(position, entry)| match queues.poll(*position, noop) {
                        Poll::Ready(answer) => { assert_eq!(answer, *entry); false }
                        Poll::Pending => true,
                    }),
                }
            }
            for (slot, batch) in out {
                answer(&mut queues, slot, 0, &batch);
            }
            for slot in 0..3 {
                while let Some(batch) = seal(&mut queues, slot, 0, true) {
                    answer(&mut queues, slot, 0, &batch);
                }
            }
            for (position, entry) in callers {
                prop_assert_eq!(queues.poll(position, noop), Poll::Ready(entry));
            }
            prop_assert!(queues.queues.is_empty());
        }
    }
}
