//! `/fleet.json`: the whole fleet of this machine at one moment, and all machines as Redis knows them.
//!
//! Fields are added under the same version; `version` changes when one is removed or means something else.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::http::services::admin::AdminServices;
use crate::redis::registry::{InstanceRecord, ListedInstance};
use crate::scoreboard::cell::CellState;
use crate::scoreboard::snapshot::{CellSnapshot, SlotSnapshot};
use crate::scoreboard::{ExitReason, latency};
use crate::sys::clock;

#[derive(Serialize)]
struct FleetJson {
    version: u32,
    supervisor_pid: u32,
    started_ms: u64,
    generation: u64,
    redis_reached: bool,
    ready: usize,
    requests: u64,
    views: u64,
    limited: u64,
    unavailable: u64,
    refused: u64,
    log_lines_dropped: u64,
    latency_p50_us: Option<u64>,
    latency_p99_us: Option<u64>,
    slots: Vec<SlotJson>,
    /// Every machine that lives; this one alone when Redis does not say.
    #[serde(rename = "machines")]
    instances: Vec<ListedInstance>,
    /// Whether none can be missing.
    #[serde(rename = "machines_complete")]
    instances_complete: bool,
    /// Why Redis does not say.
    #[serde(rename = "machines_error")]
    instances_error: Option<String>,
}

#[derive(Serialize)]
struct SlotJson {
    slot: usize,
    state: &'static str,
    pid: u32,
    generation: u64,
    started_ms: u64,
    heartbeat_ms: u64,
    starts: u64,
    crashes: u64,
    memory_bytes: u64,
    cpu_us: u64,
    redis_up: bool,
    redis_reads: &'static str,
    redis_writes: &'static str,
    connections: u64,
    in_flight: u64,
    accepted: u64,
    cut: u64,
    bytes: u64,
    requests: u64,
    responses: ResponseCounts,
    views: u64,
    limited: u64,
    unavailable: u64,
    refused: u64,
    log_lines_dropped: u64,
    latency_p50_us: Option<u64>,
    latency_p99_us: Option<u64>,
    #[serde(rename = "ends")]
    exits: BTreeMap<&'static str, u64>,
    last_reason: Option<ExitReason>,
    workers: Vec<WorkerJson>,
}

/// Every worker of the slot, those that boot or leave too.
#[derive(Serialize)]
struct WorkerJson {
    pid: u32,
    state: CellState,
    generation: u64,
    started_ms: u64,
    heartbeat_age_ms: Option<u64>,
    memory_bytes: u64,
    cpu_us: u64,
    busy_us: u64,
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
        started_ms: snapshot.started_ms,
        generation: snapshot.generation,
        redis_reached: snapshot.redis_ever_connected,
        ready: snapshot.ready(),
        requests: snapshot.requests(),
        views: snapshot.total(|slot| slot.views),
        limited: snapshot.total(|slot| slot.rate_limited),
        unavailable: snapshot.total(|slot| slot.unavailable),
        refused: snapshot.total(SlotSnapshot::refused),
        log_lines_dropped: snapshot.log_lines_dropped(),
        latency_p50_us: latency::quantile_us(&histogram, 0.5),
        latency_p99_us: latency::quantile_us(&histogram, 0.99),
        slots: snapshot.slots.iter().map(|one| slot_json(one, now_ms)).collect(),
        instances,
        instances_complete,
        instances_error,
    };
    ([(http::header::CACHE_CONTROL, "no-store")], Json(fleet)).into_response()
}

/// The machines with this one as it is now: what it said last is older.
fn with_own_instance(mut instances: Vec<ListedInstance>, own: InstanceRecord) -> Vec<ListedInstance> {
    instances.retain(|seen| seen.instance.id != own.id);
    instances.insert(0, ListedInstance { age_ms: 0, instance: own });
    instances
}

fn slot_json(slot: &SlotSnapshot, now_ms: u64) -> SlotJson {
    let [_, informational, success, redirection, client_error, server_error] = slot.responses;
    let lanes = slot.active_worker.as_ref().map(|worker| worker.breakers).unwrap_or_default();
    SlotJson {
        slot: slot.slot,
        state: slot.state.name(),
        pid: slot.pid(),
        generation: slot.generation(),
        started_ms: slot.active_worker.as_ref().map_or(0, |worker| worker.started_ms),
        heartbeat_ms: slot.active_worker.as_ref().map_or(0, |worker| worker.heartbeat_ms),
        starts: slot.starts,
        crashes: slot.crashes,
        memory_bytes: slot.sum(|worker| worker.memory_bytes),
        cpu_us: slot.active_worker.as_ref().map_or(0, |worker| worker.cpu_us),
        redis_up: slot.redis_up(),
        redis_reads: lanes[0].name(),
        redis_writes: lanes[1].name(),
        connections: slot.sum(|worker| worker.connections),
        in_flight: slot.sum(|worker| worker.in_flight),
        accepted: slot.accepted,
        cut: slot.aborted_connections,
        bytes: slot.bytes,
        requests: slot.requests(),
        responses: ResponseCounts { informational, success, redirection, client_error, server_error },
        views: slot.views,
        limited: slot.rate_limited,
        unavailable: slot.unavailable,
        refused: slot.refused(),
        log_lines_dropped: slot.log_lines_dropped,
        latency_p50_us: latency::quantile_us(&slot.latency, 0.5),
        latency_p99_us: latency::quantile_us(&slot.latency, 0.99),
        exits: ExitReason::ALL
            .iter()
            .map(|reason| reason.name())
            .zip(slot.exits)
            .filter(|end| end.1 > 0)
            .collect(),
        last_reason: slot.last_exit_reason,
        workers: slot.workers.iter().map(|one| worker_json(one, now_ms)).collect(),
    }
}

fn worker_json(worker: &CellSnapshot, now_ms: u64) -> WorkerJson {
    WorkerJson {
        pid: worker.pid,
        state: worker.state,
        generation: worker.generation,
        started_ms: worker.started_ms,
        heartbeat_age_ms: (worker.heartbeat_ms > 0).then(|| now_ms.saturating_sub(worker.heartbeat_ms)),
        memory_bytes: worker.memory_bytes,
        cpu_us: worker.cpu_us,
        busy_us: worker.busy_us,
        redis_up: worker.redis_up,
        connections: worker.connections,
        in_flight: worker.in_flight,
        requests: worker.requests,
    }
}
