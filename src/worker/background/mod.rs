//! What a worker does beside requests: heartbeats, reports of the application's checks, registration, flushing counters,
//! inspecting Redis, writing the log.
//!
//! Each is one loop that ends with the worker; none of them may block the event loop or serve requests.

pub(in crate::worker) mod check_reporter;
pub(in crate::worker) mod counter_flusher;
pub(in crate::worker) mod heartbeat;
pub(in crate::worker) mod log_writer;
pub(in crate::worker) mod redis_inspector;
pub(in crate::worker) mod registrar;
