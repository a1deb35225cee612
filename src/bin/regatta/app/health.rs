//! Routes that need no shared state, so they answer while Redis is unavailable.

use axum::Json;
use axum::extract::State as Shared;
use regatta::{FleetHandle, RedisStatus, Worker};
use serde::Serialize;

/// The health of the answering worker.
#[derive(Serialize)]
pub(super) struct HealthReport {
    status: &'static str,
    worker: u32,
    slot: usize,
    generation: u64,
    uptime_seconds: u64,
    memory_bytes: u64,
    redis: &'static str,
    redis_reads: &'static str,
    redis_writes: &'static str,
}

pub(super) async fn hello(worker: Worker) -> String {
    format!("Handled by worker {}\n", worker.pid())
}

pub(super) async fn health(Shared(state): Shared<FleetHandle>) -> Json<HealthReport> {
    let breakers = state.breaker_states();
    let (status, redis) = match state.redis_status() {
        RedisStatus::Up if breakers.all_closed() => ("ok", "up"),
        RedisStatus::Up => ("degraded", "up"),
        RedisStatus::Connecting => ("degraded", "connecting"),
        _ => ("degraded", "down"),
    };
    let worker = state.worker();
    Json(HealthReport {
        status,
        worker: worker.pid(),
        slot: worker.slot(),
        generation: worker.generation(),
        uptime_seconds: worker.uptime().as_secs(),
        memory_bytes: worker.memory_bytes(),
        redis,
        redis_reads: breakers.reads.state.name(),
        redis_writes: breakers.writes.state.name(),
    })
}
