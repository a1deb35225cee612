//! The operators' routes: probes, metrics, and the fleet as JSON.

pub(super) mod fleet_json;
pub(super) mod metrics;
pub(super) mod probes;
mod task_metrics;
