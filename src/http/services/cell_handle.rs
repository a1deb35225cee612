//! Where a worker writes what it counts.

use std::sync::Arc;

use crate::scoreboard::Scoreboard;
use crate::scoreboard::cell::WorkerCell;

/// Redis is nearly full beyond this part of its memory, thousandths: the rest is for logins, for visitors who have a
/// session, and for the server's own buffers.
const REDIS_FULL_PERMILLE: u64 = 800;

/// The scoreboard and the worker's cell on it; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct CellHandle {
    pub(crate) scoreboard: Arc<Scoreboard>,
    slot: usize,
    cell: usize,
}

impl CellHandle {
    pub(super) fn new(scoreboard: &Arc<Scoreboard>, slot: usize, cell: usize) -> Self {
        Self { scoreboard: Arc::clone(scoreboard), slot, cell }
    }

    /// This worker's cell.
    pub(crate) fn cell(&self) -> WorkerCell<'_> {
        self.scoreboard.cell(self.slot, self.cell)
    }

    /// Whether so little of Redis's memory is left that visitors who are not logged in may not add to it.
    pub(crate) fn is_redis_full(&self) -> bool {
        self.scoreboard.redis_memory_permille() > REDIS_FULL_PERMILLE
    }
}
