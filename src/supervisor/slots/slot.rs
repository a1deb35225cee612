//! One slot and its workers: plain data, on which the planner decides.

use std::time::Duration;

use crate::scoreboard::ExitReason;
use crate::scoreboard::cell::{CELLS_PER_SLOT, DrainOrder};
use crate::scoreboard::row::SlotState;
use crate::supervisor::slots::backoff::RestartBackoff;
use crate::supervisor::slots::plan::KillReason;
use crate::sys::process::Pid;

/// Where a worker stands. Times are on the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerPhase {
    /// Forked, not READY yet.
    Booting {
        /// When it is given up.
        deadline: Duration,
    },
    /// Serving.
    Ready {
        /// Since when.
        since: Duration,
    },
    /// Its loop does not turn: a spare serves beside it, and takes its place if it moves again.
    Hung {
        /// Since when it had served.
        since: Duration,
        /// When it is killed at the latest if the fleet stops meanwhile; none when hung workers are never killed.
        kill_at: Option<Duration>,
    },
    /// Ordered to drain.
    Draining {
        /// When it is killed if it has not left.
        kill_at: Duration,
        /// Why it leaves.
        reason: ExitReason,
        /// What it does with its slot.
        order: DrainOrder,
        /// Whether it was ordered to abort what it still has.
        #[serde(rename = "cut")]
        aborted: bool,
    },
    /// Sent SIGKILL; to be reaped.
    Killed {
        /// Why.
        cause: KillReason,
        /// When it is no longer waited for: one in uninterruptible sleep would keep a fleet from ending for ever.
        #[serde(rename = "forget_at")]
        give_up_at: Duration,
    },
}

/// A worker in its slot.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct WorkerHandle {
    /// Its process.
    #[serde(with = "crate::sys::process::pid_serde")]
    pub pid: Pid,
    /// Generation it belongs to.
    pub generation: u64,
    /// Its cell in the slot's row.
    pub cell: usize,
    /// Where it stands.
    #[serde(rename = "stage")]
    pub phase: WorkerPhase,
    /// When it was forked.
    pub started: Duration,
    /// Why it is to be replaced as soon as it is its turn.
    #[serde(rename = "retire")]
    pub replace_reason: Option<ExitReason>,
}

impl WorkerHandle {
    /// Whether it takes connections.
    pub fn is_ready(&self) -> bool {
        matches!(self.phase, WorkerPhase::Ready { .. })
    }

    /// Whether it was forked and is not READY yet.
    pub fn is_booting(&self) -> bool {
        matches!(self.phase, WorkerPhase::Booting { .. })
    }

    /// Whether its loop does not turn.
    pub fn is_hung(&self) -> bool {
        matches!(self.phase, WorkerPhase::Hung { .. })
    }

    /// Whether it was ordered to drain.
    pub fn is_draining(&self) -> bool {
        matches!(self.phase, WorkerPhase::Draining { .. })
    }

    /// Whether it was ordered to let its slot's queue run dry.
    pub fn is_retiring_slot(&self) -> bool {
        matches!(self.phase, WorkerPhase::Draining { order: DrainOrder::Retire, .. })
    }

    /// Its slot is opened again with another queue, with which it has nothing to do.
    pub fn cancel_slot_retirement(&mut self) {
        if let WorkerPhase::Draining { order, .. } = &mut self.phase
            && *order == DrainOrder::Retire
        {
            *order = DrainOrder::HandOver;
        }
    }
}

/// What becomes of a slot's listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotListening {
    /// They stay open, whichever workers come and go.
    Open,
    /// The slot retires: its queue runs dry, then they close.
    #[serde(rename = "closing")]
    Retiring,
    /// They are closed; workers may still finish what they have.
    #[serde(rename = "closed")]
    Retired,
}

/// A numbered place for workers; it outlives them.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Slot {
    /// The generation whose workers serve here.
    pub generation: u64,
    /// Every worker it has now, the oldest first.
    pub workers: Vec<WorkerHandle>,
    /// Early deaths in a row.
    pub backoff: RestartBackoff,
    /// When the next worker may be started, if it has to wait.
    #[serde(rename = "rest_until")]
    pub backoff_until: Option<Duration>,
    /// What becomes of its listeners.
    #[serde(rename = "seat")]
    pub listening: SlotListening,
    /// Whether a worker was ever READY here.
    #[serde(rename = "proven")]
    pub was_ready: bool,
}

impl Slot {
    /// A slot without a worker yet.
    pub fn new(generation: u64) -> Self {
        Self {
            generation,
            workers: Vec::new(),
            backoff: RestartBackoff::default(),
            backoff_until: None,
            listening: SlotListening::Open,
            was_ready: false,
        }
    }

    /// The worker with this process.
    pub fn worker_mut(&mut self, pid: Pid) -> Option<&mut WorkerHandle> {
        self.workers.iter_mut().find(|worker| worker.pid == pid)
    }

    /// Whether a worker takes connections here.
    pub fn is_serving(&self) -> bool {
        self.workers.iter().any(WorkerHandle::is_ready)
    }

    /// The newest READY worker that is not to be replaced.
    pub fn current_worker(&self) -> Option<&WorkerHandle> {
        let fresh = |worker: &&WorkerHandle| {
            worker.is_ready() && worker.replace_reason.is_none() && worker.generation == self.generation
        };
        self.workers.iter().rev().find(fresh)
    }

    /// A cell that no worker writes.
    pub fn free_cell(&self) -> Option<usize> {
        (0..CELLS_PER_SLOT).find(|cell| self.workers.iter().all(|worker| worker.cell != *cell))
    }

    /// Where the slot stands, and the cell of the worker that stands for it.
    pub fn scoreboard_state(&self) -> (SlotState, Option<usize>) {
        let newest =
            |predicate: fn(&WorkerHandle) -> bool| self.workers.iter().rev().find(|worker| predicate(worker));
        if let Some(worker) = self.current_worker().or_else(|| newest(WorkerHandle::is_ready)) {
            return (SlotState::Ready, Some(worker.cell));
        }
        if let Some(worker) = newest(WorkerHandle::is_booting) {
            return (SlotState::Booting, Some(worker.cell));
        }
        if let Some(worker) = newest(WorkerHandle::is_draining) {
            return (SlotState::Draining, Some(worker.cell));
        }
        if let Some(worker) = newest(WorkerHandle::is_hung) {
            return (SlotState::BackedOff, Some(worker.cell));
        }
        let state = if self.backoff_until.is_some() { SlotState::BackedOff } else { SlotState::Empty };
        (state, self.workers.last().map(|worker| worker.cell))
    }
}
