//! How a machine fares, as its heartbeat tells it: what an operator's page shows of machines it does not run on.
//!
//! It travels with the next heartbeat and never causes one: figures change all the time.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A whole machine at one moment; rates are those of the last seconds, totals those since its fleet's start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InstanceFigures {
    /// Requests answered per second; none while there is nothing to compare with.
    pub requests_per_s: Option<f64>,
    /// 99 of a hundred took less, microseconds.
    pub latency_p99_us: Option<u64>,
    /// Share of the time, 0 to 100, in which event loops were at work, on average of its workers.
    pub busy_percent: Option<f64>,
    /// Requests being answered.
    pub in_flight: u64,
    /// Open connections.
    pub connections: u64,
    /// Memory of all workers that no file backs, bytes.
    pub memory_bytes: u64,
    /// Requests denied by a limit.
    #[serde(rename = "limited")]
    pub rate_limited: u64,
    /// Clients that are subscribed to broadcasts.
    pub subscribers: u64,
}

/// One slot of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SlotFigures {
    /// Requests answered per second.
    pub requests_per_s: Option<f64>,
    /// 99 of a hundred took less, microseconds.
    pub latency_p99_us: Option<u64>,
    /// Share of the time, 0 to 100, in which its event loop was at work.
    pub busy_percent: Option<f64>,
    /// Requests being answered.
    pub in_flight: u64,
    /// Memory of its workers that no file backs, bytes.
    pub memory_bytes: u64,
    /// Workers started in it.
    pub starts: u64,
    /// Its ended workers by reason; reasons that never came are missing.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[serde(rename = "ends")]
    pub exits: BTreeMap<String, u64>,
    /// Whether its worker has Redis.
    pub redis_up: bool,
    /// Whether it asks everything of it.
    #[serde(rename = "redis_held_back")]
    pub redis_degraded: bool,
}
