//! Background.

pub(in crate::worker) mod counter_flusher;
pub(in crate::worker) mod heartbeat;
pub(in crate::worker) mod log_writer;
pub(in crate::worker) mod redis_inspector;
pub(in crate::worker) mod registrar;
