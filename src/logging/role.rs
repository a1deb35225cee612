//! Which process of the fleet this one is, as its log lines name it.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

/// Slot of this process plus one; 0 is the supervisor. A process never changes its role, so one word is enough.
static ROLE: AtomicUsize = AtomicUsize::new(0);

/// From now on this process is the worker of `slot`.
pub(super) fn set_worker_slot(slot: usize) {
    ROLE.store(slot + 1, Relaxed);
}

/// The slot whose worker this process is.
pub(super) fn worker_slot() -> Option<usize> {
    ROLE.load(Relaxed).checked_sub(1)
}
