//! The slots: numbered places for workers, which own their listeners and outlive their workers.
//!
//! `plan` decides, purely, what happens next; `actions` carries it out and is the only place that forks and kills. A
//! slot's listeners stay open as long as the slot does, whichever workers come and go.

mod actions;
pub mod backoff;
mod exits;
pub mod plan;
mod scaling;
pub mod slot;
pub(in crate::supervisor) mod spawn;
pub(in crate::supervisor) mod status_pipe;
pub(in crate::supervisor) mod table;
