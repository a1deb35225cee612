//! The slots: numbered places for workers, which own their listeners and outlive their workers.
//!
//! `plan` decides, purely, what happens next; `actions` carries it out and is the only place that forks and kills. A
//! slot's listeners stay open as long as the slot does, whichever workers come and go.

mod actions;
pub(in crate::supervisor) mod addresses_change;
pub mod backoff;
mod exits;
pub mod plan;
pub mod slot;
pub(in crate::supervisor) mod spawn;
pub(in crate::supervisor) mod status_pipe;
pub(in crate::supervisor) mod table;

use crate::sys::process::Pid;
use crate::sys::signal;
use crate::sys::signal::Signal;

/// Sends a signal to a child; a failure is logged.
pub(in crate::supervisor) fn send_signal(pid: Pid, signal: Signal) {
    if let Err(error) = signal::send(pid, signal) {
        tracing::error!(pid = pid.as_raw(), signal = %signal, %error, "cannot signal a worker");
    }
}
