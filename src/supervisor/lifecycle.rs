//! Where a fleet stands between its start and its end, and what lasts as long as its supervisor.

use std::os::fd::OwnedFd;

use crate::supervisor::slots::plan::DesiredState;
use crate::sys::path;
use crate::sys::signal::SignalReader;
use crate::sys::startup::has_terminal;

/// From the start of a fleet to its end.
#[derive(Debug)]
pub(super) struct Lifecycle {
    pub(super) desired_state: DesiredState,
    /// Whether the fleet has announced that it serves.
    pub(super) announced: bool,
    pub(super) signals: SignalReader,
    /// Whether this process was started on a terminal, which may be closed under it.
    pub(super) had_terminal: bool,
    /// Read end, inherited by every worker.
    pub(super) lifeline: OwnedFd,
    /// Write end: it closes when this process ends, whichever way, and every worker sees that.
    pub(super) lifeline_write: OwnedFd,
    /// The working folder, to come back to it.
    pub(super) working_dir: Option<OwnedFd>,
}

impl Lifecycle {
    /// At the start; `lifeline`: the ends of a pipe.
    pub(super) fn new(signals: SignalReader, lifeline: (OwnedFd, OwnedFd)) -> Self {
        Self {
            desired_state: DesiredState::Running,
            announced: false,
            signals,
            had_terminal: has_terminal(),
            lifeline: lifeline.0,
            lifeline_write: lifeline.1,
            working_dir: path::open_working_folder().ok(),
        }
    }
}
