//! A snapshot of the scoreboard, and what its builder knows beside it, become the [`InstanceStatus`].

use std::collections::BTreeMap;

use crate::scoreboard::snapshot::{CellSnapshot, ScoreboardSnapshot, SlotSnapshot};
use crate::scoreboard::{ExitReason, latency};
use crate::status::document::{
    FinishedRollout, InstanceState, InstanceStatus, InstanceTotals, RedisReport, ResponsesByClass,
    RolloutStatus, SlotStatus, StatusRates, VERSION, WorkerStatus, WorkerTotals,
};
use crate::status::rates::{InstanceRates, SlotRates};

/// What the scoreboard does not know; a worker knows only some of it.
#[derive(Debug, Clone, Default)]
pub struct StatusFacts {
    /// Unix time, milliseconds.
    pub unix_ms: u64,
    /// Monotonic clock, milliseconds, as in heartbeats.
    pub monotonic_ms: u64,
    /// What the builder runs.
    pub build: String,
    /// What workers of older generations run, the others running `build`; none: only the supervisor knows.
    pub builds: Option<BTreeMap<u64, String>>,
    /// Where the fleet stands.
    pub state: InstanceState,
    /// The change under way.
    pub rollout: Option<RolloutStatus>,
    /// How the last one ended.
    pub last_rollout: Option<FinishedRollout>,
    /// Numbers of workers; `ready` is filled in from the snapshot.
    pub workers: WorkerTotals,
    /// The private Redis's process.
    pub private_redis_pid: Option<u32>,
    /// Each slot, by index: whether it is open to new connections, and the length of its queue; none of a missing one.
    pub slots: Vec<(bool, Option<u64>)>,
    /// Rates as of now.
    pub rates: InstanceRates,
}

impl InstanceStatus {
    /// The fleet as this snapshot shows it: the one place where its fields are filled in.
    pub fn from_snapshot(snapshot: &ScoreboardSnapshot, extra: &StatusFacts) -> Self {
        let slots: Vec<SlotStatus> = snapshot.slots.iter().map(|slot| slot_status(slot, extra)).collect();
        let workers = || slots.iter().filter_map(|slot| slot.worker.as_ref());
        let busy: Vec<f64> = workers().filter_map(|worker| worker.busy_percent).collect();
        Self {
            version: VERSION,
            supervisor_pid: snapshot.supervisor_pid,
            build: extra.build.clone(),
            generation: snapshot.generation,
            started_ms: snapshot.started_ms,
            uptime_s: extra.unix_ms.saturating_sub(snapshot.started_ms) / 1000,
            state: extra.state,
            rollout: extra.rollout.clone(),
            last_rollout: extra.last_rollout.clone(),
            workers: WorkerTotals { ready: snapshot.ready(), ..extra.workers.clone() },
            redis: RedisReport {
                private_pid: extra.private_redis_pid,
                ever_connected: snapshot.redis_ever_connected,
                up: workers().filter(|worker| worker.redis_up).count(),
                breakers_open: workers()
                    .filter(|worker| worker.redis_up && worker.is_redis_degraded())
                    .count(),
            },
            totals: instance_totals(snapshot),
            window_s: extra.rates.window.as_secs_f64(),
            rates: status_rates(extra.rates.instance, mean(&busy)),
            slots,
        }
    }
}

fn instance_totals(snapshot: &ScoreboardSnapshot) -> InstanceTotals {
    let histogram = snapshot.latency();
    let gauge = |number: fn(&CellSnapshot) -> u64| snapshot.total(|slot| slot.sum(number));
    InstanceTotals {
        requests: snapshot.requests(),
        responses: responses_by_class(std::array::from_fn(|class| {
            snapshot.total(|slot| slot.responses[class])
        })),
        views: snapshot.total(|slot| slot.views),
        rate_limited: snapshot.total(|slot| slot.rate_limited),
        unavailable: snapshot.total(|slot| slot.unavailable),
        refused: snapshot.total(SlotSnapshot::refused),
        aborted_connections: snapshot.total(|slot| slot.aborted_connections),
        accepted: snapshot.total(|slot| slot.accepted),
        bytes: snapshot.total(|slot| slot.bytes),
        log_lines_dropped: snapshot.log_lines_dropped(),
        starts: snapshot.total(|slot| slot.starts),
        crashes: snapshot.total(|slot| slot.crashes),
        connections: gauge(|worker| worker.connections),
        in_flight: gauge(|worker| worker.in_flight),
        subscribers: gauge(|worker| worker.subscribers),
        memory_bytes: gauge(|worker| worker.memory_bytes),
        latency_p50_us: latency::quantile_us(&histogram, 0.5),
        latency_p99_us: latency::quantile_us(&histogram, 0.99),
    }
}

fn slot_status(slot: &SlotSnapshot, extra: &StatusFacts) -> SlotStatus {
    let (open, queued) =
        extra.slots.get(slot.slot).map_or((None, None), |(open, queued)| (Some(*open), *queued));
    let active_worker = slot.active_worker.as_ref().map(|worker| worker_status(worker, extra));
    let is_other = |worker: &&CellSnapshot| Some(*worker) != slot.active_worker.as_ref();
    let rate = extra.rates.slots.get(slot.slot).copied().unwrap_or_default();
    let ends = ExitReason::ALL.iter().zip(slot.exits).filter(|(_, count)| *count > 0);
    SlotStatus {
        slot: slot.slot,
        state: slot.state,
        open,
        others: slot.workers.iter().filter(is_other).map(|worker| worker_status(worker, extra)).collect(),
        queued,
        starts: slot.starts,
        crashes: slot.crashes,
        exits: ends.map(|(reason, count)| (reason.name().to_owned(), count)).collect(),
        last_exit_reason: slot.last_exit_reason,
        requests: slot.requests(),
        responses: responses_by_class(slot.responses),
        views: slot.views,
        rate_limited: slot.rate_limited,
        unavailable: slot.unavailable,
        refused: slot.refused(),
        accepted: slot.accepted,
        aborted_connections: slot.aborted_connections,
        bytes: slot.bytes,
        log_lines_dropped: slot.log_lines_dropped,
        connections: slot.sum(|worker| worker.connections),
        in_flight: slot.sum(|worker| worker.in_flight),
        memory_bytes: slot.sum(|worker| worker.memory_bytes),
        latency_p50_us: latency::quantile_us(&slot.latency, 0.5),
        latency_p99_us: latency::quantile_us(&slot.latency, 0.99),
        rates: status_rates(rate, active_worker.as_ref().and_then(|worker| worker.busy_percent)),
        worker: active_worker,
    }
}

fn worker_status(worker: &CellSnapshot, extra: &StatusFacts) -> WorkerStatus {
    let build = extra.builds.as_ref().map(|older| older.get(&worker.generation).unwrap_or(&extra.build));
    let [redis_reads, redis_writes] = worker.breakers;
    let age = extra.monotonic_ms.saturating_sub(worker.heartbeat_ms);
    WorkerStatus {
        pid: worker.pid,
        state: worker.state,
        generation: worker.generation,
        build: build.cloned(),
        started_ms: worker.started_ms,
        uptime_s: extra.unix_ms.saturating_sub(worker.started_ms) / 1000,
        heartbeat_age_ms: (worker.heartbeat_ms > 0).then_some(age),
        busy_percent: extra.rates.busy_percent.get(&worker.pid).copied(),
        cpu_us: worker.cpu_us,
        busy_us: worker.busy_us,
        memory_bytes: worker.memory_bytes,
        redis_up: worker.redis_up,
        redis_reads,
        redis_writes,
        connections: worker.connections,
        in_flight: worker.in_flight,
        requests: worker.requests,
    }
}

fn responses_by_class(
    [_, informational, success, redirection, client_error, server_error]: [u64; 6],
) -> ResponsesByClass {
    ResponsesByClass { informational, success, redirection, client_error, server_error }
}

fn status_rates(rate: SlotRates, busy_percent: Option<f64>) -> StatusRates {
    StatusRates {
        requests_per_s: rate.requests_per_s,
        latency_p50_us: rate.latency_p50_us,
        latency_p99_us: rate.latency_p99_us,
        busy_percent,
    }
}

#[allow(clippy::cast_precision_loss, reason = "a number of workers")]
fn mean(numbers: &[f64]) -> Option<f64> {
    (!numbers.is_empty()).then(|| numbers.iter().sum::<f64>() / numbers.len() as f64)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::time::Duration;

    use super::*;
    use crate::scoreboard::Scoreboard;
    use crate::scoreboard::cell::CellState;
    use crate::scoreboard::row::SlotState;
    use crate::status::rates::RateWindow;

    fn table() -> Scoreboard {
        let table = Scoreboard::create(NonZeroUsize::new(4).unwrap(), 7, 1_000).unwrap();
        table.set_slots(2);
        table
    }

    fn add_worker(table: &Scoreboard, slot: usize, cell: usize, pid: u32, state: CellState) {
        table.cell(slot, cell).reset(1, 2_000 + u64::from(pid));
        table.cell(slot, cell).set_pid(pid);
        table.cell(slot, cell).set_state(state);
    }

    #[test]
    fn a_slot_shows_its_worker_and_those_that_come_and_go_beside_it() {
        let table = table();
        add_worker(&table, 0, 0, 10, CellState::Draining);
        add_worker(&table, 0, 3, 11, CellState::Ready);
        add_worker(&table, 0, 1, 12, CellState::Booting);
        table.row(0).set_state(SlotState::Ready, Some(3));
        table.row(0).record_exit(ExitReason::Memory);
        for cell in [0, 3] {
            table.cell(0, cell).count_connection_opened();
        }
        let extra = StatusFacts { slots: vec![(false, Some(4))], ..StatusFacts::default() };
        let status = InstanceStatus::from_snapshot(&table.snapshot(), &extra);
        let slot = &status.slots[0];
        assert_eq!(slot.worker.as_ref().unwrap().pid, 11);
        assert_eq!(slot.others.iter().map(|worker| worker.pid).collect::<Vec<_>>(), [10, 12]);
        assert_eq!((slot.connections, slot.open, slot.queued), (2, Some(false), Some(4)));
        assert_eq!(slot.exits, BTreeMap::from([("memory".to_owned(), 1)]));
        assert!(status.slots[1].open.is_none() && status.slots[1].worker.is_none());
    }

    #[test]
    fn rates_ages_and_builds_come_from_what_the_supervisor_adds() {
        let table = table();
        add_worker(&table, 1, 0, 20, CellState::Ready);
        table.row(1).set_state(SlotState::Ready, Some(0));
        table.cell(1, 0).record_heartbeat(500, 1 << 20, 5, 0);
        let mut window = RateWindow::new(Duration::from_secs(1));
        window.record(Duration::from_secs(1), &table.snapshot());
        table.cell(1, 0).count_request_started();
        table.cell(1, 0).count_request_finished(503, 1, 100);
        table.cell(1, 0).record_heartbeat(1_500, 1 << 20, 5, 500_000);
        let now = Duration::from_secs(2);
        let extra = StatusFacts {
            unix_ms: 65_000,
            monotonic_ms: 2_000,
            build: "2.0".into(),
            builds: Some(BTreeMap::from([(1, "1.0".into())])),
            rates: window.rates(now, &table.snapshot()),
            ..StatusFacts::default()
        };
        let status = InstanceStatus::from_snapshot(&table.snapshot(), &extra);
        let worker = status.slots[1].worker.as_ref().unwrap();
        assert_eq!(worker.build.as_deref(), Some("1.0"));
        assert!(!worker.is_redis_degraded());
        assert_eq!((worker.uptime_s, worker.heartbeat_age_ms), (62, Some(500)));
        assert_eq!((worker.busy_percent, status.rates.busy_percent), (Some(50.0), Some(50.0)));
        assert_eq!(status.rates.requests_per_s, Some(1.0));
        assert_eq!((status.totals.responses.server_error, status.uptime_s), (1, 64));
        assert_eq!(status.workers.ready, 1);
    }

    #[test]
    fn it_reads_back_what_it_wrote_and_bears_fields_it_does_not_know() {
        let table = table();
        add_worker(&table, 0, 0, 10, CellState::Ready);
        let status = InstanceStatus::from_snapshot(&table.snapshot(), &StatusFacts::default());
        let mut json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["version"], 2);
        assert_eq!(json["slots"][0]["state"], "empty");
        // What only the supervisor knows.
        assert_eq!(
            (&json["state"], &json["slots"][0]["open"]),
            (&"unknown".into(), &serde_json::Value::Null)
        );
        json["news"] = 5.into();
        assert_eq!(serde_json::from_value::<InstanceStatus>(json).unwrap(), status);
    }
}
