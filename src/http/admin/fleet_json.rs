//! `/fleet.json`: this instance at one moment, and all instances as Redis lists them.
//!
//! Fields are added under the same version; `version` changes when one is removed or means something else.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use crate::http::admin::metric_encoding::{micros_to_seconds, millis_to_seconds};
use crate::http::services::admin::AdminServices;
use crate::registry::{InstanceRecord, ListedInstance};
use crate::scoreboard::cell::CellState;
use crate::scoreboard::snapshot::{CellSnapshot, SlotSnapshot};
use crate::scoreboard::{ExitReason, latency};
use crate::sys::clock;

const TIMESTAMP: &[BorrowedFormatItem<'static>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

#[derive(Serialize)]
struct FleetJson {
    version: u32,
    supervisor_pid: u32,
    started_at: Option<String>,
    generation: u64,
    redis_ever_connected: bool,
    ready: usize,
    requests: u64,
    views: u64,
    rate_limited: u64,
    unavailable: u64,
    refused: u64,
    log_lines_dropped: u64,
    latency_p50_seconds: Option<f64>,
    latency_p99_seconds: Option<f64>,
    slots: Vec<SlotJson>,
    /// Every live instance; this one alone while Redis is unavailable.
    instances: Vec<ListedInstance>,
    /// Whether none can be missing.
    instances_complete: bool,
    /// Why Redis has no list.
    instances_error: Option<String>,
}

#[derive(Serialize)]
struct SlotJson {
    slot: usize,
    state: &'static str,
    pid: u32,
    generation: u64,
    started_at: Option<String>,
    heartbeat_age_seconds: Option<f64>,
    starts: u64,
    crashes: u64,
    memory_bytes: u64,
    cpu_seconds: f64,
    redis_up: bool,
    redis_reads: &'static str,
    redis_writes: &'static str,
    connections: u64,
    in_flight: u64,
    accepted: u64,
    aborted_connections: u64,
    bytes: u64,
    requests: u64,
    responses: ResponseCounts,
    views: u64,
    rate_limited: u64,
    unavailable: u64,
    refused: u64,
    log_lines_dropped: u64,
    latency_p50_seconds: Option<f64>,
    latency_p99_seconds: Option<f64>,
    exits: BTreeMap<&'static str, u64>,
    last_exit_reason: Option<ExitReason>,
    workers: Vec<WorkerJson>,
}

/// A worker of the slot, in any state.
#[derive(Serialize)]
struct WorkerJson {
    pid: u32,
    state: CellState,
    generation: u64,
    started_at: Option<String>,
    heartbeat_age_seconds: Option<f64>,
    memory_bytes: u64,
    cpu_seconds: f64,
    busy_seconds: f64,
    redis_up: bool,
    connections: u64,
    in_flight: u64,
    requests: u64,
}

#[derive(Serialize)]
struct ResponseCounts {
    #[serde(rename = "1xx")]
    informational: u64,
    #[serde(rename = "2xx")]
    success: u64,
    #[serde(rename = "3xx")]
    redirection: u64,
    #[serde(rename = "4xx")]
    client_error: u64,
    #[serde(rename = "5xx")]
    server_error: u64,
}

pub(in crate::http) async fn fleet_json(Shared(state): Shared<Arc<AdminServices>>) -> Response {
    let listed = state.fleet_cache.get(&state.redis).await;
    let own = state.instance.info(&state.scoreboard);
    let (instances, instances_complete, instances_error) = match listed {
        Ok(listed) => {
            (with_own_instance(listed.instances, own), listed.complete && listed.unreadable == 0, None)
        }
        Err(reason) => (with_own_instance(Vec::new(), own), false, Some(reason)),
    };
    let snapshot = state.scoreboard.snapshot();
    let now_ms = u64::try_from(clock::monotonic().as_millis()).unwrap_or(u64::MAX);
    let histogram = snapshot.latency();
    let fleet = FleetJson {
        version: snapshot.version,
        supervisor_pid: snapshot.supervisor_pid,
        started_at: timestamp(snapshot.started_ms),
        generation: snapshot.generation,
        redis_ever_connected: snapshot.redis_ever_connected,
        ready: snapshot.ready(),
        requests: snapshot.requests(),
        views: snapshot.total(|slot| slot.views),
        rate_limited: snapshot.total(|slot| slot.rate_limited),
        unavailable: snapshot.total(|slot| slot.unavailable),
        refused: snapshot.total(SlotSnapshot::refused),
        log_lines_dropped: snapshot.log_lines_dropped(),
        latency_p50_seconds: quantile_seconds(&histogram, 0.5),
        latency_p99_seconds: quantile_seconds(&histogram, 0.99),
        slots: snapshot.slots.iter().map(|one| slot_json(one, now_ms)).collect(),
        instances,
        instances_complete,
        instances_error,
    };
    ([(http::header::CACHE_CONTROL, "no-store")], Json(fleet)).into_response()
}

/// The instances with this one as it is now: its record in Redis is older.
fn with_own_instance(mut instances: Vec<ListedInstance>, own: InstanceRecord) -> Vec<ListedInstance> {
    instances.retain(|listed| listed.instance.id != own.id);
    instances.insert(0, ListedInstance { age_ms: 0, instance: own });
    instances
}

fn slot_json(slot: &SlotSnapshot, now_ms: u64) -> SlotJson {
    let [_, informational, success, redirection, client_error, server_error] = slot.responses;
    let active = slot.active_worker.as_ref();
    let breakers = active.map(|worker| worker.breakers).unwrap_or_default();
    SlotJson {
        slot: slot.slot,
        state: slot.state.name(),
        pid: slot.pid(),
        generation: slot.generation(),
        started_at: active.and_then(|worker| timestamp(worker.started_ms)),
        heartbeat_age_seconds: active.and_then(|worker| heartbeat_age(worker, now_ms)),
        starts: slot.starts,
        crashes: slot.crashes,
        memory_bytes: slot.sum(|worker| worker.memory_bytes),
        cpu_seconds: micros_to_seconds(active.map_or(0, |worker| worker.cpu_us)),
        redis_up: slot.redis_up(),
        redis_reads: breakers[0].name(),
        redis_writes: breakers[1].name(),
        connections: slot.sum(|worker| worker.connections),
        in_flight: slot.sum(|worker| worker.in_flight),
        accepted: slot.accepted,
        aborted_connections: slot.aborted_connections,
        bytes: slot.bytes,
        requests: slot.requests(),
        responses: ResponseCounts { informational, success, redirection, client_error, server_error },
        views: slot.views,
        rate_limited: slot.rate_limited,
        unavailable: slot.unavailable,
        refused: slot.refused(),
        log_lines_dropped: slot.log_lines_dropped,
        latency_p50_seconds: quantile_seconds(&slot.latency, 0.5),
        latency_p99_seconds: quantile_seconds(&slot.latency, 0.99),
        exits: ExitReason::ALL
            .iter()
            .map(|reason| reason.name())
            .zip(slot.exits)
            .filter(|(_, count)| *count > 0)
            .collect(),
        last_exit_reason: slot.last_exit_reason,
        workers: slot.workers.iter().map(|one| worker_json(one, now_ms)).collect(),
    }
}

fn worker_json(worker: &CellSnapshot, now_ms: u64) -> WorkerJson {
    WorkerJson {
        pid: worker.pid,
        state: worker.state,
        generation: worker.generation,
        started_at: timestamp(worker.started_ms),
        heartbeat_age_seconds: heartbeat_age(worker, now_ms),
        memory_bytes: worker.memory_bytes,
        cpu_seconds: micros_to_seconds(worker.cpu_us),
        busy_seconds: micros_to_seconds(worker.busy_us),
        redis_up: worker.redis_up,
        connections: worker.connections,
        in_flight: worker.in_flight,
        requests: worker.requests,
    }
}

/// Age of the last heartbeat; `None` before the first.
fn heartbeat_age(worker: &CellSnapshot, now_ms: u64) -> Option<f64> {
    (worker.heartbeat_ms > 0).then(|| millis_to_seconds(now_ms.saturating_sub(worker.heartbeat_ms)))
}

fn quantile_seconds(histogram: &[u64], quantile: f64) -> Option<f64> {
    latency::quantile_us(histogram, quantile).map(micros_to_seconds)
}

/// A Unix time in milliseconds as RFC 3339; `None` for 0, which stands for no time.
fn timestamp(unix_ms: u64) -> Option<String> {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000).ok()?;
    (unix_ms > 0).then(|| at.format(TIMESTAMP).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_has_milliseconds_and_zero_is_none() {
        assert_eq!(timestamp(1_700_000_000_123).as_deref(), Some("2023-11-14T22:13:20.123Z"));
        assert_eq!((timestamp(0), timestamp(u64::MAX)), (None, None));
    }
}
