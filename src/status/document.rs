//! The whole fleet at one moment, as `status` shows it and scripts read it: versioned JSON.
//!
//! Fields are added under the same version; [`VERSION`] changes when one is removed or means something else. A reader
//! must therefore bear fields it does not know. Totals never go back over crash, reload or upgrade; gauges and rates
//! are those of this moment.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::scoreboard::ExitReason;
use crate::scoreboard::cell::CellState;
use crate::scoreboard::row::SlotState;
use crate::status::units;

/// Version of these fields.
pub const VERSION: u32 = 2;

/// The whole fleet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// Version of these fields.
    pub version: u32,
    /// The supervisor's process; it stays the same over upgrades.
    pub supervisor_pid: u32,
    /// What the supervisor runs, for example `0.1.0`.
    pub build: String,
    /// Number of the configuration and binary in use, from 1.
    pub generation: u64,
    /// When the fleet started, Unix milliseconds.
    #[serde(rename = "started_at", with = "units::rfc3339_ms")]
    pub started_ms: u64,
    /// Seconds since then.
    #[serde(rename = "uptime_seconds")]
    pub uptime_s: u64,
    /// Where the fleet stands.
    pub state: InstanceState,
    /// The change under way, if there is one.
    pub rollout: Option<RolloutStatus>,
    /// How the last change ended; it stays until the next one has ended.
    pub last_rollout: Option<FinishedRollout>,
    /// How many workers there are and should be.
    pub workers: WorkerTotals,
    /// The shared state.
    pub redis: RedisReport,
    /// Sums over all slots, retired ones included.
    pub totals: InstanceTotals,
    /// The window that the rates below were measured in, seconds; 0 while there are none.
    #[serde(rename = "window_seconds")]
    pub window_s: f64,
    /// The fleet's rates within that window.
    pub rates: StatusRates,
    /// Every slot that is or was in use, by index.
    pub slots: Vec<SlotStatus>,
}

/// Where the fleet stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// Not every slot has served yet.
    #[default]
    Starting,
    /// As wanted.
    Serving,
    /// A change goes from slot to slot; see [`InstanceStatus::rollout`].
    RollingOut,
    /// Workers drain, then the fleet ends.
    Stopping,
}

/// What kind of change goes from slot to slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutKind {
    /// New configuration.
    Reload,
    /// New binary.
    Upgrade,
}

/// A change under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutStatus {
    /// Which.
    pub kind: RolloutKind,
    /// The generation it leads to.
    pub generation: u64,
    /// Slots that are done.
    pub done: usize,
    /// Slots in all.
    pub total: usize,
    /// When it started, Unix milliseconds.
    #[serde(rename = "started_at", with = "units::rfc3339_ms")]
    pub started_ms: u64,
}

/// A change that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishedRollout {
    /// Which.
    pub kind: RolloutKind,
    /// The generation it led to, or should have.
    pub generation: u64,
    /// Whether it was taken back.
    pub outcome: RolloutOutcome,
    /// Why it was taken back, or what else there is to say.
    pub reason: Option<String>,
    /// When it ended, Unix milliseconds.
    #[serde(rename = "finished_at", with = "units::rfc3339_ms")]
    pub finished_ms: u64,
}

/// How a change ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutOutcome {
    /// Every slot has it.
    Done,
    /// It failed; the fleet is as it was before.
    RolledBack,
    /// Something else, such as a stop, came before its end.
    Cancelled,
}

/// How many workers there are and should be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerTotals {
    /// As configured (`workers.count`).
    pub configured: usize,
    /// As wanted now, by operators or by autoscaling.
    pub target: usize,
    /// Fewest that autoscaling may want.
    pub min: usize,
    /// Most that autoscaling may want; it is off when both are the same.
    pub max: usize,
    /// Slots whose worker serves.
    pub ready: usize,
    /// What autoscaling decided last.
    pub autoscale: Option<ScalingDecision>,
}

/// A decision of autoscaling.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScalingDecision {
    /// Workers wanted.
    pub target: usize,
    /// Why.
    pub reason: String,
    /// When, Unix milliseconds.
    #[serde(rename = "timestamp", with = "units::rfc3339_ms")]
    pub at_ms: u64,
}

/// The shared state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RedisReport {
    /// The private server's process; none when the fleet was given a Redis, or its own is down.
    pub private_pid: Option<u32>,
    /// Whether any worker has ever reached it.
    pub ever_connected: bool,
    /// Workers that have it now.
    pub up: usize,
    /// Those of them that hold calls back, because it fails or refuses them.
    #[serde(default)]
    pub breakers_open: usize,
}

/// Sums over all slots.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct InstanceTotals {
    /// Responses.
    pub requests: u64,
    /// Responses by class of status.
    pub responses: ResponsesByClass,
    /// Page views counted.
    pub views: u64,
    /// Requests denied by a rate limit.
    pub rate_limited: u64,
    /// Requests refused because Redis was away.
    pub unavailable: u64,
    /// Requests refused before they reached the application: overload, a client's share, memory of headers.
    #[serde(default)]
    pub refused: u64,
    /// Connections cut at a drain's deadline.
    pub aborted_connections: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Bytes of response bodies whose length was known.
    pub bytes: u64,
    /// Lines of the log that any process dropped, the supervisor included, because nothing took them.
    #[serde(default)]
    pub log_lines_dropped: u64,
    /// Workers started.
    pub starts: u64,
    /// Workers that failed.
    pub crashes: u64,
    /// Open connections.
    pub connections: u64,
    /// Requests being answered.
    pub in_flight: u64,
    /// Memory of all workers that no file backs, bytes.
    pub memory_bytes: u64,
    /// Half of all requests took less, microseconds.
    #[serde(rename = "latency_p50_seconds", default, with = "units::optional_micros")]
    pub latency_p50_us: Option<u64>,
    /// 99 of a hundred took less, microseconds.
    #[serde(rename = "latency_p99_seconds", default, with = "units::optional_micros")]
    pub latency_p99_us: Option<u64>,
}

/// Responses by class of status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it all")]
pub struct ResponsesByClass {
    #[serde(rename = "1xx")]
    pub informational: u64,
    #[serde(rename = "2xx")]
    pub success: u64,
    #[serde(rename = "3xx")]
    pub redirection: u64,
    #[serde(rename = "4xx")]
    pub client_error: u64,
    #[serde(rename = "5xx")]
    pub server_error: u64,
}

/// Rates within the window; missing while there is nothing to compare with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusRates {
    /// Requests answered per second.
    #[serde(rename = "requests_per_second")]
    pub requests_per_s: Option<f64>,
    /// Half of them took less, microseconds.
    #[serde(rename = "latency_p50_seconds", default, with = "units::optional_micros")]
    pub latency_p50_us: Option<u64>,
    /// 99 of a hundred took less, microseconds.
    #[serde(rename = "latency_p99_seconds", default, with = "units::optional_micros")]
    pub latency_p99_us: Option<u64>,
    /// Share of the time, 0 to 100, in which event loops were at work; the fleet's is the mean of its serving workers.
    #[serde(rename = "busy_ratio", default, with = "units::optional_percent")]
    pub busy_percent: Option<f64>,
}

/// One slot; its totals count over all workers that ever sat in it, its gauges over those it has now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SlotStatus {
    /// Its index, from 0.
    pub slot: usize,
    /// Where it stands.
    pub state: SlotState,
    /// Whether new connections are steered to it.
    pub open: bool,
    /// The worker that serves it, or boots in it.
    pub worker: Option<WorkerStatus>,
    /// Its other workers: a successor that boots, and those that finish; the oldest first.
    pub others: Vec<WorkerStatus>,
    /// Connections the kernel has completed and no worker has accepted yet.
    pub queued: Option<u64>,
    /// Workers started in it.
    pub starts: u64,
    /// Workers of it that failed.
    pub crashes: u64,
    /// Its ended workers by reason; reasons that never came are missing.
    pub exits: BTreeMap<String, u64>,
    /// Why the last one ended.
    pub last_exit_reason: Option<ExitReason>,
    /// Responses.
    pub requests: u64,
    /// Responses by class of status.
    pub responses: ResponsesByClass,
    /// Page views counted.
    pub views: u64,
    /// Requests denied by a rate limit.
    pub rate_limited: u64,
    /// Requests refused because Redis was away.
    pub unavailable: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Requests refused before they reached the application: overload, a client's share, memory of headers.
    #[serde(default)]
    pub refused: u64,
    /// Connections cut at a drain's deadline.
    pub aborted_connections: u64,
    /// Bytes of response bodies whose length was known.
    pub bytes: u64,
    /// Lines of the log that its workers dropped.
    #[serde(default)]
    pub log_lines_dropped: u64,
    /// Open connections of all its workers.
    pub connections: u64,
    /// Requests that all its workers are answering.
    pub in_flight: u64,
    /// Memory of all its workers that no file backs, bytes.
    pub memory_bytes: u64,
    /// Half of all its requests took less, microseconds.
    #[serde(rename = "latency_p50_seconds", default, with = "units::optional_micros")]
    pub latency_p50_us: Option<u64>,
    /// 99 of a hundred took less, microseconds.
    #[serde(rename = "latency_p99_seconds", default, with = "units::optional_micros")]
    pub latency_p99_us: Option<u64>,
    /// Its rates within the window.
    pub rates: StatusRates,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its process; 0 for a moment while it is forked.
    pub pid: u32,
    /// Where it stands.
    pub state: CellState,
    /// Generation it belongs to.
    pub generation: u64,
    /// What it runs.
    pub build: String,
    /// Seconds since it was forked.
    #[serde(rename = "uptime_seconds")]
    pub uptime_s: u64,
    /// Milliseconds since its event loop's last sign of life; none before the first.
    #[serde(rename = "heartbeat_age_seconds", default, with = "units::optional_millis")]
    pub heartbeat_age_ms: Option<u64>,
    /// Share of the window, 0 to 100, in which its event loop was at work.
    #[serde(rename = "busy_ratio", default, with = "units::optional_percent")]
    pub busy_percent: Option<f64>,
    /// CPU time, microseconds.
    #[serde(rename = "cpu_seconds", with = "units::micros")]
    pub cpu_us: u64,
    /// Memory that no file backs, bytes.
    pub memory_bytes: u64,
    /// Whether it has Redis.
    pub redis_up: bool,
    /// Open connections.
    pub connections: u64,
    /// Requests being answered.
    pub in_flight: u64,
    /// Requests it has answered.
    pub requests: u64,
}

impl InstanceState {
    /// The state's name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::RollingOut => "rolling out",
            Self::Stopping => "stopping",
        }
    }
}

impl RolloutKind {
    /// The kind's name, as commands spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reload => "reload",
            Self::Upgrade => "upgrade",
        }
    }
}

impl InstanceStatus {
    /// Whether a slot has nothing left but its totals: the fleet got smaller.
    pub fn is_retired(&self, slot: &SlotStatus) -> bool {
        slot.slot >= self.workers.target && slot.worker.is_none() && slot.others.is_empty()
    }
}
