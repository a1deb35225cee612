//! Figures of an instance, reported by its heartbeat: what the dashboard shows of instances on other machines.
//!
//! They travel with the next heartbeat and never cause one, because they change all the time.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// An instance at one moment; rates are those of the last seconds, totals those since its fleet's start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InstanceFigures {
    /// Requests answered per second; `None` while there is nothing to compare with.
    pub requests_per_s: Option<f64>,
    /// 99th percentile of the latency, microseconds.
    pub latency_p99_us: Option<u64>,
    /// Share of the time, 0 to 100, in which event loops were busy, averaged over its workers.
    pub busy_percent: Option<f64>,
    /// Requests being answered.
    pub in_flight: u64,
    /// Open connections.
    pub connections: u64,
    /// Memory of all workers that is not backed by files, bytes.
    pub memory_bytes: u64,
    /// Requests denied by a limit.
    #[serde(rename = "limited")]
    pub rate_limited: u64,
    /// Clients that are subscribed to broadcasts.
    pub subscribers: u64,
}

/// One slot of an instance.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SlotFigures {
    /// Requests answered per second.
    pub requests_per_s: Option<f64>,
    /// 99th percentile of the latency, microseconds.
    pub latency_p99_us: Option<u64>,
    /// Share of the time, 0 to 100, in which its event loop was busy.
    pub busy_percent: Option<f64>,
    /// Requests being answered.
    pub in_flight: u64,
    /// Memory of its worker that is not backed by files, bytes.
    pub memory_bytes: u64,
    /// Workers started in it.
    pub starts: u64,
    /// Its ended workers by reason; reasons that never occurred are missing.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[serde(rename = "ends")]
    pub exits: BTreeMap<String, u64>,
    /// Whether its worker is connected to Redis.
    pub redis_up: bool,
    /// Whether a breaker of its worker refuses calls.
    #[serde(rename = "redis_held_back")]
    pub redis_degraded: bool,
}
