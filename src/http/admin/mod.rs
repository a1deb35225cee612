//! The operators' routes: probes, metrics, and the status of the fleet as JSON.
//!
//! Guarantees that any worker answers with the same totals, and that answering needs nothing of Redis. It must not know
//! the application, its sessions and its limits: it answers when all of those are overloaded.

pub(super) mod fleet_json;
mod metric_encoding;
pub(super) mod metrics;
pub(super) mod peer;
pub(super) mod probes;
mod task_metrics;
mod text_format;
