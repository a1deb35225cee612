//! Batched counters: additions gather in the worker's journal and go to Redis together, each exactly once.
//!
//! Guarantees that an addition which was taken outlives the worker, whichever way it ends, and that a batch whose
//! outcome is unknown is repeated under its number until Redis answers. What is lost is only what a whole machine, or a
//! fleet that ends while Redis is away, still had in its memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::Notify;

use crate::counter::Name;
use crate::redis;
use crate::redis::Redis;
use crate::redis::count::Flush;
use crate::redis::keys;
use crate::scoreboard::Scoreboard;
use crate::scoreboard::cell::CELLS;
use crate::scoreboard::cell::Cell;
use crate::scoreboard::journal::Batch;
use crate::scoreboard::journal::Journal;
use crate::scoreboard::journal::Owner;
use crate::scoreboard::journal::Pending;
use crate::scoreboard::journal::Refusal;

/// A batch is sent this long after its first addition: with the way to Redis, 50 ms after it at the latest.
pub const GATHER: Duration = Duration::from_millis(45);

/// How far a value that was read just now may be behind what other workers and machines have taken.
pub const BEHIND: Duration = Duration::from_millis(50);

/// Values that are remembered.
const KNOWN_MAX: usize = 1024;

/// Why an addition was not taken; nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotTaken {
    /// There is no room: it has to go to Redis by itself.
    NoRoom,
    /// The sum would leave the range of 64-bit integers.
    Overflow,
}

/// A batched counter's value, everything included that this worker has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// The value.
    pub value: i64,
    /// How far it may be behind what other workers and machines have taken.
    pub staleness: Duration,
}

/// What Redis said last.
#[derive(Debug, Clone, Copy)]
struct Known {
    value: i64,
    /// Number of this worker's last batch that is part of it.
    seq: u64,
    at_ms: u64,
}

/// What this worker writes; the lock is what makes it one thread at a time.
#[derive(Debug, Default)]
struct Own {
    /// Index of the journal in the slot; none while every one has an owner.
    journal: Option<usize>,
    known: HashMap<String, Known>,
}

/// One worker's batched counters.
#[derive(Debug)]
pub struct Batches {
    scoreboard: Arc<Scoreboard>,
    redis: Redis,
    prefix: Arc<str>,
    slot: usize,
    cell: usize,
    owner: Owner,
    own: Mutex<Own>,
    /// Told when a batch has its first addition.
    begun: Notify,
}

impl Batches {
    /// For the worker in this cell; takes a journal, and with it what a dead worker left there.
    pub fn new(
        scoreboard: Arc<Scoreboard>,
        redis: Redis,
        prefix: impl Into<Arc<str>>,
        slot: usize,
        cell: usize,
    ) -> Self {
        let owner = scoreboard.owner(slot, cell);
        let own = Mutex::default();
        let batches =
            Self { scoreboard, redis, prefix: prefix.into(), slot, cell, owner, own, begun: Notify::new() };
        batches.seat();
        batches
    }

    /// Takes a journal if there was none to take before.
    pub fn seat(&self) {
        let mut own = self.own();
        if own.journal.is_none() {
            // The one of its own cell first: mostly no one else wants it.
            let mut order = std::iter::once(self.cell).chain((0..CELLS).filter(|index| *index != self.cell));
            own.journal = order.find(|index| self.scoreboard.claim(self.slot, *index, self.owner));
        }
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn scores(&self) -> Cell<'_> {
        self.scoreboard.cell(self.slot, self.cell)
    }

    /// Takes an addition; costs no command. `now_ms` is the monotonic clock.
    ///
    /// # Errors
    /// See [`NotTaken`].
    pub fn add(&self, name: &Name, by: i64, now_ms: u64) -> Result<(), NotTaken> {
        let own = self.own();
        let journal = own.journal.ok_or(NotTaken::NoRoom)?;
        let first = self.scoreboard.journal(self.slot, journal).add(name.as_str(), by, now_ms);
        match first {
            Ok(true) => self.begun.notify_one(),
            Ok(false) => {}
            Err(Refusal::Full) => return Err(NotTaken::NoRoom),
            Err(Refusal::Overflow) => return Err(NotTaken::Overflow),
        }
        Ok(())
    }

    /// A counter's value without asking Redis; none before this worker has heard of it.
    pub fn known(&self, name: &Name, now_ms: u64) -> Option<Reading> {
        let own = self.own();
        let known = own.known.get(name.as_str())?;
        let pending = own.journal.map_or(0, |index| {
            self.scoreboard.journal(self.slot, index).pending(name.as_str()).beyond(known.seq)
        });
        let age = Duration::from_millis(now_ms.saturating_sub(known.at_ms));
        Some(Reading { value: known.value.saturating_add(pending), staleness: BEHIND + age })
    }

    /// A counter's value by Redis, and everything that the workers of this machine have taken.
    ///
    /// # Errors
    /// What Redis said; then [`Batches::known`] may know better than nothing.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn value(&self, name: &Name, now_ms: u64) -> Result<Reading, redis::Error> {
        let own = self.own().journal.map(|index| self.place(self.slot, index));
        // Before Redis is asked, see `Pending::beyond`.
        let pending: Vec<(String, Pending)> = self
            .scoreboard
            .journals()
            .map(|(slot, index, journal)| (self.place(slot, index), journal.pending(name.as_str())))
            .filter(|(place, pending)| !pending.is_zero() || Some(place) == own.as_ref())
            .collect();
        let journals: Vec<String> = pending.iter().map(|(place, _)| place.clone()).collect();
        let key = keys::counter(&self.prefix, name.as_str());
        let (stored, last) = self.redis.read_batched(&self.ledger(), &key, &journals).await?;
        let beyond = pending.iter().zip(&last).map(|((_, pending), last)| pending.beyond(*last));
        let value = beyond.fold(stored, i64::saturating_add);
        let seq = journals.iter().zip(&last).find(|(place, _)| Some(*place) == own.as_ref());
        if let Some((_, seq)) = seq {
            let known = Known { value: stored, seq: *seq, at_ms: now_ms };
            self.own().note(name.as_str(), known);
        }
        Ok(Reading { value, staleness: BEHIND })
    }

    /// Returns when a batch has its first addition.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn begun(&self) {
        self.begun.notified().await;
    }

    /// When the oldest of this worker's pending additions came, milliseconds of the monotonic clock.
    pub fn oldest_ms(&self) -> Option<u64> {
        let journal = self.own().journal?;
        self.scoreboard.journal(self.slot, journal).oldest_ms()
    }

    /// How much this worker has pending.
    pub fn weight(&self) -> u64 {
        self.own().journal.map_or(0, |index| self.scoreboard.journal(self.slot, index).weight())
    }

    /// Sends one batch of this worker's own; false if there was none.
    ///
    /// # Errors
    /// What Redis said; the batch is sent again by the next call.
    ///
    /// # Cancel safety
    /// The batch is sent again by the next call, here or by the one who has the journal then.
    pub async fn flush(&self, now_ms: u64) -> Result<bool, redis::Error> {
        let sealed = {
            let own = self.own();
            own.journal.and_then(|index| Some((index, self.scoreboard.journal(self.slot, index).seal()?)))
        };
        let Some((index, batch)) = sealed else { return Ok(false) };
        let values = self.send(&self.place(self.slot, index), &batch).await?;
        let mut own = self.own();
        self.scoreboard.journal(self.slot, index).settle(batch.seq);
        for ((name, _), value) in batch.sums.iter().zip(values) {
            if let Some(value) = value {
                own.note(name, Known { value, seq: batch.seq, at_ms: now_ms });
            }
        }
        Ok(true)
    }

    /// Sends what dead workers of this slot left, and of slots where no one lives.
    ///
    /// # Errors
    /// What Redis said; the rest waits for the next call.
    ///
    /// # Cancel safety
    /// A journal that was being emptied stays this worker's until it ends, and is emptied by its successors.
    pub async fn flush_orphans(&self) -> Result<(), redis::Error> {
        for (slot, index, journal) in self.scoreboard.journals() {
            let ours = slot == self.slot || self.scoreboard.is_deserted(slot);
            let is_own = slot == self.slot && self.own().journal == Some(index);
            if is_own || !ours || journal.oldest_ms().is_none() {
                continue;
            }
            if self.scoreboard.claim(slot, index, self.owner) {
                let emptied = self.empty(&self.place(slot, index), journal).await;
                journal.release();
                emptied?;
                tracing::debug!(slot, "sent what an ended worker had not");
            }
        }
        Ok(())
    }

    async fn empty(&self, place: &str, journal: Journal<'_>) -> Result<(), redis::Error> {
        while let Some(batch) = journal.seal() {
            self.send(place, &batch).await?;
            journal.settle(batch.seq);
        }
        Ok(())
    }

    /// Gives the journal back; what is pending in it is someone else's to send. No addition is taken afterwards.
    pub fn leave(&self) {
        if let Some(index) = self.own().journal.take() {
            self.scoreboard.journal(self.slot, index).release();
        }
    }

    /// Sends a batch; the values that the counters have now.
    async fn send(&self, place: &str, batch: &Batch) -> Result<Vec<Option<i64>>, redis::Error> {
        let sums: Vec<_> =
            batch.sums.iter().map(|(name, by)| (keys::counter(&self.prefix, name), *by)).collect();
        let flush = Flush { ledger: &self.ledger(), journal: place, seq: batch.seq, sums: &sums };
        let flushed = self.redis.flush(&flush).await?;
        self.scores().flushed();
        for ((name, by), value) in batch.sums.iter().zip(&flushed.values) {
            if value.is_none() {
                tracing::error!(counter = %name, by, "a counter would overflow or holds no number; additions are dropped");
                self.scores().dropped(by.unsigned_abs());
            }
        }
        Ok(flushed.values)
    }

    fn ledger(&self) -> String {
        keys::journals(&self.prefix, self.scoreboard.fleet())
    }

    /// A journal's field in the ledger.
    fn place(&self, slot: usize, index: usize) -> String {
        (slot * CELLS + index).to_string()
    }
}

impl Own {
    fn note(&mut self, name: &str, known: Known) {
        if self.known.len() >= KNOWN_MAX && !self.known.contains_key(name) {
            self.known.clear();
        }
        // Two answers may overtake each other.
        let newer = self.known.get(name).is_none_or(|before| before.seq <= known.seq);
        if newer {
            self.known.insert(name.to_owned(), known);
        }
    }
}
