//! Counts lines of the log that were dropped.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};

use crate::logging::role::worker_slot;
use crate::scoreboard::Scoreboard;

/// Where dropped lines are counted, and those counted before it was known.
static SCOREBOARD: OnceLock<Arc<Scoreboard>> = OnceLock::new();
static UNCOUNTED: AtomicU64 = AtomicU64::new(0);

/// Counts in this scoreboard from now on, and what was dropped before; false if there was one already.
pub(super) fn count_in(scoreboard: &Arc<Scoreboard>) -> bool {
    let is_first = SCOREBOARD.set(Arc::clone(scoreboard)).is_ok();
    if is_first {
        count_dropped(UNCOUNTED.swap(0, Relaxed));
    }
    is_first
}

/// Where dropped lines are counted, once that is known.
pub(super) fn scoreboard() -> Option<&'static Arc<Scoreboard>> {
    SCOREBOARD.get()
}

/// So many lines were dropped.
pub(super) fn count_dropped(dropped: u64) {
    if dropped == 0 {
        return;
    }
    match (SCOREBOARD.get(), worker_slot()) {
        (None, _) => drop(UNCOUNTED.fetch_add(dropped, Relaxed)),
        (Some(scoreboard), None) => scoreboard.add_dropped_log_lines(dropped),
        (Some(scoreboard), Some(slot)) => scoreboard.row(slot).add_dropped_log_lines(dropped),
    }
}
