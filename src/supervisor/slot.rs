//! One seat for a worker, as the supervisor sees it.

use std::fs::File;
use std::time::Duration;

use crate::listener::SlotListeners;
use crate::supervisor::backoff::Backoff;
use crate::supervisor::plan::Cause;
use crate::sys::proc::Pid;

/// Where a slot stands. Times are on the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifecycle {
    /// No worker; the next one is wanted at once if the fleet serves.
    Empty,
    /// No worker; the next one waits.
    BackedOff {
        /// Until then.
        until: Duration,
    },
    /// Forked, not READY yet.
    Booting {
        /// The worker.
        pid: Pid,
        /// When it is given up.
        deadline: Duration,
    },
    /// Serving.
    Ready {
        /// The worker.
        pid: Pid,
        /// Since when.
        since: Duration,
    },
    /// Asked to leave.
    Draining {
        /// The worker.
        pid: Pid,
        /// When it is killed if it has not left.
        kill_at: Duration,
    },
    /// Sent SIGKILL; to be reaped.
    Killed {
        /// The worker.
        pid: Pid,
        /// Why.
        cause: Cause,
        /// When it is no longer waited for: one in uninterruptible sleep would keep a fleet from ending for ever.
        forget_at: Duration,
    },
}

impl Lifecycle {
    /// The slot's worker, if it has one.
    pub fn pid(self) -> Option<Pid> {
        match self {
            Self::Empty | Self::BackedOff { .. } => None,
            Self::Booting { pid, .. } | Self::Ready { pid, .. } => Some(pid),
            Self::Draining { pid, .. } | Self::Killed { pid, .. } => Some(pid),
        }
    }
}

/// A seat: it survives its workers and owns their listeners.
#[derive(Debug)]
pub struct Slot {
    /// The listeners of whoever sits here; open as long as the slot is.
    pub listeners: SlotListeners,
    /// Where it stands.
    pub lifecycle: Lifecycle,
    /// Early deaths in a row.
    pub backoff: Backoff,
    /// What the current worker has to say, and what it said so far.
    pub report: Option<Report>,
}

impl Slot {
    /// A slot without a worker yet.
    pub fn new(listeners: SlotListeners) -> Self {
        Self { listeners, lifecycle: Lifecycle::Empty, backoff: Backoff::default(), report: None }
    }
}

/// The pipe on which a worker says READY, or why it will not be.
#[derive(Debug)]
pub struct Report {
    /// Read end; none when the worker has closed its own.
    pub pipe: Option<File>,
    /// What came so far, bounded.
    pub text: String,
}
