//! This machine's workers and totals at one moment.

use crate::scoreboard::cell::CellState;
use crate::scoreboard::row::SlotState;
use crate::scoreboard::snapshot::{ScoreboardSnapshot, SlotSnapshot as SlotRow};

/// This machine's workers and totals at one moment, read from shared memory.
///
/// ```
/// use regatta::FleetHandle;
///
/// async fn workers(fleet: FleetHandle) -> String {
///     let snapshot = fleet.snapshot();
///     let lines = snapshot.workers().map(|slot| format!("{}: {} requests\n", slot.slot(), slot.requests()));
///     lines.chain([format!("{} in all\n", snapshot.requests())]).collect()
/// }
/// # let _: axum::Router = axum::Router::new().route("/", axum::routing::get(workers));
/// ```
#[derive(Debug, Clone)]
pub struct FleetSnapshot {
    slots: Vec<SlotSnapshot>,
    requests: u64,
}

/// One slot and the worker in it.
///
/// ```
/// use regatta::SlotSnapshot;
///
/// fn line(slot: &SlotSnapshot) -> String {
///     let pid = slot.pid().map_or("-".to_owned(), |pid| pid.to_string());
///     let (state, requests) = (slot.state().name(), slot.requests());
///     let now = format!("{} in flight, {} connections", slot.in_flight(), slot.connections());
///     format!("{} {pid} {state} {requests} {now} {} bytes", slot.slot(), slot.memory_bytes())
/// }
/// # let _ = line;
/// ```
#[derive(Debug, Clone)]
pub struct SlotSnapshot(SlotRow);

/// Where a slot's worker stands.
///
/// ```
/// use regatta::{SlotSnapshot, WorkerState};
///
/// fn serves(slot: &SlotSnapshot) -> bool {
///     slot.state() == WorkerState::Ready
/// }
/// # let _ = serves;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WorkerState {
    /// It was forked and is not ready yet.
    Booting,
    /// It serves.
    Ready,
    /// It takes no new connections and finishes what it has.
    Draining,
    /// Its event loop does not turn; a spare worker serves its slot beside it.
    Hung,
    /// The last worker died early, and the next one waits for its delay.
    BackedOff,
}

impl WorkerState {
    /// Its name, as logs and metrics spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Booting => "booting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Hung => "hung",
            Self::BackedOff => "backed_off",
        }
    }
}

impl FleetSnapshot {
    pub(super) fn new(scoreboard: ScoreboardSnapshot) -> Self {
        let requests = scoreboard.requests();
        let in_use = |slot: &SlotRow| slot.active_worker.is_some() || slot.state != SlotState::Empty;
        let slots = scoreboard.slots.into_iter().filter(in_use).map(SlotSnapshot).collect();
        Self { slots, requests }
    }

    /// The slots in use, by number, each with its worker.
    pub fn workers(&self) -> impl Iterator<Item = &SlotSnapshot> {
        self.slots.iter()
    }

    /// Requests answered by all workers there ever were.
    pub fn requests(&self) -> u64 {
        self.requests
    }
}

impl SlotSnapshot {
    /// The slot's number, from 0.
    pub fn slot(&self) -> usize {
        self.0.slot
    }

    /// The process of its worker; `None` while there is none.
    pub fn pid(&self) -> Option<u32> {
        Some(self.0.pid()).filter(|pid| *pid > 0)
    }

    /// Where its worker stands.
    pub fn state(&self) -> WorkerState {
        if self.0.active_worker.as_ref().is_some_and(|worker| worker.state == CellState::Hung) {
            return WorkerState::Hung;
        }
        match self.0.state {
            SlotState::Booting | SlotState::Empty => WorkerState::Booting,
            SlotState::Ready => WorkerState::Ready,
            SlotState::Draining => WorkerState::Draining,
            SlotState::BackedOff => WorkerState::BackedOff,
        }
    }

    /// Requests answered by all workers it ever had.
    pub fn requests(&self) -> u64 {
        self.0.requests()
    }

    /// Requests being answered.
    pub fn in_flight(&self) -> u64 {
        self.0.sum(|worker| worker.in_flight)
    }

    /// Open connections.
    pub fn connections(&self) -> u64 {
        self.0.sum(|worker| worker.connections)
    }

    /// Memory that no file backs, bytes, at the last heartbeat.
    pub fn memory_bytes(&self) -> u64 {
        self.0.sum(|worker| worker.memory_bytes)
    }
}
