//! One slot's row: totals that outlive its workers; only plain snapshots of it leave the room.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::scoreboard::cell::WorkerCell;
use crate::scoreboard::exit_reason::ExitReason;
use crate::scoreboard::layout::{CELLS_PER_SLOT, RowLayout};
pub use crate::scoreboard::slot_state::SlotState;
use crate::scoreboard::snapshot::SlotSnapshot;

/// A slot's row.
#[derive(Debug, Clone, Copy)]
pub struct SlotRow<'a> {
    row: &'a RowLayout,
}

impl<'a> SlotRow<'a> {
    pub(super) fn new(row: &'a RowLayout) -> Self {
        Self { row }
    }

    /// One of the row's cells.
    ///
    /// # Panics
    /// When there is no such cell; there are [`CELLS_PER_SLOT`].
    pub fn cell(self, cell: usize) -> WorkerCell<'a> {
        assert!(cell < CELLS_PER_SLOT, "cell {cell} is outside a row of {CELLS_PER_SLOT}");
        WorkerCell::new(self.row, &self.row.cells[cell])
    }

    /// The slot's state, and the cell of the worker that serves it. Written by the supervisor at each change.
    pub fn set_state(self, state: SlotState, active_cell: Option<usize>) {
        self.row.active_cell.store(active_cell.map_or(0, |cell| cell as u64 + 1), Relaxed);
        self.row.state.store(state as u64, Relaxed);
    }

    /// Whether new connections are kept off the slot. Written by the supervisor, which steers them.
    pub fn set_avoided(self, avoided: bool) {
        self.row.avoided.store(u64::from(avoided), Relaxed);
    }

    pub(super) fn is_avoided(self) -> bool {
        self.row.avoided.load(Relaxed) != 0
    }

    /// The number of the cell whose worker is the slot's.
    pub(super) fn active_cell(self) -> Option<usize> {
        let number = usize::try_from(self.row.active_cell.load(Relaxed)).ok()?.checked_sub(1)?;
        (number < CELLS_PER_SLOT).then_some(number)
    }

    /// The slot's state.
    pub fn state(self) -> SlotState {
        SlotState::from_word(self.row.state.load(Relaxed))
    }

    /// Connections accepted by all its workers.
    pub fn accepted(self) -> u64 {
        self.row.accepted.load(Relaxed)
    }

    /// Counts lines of the log that a worker of the slot dropped.
    pub fn add_dropped_log_lines(self, lines: u64) {
        self.row.log_lines_dropped.fetch_add(lines, Relaxed);
    }

    /// Counts a worker's end. Written by the supervisor.
    pub fn record_exit(self, reason: ExitReason) {
        self.row.exits[reason as usize].fetch_add(1, Relaxed);
        self.row.last_exit_reason.store(reason as u64 + 1, Relaxed);
        if reason.is_failure() {
            self.row.crashes.fetch_add(1, Relaxed);
        }
    }

    /// Whether the slot ever had a worker.
    pub(super) fn was_used(self) -> bool {
        self.row.starts.load(Relaxed) > 0
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
            starts: self.row.starts.load(Relaxed),
            crashes: self.row.crashes.load(Relaxed),
            exits: load_each(&self.row.exits),
            last_exit_reason: self
                .row
                .last_exit_reason
                .load(Relaxed)
                .checked_sub(1)
                .and_then(ExitReason::from_word),
            accepted: self.row.accepted.load(Relaxed),
            transferred: self.row.transferred.load(Relaxed),
            aborted_connections: self.row.aborted_connections.load(Relaxed),
            bytes: self.row.bytes.load(Relaxed),
            views: self.row.views.load(Relaxed),
            rate_limited: self.row.rate_limited.load(Relaxed),
            denied_from_cache: self.row.denied_from_cache.load(Relaxed),
            shadow_denials: self.row.shadow_denials.load(Relaxed),
            local_decisions: self.row.local_decisions.load(Relaxed),
            unavailable: self.row.unavailable.load(Relaxed),
            stale: self.row.stale.load(Relaxed),
            breaker_opens: load_each(&self.row.breaker_opens),
            broadcast_totals: load_each(&self.row.broadcast_totals),
            refused: load_each(&self.row.refused),
            closed: load_each(&self.row.closed),
            redis_absences: load_each(&self.row.redis_absences),
            corrupt_sessions: self.row.corrupt_sessions.load(Relaxed),
            log_lines_dropped: self.row.log_lines_dropped.load(Relaxed),
            failed_commits: self.row.failed_commits.load(Relaxed),
            responses: load_each(&self.row.responses),
            busy_us: self.row.busy_us.load(Relaxed),
            cpu_us: self.row.cpu_us.load(Relaxed),
            counter_batches: self.row.counter_batches.load(Relaxed),
            dropped_increments: self.row.dropped_increments.load(Relaxed),
            pending_increments: 0,
            pending_since_ms: None,
            latency_sum_us: self.row.latency_sum_us.load(Relaxed),
            latency: load_each(&self.row.latency),
        }
    }
}

/// The first words of a counter array; the snapshot leaves out those that are reserved.
fn load_each<const N: usize>(words: &[AtomicU64]) -> [u64; N] {
    std::array::from_fn(|index| words[index].load(Relaxed))
}
