//! The table all processes share: one row a slot, one head for the fleet.
//!
//! Workers write their slot's row, anyone reads a [`Snapshot`]; no message is sent per request. Rows belong to
//! slots and outlive workers, so totals never go back over a crash.

pub mod cell;
mod cell_state;
pub mod connection_share;
pub mod exit_reason;
pub mod journal;
mod journal_table;
pub mod latency;
pub mod refusal_reason;
pub mod row;
pub mod snapshot;
#[cfg(test)]
mod tests;
mod warnings;

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use cell::WorkerCell;
pub use exit_reason::ExitReason;
use journal_table::JOURNALS_WORDS;
use row::{ROW_WORDS, SlotRow};
use snapshot::ScoreboardSnapshot;

use crate::sys::random;
use crate::sys::shared_memory::SharedWords;

/// Layout of the words; a process that knows another one must not touch them.
pub const LAYOUT_VERSION: u64 = 4;

/// Words of the head, a multiple of a cache line.
const HEAD_WORDS: usize = 16;

const HEAD_VERSION: usize = 0;
const HEAD_SLOTS: usize = 1;
const HEAD_PID: usize = 2;
const HEAD_STARTED_MS: usize = 3;
const HEAD_REDIS_EVER_CONNECTED: usize = 4;
const HEAD_GENERATION: usize = 5;
const HEAD_COUNTER_EPOCH: usize = 6;
/// Connections that workers ever started to transfer.
const HEAD_TRANSFERS_STARTED: usize = 7;
const HEAD_REDIS_FINDINGS: usize = 8;
const HEAD_REDIS_MEMORY: usize = 9;
const HEAD_UNTRUSTED_PROXY: usize = 10;
const HEAD_LOG_DROPPED: usize = 11;
const HEAD_LOG_UNREPORTED: usize = 12;
/// Connections on their way from one worker to another; what a killed worker had in its hands stays for a moment.
const HEAD_TRANSFERS_PENDING: usize = 13;
/// Instances that share the fleet's limits.
const HEAD_INSTANCES: usize = 14;
const HEAD_INSTANCE_ID: usize = 15;

/// Every word of the head; two names of one word would overwrite each other's numbers.
const HEAD: [usize; HEAD_WORDS] = [
    HEAD_VERSION,
    HEAD_SLOTS,
    HEAD_PID,
    HEAD_STARTED_MS,
    HEAD_REDIS_EVER_CONNECTED,
    HEAD_GENERATION,
    HEAD_COUNTER_EPOCH,
    HEAD_TRANSFERS_STARTED,
    HEAD_REDIS_FINDINGS,
    HEAD_REDIS_MEMORY,
    HEAD_UNTRUSTED_PROXY,
    HEAD_LOG_DROPPED,
    HEAD_LOG_UNREPORTED,
    HEAD_TRANSFERS_PENDING,
    HEAD_INSTANCES,
    HEAD_INSTANCE_ID,
];
const _: () = {
    let mut word = 0;
    while word < HEAD_WORDS {
        assert!(HEAD[word] == word, "a word of the head has one name");
        word += 1;
    }
};

/// Words of a slot: its row, and the journals of its workers.
const SLOT_WORDS: usize = ROW_WORDS + JOURNALS_WORDS;

/// The shared table.
#[derive(Debug)]
pub struct Scoreboard {
    words: SharedWords,
    capacity: usize,
}

impl Scoreboard {
    /// Makes the table of a new fleet with room for `capacity` slots.
    ///
    /// # Errors
    /// When the kernel refuses the memory.
    pub fn create(capacity: NonZeroUsize, pid: u32, started_ms: u64) -> io::Result<Self> {
        let capacity = capacity.get();
        let len = NonZeroUsize::MIN.saturating_add(HEAD_WORDS + capacity * SLOT_WORDS - 1);
        let words = SharedWords::create(c"regatta-scoreboard", len)?;
        words[HEAD_VERSION].store(LAYOUT_VERSION, Relaxed);
        words[HEAD_PID].store(u64::from(pid), Relaxed);
        words[HEAD_STARTED_MS].store(started_ms, Relaxed);
        words[HEAD_GENERATION].store(1, Relaxed);
        words[HEAD_COUNTER_EPOCH].store(random::number()?, Relaxed);
        Ok(Self { words, capacity })
    }

    /// Goes on with the table that another program made.
    ///
    /// # Errors
    /// When it has another layout, or the kernel refuses to map it.
    pub fn adopt(table: OwnedFd) -> io::Result<Self> {
        let words = SharedWords::adopt(table)?;
        let rows = words.len().checked_sub(HEAD_WORDS).filter(|rows| rows.is_multiple_of(SLOT_WORDS));
        match rows {
            Some(rows) if words[HEAD_VERSION].load(Relaxed) == LAYOUT_VERSION => {
                Ok(Self { words, capacity: rows / SLOT_WORDS })
            }
            _ => Err(io::Error::other("the scoreboard has another layout")),
        }
    }

    /// The row of a slot.
    ///
    /// # Panics
    /// When the table has no such slot.
    pub fn row(&self, slot: usize) -> SlotRow<'_> {
        assert!(slot < self.capacity, "slot {slot} is outside a table of {}", self.capacity);
        let start = HEAD_WORDS + slot * ROW_WORDS;
        SlotRow::new(&self.words[start..start + ROW_WORDS])
    }

    /// The cell of one worker of a slot.
    ///
    /// # Panics
    /// When the table has no such slot, or the slot no such cell.
    pub fn cell(&self, slot: usize, cell: usize) -> WorkerCell<'_> {
        self.row(slot).cell(cell)
    }

    /// Name of this fleet's life, random: batches of an earlier one have nothing to do with its own.
    pub fn counter_epoch(&self) -> u64 {
        self.head(HEAD_COUNTER_EPOCH).load(Relaxed)
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
    pub fn redis_ever_connected(&self) -> bool {
        self.head(HEAD_REDIS_EVER_CONNECTED).load(Relaxed) != 0
    }

    /// Written by the worker that reached Redis.
    pub fn set_redis_ever_connected(&self) {
        self.head(HEAD_REDIS_EVER_CONNECTED).store(1, Relaxed);
    }

    /// What is wrong with the Redis that works, as the bits of its findings.
    pub fn redis_findings(&self) -> u64 {
        self.head(HEAD_REDIS_FINDINGS).load(Relaxed)
    }

    /// Written by the one worker that looks.
    pub fn set_redis_findings(&self, bits: u64) {
        self.head(HEAD_REDIS_FINDINGS).store(bits, Relaxed);
    }

    /// Number of the configuration and binary the fleet runs now, from 1.
    pub fn generation(&self) -> u64 {
        self.head(HEAD_GENERATION).load(Relaxed)
    }

    /// Written by the supervisor when another generation has become the one in use.
    pub fn set_generation(&self, generation: u64) {
        self.head(HEAD_GENERATION).store(generation, Relaxed);
    }

    /// The supervisor's process.
    pub fn pid(&self) -> u32 {
        u32::try_from(self.head(HEAD_PID).load(Relaxed)).unwrap_or(0)
    }

    /// A number that no other supervisor has, on whichever machine; it lasts through every upgrade.
    ///
    /// When the fleet started, where a program that made none has begun the table.
    pub fn instance_id(&self) -> u64 {
        match self.head(HEAD_INSTANCE_ID).load(Relaxed) {
            0 => self.head(HEAD_STARTED_MS).load(Relaxed),
            identity => identity,
        }
    }

    /// Written once by the supervisor, before the first worker: a random number.
    pub fn set_instance_id(&self, instance_id: u64) {
        self.head(HEAD_INSTANCE_ID).store(instance_id, Relaxed);
    }

    /// Instances that share the fleet's limits, this one included; 1 until Redis has reported a number.
    pub fn instance_count(&self) -> u64 {
        self.head(HEAD_INSTANCES).load(Relaxed).max(1)
    }

    /// Written by the worker that registers the instance, whenever Redis reports how many there are.
    pub fn set_instance_count(&self, instances: u64) {
        self.head(HEAD_INSTANCES).store(instances, Relaxed);
    }

    /// The supervisor dropped lines of its log.
    pub fn add_dropped_log_lines(&self, lines: u64) {
        self.head(HEAD_LOG_DROPPED).fetch_add(lines, Relaxed);
    }

    /// A process ends, or leaves its place to another program, and has not said that it dropped so many lines.
    pub fn add_unreported_log_lines(&self, lines: u64) {
        self.head(HEAD_LOG_UNREPORTED).fetch_add(lines, Relaxed);
    }

    /// Read by the supervisor, which says it.
    pub fn take_unreported_log_lines(&self) -> u64 {
        self.head(HEAD_LOG_UNREPORTED).swap(0, Relaxed)
    }

    /// A plain copy of everything, read word by word while the workers go on.
    ///
    /// Each number is exact when it is read; two numbers may be some requests apart.
    pub fn snapshot(&self) -> ScoreboardSnapshot {
        let slots = self.slots();
        // A retired slot keeps its totals: they are part of the fleet's.
        let used =
            (0..self.capacity).rev().find(|slot| self.row(*slot).was_used()).map_or(0, |last| last + 1);
        let rows = (0..slots.max(used)).map(|slot| self.slot_snapshot(slot)).collect();
        ScoreboardSnapshot {
            version: snapshot::SNAPSHOT_VERSION,
            supervisor_pid: self.pid(),
            started_ms: self.head(HEAD_STARTED_MS).load(Relaxed),
            generation: self.generation(),
            redis_ever_connected: self.redis_ever_connected(),
            log_lines_dropped: self.head(HEAD_LOG_DROPPED).load(Relaxed),
            slots: rows,
        }
    }
}

/// The memory it lives in, for a program that goes on with it.
impl AsFd for Scoreboard {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.words.as_fd()
    }
}
