//! A fleet in which something of everything happens, for the tests of what is shown.

use std::collections::BTreeMap;

use crate::breaker::BreakerState;
use crate::scoreboard::ExitReason;
use crate::scoreboard::cell::CellState;
use crate::scoreboard::row::SlotState;
use crate::status::document::{
    FinishedRollout, InstanceState, InstanceStatus, InstanceTotals, RedisReport, ResponsesByClass,
    RolloutKind, RolloutOutcome, SlotStatus, StatusRates, VERSION, WorkerStatus, WorkerTotals,
};

const MIB: u64 = 1 << 20;

pub(super) fn worker(pid: u32, state: CellState, generation: u64) -> WorkerStatus {
    WorkerStatus {
        pid,
        state,
        generation,
        build: Some(if generation < 4 { "1.1.0".into() } else { "1.2.0".into() }),
        started_ms: 1_000_000,
        uptime_s: if generation < 4 { 7200 } else { 3600 },
        heartbeat_age_ms: Some(120),
        busy_percent: Some(if generation < 4 { 3.0 } else { 42.0 }),
        cpu_us: 5_000_000,
        busy_us: 4_000_000,
        memory_bytes: 10 * MIB,
        redis_up: true,
        redis_reads: BreakerState::Closed,
        redis_writes: BreakerState::Closed,
        connections: 12,
        in_flight: 1,
        requests: 5000,
    }
}

pub(super) fn slot(
    index: usize,
    state: SlotState,
    worker: Option<WorkerStatus>,
    requests: u64,
) -> SlotStatus {
    let serves = worker.is_some();
    SlotStatus {
        slot: index,
        state,
        open: Some(true),
        others: Vec::new(),
        queued: Some(0),
        starts: 1,
        crashes: 0,
        exits: BTreeMap::new(),
        last_exit_reason: None,
        requests,
        responses: ResponsesByClass { success: requests, ..ResponsesByClass::default() },
        views: 0,
        rate_limited: 0,
        unavailable: 0,
        refused: 0,
        accepted: 100,
        aborted_connections: 0,
        bytes: 0,
        log_lines_dropped: 0,
        connections: 32,
        in_flight: 1,
        memory_bytes: if serves { 12 * MIB } else { 0 },
        latency_p50_us: Some(320),
        latency_p99_us: Some(1800),
        rates: StatusRates {
            requests_per_s: serves.then_some(75.0),
            latency_p50_us: serves.then_some(320),
            latency_p99_us: serves.then_some(1800),
            busy_percent: worker.as_ref().and_then(|worker| worker.busy_percent),
        },
        worker,
    }
}

/// Three slots and a retired one: one with a leaving worker, one closed to new connections, one backed off.
pub(super) fn instance_status() -> InstanceStatus {
    let mut leaving = slot(0, SlotState::Ready, Some(worker(4010, CellState::Ready, 4)), 1_000_000);
    leaving.others = vec![worker(4002, CellState::Draining, 3)];
    leaving.starts = 3;
    leaving.exits = BTreeMap::from([("memory".into(), 1), ("reload".into(), 1)]);
    leaving.last_exit_reason = Some(ExitReason::Memory);
    let mut closed = slot(1, SlotState::Ready, Some(worker(4011, CellState::Ready, 4)), 234_567);
    closed.open = Some(false);
    let mut failing = slot(2, SlotState::BackedOff, None, 0);
    failing.starts = 5;
    failing.last_exit_reason = Some(ExitReason::Boot);
    InstanceStatus {
        version: VERSION,
        supervisor_pid: 4000,
        build: "1.2.0".into(),
        generation: 4,
        started_ms: 1_000_000,
        uptime_s: 7200,
        state: InstanceState::Serving,
        rollout: None,
        last_rollout: Some(FinishedRollout {
            kind: RolloutKind::Reload,
            generation: 5,
            outcome: RolloutOutcome::RolledBack,
            reason: Some("slot 0: worker 4100\n did not get READY".into()),
            finished_ms: 1_000_000 + 7_140_000,
        }),
        workers: WorkerTotals {
            configured: Some(3),
            target: 3,
            min: Some(3),
            max: Some(3),
            ready: 2,
            autoscale: None,
        },
        redis: RedisReport { private_pid: Some(4001), ever_connected: true, up: 2, breakers_open: 0 },
        totals: InstanceTotals {
            requests: 1_234_567,
            responses: ResponsesByClass {
                success: 1_222_222,
                client_error: 12_345,
                ..ResponsesByClass::default()
            },
            connections: 76,
            in_flight: 3,
            memory_bytes: 36 * MIB,
            ..InstanceTotals::default()
        },
        window_s: 1.0,
        rates: StatusRates {
            requests_per_s: Some(150.0),
            latency_p50_us: Some(320),
            latency_p99_us: Some(1800),
            busy_percent: Some(42.0),
        },
        slots: vec![leaving, closed, failing, slot(3, SlotState::Empty, None, 0)],
    }
}
