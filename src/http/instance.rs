//! This instance as its heartbeat describes it, and all instances as Redis lists them, read at most once a second.

use std::fmt;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::redis::RedisClient;
use crate::registry;
use crate::registry::figures::{InstanceFigures, SlotFigures};
use crate::registry::{InstanceList, InstanceRecord, SlotRecord};
use crate::scoreboard::Scoreboard;
use crate::scoreboard::row::SlotState;
use crate::scoreboard::snapshot::ScoreboardSnapshot;
use crate::status::build::StatusFacts;
use crate::status::document::{InstanceStatus, SlotStatus, WorkerStatus, WorkerTotals};
use crate::status::rates::InstanceRates;
use crate::sys::clock;

/// How long a reply of Redis is reused: operators' pages must not multiply the load.
const CACHE_TTL: Duration = Duration::from_secs(1);

/// The facts of an instance that are constant for a worker's lifetime.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InstanceIdentity {
    /// Name of the host or container.
    pub host: String,
    /// Version and build of the program.
    pub build: String,
    /// Server-side libraries it calls.
    pub libraries: Vec<String>,
    /// Cores it may use.
    pub cores: usize,
    /// Most workers that autoscaling may start; none: as many as there are slots.
    pub max_workers: Option<usize>,
    /// Addresses of its public listeners as others reach them, host:port.
    pub addresses: Vec<String>,
    /// Addresses of its admin listener, separated by commas.
    pub admin_addresses: String,
}

impl InstanceIdentity {
    /// Unlike every other supervisor's, for as long as this one lives, upgrades included.
    pub fn instance_id(&self, scoreboard: &Scoreboard) -> String {
        format!("{}.{}.{:x}", self.host, scoreboard.pid(), scoreboard.instance_id())
    }

    /// The instance at this moment, as one of its workers knows it: without what only the supervisor does.
    pub fn status(
        &self,
        scoreboard: &Scoreboard,
        snapshot: &ScoreboardSnapshot,
        rates: InstanceRates,
    ) -> InstanceStatus {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let facts = StatusFacts {
            unix_ms: milliseconds(clock::wall_clock()),
            monotonic_ms: milliseconds(clock::monotonic()),
            build: self.build.clone(),
            workers: WorkerTotals { target: scoreboard.slots(), ..WorkerTotals::default() },
            rates,
            ..StatusFacts::default()
        };
        InstanceStatus::from_snapshot(snapshot, &facts)
    }

    /// What its heartbeat stores of a status.
    pub fn record(&self, scoreboard: &Scoreboard, status: &InstanceStatus) -> InstanceRecord {
        let (totals, rates) = (&status.totals, &status.rates);
        let figures = InstanceFigures {
            requests_per_s: rates.requests_per_s.map(tenths),
            latency_p99_us: rates.latency_p99_us,
            busy_percent: rates.busy_percent.map(tenths),
            in_flight: totals.in_flight,
            connections: totals.connections,
            memory_bytes: totals.memory_bytes,
            rate_limited: totals.rate_limited,
            subscribers: totals.subscribers,
        };
        // A retired slot is in the status for its totals only.
        let used = |slot: &&SlotStatus| slot.slot < status.workers.target || slot.state != SlotState::Empty;
        InstanceRecord {
            version: registry::DOCUMENT_VERSION,
            id: self.instance_id(scoreboard),
            host: self.host.clone(),
            pid: status.supervisor_pid,
            build: self.build.clone(),
            libraries: self.libraries.clone(),
            started_ms: status.started_ms,
            generation: status.generation,
            cores: self.cores,
            weight: self.max_workers.unwrap_or(status.workers.target).max(1),
            addresses: self.addresses.clone(),
            admin: self.admin_addresses.clone(),
            slots: status.slots.iter().filter(used).map(slot_record).collect(),
            figures: Some(figures),
        }
    }
}

fn slot_record(slot: &SlotStatus) -> SlotRecord {
    let worker = slot.worker.as_ref();
    let figures = SlotFigures {
        requests_per_s: slot.rates.requests_per_s.map(tenths),
        latency_p99_us: slot.rates.latency_p99_us,
        busy_percent: slot.rates.busy_percent.map(tenths),
        in_flight: slot.in_flight,
        memory_bytes: slot.memory_bytes,
        starts: slot.starts,
        exits: slot.exits.clone(),
        redis_up: worker.is_some_and(|worker| worker.redis_up),
        redis_degraded: worker.is_some_and(WorkerStatus::is_redis_degraded),
    };
    SlotRecord {
        slot: slot.slot,
        pid: worker.map_or(0, |worker| worker.pid),
        generation: worker.map_or(0, |worker| worker.generation),
        state: slot.state.name().to_owned(),
        figures: Some(figures),
    }
}

/// Rounded: what people read needs no more, and it keeps the heartbeat short.
fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

/// The list of instances as last read from Redis.
#[derive(Default)]
pub(crate) struct FleetCache(Mutex<Option<(Instant, Result<InstanceList, String>)>>);

impl fmt::Debug for FleetCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetCache").finish_non_exhaustive()
    }
}

impl FleetCache {
    /// All instances, or why they could not be read; at most a second old.
    pub(super) async fn get(&self, redis: &RedisClient) -> Result<InstanceList, String> {
        // A caller that arrives during a read waits for its result.
        let mut last = self.0.lock().await;
        if let Some((at, answer)) = last.as_ref()
            && at.elapsed() < CACHE_TTL
        {
            return answer.clone();
        }
        let answer = redis.list_instances().await.map_err(|error| error.to_string());
        *last = Some((Instant::now(), answer.clone()));
        answer
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    #[test]
    fn an_instance_shows_its_configured_slots_and_those_it_still_has() {
        let table = Scoreboard::create(NonZeroUsize::new(8).unwrap(), 7, 1000).unwrap();
        for slot in 0..4 {
            table.cell(slot, 0).reset(1, 0);
            table.cell(slot, 0).set_pid(10);
            table.row(slot).set_state(SlotState::Ready, Some(0));
        }
        table.row(2).set_state(SlotState::Draining, Some(0));
        table.cell(3, 0).clear();
        table.row(3).set_state(SlotState::Empty, None);
        table.set_slots(2);
        let identity = InstanceIdentity { host: "web".into(), ..InstanceIdentity::default() };
        let record = |identity: &InstanceIdentity| {
            let status = identity.status(&table, &table.snapshot(), InstanceRates::default());
            identity.record(&table, &status)
        };
        let instance = record(&identity);
        let slots: Vec<_> =
            instance.slots.iter().map(|slot_entry| (slot_entry.slot, slot_entry.state.as_str())).collect();
        assert_eq!(slots, [(0, "ready"), (1, "ready"), (2, "draining")]);
        assert_eq!((instance.weight, instance.ready_slots(), instance.id.as_str()), (2, 2, "web.7.3e8"));
        table.set_instance_id(0xabc);
        let identity = InstanceIdentity { max_workers: Some(5), ..identity };
        let instance = record(&identity);
        assert_eq!((instance.weight, instance.id.as_str()), (5, "web.7.abc"));
        table.cell(0, 0).count_connection_opened();
        let busy = record(&identity);
        assert_eq!(busy.figures.as_ref().map(|figures| figures.connections), Some(1));
        assert!(busy != instance && !busy.differs_beyond_figures(&instance));
    }
}
