//! `/fleet.json`: the whole fleet of this machine at one moment, and all machines as Redis knows them.
//!
//! Fields are added under the same version; `version` changes when one is removed or means something else.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State as Shared;
use axum::response::IntoResponse;
use axum::response::Response;
use serde::Serialize;

use crate::http::state::State;
use crate::redis::fleet::Machine;
use crate::redis::fleet::Seen;
use crate::scoreboard::Reason;
use crate::scoreboard::cell::WorkerState;
use crate::scoreboard::latency;
use crate::scoreboard::snapshot::SlotSnapshot;
use crate::scoreboard::snapshot::WorkerSnapshot;
use crate::sys::time;

#[derive(Serialize)]
struct Fleet {
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
    slots: Vec<Slot>,
    /// Every machine that lives; this one alone when Redis does not say.
    machines: Vec<Seen>,
    /// Whether none can be missing.
    machines_complete: bool,
    /// Why Redis does not say.
    machines_error: Option<String>,
}

#[derive(Serialize)]
struct Slot {
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
    responses: Responses,
    views: u64,
    limited: u64,
    unavailable: u64,
    refused: u64,
    log_lines_dropped: u64,
    latency_p50_us: Option<u64>,
    latency_p99_us: Option<u64>,
    ends: BTreeMap<&'static str, u64>,
    last_reason: Option<Reason>,
    workers: Vec<Worker>,
}

/// Every worker of the slot, those that boot or leave too.
#[derive(Serialize)]
struct Worker {
    pid: u32,
    state: WorkerState,
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
struct Responses {
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

pub(in crate::http) async fn fleet(Shared(state): Shared<State>) -> Response {
    let told = state.0.machines.ask(&state.0.redis).await;
    let own = state.0.site.machine(&state.0.scoreboard);
    let (machines, machines_complete, machines_error) = match told {
        Ok(told) => (with_own(told.seen, own), told.complete && told.strange == 0, None),
        Err(reason) => (with_own(Vec::new(), own), false, Some(reason)),
    };
    let snapshot = state.fleet();
    let now_ms = u64::try_from(time::monotonic().as_millis()).unwrap_or(u64::MAX);
    let histogram = snapshot.latency();
    let fleet = Fleet {
        version: snapshot.version,
        supervisor_pid: snapshot.supervisor_pid,
        started_ms: snapshot.started_ms,
        generation: snapshot.generation,
        redis_reached: snapshot.redis_reached,
        ready: snapshot.ready(),
        requests: snapshot.requests(),
        views: snapshot.total(|slot| slot.views),
        limited: snapshot.total(|slot| slot.limited),
        unavailable: snapshot.total(|slot| slot.unavailable),
        refused: snapshot.total(SlotSnapshot::refused),
        log_lines_dropped: snapshot.log_lines_dropped(),
        latency_p50_us: latency::quantile_us(&histogram, 0.5),
        latency_p99_us: latency::quantile_us(&histogram, 0.99),
        slots: snapshot.slots.iter().map(|one| slot(one, now_ms)).collect(),
        machines,
        machines_complete,
        machines_error,
    };
    ([(http::header::CACHE_CONTROL, "no-store")], Json(fleet)).into_response()
}

/// The machines with this one as it is now: what it said last is older.
fn with_own(mut machines: Vec<Seen>, own: Machine) -> Vec<Seen> {
    machines.retain(|seen| seen.machine.id != own.id);
    machines.insert(0, Seen { age_ms: 0, machine: own });
    machines
}

fn slot(slot: &SlotSnapshot, now_ms: u64) -> Slot {
    let [_, informational, success, redirection, client_error, server_error] = slot.responses;
    let lanes = slot.incumbent.as_ref().map(|worker| worker.redis_lanes).unwrap_or_default();
    Slot {
        slot: slot.slot,
        state: slot.state.name(),
        pid: slot.pid(),
        generation: slot.generation(),
        started_ms: slot.incumbent.as_ref().map_or(0, |worker| worker.started_ms),
        heartbeat_ms: slot.incumbent.as_ref().map_or(0, |worker| worker.heartbeat_ms),
        starts: slot.starts,
        crashes: slot.crashes,
        memory_bytes: slot.sum(|worker| worker.memory_bytes),
        cpu_us: slot.incumbent.as_ref().map_or(0, |worker| worker.cpu_us),
        redis_up: slot.redis_up(),
        redis_reads: lanes[0].name(),
        redis_writes: lanes[1].name(),
        connections: slot.sum(|worker| worker.connections),
        in_flight: slot.sum(|worker| worker.in_flight),
        accepted: slot.accepted,
        cut: slot.cut,
        bytes: slot.bytes,
        requests: slot.requests(),
        responses: Responses { informational, success, redirection, client_error, server_error },
        views: slot.views,
        limited: slot.limited,
        unavailable: slot.unavailable,
        refused: slot.refused(),
        log_lines_dropped: slot.log_lines_dropped,
        latency_p50_us: latency::quantile_us(&slot.latency, 0.5),
        latency_p99_us: latency::quantile_us(&slot.latency, 0.99),
        ends: Reason::ALL.iter().map(|reason| reason.name()).zip(slot.ends).filter(|end| end.1 > 0).collect(),
        last_reason: slot.last_reason,
        workers: slot.workers.iter().map(|one| worker(one, now_ms)).collect(),
    }
}

fn worker(worker: &WorkerSnapshot, now_ms: u64) -> Worker {
    Worker {
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
