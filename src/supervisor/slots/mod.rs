//! The slots: numbered places for workers, which own their listeners and outlive their workers.
//!
//! `plan` decides, purely, what happens next; `actions`, `exits` and `health` are what becomes of a slot by the plan, by
//! its workers' words and ends, and by what the monitor finds. They start and signal no process: they return what is to
//! be done. A slot's listeners stay open as long as the slot does, whichever workers come and go.

mod actions;
pub(in crate::supervisor) mod addresses_change;
pub mod backoff;
pub(in crate::supervisor) mod checks;
pub(in crate::supervisor) mod context;
pub(in crate::supervisor) mod exits;
mod health;
pub mod plan;
pub mod slot;
pub(in crate::supervisor) mod spawn;
pub(in crate::supervisor) mod status_pipe;
pub(in crate::supervisor) mod table;
#[cfg(test)]
mod tests;

use crate::sys::process::Pid;
use crate::sys::signal;
use crate::sys::signal::Signal;

/// Sends a signal to a child; a failure is logged.
pub(in crate::supervisor) fn send_signal(pid: Pid, signal: Signal) {
    if let Err(error) = signal::send(pid, signal) {
        tracing::error!(pid = pid.as_raw(), signal = %signal, %error, "cannot signal a worker");
    }
}
