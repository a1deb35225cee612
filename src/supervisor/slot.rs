//! One seat for workers, as the supervisor sees it: plain data, which the planner decides on.

use std::time::Duration;

use crate::scoreboard::Reason;
use crate::scoreboard::cell::CELLS;
use crate::scoreboard::cell::Order;
use crate::scoreboard::row::SlotState;
use crate::supervisor::backoff::Backoff;
use crate::supervisor::plan::Cause;
use crate::sys::proc::Pid;

/// Where a worker stands. Times are on the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
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
    /// Asked to leave.
    Draining {
        /// When it is killed if it has not left.
        kill_at: Duration,
        /// Why it leaves.
        reason: Reason,
        /// What it does with its seat.
        order: Order,
        /// Whether it was told to cut what it still has.
        cut: bool,
    },
    /// Sent SIGKILL; to be reaped.
    Killed {
        /// Why.
        cause: Cause,
        /// When it is no longer waited for: one in uninterruptible sleep would keep a fleet from ending for ever.
        forget_at: Duration,
    },
}

/// A worker in its slot.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Occupant {
    /// Its process.
    #[serde(with = "crate::sys::proc::number")]
    pub pid: Pid,
    /// Generation it belongs to.
    pub generation: u64,
    /// Its cell in the slot's row.
    pub cell: usize,
    /// Where it stands.
    pub stage: Stage,
    /// When it was forked.
    pub started: Duration,
    /// Why it is to be replaced as soon as it is its turn.
    pub retire: Option<Reason>,
}

impl Occupant {
    /// Whether it takes connections.
    pub fn is_ready(&self) -> bool {
        matches!(self.stage, Stage::Ready { .. })
    }

    /// Whether it was forked and is not READY yet.
    pub fn is_booting(&self) -> bool {
        matches!(self.stage, Stage::Booting { .. })
    }

    /// Whether its loop does not turn.
    pub fn is_hung(&self) -> bool {
        matches!(self.stage, Stage::Hung { .. })
    }

    /// Whether it was asked to leave.
    pub fn is_draining(&self) -> bool {
        matches!(self.stage, Stage::Draining { .. })
    }

    /// Whether it was told to let its slot's queue run dry.
    pub fn is_closing(&self) -> bool {
        matches!(self.stage, Stage::Draining { order: Order::Close, .. })
    }

    /// Its slot is opened again with another queue, with which it has nothing to do.
    pub fn passes(&mut self) {
        if let Stage::Draining { order, .. } = &mut self.stage
            && *order == Order::Close
        {
            *order = Order::Pass;
        }
    }
}

/// What becomes of a slot's listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seat {
    /// They stay open, whoever sits here.
    Open,
    /// The slot retires: its queue runs dry, then they close.
    Closing,
    /// They are closed; workers may still finish what they have.
    Closed,
}

/// A seat: it survives its workers.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Slot {
    /// The generation whose workers serve here.
    pub generation: u64,
    /// Every worker it has now, the oldest first.
    pub workers: Vec<Occupant>,
    /// Early deaths in a row.
    pub backoff: Backoff,
    /// When the next worker may be started, if it has to wait.
    pub rest_until: Option<Duration>,
    /// What becomes of its listeners.
    pub seat: Seat,
    /// Whether a worker was ever READY here.
    pub proven: bool,
}

impl Slot {
    /// A slot without a worker yet.
    pub fn new(generation: u64) -> Self {
        Self {
            generation,
            workers: Vec::new(),
            backoff: Backoff::default(),
            rest_until: None,
            seat: Seat::Open,
            proven: false,
        }
    }

    /// The worker with this process.
    pub fn worker(&mut self, pid: Pid) -> Option<&mut Occupant> {
        self.workers.iter_mut().find(|worker| worker.pid == pid)
    }

    /// Whether a worker takes connections here.
    pub fn serves(&self) -> bool {
        self.workers.iter().any(Occupant::is_ready)
    }

    /// A READY worker that nobody wants to replace, the newest.
    pub fn fresh(&self) -> Option<&Occupant> {
        let fresh = |worker: &&Occupant| {
            worker.is_ready() && worker.retire.is_none() && worker.generation == self.generation
        };
        self.workers.iter().rev().find(fresh)
    }

    /// A cell that no worker writes.
    pub fn free_cell(&self) -> Option<usize> {
        (0..CELLS).find(|cell| self.workers.iter().all(|worker| worker.cell != *cell))
    }

    /// Where the slot stands, and the cell of the worker that stands for it.
    pub fn summary(&self) -> (SlotState, Option<usize>) {
        let newest = |wanted: fn(&Occupant) -> bool| self.workers.iter().rev().find(|worker| wanted(worker));
        if let Some(worker) = self.fresh().or_else(|| newest(Occupant::is_ready)) {
            return (SlotState::Ready, Some(worker.cell));
        }
        if let Some(worker) = newest(Occupant::is_booting) {
            return (SlotState::Booting, Some(worker.cell));
        }
        if let Some(worker) = newest(Occupant::is_draining) {
            return (SlotState::Draining, Some(worker.cell));
        }
        if let Some(worker) = newest(Occupant::is_hung) {
            return (SlotState::BackedOff, Some(worker.cell));
        }
        let state = if self.rest_until.is_some() { SlotState::BackedOff } else { SlotState::Empty };
        (state, self.workers.last().map(|worker| worker.cell))
    }
}
