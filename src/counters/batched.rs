//! Batched counters: increments gather in the worker's journal and go to Redis together, each exactly once.
//!
//! Guarantees that an accepted increment survives the worker, however it exits, and that a batch whose outcome is
//! unknown is repeated under its number until Redis replies. Only what is in memory is lost when a whole host fails,
//! or when the fleet stops while Redis is unavailable.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::counters::commands::FlushBatch;
use crate::counters::{CounterName, keys};
use crate::redis;
use crate::redis::RedisClient;
use crate::scoreboard::Scoreboard;
use crate::scoreboard::cell::{CELLS_PER_SLOT, WorkerCell};
use crate::scoreboard::journal::{CounterJournal, JournalError, JournalOwner, PendingIncrement, SealedBatch};

/// Time from a batch's first increment until it is sent: with the way to Redis, 50 ms at most.
pub const FLUSH_DELAY: Duration = Duration::from_millis(45);

/// How far a value that was just read may be behind what other workers and instances have accepted.
pub const BASE_STALENESS: Duration = Duration::from_millis(50);

/// Most values in the cache.
const CACHED_VALUES_MAX: usize = 1024;

/// Why an increment was not accepted; nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IncrementRejected {
    /// The journal is full: send it to Redis by itself.
    NoRoom,
    /// The sum would leave the range of 64-bit integers.
    Overflow,
}

/// A batched counter's value, with all increments that this worker has accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Approximate {
    /// The value.
    pub value: i64,
    /// How far it may be behind what other workers and instances have accepted.
    pub staleness: Duration,
}

/// The last value that Redis returned.
#[derive(Debug, Clone, Copy)]
struct LastKnownValue {
    value: i64,
    /// Number of this worker's last batch that it includes.
    seq: u64,
    at_ms: u64,
}

/// What only one thread at a time may use: a journal has one writer.
#[derive(Debug, Default)]
struct JournalHandle {
    /// Index of the journal in the slot; `None` while all of them have owners.
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
    /// Notified when a batch has its first increment.
    first_increment: Notify,
}

impl BatchedCounters {
    /// The counters of the worker in this cell; acquires a journal, with the increments that a dead worker left in
    /// it.
    pub fn new(
        scoreboard: Arc<Scoreboard>,
        redis: RedisClient,
        prefix: impl Into<Arc<str>>,
        slot: usize,
        cell: usize,
    ) -> Self {
        let owner = scoreboard.journal_owner(slot, cell);
        let counters = Self {
            scoreboard,
            redis,
            prefix: prefix.into(),
            slot,
            cell,
            owner,
            handle: Mutex::default(),
            first_increment: Notify::new(),
        };
        counters.acquire_journal();
        counters
    }

    /// Acquires a journal if there was none free before.
    pub fn acquire_journal(&self) {
        let mut handle = self.handle();
        if handle.journal.is_none() {
            // The journal of its own cell first: it is rarely in use.
            let mut order =
                std::iter::once(self.cell).chain((0..CELLS_PER_SLOT).filter(|index| *index != self.cell));
            handle.journal = order.find(|index| self.scoreboard.claim_journal(self.slot, *index, self.owner));
        }
    }

    fn handle(&self) -> MutexGuard<'_, JournalHandle> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn worker_cell(&self) -> WorkerCell<'_> {
        self.scoreboard.cell(self.slot, self.cell)
    }

    /// Accepts an increment; costs no call. `now_ms` is the monotonic clock.
    ///
    /// # Errors
    ///
    /// See [`IncrementRejected`].
    pub fn add(&self, name: &CounterName, by: i64, now_ms: u64) -> Result<(), IncrementRejected> {
        let handle = self.handle();
        let journal = handle.journal.ok_or(IncrementRejected::NoRoom)?;
        let first = self.scoreboard.journal(self.slot, journal).add(name.as_str(), by, now_ms);
        match first {
            Ok(true) => self.first_increment.notify_one(),
            Ok(false) => {}
            Err(JournalError::Full) => return Err(IncrementRejected::NoRoom),
            Err(JournalError::Overflow) => return Err(IncrementRejected::Overflow),
        }
        Ok(())
    }

    /// A counter's value without a call; `None` before Redis has returned one to this worker.
    pub fn cached(&self, name: &CounterName, now_ms: u64) -> Option<Approximate> {
        let handle = self.handle();
        let known = handle.last_known.get(name.as_str())?;
        let pending = handle.journal.map_or(0, |index| {
            self.scoreboard.journal(self.slot, index).pending(name.as_str()).pending_after(known.seq)
        });
        let age = Duration::from_millis(now_ms.saturating_sub(known.at_ms));
        Some(Approximate { value: known.value.saturating_add(pending), staleness: BASE_STALENESS + age })
    }

    /// A counter's value in Redis, with all increments that the workers of this instance have accepted.
    ///
    /// # Errors
    ///
    /// The error of Redis; [`BatchedCounters::cached`] may still have a value.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn value(&self, name: &CounterName, now_ms: u64) -> Result<Approximate, redis::RedisError> {
        let own_field = self.handle().journal.map(|index| self.journal_field(self.slot, index));
        // Before the call: an increment that is flushed meanwhile must not be missing in both.
        let pending: Vec<(String, PendingIncrement)> = self
            .scoreboard
            .journals()
            .map(|(slot, index, journal)| (self.journal_field(slot, index), journal.pending(name.as_str())))
            .filter(|(field, pending)| !pending.is_zero() || Some(field) == own_field.as_ref())
            .collect();
        let journals: Vec<String> = pending.iter().map(|(field, _)| field.clone()).collect();
        let key = keys::counter(&self.prefix, name.as_str());
        let (stored, last) = self.redis.read_batched(&self.ledger_key(), &key, &journals).await?;
        let unsent = pending.iter().zip(&last).map(|((_, pending), last)| pending.pending_after(*last));
        let value = unsent.fold(stored, i64::saturating_add);
        let seq = journals.iter().zip(&last).find(|(field, _)| Some(*field) == own_field.as_ref());
        if let Some((_, seq)) = seq {
            let known = LastKnownValue { value: stored, seq: *seq, at_ms: now_ms };
            self.handle().record(name.as_str(), known);
        }
        Ok(Approximate { value, staleness: BASE_STALENESS })
    }

    /// Returns when a batch has its first increment.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn first_increment(&self) {
        self.first_increment.notified().await;
    }

    /// Time of this worker's oldest pending increment, milliseconds of the monotonic clock.
    pub fn oldest_ms(&self) -> Option<u64> {
        let journal = self.handle().journal?;
        self.scoreboard.journal(self.slot, journal).oldest_ms()
    }

    /// The sum of this worker's pending increments.
    pub fn pending_total(&self) -> u64 {
        self.handle().journal.map_or(0, |index| self.scoreboard.journal(self.slot, index).pending_total())
    }

    /// Sends one batch of this worker; returns false if there was none.
    ///
    /// # Errors
    ///
    /// The error of Redis; the next call sends the batch again.
    ///
    /// # Cancel safety
    ///
    /// The batch is sent again by the next call, here or by the journal's next owner.
    pub async fn flush(&self, now_ms: u64) -> Result<bool, redis::RedisError> {
        let sealed = {
            let handle = self.handle();
            handle.journal.and_then(|index| Some((index, self.scoreboard.journal(self.slot, index).seal()?)))
        };
        let Some((index, batch)) = sealed else { return Ok(false) };
        let values = self.send(&self.journal_field(self.slot, index), &batch).await?;
        let mut handle = self.handle();
        self.scoreboard.journal(self.slot, index).acknowledge(batch.sequence);
        for ((name, _), value) in batch.sums.iter().zip(values) {
            if let Some(value) = value {
                handle.record(name, LastKnownValue { value, seq: batch.sequence, at_ms: now_ms });
            }
        }
        Ok(true)
    }

    /// Sends what dead workers of this slot left, and those of slots without a worker.
    ///
    /// # Errors
    ///
    /// The error of Redis; the next call continues.
    ///
    /// # Cancel safety
    ///
    /// A journal that was being drained belongs to this worker until it exits, and is drained by its successors.
    pub async fn flush_abandoned(&self) -> Result<(), redis::RedisError> {
        for (slot, index, journal) in self.scoreboard.journals() {
            let ours = slot == self.slot || self.scoreboard.has_no_worker(slot);
            let is_own = slot == self.slot && self.handle().journal == Some(index);
            if is_own || !ours || journal.oldest_ms().is_none() {
                continue;
            }
            if self.scoreboard.claim_journal(slot, index, self.owner) {
                let drained = self.drain_journal(&self.journal_field(slot, index), journal).await;
                journal.release();
                drained?;
                tracing::debug!(slot, "abandoned counter journal flushed");
            }
        }
        Ok(())
    }

    async fn drain_journal(&self, field: &str, journal: CounterJournal<'_>) -> Result<(), redis::RedisError> {
        while let Some(batch) = journal.seal() {
            self.send(field, &batch).await?;
            journal.acknowledge(batch.sequence);
        }
        Ok(())
    }

    /// Releases the journal; its next owner sends what is pending. No increment is accepted afterwards.
    pub fn release_journal(&self) {
        if let Some(index) = self.handle().journal.take() {
            self.scoreboard.journal(self.slot, index).release();
        }
    }

    /// Sends a batch; returns the counters' new values.
    async fn send(&self, field: &str, batch: &SealedBatch) -> Result<Vec<Option<i64>>, redis::RedisError> {
        let sums: Vec<_> =
            batch.sums.iter().map(|(name, by)| (keys::counter(&self.prefix, name), *by)).collect();
        let flush =
            FlushBatch { ledger: &self.ledger_key(), journal: field, seq: batch.sequence, sums: &sums };
        let flushed = self.redis.flush_counters(&flush).await?;
        self.worker_cell().count_batch();
        for ((name, by), value) in batch.sums.iter().zip(&flushed.values) {
            if value.is_none() {
                tracing::error!(counter = %name, by, "counter would overflow or holds no number; increments dropped");
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
        // Replies may overtake each other.
        let newer = self.last_known.get(name).is_none_or(|before| before.seq <= known.seq);
        if newer {
            self.last_known.insert(name.to_owned(), known);
        }
    }
}
