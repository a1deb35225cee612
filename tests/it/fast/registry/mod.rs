//! Heartbeats of instances.

pub(crate) mod heartbeats;
