//! The entries that wait to be sent, those that are under way, and when the next batch is due. No I/O.
//!
//! Guarantees that an entry whose caller leaves before its batch is sealed is in no batch, that every other entry is in
//! exactly one, in the order of arrival, and that each reply reaches the one caller who waits for it.

use std::collections::VecDeque;
use std::task::{Poll, Waker};

/// Most entries in a call: about 250 µs of the server's time, in which it serves no other client.
pub(super) const ENTRIES_MAX: usize = 64;
/// Most bytes of entries in a call with more than one.
pub(super) const BYTES_MAX: usize = 16 * 1024;
/// Calls under way at once. With one, a latency of 20 ms would limit a worker to 3,000 requests a second.
pub(super) const OUT_MAX: usize = 8;
/// From this many entries on a batch is sent although a call is under way: they share its cost well enough.
const SEND_FROM: usize = 16;

/// An entry of a batch.
#[derive(Debug)]
pub(super) struct BatchItem<T> {
    /// Its slot.
    pub(super) at: usize,
    pub(super) entry: T,
}

#[derive(Debug)]
enum CallerSlot<T, A> {
    Free,
    Queued {
        entry: T,
        bytes: usize,
        waker: Option<Waker>,
    },
    InFlight {
        waker: Option<Waker>,
    },
    Answered(A),
    /// Its caller has left while it is queued or in a batch; the slot is freed when it is taken from there.
    Abandoned,
}

/// A slot for each caller, reused so that a call costs no allocation here.
#[derive(Debug)]
pub(super) struct CallerTable<T, A> {
    slots: Vec<CallerSlot<T, A>>,
    free: Vec<usize>,
    queue: VecDeque<usize>,
    waiting: usize,
    bytes: usize,
    /// Whether the sender was woken for an entry that it has not taken yet.
    notified: bool,
}

impl<T, A> CallerTable<T, A> {
    pub(super) const fn new() -> Self {
        let queue = VecDeque::new();
        Self { slots: Vec::new(), free: Vec::new(), queue, waiting: 0, bytes: 0, notified: false }
    }

    /// Queues an entry; returns its slot, and whether the sender must be woken, which only the first entry of a turn
    /// does.
    pub(super) fn push(&mut self, entry: T, bytes: usize) -> (usize, bool) {
        let slot = CallerSlot::Queued { entry, bytes, waker: None };
        let at = match self.free.pop() {
            Some(at) => {
                self.slots[at] = slot;
                at
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        self.queue.push_back(at);
        self.waiting += 1;
        self.bytes += bytes;
        (at, !std::mem::replace(&mut self.notified, true))
    }

    /// The reply for this slot's caller; taking it frees the slot.
    pub(super) fn poll(&mut self, at: usize, caller: &Waker) -> Poll<A> {
        match &mut self.slots[at] {
            CallerSlot::Queued { waker, .. } | CallerSlot::InFlight { waker } => {
                match waker {
                    Some(waker) => waker.clone_from(caller),
                    None => *waker = Some(caller.clone()),
                }
                Poll::Pending
            }
            slot @ CallerSlot::Answered(_) => {
                let CallerSlot::Answered(answer) = std::mem::replace(slot, CallerSlot::Free) else {
                    return Poll::Pending;
                };
                self.free.push(at);
                Poll::Ready(answer)
            }
            CallerSlot::Free | CallerSlot::Abandoned => Poll::Pending,
        }
    }

    /// This slot's caller leaves without its reply.
    pub(super) fn abandon(&mut self, at: usize) {
        match std::mem::replace(&mut self.slots[at], CallerSlot::Abandoned) {
            CallerSlot::Queued { bytes, .. } => {
                self.waiting -= 1;
                self.bytes -= bytes;
                // The sender does not look through a queue in which nothing waits.
                if self.waiting == 0 {
                    while let Some(left) = self.queue.pop_front() {
                        self.release(left);
                    }
                }
            }
            CallerSlot::Answered(_) => self.release(at),
            CallerSlot::InFlight { .. } | CallerSlot::Abandoned | CallerSlot::Free => {}
        }
    }

    fn release(&mut self, at: usize) {
        self.slots[at] = CallerSlot::Free;
        self.free.push(at);
    }

    /// Whether this slot's entry is in no batch yet.
    pub(super) fn is_waiting(&self, at: usize) -> bool {
        matches!(self.slots[at], CallerSlot::Queued { .. })
    }

    /// Whether it has not grown beyond a full batch.
    pub(super) fn is_small(&self) -> bool {
        self.slots.capacity() <= ENTRIES_MAX && self.queue.capacity() <= ENTRIES_MAX
    }

    /// Whether every slot is free and the sender has looked.
    pub(super) fn is_unused(&self) -> bool {
        !self.notified && self.free.len() == self.slots.len()
    }

    fn is_due(&self, out: usize, urgent: impl FnOnce() -> bool) -> bool {
        let enough = self.waiting >= SEND_FROM || self.bytes >= BYTES_MAX;
        self.waiting > 0 && out < OUT_MAX && (out == 0 || enough || urgent())
    }

    /// The next batch, if one is due while `out` calls are under way. `urgent` says whether entries must not wait for a
    /// reply: one has just arrived, or those under way may be slow.
    pub(super) fn seal(&mut self, out: usize, urgent: impl FnOnce() -> bool) -> Option<Vec<BatchItem<T>>> {
        if !self.is_due(out, urgent) {
            self.notified = false;
            return None;
        }
        let mut batch = Vec::with_capacity(self.waiting.min(ENTRIES_MAX));
        let mut size = 0;
        while let Some(&at) = self.queue.front().filter(|_| batch.len() < ENTRIES_MAX) {
            match std::mem::replace(&mut self.slots[at], CallerSlot::Free) {
                CallerSlot::Queued { entry, bytes, waker }
                    if batch.is_empty() || size + bytes <= BYTES_MAX =>
                {
                    self.slots[at] = CallerSlot::InFlight { waker };
                    self.waiting -= 1;
                    self.bytes -= bytes;
                    size += bytes;
                    batch.push(BatchItem { at, entry });
                }
                full @ CallerSlot::Queued { .. } => {
                    self.slots[at] = full;
                    break;
                }
                CallerSlot::Abandoned
                | CallerSlot::Free
                | CallerSlot::InFlight { .. }
                | CallerSlot::Answered(_) => self.free.push(at),
            }
            self.queue.pop_front();
        }
        Some(batch)
    }

    /// Removes entries whose callers have left from a batch that is not sent yet.
    pub(super) fn retain(&mut self, batch: &mut Vec<BatchItem<T>>) {
        batch.retain(|item| {
            let left = matches!(self.slots[item.at], CallerSlot::Abandoned);
            if left {
                self.release(item.at);
            }
            !left
        });
    }

    /// Answers an entry; returns the reply if its caller has left.
    pub(super) fn answer(&mut self, at: usize, answer: A) -> Option<A> {
        match std::mem::replace(&mut self.slots[at], CallerSlot::Answered(answer)) {
            CallerSlot::InFlight { waker } => {
                if let Some(waker) = waker {
                    waker.wake();
                }
                None
            }
            _ => {
                let slot = std::mem::replace(&mut self.slots[at], CallerSlot::Free);
                self.free.push(at);
                match slot {
                    CallerSlot::Answered(answer) => Some(answer),
                    _ => None,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries(batch: Option<Vec<BatchItem<u32>>>) -> Vec<u32> {
        batch.unwrap_or_default().into_iter().map(|item| item.entry).collect()
    }

    fn filled(count: u32) -> (CallerTable<u32, u32>, Vec<usize>) {
        let mut slots = CallerTable::new();
        let at = (0..count).map(|entry| slots.push(entry, 100).0).collect();
        (slots, at)
    }

    fn rest(slots: &mut CallerTable<u32, u32>) -> Option<Vec<BatchItem<u32>>> {
        slots.seal(0, || false)
    }

    fn busy(slots: &mut CallerTable<u32, u32>) -> Option<Vec<BatchItem<u32>>> {
        slots.seal(1, || false)
    }

    #[test]
    fn a_single_entry_is_sent_at_once_and_later_ones_wait_for_others_or_a_reply() {
        let (mut slots, _) = filled(1);
        assert_eq!(entries(rest(&mut slots)), [0]);
        let (mut slots, _) = filled(15);
        assert!(busy(&mut slots).is_none());
        assert_eq!(entries(slots.seal(1, || true)).len(), 15);
        let (mut slots, _) = filled(16);
        assert!(slots.seal(OUT_MAX, || true).is_none());
        assert_eq!(entries(busy(&mut slots)).len(), 16);
        assert!(rest(&mut slots).is_none(), "nothing waits");
    }

    #[test]
    fn a_batch_has_at_most_so_many_entries_and_bytes_and_a_large_entry_goes_alone() {
        let (mut slots, _) = filled(150);
        let sizes: Vec<_> = std::iter::from_fn(|| rest(&mut slots)).map(|batch| batch.len()).collect();
        assert_eq!(sizes, [64, 64, 22]);
        let mut slots: CallerTable<u32, u32> = CallerTable::new();
        for (entry, bytes) in [(0, 6000), (1, 6000), (2, 6000), (3, BYTES_MAX * 2), (4, 1)] {
            slots.push(entry, bytes);
        }
        assert_eq!(entries(busy(&mut slots)), [0, 1]);
        assert_eq!(entries(busy(&mut slots)), [2]);
        assert_eq!(entries(busy(&mut slots)), [3]);
        assert_eq!(entries(rest(&mut slots)), [4]);
    }

    #[test]
    fn an_abandoned_entry_is_not_sent_and_its_answer_comes_back() {
        let (mut slots, at) = filled(4);
        slots.abandon(at[0]);
        let mut batch = rest(&mut slots).unwrap();
        slots.abandon(at[1]);
        slots.retain(&mut batch);
        assert_eq!(batch.iter().map(|item| item.entry).collect::<Vec<_>>(), [2, 3]);
        slots.abandon(at[2]);
        assert_eq!(slots.answer(at[2], 7), Some(7));
        assert_eq!(slots.answer(at[3], 8), None);
        slots.abandon(at[3]);
        assert_eq!((slots.free.len(), slots.waiting, slots.bytes), (4, 0, 0));
    }

    proptest! {
        /// In any order of events each entry is answered to its own caller or was abandoned, and every slot is free in
        /// the end.
        #[test]
        fn each_answer_reaches_its_own_caller(steps in proptest::collection::vec((0..6_u8, any::<prop::sample::Index>()), 1..400)) {
            let (mut slots, mut callers) = (CallerTable::<u32, u32>::new(), Vec::new());
            let (mut out, mut next) = (Vec::<Vec<BatchItem<u32>>>::new(), 0);
            let noop = Waker::noop();
            for (step, index) in steps {
                match step {
                    0 | 1 => {
                        callers.push((slots.push(next, 300).0, next));
                        next += 1;
                    }
                    2 if !callers.is_empty() => {
                        let (at, _) = callers.swap_remove(index.index(callers.len()));
                        slots.abandon(at);
                    }
                    3 => {
                        out.extend(slots.seal(out.len(), || true).map(|mut batch| { slots.retain(&mut batch); batch }));
                    }
                    4 if !out.is_empty() => {
                        for item in out.swap_remove(index.index(out.len())) {
                            slots.answer(item.at, item.entry);
                        }
                    }
                    _ => callers.retain(|(at, entry)| match slots.poll(*at, noop) {
                        Poll::Ready(answer) => { assert_eq!(answer, *entry); false }
                        Poll::Pending => true,
                    }),
                }
            }
            for item in out.into_iter().flatten() {
                slots.answer(item.at, item.entry);
            }
            while let Some(batch) = rest(&mut slots) {
                batch.into_iter().for_each(|item| { slots.answer(item.at, item.entry); });
            }
            for (at, entry) in callers {
                prop_assert_eq!(slots.poll(at, noop), Poll::Ready(entry));
            }
            prop_assert_eq!(slots.free.len(), slots.slots.len());
            prop_assert_eq!((slots.waiting, slots.bytes), (0, 0));
        }
    }
}
