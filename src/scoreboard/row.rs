//! One slot's row of atomics; only plain snapshots of it leave the room.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::scoreboard::cell::{CELL_WORDS, CELLS_PER_SLOT, WorkerCell};
use crate::scoreboard::exit_reason::ExitReason;
use crate::scoreboard::latency;
use crate::scoreboard::refusal_reason::{ConnectionCloseReason, RefusalReason};
use crate::scoreboard::snapshot::SlotSnapshot;

/// Words of a row: whole cache lines, so that two slots never share a cache line.
pub(super) const ROW_WORDS: usize = TOTALS + CELLS_PER_SLOT * CELL_WORDS;

/// Words of a row before its cells.
const TOTALS: usize = 160;

const STATE: usize = 0;
/// Number of the cell whose worker is the slot's, from 1; 0 when there is none.
const ACTIVE_CELL: usize = 1;
pub(super) const STARTS: usize = 2;
const CRASHES: usize = 3;
/// Number of the last reason, from 1; 0 before the first.
const LAST_EXIT_REASON: usize = 4;
pub(super) const ACCEPTED: usize = 5;
pub(super) const BYTES: usize = 6;
pub(super) const LATENCY_SUM_US: usize = 7;
pub(super) const VIEWS: usize = 8;
pub(super) const RATE_LIMITED: usize = 9;
pub(super) const UNAVAILABLE: usize = 10;
pub(super) const ABORTED: usize = 11;
pub(super) const STATUS: usize = 12;
const EXITS: usize = 18;
pub(super) const LATENCY: usize = 32;
pub(super) const BUSY_US: usize = 118;
pub(super) const CPU_US: usize = 119;
pub(super) const COUNTER_BATCHES: usize = 120;
pub(super) const DROPPED_INCREMENTS: usize = 121;
pub(super) const DENIED_FROM_CACHE: usize = 122;
pub(super) const READ_BREAKER_OPENS: usize = 123;
pub(super) const WRITE_BREAKER_OPENS: usize = 124;
pub(super) const STALE: usize = 125;
pub(super) const CORRUPT_SESSIONS: usize = 126;
pub(super) const FAILED_COMMITS: usize = 127;
pub(super) const SHADOW_DENIALS: usize = 128;
pub(super) const LOCAL_DECISIONS: usize = 129;
/// What broadcasts did, in the order of [`SlotSnapshot::broadcasts`].
pub(super) const BROADCASTS: usize = 130;
/// Lines of the log that were dropped.
const LOG_DROPPED: usize = 136;
/// What absences of Redis cost, in the order of [`SlotSnapshot::redis_absences`].
pub(super) const ABSENCES: usize = 137;
/// Connections taken over from workers of other slots.
pub(super) const TRANSFERRED: usize = 139;
/// Whether new connections are kept off the slot.
const AVOIDED: usize = 140;
/// Requests refused, in the order of [`Refusal::ALL`].
pub(super) const REFUSED: usize = 144;
/// Connections closed, in the order of [`Closing::ALL`].
pub(super) const CLOSED: usize = 152;

const _: () = assert!(EXITS + ExitReason::ALL.len() <= LATENCY, "a row has room for the reasons");
const _: () = assert!(LATENCY + latency::BUCKETS <= BUSY_US, "a row has room for the histogram");
const _: () = assert!(
    BROADCASTS + 5 <= LOG_DROPPED
        && LOG_DROPPED < ABSENCES
        && ABSENCES + 2 <= TRANSFERRED
        && AVOIDED < REFUSED,
    "a row has room for its totals"
);
const _: () = assert!(REFUSED + RefusalReason::ALL.len() <= CLOSED, "a row has room for the refusals");
const _: () =
    assert!(CLOSED + ConnectionCloseReason::ALL.len() <= TOTALS, "a row has room for the closed connections");

/// Where a slot stands, as the supervisor sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u64)]
pub enum SlotState {
    /// No worker, and none wanted.
    Empty = 0,
    /// A worker was forked and is not READY yet.
    Booting = 1,
    /// A worker serves.
    Ready = 2,
    /// Its worker takes no new connections and finishes what it has.
    Draining = 3,
    /// The last worker died early; the next one waits for its delay.
    BackedOff = 4,
}

impl SlotState {
    fn from_word(word: u64) -> Self {
        match word {
            1 => Self::Booting,
            2 => Self::Ready,
            3 => Self::Draining,
            4 => Self::BackedOff,
            _ => Self::Empty,
        }
    }

    /// The state's name, as logs and metrics spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Booting => "booting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::BackedOff => "backed_off",
        }
    }
}

/// A slot's row.
#[derive(Debug, Clone, Copy)]
pub struct SlotRow<'a> {
    words: &'a [AtomicU64],
}

impl<'a> SlotRow<'a> {
    pub(super) fn new(words: &'a [AtomicU64]) -> Self {
        Self { words }
    }

    fn set(self, word: usize, value: u64) {
        self.words[word].store(value, Relaxed);
    }

    fn read(self, word: usize) -> u64 {
        self.words[word].load(Relaxed)
    }

    fn add(self, word: usize, by: u64) {
        self.words[word].fetch_add(by, Relaxed);
    }

    /// One of the row's cells.
    ///
    /// # Panics
    /// When there is no such cell; there are [`CELLS`].
    pub fn cell(self, cell: usize) -> WorkerCell<'a> {
        assert!(cell < CELLS_PER_SLOT, "cell {cell} is outside a row of {CELLS_PER_SLOT}");
        let start = TOTALS + cell * CELL_WORDS;
        WorkerCell::new(&self.words[..TOTALS], &self.words[start..start + CELL_WORDS])
    }

    /// Where the slot stands and whose cell stands for it. Written by the supervisor at each change.
    pub fn set_state(self, state: SlotState, active_cell: Option<usize>) {
        self.set(ACTIVE_CELL, active_cell.map_or(0, |cell| cell as u64 + 1));
        self.set(STATE, state as u64);
    }

    /// Whether new connections are kept off the slot. Written by the supervisor, which steers them.
    pub fn set_avoided(self, avoided: bool) {
        self.set(AVOIDED, u64::from(avoided));
    }

    pub(super) fn is_avoided(self) -> bool {
        self.read(AVOIDED) != 0
    }

    /// The number of the cell whose worker is the slot's.
    pub(super) fn active_cell(self) -> Option<usize> {
        let number = usize::try_from(self.read(ACTIVE_CELL)).ok()?.checked_sub(1)?;
        (number < CELLS_PER_SLOT).then_some(number)
    }

    /// Where the slot stands.
    pub fn state(self) -> SlotState {
        SlotState::from_word(self.read(STATE))
    }

    /// Connections accepted by all its workers.
    pub fn accepted(self) -> u64 {
        self.read(ACCEPTED)
    }

    /// A worker of the slot dropped lines of its log.
    pub fn add_dropped_log_lines(self, lines: u64) {
        self.add(LOG_DROPPED, lines);
    }

    /// Counts a worker's end. Written by the supervisor.
    pub fn record_exit(self, reason: ExitReason) {
        self.add(EXITS + reason as usize, 1);
        self.set(LAST_EXIT_REASON, reason as u64 + 1);
        if reason.is_failure() {
            self.add(CRASHES, 1);
        }
    }

    /// Whether a worker ever sat here.
    pub(super) fn was_used(self) -> bool {
        self.read(STARTS) > 0
    }

    /// A plain copy.
    pub fn snapshot(self, slot: usize) -> SlotSnapshot {
        let cells: Vec<_> = (0..CELLS_PER_SLOT).map(|cell| self.cell(cell).snapshot()).collect();
        let active_worker = self.active_cell().and_then(|cell| cells.get(cell).cloned().flatten());
        let mut workers: Vec<_> = cells.into_iter().flatten().collect();
        workers.sort_by_key(|worker| (worker.started_ms, worker.pid));
        SlotSnapshot {
            slot,
            state: self.state(),
            active_worker,
            workers,
            starts: self.read(STARTS),
            crashes: self.read(CRASHES),
            exits: std::array::from_fn(|reason| self.read(EXITS + reason)),
            last_exit_reason: self.read(LAST_EXIT_REASON).checked_sub(1).and_then(ExitReason::from_word),
            accepted: self.read(ACCEPTED),
            transferred: self.read(TRANSFERRED),
            aborted_connections: self.read(ABORTED),
            bytes: self.read(BYTES),
            views: self.read(VIEWS),
            rate_limited: self.read(RATE_LIMITED),
            denied_from_cache: self.read(DENIED_FROM_CACHE),
            shadow_denials: self.read(SHADOW_DENIALS),
            local_decisions: self.read(LOCAL_DECISIONS),
            unavailable: self.read(UNAVAILABLE),
            stale: self.read(STALE),
            breaker_opens: [READ_BREAKER_OPENS, WRITE_BREAKER_OPENS].map(|word| self.read(word)),
            broadcast_totals: std::array::from_fn(|index| self.read(BROADCASTS + index)),
            refused: std::array::from_fn(|reason| self.read(REFUSED + reason)),
            closed: std::array::from_fn(|reason| self.read(CLOSED + reason)),
            redis_absences: std::array::from_fn(|index| self.read(ABSENCES + index)),
            corrupt_sessions: self.read(CORRUPT_SESSIONS),
            log_lines_dropped: self.read(LOG_DROPPED),
            failed_commits: self.read(FAILED_COMMITS),
            responses: std::array::from_fn(|class| self.read(STATUS + class)),
            busy_us: self.read(BUSY_US),
            cpu_us: self.read(CPU_US),
            counter_batches: self.read(COUNTER_BATCHES),
            dropped_increments: self.read(DROPPED_INCREMENTS),
            pending_increments: 0,
            pending_since_ms: None,
            latency_sum_us: self.read(LATENCY_SUM_US),
            latency: std::array::from_fn(|bucket| self.read(LATENCY + bucket)),
        }
    }
}
