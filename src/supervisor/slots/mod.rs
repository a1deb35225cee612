//! Slots.

pub(in crate::supervisor) mod actions;
pub mod backoff;
pub(in crate::supervisor) mod exits;
pub mod plan;
pub(in crate::supervisor) mod scaling;
pub mod slot;
pub(in crate::supervisor) mod spawn;
