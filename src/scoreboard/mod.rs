//! The table all processes share: one row a slot, one head for the fleet.
//!
//! Workers write their slot's row, anyone reads a [`Snapshot`]; no message is sent per request. Rows belong to
//! slots and outlive workers, so totals never go back over a crash.

pub mod latency;
pub mod row;
pub mod snapshot;

use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use row::ROW_WORDS;
use row::Row;
use snapshot::Snapshot;

use crate::sys::shm::Words;

/// Layout of the words; a process that knows another one must not touch them.
const VERSION: u64 = 1;

/// Words of the head, a multiple of a cache line.
const HEAD_WORDS: usize = 16;

const HEAD_VERSION: usize = 0;
const HEAD_SLOTS: usize = 1;
const HEAD_PID: usize = 2;
const HEAD_STARTED_MS: usize = 3;
const HEAD_REDIS_REACHED: usize = 4;
const HEAD_GENERATION: usize = 5;
const HEAD_STOPPING: usize = 6;

/// The shared table.
#[derive(Debug)]
pub struct Scoreboard {
    words: Words,
    capacity: usize,
}

impl Scoreboard {
    /// Makes the table of a new fleet with room for `capacity` slots.
    ///
    /// # Errors
    /// When the kernel refuses the memory.
    pub fn create(capacity: NonZeroUsize, pid: u32, started_ms: u64) -> io::Result<Self> {
        let capacity = capacity.get();
        let len = NonZeroUsize::MIN.saturating_add(HEAD_WORDS + capacity * ROW_WORDS - 1);
        let words = Words::create(c"regatta-scoreboard", len)?;
        words[HEAD_VERSION].store(VERSION, Relaxed);
        words[HEAD_PID].store(u64::from(pid), Relaxed);
        words[HEAD_STARTED_MS].store(started_ms, Relaxed);
        words[HEAD_GENERATION].store(1, Relaxed);
        Ok(Self { words, capacity })
    }

    /// The row of a slot.
    ///
    /// # Panics
    /// When the table has no such slot.
    pub fn row(&self, slot: usize) -> Row<'_> {
        assert!(slot < self.capacity, "slot {slot} is outside a table of {}", self.capacity);
        let start = HEAD_WORDS + slot * ROW_WORDS;
        Row::new(&self.words[start..start + ROW_WORDS])
    }

    /// Most slots the table has room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    fn head(&self, word: usize) -> &AtomicU64 {
        &self.words[word]
    }

    /// Slots the fleet wants to fill now.
    pub fn slots(&self) -> usize {
        usize::try_from(self.head(HEAD_SLOTS).load(Relaxed)).unwrap_or(usize::MAX).min(self.capacity)
    }

    /// Written by the supervisor when the number of slots changes.
    pub fn set_slots(&self, slots: usize) {
        self.head(HEAD_SLOTS).store(slots as u64, Relaxed);
    }

    /// Whether any worker of this fleet has ever reached Redis; it never becomes false again.
    pub fn redis_reached(&self) -> bool {
        self.head(HEAD_REDIS_REACHED).load(Relaxed) != 0
    }

    /// Written by the worker that reached Redis.
    pub fn set_redis_reached(&self) {
        self.head(HEAD_REDIS_REACHED).store(1, Relaxed);
    }

    /// Whether the whole fleet ends, so that a worker which leaves also closes its seat.
    pub fn is_stopping(&self) -> bool {
        self.head(HEAD_STOPPING).load(Relaxed) != 0
    }

    /// Written by the supervisor before it tells the first worker.
    pub fn set_stopping(&self) {
        self.head(HEAD_STOPPING).store(1, Relaxed);
    }

    /// Number of the configuration and binary the fleet runs now, from 1.
    pub fn generation(&self) -> u64 {
        self.head(HEAD_GENERATION).load(Relaxed)
    }

    /// A plain copy of everything, read word by word while the workers go on.
    ///
    /// Each number is exact when it is read; two numbers may be some requests apart.
    pub fn snapshot(&self) -> Snapshot {
        let pid = u32::try_from(self.head(HEAD_PID).load(Relaxed)).unwrap_or(0);
        let slots = self.slots();
        // A retired slot keeps its totals: they are part of the fleet's.
        let used =
            (0..self.capacity).rev().find(|slot| self.row(*slot).was_used()).map_or(0, |last| last + 1);
        let rows = (0..slots.max(used)).map(|slot| self.row(slot).snapshot(slot)).collect();
        Snapshot {
            version: snapshot::VERSION,
            supervisor_pid: pid,
            started_ms: self.head(HEAD_STARTED_MS).load(Relaxed),
            generation: self.generation(),
            redis_reached: self.redis_reached(),
            slots: rows,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::row::SlotState;
    use super::*;

    fn table() -> Scoreboard {
        Scoreboard::create(NonZeroUsize::new(8).unwrap(), 1, 2).unwrap()
    }

    #[test]
    fn totals_survive_the_worker_that_wrote_them() {
        let table = table();
        table.set_slots(2);
        let row = table.row(1);
        row.prepare(1, 1000);
        row.seated(10);
        row.request_started();
        row.request_done(200, 12, 1500);
        row.request_started();
        row.vacate(SlotState::BackedOff);
        row.prepare(1, 2000);
        row.seated(11);
        row.request_started();
        row.request_done(503, 1, 100);
        let slot = &table.snapshot().slots[1];
        assert_eq!((slot.pid, slot.in_flight, slot.starts), (11, 0, 2));
        assert_eq!((slot.responses[2], slot.responses[5], slot.requests()), (1, 1, 2));
    }

    #[test]
    fn a_retired_slot_stays_in_the_totals() {
        let table = table();
        table.set_slots(3);
        table.row(2).prepare(1, 0);
        table.row(2).seated(10);
        table.row(2).request_done(200, 0, 1);
        table.set_slots(1);
        assert_eq!(table.snapshot().requests(), 1);
    }
}
