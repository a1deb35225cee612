//! The table itself: its head, and the way to every row, cell and journal.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;

use crate::scoreboard::cell::WorkerCell;
use crate::scoreboard::journal::{CounterJournal, JournalOwner};
use crate::scoreboard::layout::{CELLS_PER_SLOT, HeadLayout, LAYOUT_VERSION, TableLayout};
use crate::scoreboard::row::SlotRow;
use crate::scoreboard::slot_state::SlotState;
use crate::scoreboard::snapshot::{ScoreboardSnapshot, SlotSnapshot};
use crate::sys::atomic_memory::AtomicMemory;
use crate::sys::random;

/// Set for an IPv4 address, which stands in the lower half; no /64 that is in use begins so.
const V4: u64 = 1 << 32;

/// The shared table.
#[derive(Debug)]
pub struct Scoreboard {
    pub(super) memory: AtomicMemory,
    /// Where other processes find it; none: it is this process's own.
    pub(super) file: Option<OwnedFd>,
    pub(super) layout: TableLayout,
}

impl Scoreboard {
    /// The table of a program without a fleet: one slot, in this process's own memory, whose worker is this process.
    ///
    /// # Errors
    /// When the operating system has no random bytes.
    pub fn on_heap(pid: u32) -> io::Result<Self> {
        let layout = TableLayout { capacity: 1 };
        let bytes = NonZeroUsize::new(layout.bytes()).unwrap_or(NonZeroUsize::MIN);
        let table = Self { memory: AtomicMemory::on_heap(bytes), file: None, layout };
        table.write_head(pid, 0)?;
        table.set_slots(1);
        table.cell(0, 0).reset(1, 0);
        table.row(0).set_state(SlotState::Ready, Some(1));
        Ok(table)
    }

    pub(super) fn write_head(&self, pid: u32, started_ms: u64) -> io::Result<()> {
        let head = self.head();
        head.version.store(LAYOUT_VERSION, Relaxed);
        head.pid.store(u64::from(pid), Relaxed);
        head.started_ms.store(started_ms, Relaxed);
        head.generation.store(1, Relaxed);
        head.counter_epoch.store(random::number()?, Relaxed);
        Ok(())
    }

    /// The row of a slot.
    ///
    /// # Panics
    /// When the table has no such slot.
    pub fn row(&self, slot: usize) -> SlotRow<'_> {
        assert!(slot < self.layout.capacity, "slot {slot} is outside a table of {}", self.layout.capacity);
        SlotRow::new(self.memory.get(self.layout.row(slot)))
    }

    /// The cell of one worker of a slot.
    ///
    /// # Panics
    /// When the table has no such slot, or the slot no such cell.
    pub fn cell(&self, slot: usize, cell: usize) -> WorkerCell<'_> {
        self.row(slot).cell(cell)
    }

    /// Random name of this fleet's counters: batches of an earlier fleet have nothing to do with its own.
    pub fn counter_epoch(&self) -> u64 {
        self.head().counter_epoch.load(Relaxed)
    }

    /// Most slots the table has room for.
    pub fn capacity(&self) -> usize {
        self.layout.capacity
    }

    pub(super) fn head(&self) -> &HeadLayout {
        self.memory.get(0)
    }

    /// Slots the fleet wants to fill now.
    pub fn slots(&self) -> usize {
        usize::try_from(self.head().slots.load(Relaxed)).unwrap_or(usize::MAX).min(self.layout.capacity)
    }

    /// Written by the supervisor when the number of slots changes.
    pub fn set_slots(&self, slots: usize) {
        self.head().slots.store(slots as u64, Relaxed);
    }

    /// Whether any worker of this fleet has ever reached Redis; it never becomes false again.
    pub fn redis_ever_connected(&self) -> bool {
        self.head().redis_ever_connected.load(Relaxed) != 0
    }

    /// Written by the worker that reached Redis.
    pub fn set_redis_ever_connected(&self) {
        self.head().redis_ever_connected.store(1, Relaxed);
    }

    /// What is wrong with the Redis that works, as the bits of its findings.
    pub fn redis_findings(&self) -> u64 {
        self.head().redis_findings.load(Relaxed)
    }

    /// Written by the one worker that inspects Redis.
    pub fn set_redis_findings(&self, bits: u64) {
        self.head().redis_findings.store(bits, Relaxed);
    }

    /// Number of the configuration and binary the fleet runs now, from 1.
    pub fn generation(&self) -> u64 {
        self.head().generation.load(Relaxed)
    }

    /// Written by the supervisor when another generation has become the one in use.
    pub fn set_generation(&self, generation: u64) {
        self.head().generation.store(generation, Relaxed);
    }

    /// The supervisor's process.
    pub fn pid(&self) -> u32 {
        u32::try_from(self.head().pid.load(Relaxed)).unwrap_or(0)
    }

    /// A number that no other instance has; it lasts through every upgrade.
    ///
    /// When the fleet started, where a program that made none has begun the table.
    pub fn instance_id(&self) -> u64 {
        match self.head().instance_id.load(Relaxed) {
            0 => self.head().started_ms.load(Relaxed),
            identity => identity,
        }
    }

    /// Written once by the supervisor, before the first worker: a random number.
    pub fn set_instance_id(&self, instance_id: u64) {
        self.head().instance_id.store(instance_id, Relaxed);
    }

    /// Instances that share the fleet's limits, this one included; 1 until Redis has reported a number.
    pub fn instance_count(&self) -> u64 {
        self.head().instances.load(Relaxed).max(1)
    }

    /// Written by the worker that registers the instance, whenever Redis reports how many there are.
    pub fn set_instance_count(&self, instances: u64) {
        self.head().instances.store(instances, Relaxed);
    }

    /// The supervisor dropped lines of its log.
    pub fn add_dropped_log_lines(&self, lines: u64) {
        self.head().log_lines_dropped.fetch_add(lines, Relaxed);
    }

    /// A process ends, or another program takes its place, before it could log that it dropped so many lines.
    pub fn add_unreported_log_lines(&self, lines: u64) {
        self.head().log_lines_unreported.fetch_add(lines, Relaxed);
    }

    /// Read by the supervisor, which logs it.
    pub fn take_unreported_log_lines(&self) -> u64 {
        self.head().log_lines_unreported.swap(0, Relaxed)
    }

    /// A plain copy of everything, read word by word while the workers go on.
    ///
    /// Each number is exact when it is read; two numbers may be some requests apart.
    pub fn snapshot(&self) -> ScoreboardSnapshot {
        let slots = self.slots();
        // A retired slot keeps its totals: they are part of the fleet's.
        let used = (0..self.layout.capacity)
            .rev()
            .find(|slot| self.row(*slot).was_used())
            .map_or(0, |last| last + 1);
        let rows = (0..slots.max(used)).map(|slot| self.slot_snapshot(slot)).collect();
        ScoreboardSnapshot {
            supervisor_pid: self.pid(),
            started_ms: self.head().started_ms.load(Relaxed),
            generation: self.generation(),
            redis_ever_connected: self.redis_ever_connected(),
            log_lines_dropped: self.head().log_lines_dropped.load(Relaxed),
            slots: rows,
        }
    }

    /// How full Redis's memory is, thousandths of its bound.
    pub fn redis_memory_permille(&self) -> u64 {
        self.head().redis_memory_permille.load(Relaxed)
    }

    /// Written by the one worker that samples it, and by any that is refused a write for want of memory.
    pub fn set_redis_memory_permille(&self, permille: u64) {
        self.head().redis_memory_permille.store(permille, Relaxed);
    }

    /// A peer that seems to be a proxy and is not trusted; an IPv6 one by its /64.
    pub fn untrusted_proxy(&self) -> Option<IpAddr> {
        match self.head().untrusted_proxy.load(Relaxed) {
            0 => None,
            word if word & !u64::from(u32::MAX) == V4 => {
                let bits = u32::try_from(word & u64::from(u32::MAX)).unwrap_or(0);
                Some(Ipv4Addr::from_bits(bits).into())
            }
            word => Some(Ipv6Addr::from_bits(u128::from(word) << 64).into()),
        }
    }

    /// Records such a peer; whether it is another one than before.
    pub fn record_untrusted_proxy(&self, peer: IpAddr) -> bool {
        let word = match peer.to_canonical() {
            IpAddr::V4(address) => V4 | u64::from(address.to_bits()),
            IpAddr::V6(address) => u64::try_from(address.to_bits() >> 64).unwrap_or(0),
        };
        self.head().untrusted_proxy.swap(word, Relaxed) != word
    }

    /// A connection is about to be transferred.
    pub fn start_transfer(&self) {
        self.head().transfers_started.fetch_add(1, Relaxed);
        self.head().transfers_pending.fetch_add(1, Relaxed);
    }

    /// A transferred connection has come to a worker, or could not be transferred.
    pub fn finish_transfer(&self) {
        let less = |passing: u64| passing.checked_sub(1);
        let _ = self.head().transfers_pending.fetch_update(Relaxed, Relaxed, less);
    }

    /// How many are on their way, and how many ever were.
    pub fn pending_transfers(&self) -> (u64, u64) {
        // In this order: one that leaves meanwhile makes the second number one that is not believed later.
        let started = self.head().transfers_started.load(Relaxed);
        (self.head().transfers_pending.load(Relaxed), started)
    }

    /// The queue was empty for longer than a transfer takes, and so many had started before: those of a killed worker are
    /// not counted for ever.
    ///
    /// An empty queue alone says nothing: one that has just left is counted before it is there, and without it the share
    /// would be so low that no worker takes it.
    pub fn reset_pending_transfers(&self, started: u64) {
        let (passing, now) = self.pending_transfers();
        if now == started {
            // If one arrives at this very moment, the next call resets the number.
            let _ = self.head().transfers_pending.compare_exchange(passing, 0, Relaxed, Relaxed);
        }
    }

    /// One of a slot's journals; it has [`CELLS_PER_SLOT`], and a worker may hold any of them.
    ///
    /// # Panics
    /// When the table has no such slot, or the slot no such journal.
    pub fn journal(&self, slot: usize, index: usize) -> CounterJournal<'_> {
        assert!(slot < self.layout.capacity && index < CELLS_PER_SLOT, "no journal {index} in slot {slot}");
        let number = journal_index(slot, index);
        let (head, body) = (self.layout.journal_head(number), self.layout.journal_body(number));
        CounterJournal::new(self.memory.get(head), self.memory.get(body))
    }

    /// Every journal of the slots that were ever used, with its slot and index.
    pub fn journals(&self) -> impl Iterator<Item = (usize, usize, CounterJournal<'_>)> {
        let used = (0..self.layout.capacity).filter(|slot| self.row(*slot).was_used());
        used.flat_map(move |slot| {
            (0..CELLS_PER_SLOT).map(move |index| (slot, index, self.journal(slot, index)))
        })
    }

    /// The worker of this cell, as the owner of journals.
    pub fn journal_owner(&self, slot: usize, cell: usize) -> JournalOwner {
        JournalOwner::new(journal_index(slot, cell), self.cell(slot, cell).incarnation())
    }

    /// Claims a journal whose owner is dead or has released it; false if it has one.
    pub fn claim_journal(&self, slot: usize, index: usize, owner: JournalOwner) -> bool {
        let journal = self.journal(slot, index);
        let before = journal.owner();
        before.is_none_or(|before| !self.owner_is_alive(before)) && journal.change_owner(before, owner)
    }

    /// Whether this owner's process may still write: the supervisor clears a cell once it has reaped its worker.
    fn owner_is_alive(&self, owner: JournalOwner) -> bool {
        let (slot, cell) = (owner.index() / CELLS_PER_SLOT, owner.index() % CELLS_PER_SLOT);
        slot < self.layout.capacity && self.cell(slot, cell).incarnation() == owner.incarnation()
    }

    /// Whether a slot has no worker, so that workers of other slots have to send its journals.
    pub fn has_no_worker(&self, slot: usize) -> bool {
        (0..CELLS_PER_SLOT).all(|cell| self.cell(slot, cell).incarnation() == 0)
    }

    /// A slot's row and what its journals have pending.
    fn slot_snapshot(&self, slot: usize) -> SlotSnapshot {
        let journals = || (0..CELLS_PER_SLOT).map(|index| self.journal(slot, index));
        let row = self.row(slot);
        if !row.was_used() {
            return row.snapshot(slot);
        }
        SlotSnapshot {
            pending_increments: journals().map(CounterJournal::pending_total).fold(0, u64::saturating_add),
            pending_since_ms: journals().filter_map(CounterJournal::oldest_ms).min(),
            ..row.snapshot(slot)
        }
    }
}

/// Number of a cell, or of a journal, in the whole table.
fn journal_index(slot: usize, index: usize) -> usize {
    slot * CELLS_PER_SLOT + index
}
