//! One worker's pending additions to counters: they outlive the worker, and each is sent on exactly once.
//!
//! Additions go to one of two banks. Sealing a batch is one store, the next number: from then on additions go to the
//! other bank, and the sealed one no longer changes until it is acknowledged, which is one store as well. The holder of the
//! journal after a SIGKILL, at whichever instruction, therefore finds either an open bank to go on with or a sealed
//! batch to repeat word for word under the same number, and Redis ignores a number that it has seen.
//!
//! One process at a time writes, see [`JournalOwner`], and one thread of it at a time. Anyone reads.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};

use crate::digest::fnv1a64;
use crate::scoreboard::layout::{JournalBody, JournalEntryLayout, JournalHead};
pub use crate::scoreboard::layout::{NAME_MAX, NAMES};

/// Reads of one name that meet a sealing each time: sealings are milliseconds apart.
const ATTEMPTS: usize = 16;

/// One incarnation of a worker, which may write a journal. Incarnations never come back, so a dead owner stays dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalOwner(u64);

impl JournalOwner {
    const INDEX_BITS: u32 = 24;

    /// The owner in the cell with this number in the table; both fit, because a slot does not start 2^40 workers.
    pub(super) fn new(index: usize, incarnation: u64) -> Self {
        Self(incarnation << Self::INDEX_BITS | index as u64)
    }

    pub(super) fn from_word(word: u64) -> Option<Self> {
        (word != 0).then_some(Self(word))
    }

    pub(super) fn index(self) -> usize {
        usize::try_from(self.0 & ((1 << Self::INDEX_BITS) - 1)).unwrap_or(usize::MAX)
    }

    pub(super) fn incarnation(self) -> u64 {
        self.0 >> Self::INDEX_BITS
    }
}

/// Why an addition was not taken; nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JournalError {
    /// Every name that the journal has room for has something pending.
    Full,
    /// The pending sum would leave the range of 64-bit integers.
    Overflow,
}

/// A sealed batch; the same number always means the same sums.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedBatch {
    /// Its number in its journal, from 1.
    pub sequence: u64,
    /// What is to be added, by name; no zeros, never empty.
    pub sums: Vec<(String, i64)>,
}

/// What one journal has pending for one name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PendingIncrement {
    /// Number of the batch sealed last.
    sequence: u64,
    /// What that batch adds, unless it is settled.
    sealed: i64,
    /// What the batch after it will add.
    open: i64,
}

impl PendingIncrement {
    /// What is still to come for a reader to whom Redis says that `last` was the last batch of this journal it took.
    ///
    /// Read the journal first and Redis afterwards: what is pending then is either in the answer or counted here.
    pub fn pending_after(self, last: u64) -> i64 {
        let sealed = if last < self.sequence { self.sealed } else { 0 };
        let open = if last <= self.sequence { self.open } else { 0 };
        sealed.saturating_add(open)
    }

    /// Whether there is nothing.
    pub fn is_zero(self) -> bool {
        self.sealed == 0 && self.open == 0
    }
}

/// A journal in the table.
#[derive(Debug, Clone, Copy)]
pub struct CounterJournal<'a> {
    head: &'a JournalHead,
    body: &'a JournalBody,
}

/// One name of a journal.
#[derive(Debug, Clone, Copy)]
struct JournalEntry<'a>(&'a JournalEntryLayout);

impl<'a> CounterJournal<'a> {
    pub(super) fn new(head: &'a JournalHead, body: &'a JournalBody) -> Self {
        Self { head, body }
    }

    /// The worker that writes it, alive or not.
    pub(super) fn owner(self) -> Option<JournalOwner> {
        JournalOwner::from_word(load(&self.head.owner))
    }

    /// Changes the owner, unless another worker was faster.
    pub(super) fn change_owner(self, from: Option<JournalOwner>, to: JournalOwner) -> bool {
        let from = from.map_or(0, |owner| owner.0);
        self.head.owner.compare_exchange(from, to.0, AcqRel, Acquire).is_ok()
    }

    /// Releases it; what is pending waits for the next owner.
    pub fn release(self) {
        store(&self.head.owner, 0);
    }

    fn sealed(self) -> u64 {
        load(&self.head.sealed)
    }

    /// Whether a sealed batch has not been settled.
    fn has_sealed_batch(self) -> bool {
        load(&self.head.acknowledged) < self.sealed()
    }

    fn since(self, bank: usize) -> &'a AtomicU64 {
        &self.head.since[bank]
    }

    fn entries(self) -> impl Iterator<Item = JournalEntry<'a>> {
        self.body.iter().map(JournalEntry)
    }

    /// When the oldest addition that is pending came, milliseconds of the monotonic clock; none if none is.
    pub fn oldest_ms(self) -> Option<u64> {
        let sealed = self.sealed();
        let open = load(self.since(bank_of(sealed + 1)));
        let on_its_way = if self.has_sealed_batch() { load(self.since(bank_of(sealed))) } else { 0 };
        [on_its_way, open].into_iter().filter(|since| *since > 0).min()
    }

    /// Adds to a name's pending sum; whether it is the first addition of its batch. Only for its owner.
    ///
    /// # Errors
    /// See [`JournalError`].
    ///
    /// # Panics
    /// When the name is empty or longer than [`NAME_MAX`].
    pub fn add(self, name: &str, by: i64, now_ms: u64) -> Result<bool, JournalError> {
        let bank = bank_of(self.sealed() + 1);
        let entry = self.find_or_claim(name).ok_or(JournalError::Full)?;
        let sum = entry.delta(bank).checked_add(by).ok_or(JournalError::Overflow)?;
        // First, so that a bank with an addition is never taken for empty.
        let first = load(self.since(bank)) == 0;
        if first {
            store(self.since(bank), now_ms.max(1));
        }
        entry.set_delta(bank, sum);
        Ok(first)
    }

    /// The batch to send: the one that is on its way, else everything pending, sealed now. Only for its owner.
    pub fn seal(self) -> Option<SealedBatch> {
        if !self.has_sealed_batch() {
            let sealed = self.sealed();
            if load(self.since(bank_of(sealed + 1))) == 0 {
                return None;
            }
            // What the worker that acknowledged the last batch had no time to do.
            self.clear_bank(bank_of(sealed));
            store(&self.head.sealed, sealed + 1);
        }
        let seq = self.sealed();
        let bank = bank_of(seq);
        let sums = self.entries().filter(|entry| entry.delta(bank) != 0);
        let sums: Vec<_> = sums.filter_map(|entry| Some((entry.name()?, entry.delta(bank)))).collect();
        if sums.is_empty() {
            // They cancelled each other, or the writer died before its first one was there.
            self.acknowledge(seq);
            return None;
        }
        Some(SealedBatch { sequence: seq, sums })
    }

    /// Redis has this batch. Only for its owner.
    pub fn acknowledge(self, seq: u64) {
        if self.has_sealed_batch() && seq == self.sealed() {
            store(&self.head.acknowledged, seq);
            self.clear_bank(bank_of(seq));
        }
    }

    /// Empties a bank that counts no more; when interrupted, it is done again before the next sealing.
    fn clear_bank(self, bank: usize) {
        if load(self.since(bank)) == 0 {
            return;
        }
        self.entries().filter(|entry| entry.delta(bank) != 0).for_each(|entry| entry.set_delta(bank, 0));
        store(self.since(bank), 0);
    }

    /// What is pending for a name, while its owner goes on.
    pub fn pending(self, name: &str) -> PendingIncrement {
        let mut pending = PendingIncrement::default();
        for _ in 0..ATTEMPTS {
            let (seq, on_its_way) = (self.sealed(), self.has_sealed_batch());
            let entry = self.find(name);
            let delta = |bank| entry.map_or(0, |entry: JournalEntry<'_>| entry.delta(bank));
            let sealed = if on_its_way { delta(bank_of(seq)) } else { 0 };
            pending = PendingIncrement { sequence: seq, sealed, open: delta(bank_of(seq + 1)) };
            // An entry that another name was given meanwhile does not count.
            let same = entry.is_none_or(|entry| entry.is(name));
            if same && (seq, on_its_way) == (self.sealed(), self.has_sealed_batch()) {
                break;
            }
        }
        pending
    }

    /// How much is pending: the sum of all sums, whatever their signs.
    pub fn pending_total(self) -> u64 {
        if self.oldest_ms().is_none() {
            return 0;
        }
        let (seq, on_its_way) = (self.sealed(), self.has_sealed_batch());
        let banks = [Some(bank_of(seq + 1)), on_its_way.then_some(bank_of(seq))];
        let of = |entry: JournalEntry<'_>| {
            banks
                .into_iter()
                .flatten()
                .map(|bank| entry.delta(bank).unsigned_abs())
                .fold(0, u64::saturating_add)
        };
        self.entries().map(of).fold(0, u64::saturating_add)
    }

    fn find(self, name: &str) -> Option<JournalEntry<'a>> {
        self.probe_entries(name).find(|entry| entry.is(name))
    }

    /// Every entry, beginning where this name would like to be.
    fn probe_entries(self, name: &str) -> impl Iterator<Item = JournalEntry<'a>> {
        let first = usize::try_from(fnv1a64(name.as_bytes()) % NAMES as u64).unwrap_or(0);
        let entries = self.body.iter().map(JournalEntry);
        entries.clone().skip(first).chain(entries.take(first))
    }

    fn find_or_claim(self, name: &str) -> Option<JournalEntry<'a>> {
        if let Some(entry) = self.find(name) {
            return Some(entry);
        }
        let free = |entry: &JournalEntry<'_>| entry.is_free();
        let entry = self.probe_entries(name).find(free).or_else(|| {
            self.free_unused();
            self.probe_entries(name).find(free)
        })?;
        entry.claim_entry(name);
        Some(entry)
    }

    /// Frees every entry without a pending sum.
    fn free_unused(self) {
        let sealed = self.sealed();
        if !self.has_sealed_batch() {
            self.clear_bank(bank_of(sealed));
        }
        self.entries()
            .filter(|entry| entry.delta(0) == 0 && entry.delta(1) == 0)
            .for_each(|entry| store(&entry.0.length, 0));
    }
}

/// The bank in which a batch gathers.
fn bank_of(seq: u64) -> usize {
    usize::from(seq % 2 == 1)
}

impl JournalEntry<'_> {
    fn length(self) -> usize {
        usize::try_from(load(&self.0.length)).unwrap_or(0).min(NAME_MAX)
    }

    fn is_free(self) -> bool {
        self.length() == 0
    }

    fn is(self, name: &str) -> bool {
        self.length() == name.len()
            && words(name).zip(&self.0.name).all(|(word, stored)| word == load(stored))
    }

    fn name(self) -> Option<String> {
        let bytes = self.0.name.iter().flat_map(|word| load(word).to_le_bytes());
        String::from_utf8(bytes.take(self.length()).collect()).ok().filter(|name| !name.is_empty())
    }

    /// Gives it to a name; the length comes last and makes it one.
    fn claim_entry(self, name: &str) {
        assert!((1..=NAME_MAX).contains(&name.len()), "a counter's name has 1 to {NAME_MAX} bytes");
        words(name).zip(&self.0.name).for_each(|(word, stored)| store(stored, word));
        store(&self.0.length, name.len() as u64);
    }

    fn delta(self, bank: usize) -> i64 {
        load(&self.0.deltas[bank]).cast_signed()
    }

    fn set_delta(self, bank: usize, sum: i64) {
        store(&self.0.deltas[bank], sum.cast_unsigned());
    }
}

/// A name's bytes as words, zeros at the end.
fn words(name: &str) -> impl Iterator<Item = u64> {
    name.as_bytes().chunks(8).map(|chunk| {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(bytes)
    })
}

fn load(word: &AtomicU64) -> u64 {
    word.load(Acquire)
}

/// Every change of a journal goes through here, in program order: a killed process has done a first part of them.
fn store(word: &AtomicU64, value: u64) {
    #[cfg(test)]
    tests::burn();
    word.store(value, Release);
}

#[cfg(test)]
mod tests;
