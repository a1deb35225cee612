//! The table's journals: where they lie, and whose they are.

use crate::scoreboard::cell::CELLS_PER_SLOT;
use crate::scoreboard::journal::{CounterJournal, JournalOwner};
use crate::scoreboard::row::ROW_WORDS;
use crate::scoreboard::snapshot::SlotSnapshot;
use crate::scoreboard::{HEAD_WORDS, Scoreboard, journal};

/// Words of a slot's journals. All heads of journals stand side by side, apart from what is in them, so that looking
/// for something pending touches little memory.
pub(super) const JOURNALS_WORDS: usize = CELLS_PER_SLOT * (journal::HEAD_WORDS + journal::BODY_WORDS);

impl Scoreboard {
    /// One of a slot's journals; it has [`CELLS`], and a worker may hold any of them.
    ///
    /// # Panics
    /// When the table has no such slot, or the slot no such journal.
    pub fn journal(&self, slot: usize, index: usize) -> CounterJournal<'_> {
        assert!(slot < self.capacity && index < CELLS_PER_SLOT, "no journal {index} in slot {slot}");
        let index_in_table = journal_index(slot, index);
        let heads = HEAD_WORDS + self.capacity * ROW_WORDS;
        let bodies = heads + self.capacity * CELLS_PER_SLOT * journal::HEAD_WORDS;
        let (head, body) =
            (heads + index_in_table * journal::HEAD_WORDS, bodies + index_in_table * journal::BODY_WORDS);
        let words = &self.words;
        CounterJournal::new(
            &words[head..head + journal::HEAD_WORDS],
            &words[body..body + journal::BODY_WORDS],
        )
    }

    /// Every journal of the slots that were ever used, with its slot and index.
    pub fn journals(&self) -> impl Iterator<Item = (usize, usize, CounterJournal<'_>)> {
        let used = (0..self.capacity).filter(|slot| self.row(*slot).was_used());
        used.flat_map(move |slot| {
            (0..CELLS_PER_SLOT).map(move |index| (slot, index, self.journal(slot, index)))
        })
    }

    /// The worker that sits in this cell now, as the owner of journals.
    pub fn journal_owner(&self, slot: usize, cell: usize) -> JournalOwner {
        JournalOwner::new(journal_index(slot, cell), self.cell(slot, cell).incarnation())
    }

    /// Takes a journal over, if its owner is dead or has given it back; false if it has one.
    pub fn claim_journal(&self, slot: usize, index: usize, owner: JournalOwner) -> bool {
        let journal = self.journal(slot, index);
        let before = journal.owner();
        before.is_none_or(|before| !self.owner_is_alive(before)) && journal.change_owner(before, owner)
    }

    /// Whether this owner's process may still write: the supervisor vacates a cell once it has reaped its worker.
    fn owner_is_alive(&self, owner: JournalOwner) -> bool {
        let (slot, cell) = (owner.index() / CELLS_PER_SLOT, owner.index() % CELLS_PER_SLOT);
        slot < self.capacity && self.cell(slot, cell).incarnation() == owner.incarnation()
    }

    /// Whether a slot has no worker, so that no one there looks after its journals.
    pub fn has_no_worker(&self, slot: usize) -> bool {
        (0..CELLS_PER_SLOT).all(|cell| self.cell(slot, cell).incarnation() == 0)
    }

    /// A slot's row and what its journals have pending.
    pub(super) fn slot_snapshot(&self, slot: usize) -> SlotSnapshot {
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
        table.cell(1, 0).reset(1, 0);
        table.cell(1, 0).set_pid(10);
        table.cell(1, 1).reset(1, 0);
        let (old, new) = (table.journal_owner(1, 0), table.journal_owner(1, 1));
        assert!(table.claim_journal(1, 0, old));
        table.journal(1, 0).add("n", 3, 4).unwrap();
        assert!(
            !table.claim_journal(1, 0, new) && !table.claim_journal(1, 0, old),
            "a journal has one owner"
        );
        table.cell(1, 0).clear();
        assert!(table.claim_journal(1, 0, new) && !table.claim_journal(1, 0, new));
        // The same cell again, another life.
        table.cell(1, 0).reset(1, 0);
        table.cell(1, 0).set_pid(12);
        assert!(!table.claim_journal(1, 0, table.journal_owner(1, 0)));
        let slot = &table.snapshot().slots[1];
        assert_eq!((slot.pending_increments, slot.pending_since_ms), (3, Some(4)));
        assert_ne!(table.counter_epoch(), self::table().counter_epoch());
    }
}
