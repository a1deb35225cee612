//! Batched counters: additions gather in the worker's journal and go to Redis together, each exactly once.
//!
//! Guarantees that an addition which was taken outlives the worker, whichever way it ends, and that a batch whose
//! outcome is unknown is repeated under its number until Redis answers. What is lost is only what a whole machine, or a
//! fleet that ends while Redis is away, still had in its memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::counter::CounterName;
use crate::redis;
use crate::redis::counter_commands::FlushBatch;
use crate::redis::{RedisClient, keys};
use crate::scoreboard::Scoreboard;
use crate::scoreboard::cell::{CELLS_PER_SLOT, WorkerCell};
use crate::scoreboard::journal::{CounterJournal, JournalError, JournalOwner, PendingIncrement, SealedBatch};

/// A batch is sent this long after its first addition: with the way to Redis, 50 ms after it at the latest.
pub const FLUSH_DELAY: Duration = Duration::from_millis(45);

/// How far a value that was read just now may be behind what other workers and machines have taken.
pub const BASE_STALENESS: Duration = Duration::from_millis(50);

/// Values that are remembered.
const CACHED_VALUES_MAX: usize = 1024;

/// Why an addition was not taken; nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IncrementRejected {
    /// There is no room: it has to go to Redis by itself.
    NoRoom,
    /// The sum would leave the range of 64-bit integers.
    Overflow,
}

/// A batched counter's value, everything included that this worker has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Approximate {
    /// The value.
    pub value: i64,
    /// How far it may be behind what other workers and machines have taken.
    pub staleness: Duration,
}

/// What Redis said last.
#[derive(Debug, Clone, Copy)]
struct LastKnownValue {
    value: i64,
    /// Number of this worker's last batch that is part of it.
    seq: u64,
    at_ms: u64,
}

/// What this worker writes; the lock is what makes it one thread at a time.
#[derive(Debug, Default)]
struct JournalHandle {
    /// Index of the journal in the slot; none while every one has an owner.
    journal: Option<usize>,
    last_known: HashMap<String, LastKnownValue>,
}

/// One worker's batched counters.
#[derive(Debug)]
pub struct BatchedCounters {
    scoreboard: Arc<Scoreboard>,
    redis: RedisClient,
    prefix: Arc<str>,
    slot: usize,
    cell: usize,
    owner: JournalOwner,
    handle: Mutex<JournalHandle>,
    /// Told when a batch has its first addition.
    first_increment: Notify,
}

impl BatchedCounters {
    /// For the worker in this cell; takes a journal, and with it what a dead worker left there.
    pub fn new(
        scoreboard: Arc<Scoreboard>,
        redis: RedisClient,
        prefix: impl Into<Arc<str>>,
        slot: usize,
        cell: usize,
    ) -> Self {
        let owner = scoreboard.journal_owner(slot, cell);
        let own = Mutex::default();
        let batches = Self {
            scoreboard,
            redis,
            prefix: prefix.into(),
            slot,
            cell,
            owner,
            handle: own,
            first_increment: Notify::new(),
        };
        batches.acquire_journal();
        batches
    }

    /// Takes a journal if there was none to take before.
    pub fn acquire_journal(&self) {
        let mut own = self.handle();
        if own.journal.is_none() {
            // The one of its own cell first: mostly no one else wants it.
            let mut order =
                std::iter::once(self.cell).chain((0..CELLS_PER_SLOT).filter(|index| *index != self.cell));
            own.journal = order.find(|index| self.scoreboard.claim_journal(self.slot, *index, self.owner));
        }
    }

    fn handle(&self) -> MutexGuard<'_, JournalHandle> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn worker_cell(&self) -> WorkerCell<'_> {
        self.scoreboard.cell(self.slot, self.cell)
    }

    /// Takes an addition; costs no command. `now_ms` is the monotonic clock.
    ///
    /// # Errors
    /// See [`NotTaken`].
    pub fn add(&self, name: &CounterName, by: i64, now_ms: u64) -> Result<(), IncrementRejected> {
        let own = self.handle();
        let journal = own.journal.ok_or(IncrementRejected::NoRoom)?;
        let first = self.scoreboard.journal(self.slot, journal).add(name.as_str(), by, now_ms);
        match first {
            Ok(true) => self.first_increment.notify_one(),
            Ok(false) => {}
            Err(JournalError::Full) => return Err(IncrementRejected::NoRoom),
            Err(JournalError::Overflow) => return Err(IncrementRejected::Overflow),
        }
        Ok(())
    }

    /// A counter's value without asking Redis; none before this worker has heard of it.
    pub fn cached(&self, name: &CounterName, now_ms: u64) -> Option<Approximate> {
        let own = self.handle();
        let known = own.last_known.get(name.as_str())?;
        let pending = own.journal.map_or(0, |index| {
            self.scoreboard.journal(self.slot, index).pending(name.as_str()).pending_after(known.seq)
        });
        let age = Duration::from_millis(now_ms.saturating_sub(known.at_ms));
        Some(Approximate { value: known.value.saturating_add(pending), staleness: BASE_STALENESS + age })
    }

    /// A counter's value by Redis, and everything that the workers of this machine have taken.
    ///
    /// # Errors
    /// What Redis said; then [`Batches::known`] may know better than nothing.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn value(&self, name: &CounterName, now_ms: u64) -> Result<Approximate, redis::RedisError> {
        let own = self.handle().journal.map(|index| self.journal_field(self.slot, index));
        // Before Redis is asked, see `Pending::beyond`.
        let pending: Vec<(String, PendingIncrement)> = self
            .scoreboard
            .journals()
            .map(|(slot, index, journal)| (self.journal_field(slot, index), journal.pending(name.as_str())))
            .filter(|(place, pending)| !pending.is_zero() || Some(place) == own.as_ref())
            .collect();
        let journals: Vec<String> = pending.iter().map(|(place, _)| place.clone()).collect();
        let key = keys::counter(&self.prefix, name.as_str());
        let (stored, last) = self.redis.read_batched(&self.ledger_key(), &key, &journals).await?;
        let beyond = pending.iter().zip(&last).map(|((_, pending), last)| pending.pending_after(*last));
        let value = beyond.fold(stored, i64::saturating_add);
        let seq = journals.iter().zip(&last).find(|(place, _)| Some(*place) == own.as_ref());
        if let Some((_, seq)) = seq {
            let known = LastKnownValue { value: stored, seq: *seq, at_ms: now_ms };
            self.handle().record(name.as_str(), known);
        }
        Ok(Approximate { value, staleness: BASE_STALENESS })
    }

    /// Returns when a batch has its first addition.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn first_increment(&self) {
        self.first_increment.notified().await;
    }

    /// When the oldest of this worker's pending additions came, milliseconds of the monotonic clock.
    pub fn oldest_ms(&self) -> Option<u64> {
        let journal = self.handle().journal?;
        self.scoreboard.journal(self.slot, journal).oldest_ms()
    }

    /// How much this worker has pending.
    pub fn pending_total(&self) -> u64 {
        self.handle().journal.map_or(0, |index| self.scoreboard.journal(self.slot, index).pending_total())
    }

    /// Sends one batch of this worker's own; false if there was none.
    ///
    /// # Errors
    /// What Redis said; the batch is sent again by the next call.
    ///
    /// # Cancel safety
    /// The batch is sent again by the next call, here or by the one who has the journal then.
    pub async fn flush(&self, now_ms: u64) -> Result<bool, redis::RedisError> {
        let sealed = {
            let own = self.handle();
            own.journal.and_then(|index| Some((index, self.scoreboard.journal(self.slot, index).seal()?)))
        };
        let Some((index, batch)) = sealed else { return Ok(false) };
        let values = self.send(&self.journal_field(self.slot, index), &batch).await?;
        let mut own = self.handle();
        self.scoreboard.journal(self.slot, index).acknowledge(batch.sequence);
        for ((name, _), value) in batch.sums.iter().zip(values) {
            if let Some(value) = value {
                own.record(name, LastKnownValue { value, seq: batch.sequence, at_ms: now_ms });
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
    pub async fn flush_abandoned(&self) -> Result<(), redis::RedisError> {
        for (slot, index, journal) in self.scoreboard.journals() {
            let ours = slot == self.slot || self.scoreboard.has_no_worker(slot);
            let is_own = slot == self.slot && self.handle().journal == Some(index);
            if is_own || !ours || journal.oldest_ms().is_none() {
                continue;
            }
            if self.scoreboard.claim_journal(slot, index, self.owner) {
                let emptied = self.drain_journal(&self.journal_field(slot, index), journal).await;
                journal.release();
                emptied?;
                tracing::debug!(slot, "sent what an ended worker had not");
            }
        }
        Ok(())
    }

    async fn drain_journal(&self, place: &str, journal: CounterJournal<'_>) -> Result<(), redis::RedisError> {
        while let Some(batch) = journal.seal() {
            self.send(place, &batch).await?;
            journal.acknowledge(batch.sequence);
        }
        Ok(())
    }

    /// Gives the journal back; what is pending in it is someone else's to send. No addition is taken afterwards.
    pub fn release_journal(&self) {
        if let Some(index) = self.handle().journal.take() {
            self.scoreboard.journal(self.slot, index).release();
        }
    }

    /// Sends a batch; the values that the counters have now.
    async fn send(&self, place: &str, batch: &SealedBatch) -> Result<Vec<Option<i64>>, redis::RedisError> {
        let sums: Vec<_> =
            batch.sums.iter().map(|(name, by)| (keys::counter(&self.prefix, name), *by)).collect();
        let flush =
            FlushBatch { ledger: &self.ledger_key(), journal: place, seq: batch.sequence, sums: &sums };
        let flushed = self.redis.flush_counters(&flush).await?;
        self.worker_cell().count_batch();
        for ((name, by), value) in batch.sums.iter().zip(&flushed.values) {
            if value.is_none() {
                tracing::error!(counter = %name, by, "a counter would overflow or holds no number; additions are dropped");
                self.worker_cell().count_dropped(by.unsigned_abs());
            }
        }
        Ok(flushed.values)
    }

    fn ledger_key(&self) -> String {
        keys::counter_journals(&self.prefix, self.scoreboard.counter_epoch())
    }

    /// A journal's field in the ledger.
    fn journal_field(&self, slot: usize, index: usize) -> String {
        (slot * CELLS_PER_SLOT + index).to_string()
    }
}

impl JournalHandle {
    fn record(&mut self, name: &str, known: LastKnownValue) {
        if self.last_known.len() >= CACHED_VALUES_MAX && !self.last_known.contains_key(name) {
            self.last_known.clear();
        }
        // Two answers may overtake each other.
        let newer = self.last_known.get(name).is_none_or(|before| before.seq <= known.seq);
        if newer {
            self.last_known.insert(name.to_owned(), known);
        }
    }
}
