//! The table's journals: where they lie, and whose they are.

use crate::scoreboard::HEAD_WORDS;
use crate::scoreboard::Scoreboard;
use crate::scoreboard::cell::CELLS;
use crate::scoreboard::journal;
use crate::scoreboard::journal::Journal;
use crate::scoreboard::journal::Owner;
use crate::scoreboard::row::ROW_WORDS;
use crate::scoreboard::snapshot::SlotSnapshot;

/// Words of a slot's journals. All heads of journals stand side by side, apart from what is in them, so that looking
/// for something pending touches little memory.
pub(super) const JOURNALS_WORDS: usize = CELLS * (journal::HEAD_WORDS + journal::BODY_WORDS);

impl Scoreboard {
    /// One of a slot's journals; it has [`CELLS`], and a worker may hold any of them.
    ///
    /// # Panics
    /// When the table has no such slot, or the slot no such journal.
    pub fn journal(&self, slot: usize, index: usize) -> Journal<'_> {
        assert!(slot < self.capacity && index < CELLS, "no journal {index} in slot {slot}");
        let place = place(slot, index);
        let heads = HEAD_WORDS + self.capacity * ROW_WORDS;
        let bodies = heads + self.capacity * CELLS * journal::HEAD_WORDS;
        let (head, body) = (heads + place * journal::HEAD_WORDS, bodies + place * journal::BODY_WORDS);
        let words = &self.words;
        Journal::new(&words[head..head + journal::HEAD_WORDS], &words[body..body + journal::BODY_WORDS])
    }

    /// Every journal of the slots that were ever used, with its slot and index.
    pub fn journals(&self) -> impl Iterator<Item = (usize, usize, Journal<'_>)> {
        let used = (0..self.capacity).filter(|slot| self.row(*slot).was_used());
        used.flat_map(move |slot| (0..CELLS).map(move |index| (slot, index, self.journal(slot, index))))
    }

    /// The worker that sits in this cell now, as the owner of journals.
    pub fn owner(&self, slot: usize, cell: usize) -> Owner {
        Owner::new(place(slot, cell), self.cell(slot, cell).life())
    }

    /// Takes a journal over, if its owner is dead or has given it back; false if it has one.
    pub fn claim(&self, slot: usize, index: usize, owner: Owner) -> bool {
        let journal = self.journal(slot, index);
        let before = journal.owner();
        before.is_none_or(|before| !self.lives(before)) && journal.take(before, owner)
    }

    /// Whether this owner's process may still write: the supervisor vacates a cell once it has reaped its worker.
    fn lives(&self, owner: Owner) -> bool {
        let (slot, cell) = (owner.place() / CELLS, owner.place() % CELLS);
        slot < self.capacity && self.cell(slot, cell).life() == owner.life()
    }

    /// Whether a slot has no worker, so that no one there looks after its journals.
    pub fn is_deserted(&self, slot: usize) -> bool {
        (0..CELLS).all(|cell| self.cell(slot, cell).life() == 0)
    }

    /// A slot's row and what its journals have pending.
    pub(super) fn slot_snapshot(&self, slot: usize) -> SlotSnapshot {
        let journals = || (0..CELLS).map(|index| self.journal(slot, index));
        let row = self.row(slot);
        if !row.was_used() {
            return row.snapshot(slot);
        }
        SlotSnapshot {
            pending: journals().map(Journal::weight).fold(0, u64::saturating_add),
            pending_since_ms: journals().filter_map(Journal::oldest_ms).min(),
            ..row.snapshot(slot)
        }
    }
}

/// Number of a cell, or of a journal, in the whole table.
fn place(slot: usize, index: usize) -> usize {
    slot * CELLS + index
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    fn table() -> Scoreboard {
        Scoreboard::create(NonZeroUsize::new(8).unwrap(), 1, 2).unwrap()
    }

    #[test]
    fn a_journal_passes_on_when_its_owner_is_gone_and_not_before() {
        let table = table();
        table.cell(1, 0).prepare(1, 0);
        table.cell(1, 0).seated(10);
        table.cell(1, 1).prepare(1, 0);
        let (old, new) = (table.owner(1, 0), table.owner(1, 1));
        assert!(table.claim(1, 0, old));
        table.journal(1, 0).add("n", 3, 4).unwrap();
        assert!(!table.claim(1, 0, new) && !table.claim(1, 0, old), "a journal has one owner");
        table.cell(1, 0).vacate();
        assert!(table.claim(1, 0, new) && !table.claim(1, 0, new));
        // The same cell again, another life.
        table.cell(1, 0).prepare(1, 0);
        table.cell(1, 0).seated(12);
        assert!(!table.claim(1, 0, table.owner(1, 0)));
        let slot = &table.snapshot().slots[1];
        assert_eq!((slot.pending, slot.pending_since_ms), (3, Some(4)));
        assert_ne!(table.fleet(), self::table().fleet());
    }
}
