//! This instance as its heartbeat describes it, and all instances as Redis lists them, read at most once a second.

use std::fmt;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::breaker::BreakerState;
use crate::redis::instance_figures::{InstanceFigures, SlotFigures};
use crate::redis::registry::{InstanceList, InstanceRecord, SlotRecord};
use crate::redis::{RedisClient, registry};
use crate::scoreboard::row::SlotState;
use crate::scoreboard::snapshot::{CellSnapshot, ScoreboardSnapshot, SlotSnapshot};
use crate::scoreboard::{ExitReason, Scoreboard};
use crate::status::rates::InstanceRates;

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

    /// The instance at this moment.
    pub fn info(&self, scoreboard: &Scoreboard) -> InstanceRecord {
        let configured_slots = scoreboard.slots();
        let snapshot = scoreboard.snapshot();
        // A retired slot is in the snapshot for its totals only.
        let slots = snapshot
            .slots
            .iter()
            .filter(|slot| slot.slot < configured_slots || slot.state != SlotState::Empty);
        let slot_entry = |slot: &SlotSnapshot| SlotRecord {
            slot: slot.slot,
            pid: slot.pid(),
            generation: slot.generation(),
            state: slot.state.name().to_owned(),
            figures: None,
        };
        InstanceRecord {
            version: registry::DOCUMENT_VERSION,
            id: self.instance_id(scoreboard),
            host: self.host.clone(),
            pid: snapshot.supervisor_pid,
            build: self.build.clone(),
            libraries: self.libraries.clone(),
            started_ms: snapshot.started_ms,
            generation: snapshot.generation,
            cores: self.cores,
            weight: self.max_workers.unwrap_or(configured_slots).max(1),
            addresses: self.addresses.clone(),
            admin: self.admin_addresses.clone(),
            slots: slots.map(slot_entry).collect(),
            figures: None,
        }
    }
}

/// The instance with its present figures: what a heartbeat stores, and what this instance's own pages show.
pub fn with_figures(
    instance: InstanceRecord,
    snapshot: &ScoreboardSnapshot,
    rates: &InstanceRates,
) -> InstanceRecord {
    let gauge = |number: fn(&CellSnapshot) -> u64| snapshot.total(|slot| slot.sum(number));
    let workers = snapshot.slots.iter().filter_map(|slot| slot.active_worker.as_ref());
    let busy: Vec<f64> = workers.filter_map(|worker| rates.busy_percent.get(&worker.pid).copied()).collect();
    let figures = InstanceFigures {
        requests_per_s: rates.instance.requests_per_s.map(tenths),
        latency_p99_us: rates.instance.latency_p99_us,
        busy_percent: mean(&busy).map(tenths),
        in_flight: gauge(|worker| worker.in_flight),
        connections: gauge(|worker| worker.connections),
        memory_bytes: gauge(|worker| worker.memory_bytes),
        rate_limited: snapshot.total(|slot| slot.rate_limited),
        subscribers: gauge(|worker| worker.subscribers),
    };
    let slot_with_figures = |slot_entry: SlotRecord| {
        let slot = snapshot.slots.get(slot_entry.slot);
        SlotRecord { figures: slot.map(|slot| slot_figures(slot, rates)), ..slot_entry }
    };
    let slots = instance.slots.into_iter().map(slot_with_figures).collect();
    InstanceRecord { slots, figures: Some(figures), ..instance }
}

fn slot_figures(slot: &SlotSnapshot, rates: &InstanceRates) -> SlotFigures {
    let rate = rates.slots.get(slot.slot).copied().unwrap_or_default();
    let ends = ExitReason::ALL.iter().zip(slot.exits).filter(|(_, count)| *count > 0);
    let incumbent = slot.active_worker.as_ref();
    SlotFigures {
        requests_per_s: rate.requests_per_s.map(tenths),
        latency_p99_us: rate.latency_p99_us,
        busy_percent: rates.busy_percent.get(&slot.pid()).copied().map(tenths),
        in_flight: slot.sum(|worker| worker.in_flight),
        memory_bytes: slot.sum(|worker| worker.memory_bytes),
        starts: slot.starts,
        exits: ends.map(|(reason, count)| (reason.name().to_owned(), count)).collect(),
        redis_up: slot.redis_up(),
        redis_degraded: incumbent
            .is_some_and(|worker| worker.breakers.iter().any(|lane| *lane != BreakerState::Closed)),
    }
}

/// Rounded: what people read needs no more, and it keeps the heartbeat short.
fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

#[allow(clippy::cast_precision_loss, reason = "a number of workers")]
fn mean(numbers: &[f64]) -> Option<f64> {
    (!numbers.is_empty()).then(|| numbers.iter().sum::<f64>() / numbers.len() as f64)
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
        let instance = identity.info(&table);
        let slots: Vec<_> =
            instance.slots.iter().map(|slot_entry| (slot_entry.slot, slot_entry.state.as_str())).collect();
        assert_eq!(slots, [(0, "ready"), (1, "ready"), (2, "draining")]);
        assert_eq!((instance.weight, instance.ready_slots(), instance.id.as_str()), (2, 2, "web.7.3e8"));
        table.set_instance_id(0xabc);
        let identity = InstanceIdentity { max_workers: Some(5), ..identity };
        let instance = identity.info(&table);
        assert_eq!((instance.weight, instance.id.as_str()), (5, "web.7.abc"));
    }
}
