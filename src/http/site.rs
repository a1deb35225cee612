//! This machine as its heartbeat tells it, and all machines as Redis knows them, asked at most once a second.

use std::fmt;
use std::time::Duration;
use std::time::Instant;

use tokio::sync::Mutex;

use crate::breaker::Position;
use crate::control::rates::Rates;
use crate::redis::Redis;
use crate::redis::figures::Figures;
use crate::redis::figures::SeatFigures;
use crate::redis::fleet;
use crate::redis::fleet::Machine;
use crate::redis::fleet::Machines;
use crate::redis::fleet::Seat;
use crate::scoreboard::Reason;
use crate::scoreboard::Scoreboard;
use crate::scoreboard::row::SlotState;
use crate::scoreboard::snapshot::SlotSnapshot;
use crate::scoreboard::snapshot::Snapshot;
use crate::scoreboard::snapshot::WorkerSnapshot;

/// How long an answer of Redis is passed on: operators' pages must not multiply the load.
const FRESH: Duration = Duration::from_secs(1);

/// What stays the same of a machine as long as a worker lives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Site {
    /// Name of the machine or container.
    pub host: String,
    /// Version and build of the program.
    pub build: String,
    /// Server-side libraries it calls.
    pub libraries: Vec<String>,
    /// Cores it may use.
    pub cores: usize,
    /// Most workers it may have where the load decides; none: as many as there are slots.
    pub most: Option<usize>,
    /// Where others reach its visitors' listeners, host:port.
    pub addresses: Vec<String>,
    /// Its operators' addresses as it listens there, separated by commas.
    pub admin: String,
}

impl Site {
    /// Unlike every other supervisor's, for as long as this one lives, upgrades included.
    pub fn id(&self, scoreboard: &Scoreboard) -> String {
        format!("{}.{}.{:x}", self.host, scoreboard.pid(), scoreboard.identity())
    }

    /// The machine at this moment.
    pub fn machine(&self, scoreboard: &Scoreboard) -> Machine {
        let wanted = scoreboard.slots();
        let snapshot = scoreboard.snapshot();
        // A retired slot is in the snapshot for its totals only.
        let slots = snapshot.slots.iter().filter(|slot| slot.slot < wanted || slot.state != SlotState::Empty);
        let seat = |slot: &SlotSnapshot| Seat {
            slot: slot.slot,
            pid: slot.pid(),
            generation: slot.generation(),
            state: slot.state.name().to_owned(),
            figures: None,
        };
        Machine {
            version: fleet::VERSION,
            id: self.id(scoreboard),
            host: self.host.clone(),
            pid: snapshot.supervisor_pid,
            build: self.build.clone(),
            libraries: self.libraries.clone(),
            started_ms: snapshot.started_ms,
            generation: snapshot.generation,
            cores: self.cores,
            weight: self.most.unwrap_or(wanted).max(1),
            addresses: self.addresses.clone(),
            admin: self.admin.clone(),
            slots: slots.map(seat).collect(),
            figures: None,
        }
    }
}

/// The machine with how it fares: what a heartbeat tells others, and what is shown of it here.
pub fn measured(machine: Machine, snapshot: &Snapshot, rates: &Rates) -> Machine {
    let gauge = |number: fn(&WorkerSnapshot) -> u64| snapshot.total(|slot| slot.sum(number));
    let workers = snapshot.slots.iter().filter_map(|slot| slot.incumbent.as_ref());
    let busy: Vec<f64> = workers.filter_map(|worker| rates.busy_percent.get(&worker.pid).copied()).collect();
    let figures = Figures {
        requests_per_s: rates.fleet.requests_per_s.map(tenths),
        latency_p99_us: rates.fleet.latency_p99_us,
        busy_percent: mean(&busy).map(tenths),
        in_flight: gauge(|worker| worker.in_flight),
        connections: gauge(|worker| worker.connections),
        memory_bytes: gauge(|worker| worker.memory_bytes),
        limited: snapshot.total(|slot| slot.limited),
        subscribers: gauge(|worker| worker.subscribers),
    };
    let with_figures = |seat: Seat| {
        let slot = snapshot.slots.get(seat.slot);
        Seat { figures: slot.map(|slot| seat_figures(slot, rates)), ..seat }
    };
    let slots = machine.slots.into_iter().map(with_figures).collect();
    Machine { slots, figures: Some(figures), ..machine }
}

fn seat_figures(slot: &SlotSnapshot, rates: &Rates) -> SeatFigures {
    let rate = rates.slots.get(slot.slot).copied().unwrap_or_default();
    let ends = Reason::ALL.iter().zip(slot.ends).filter(|(_, count)| *count > 0);
    let incumbent = slot.incumbent.as_ref();
    SeatFigures {
        requests_per_s: rate.requests_per_s.map(tenths),
        latency_p99_us: rate.latency_p99_us,
        busy_percent: rates.busy_percent.get(&slot.pid()).copied().map(tenths),
        in_flight: slot.sum(|worker| worker.in_flight),
        memory_bytes: slot.sum(|worker| worker.memory_bytes),
        starts: slot.starts,
        ends: ends.map(|(reason, count)| (reason.name().to_owned(), count)).collect(),
        redis_up: slot.redis_up(),
        redis_held_back: incumbent
            .is_some_and(|worker| worker.redis_lanes.iter().any(|lane| *lane != Position::Closed)),
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

/// What Redis last said of the machines.
#[derive(Default)]
pub(super) struct Remembered(Mutex<Option<(Instant, Result<Machines, String>)>>);

impl fmt::Debug for Remembered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remembered").finish_non_exhaustive()
    }
}

impl Remembered {
    /// All machines, or why Redis does not say; at most a second old.
    pub(super) async fn ask(&self, redis: &Redis) -> Result<Machines, String> {
        // Whoever comes while somebody asks waits for that answer.
        let mut last = self.0.lock().await;
        if let Some((at, answer)) = last.as_ref()
            && at.elapsed() < FRESH
        {
            return answer.clone();
        }
        let answer = redis.machines().await.map_err(|error| error.to_string());
        *last = Some((Instant::now(), answer.clone()));
        answer
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    #[test]
    fn a_machine_shows_the_slots_it_wants_and_those_it_still_has() {
        let table = Scoreboard::create(NonZeroUsize::new(8).unwrap(), 7, 1000).unwrap();
        for slot in 0..4 {
            table.cell(slot, 0).prepare(1, 0);
            table.cell(slot, 0).seated(10);
            table.row(slot).set_state(SlotState::Ready, Some(0));
        }
        table.row(2).set_state(SlotState::Draining, Some(0));
        table.cell(3, 0).vacate();
        table.row(3).set_state(SlotState::Empty, None);
        table.set_slots(2);
        let site = Site { host: "web".into(), ..Site::default() };
        let machine = site.machine(&table);
        let slots: Vec<_> = machine.slots.iter().map(|seat| (seat.slot, seat.state.as_str())).collect();
        assert_eq!(slots, [(0, "ready"), (1, "ready"), (2, "draining")]);
        assert_eq!((machine.weight, machine.ready(), machine.id.as_str()), (2, 2, "web.7.3e8"));
        table.set_identity(0xabc);
        let site = Site { most: Some(5), ..site };
        let machine = site.machine(&table);
        assert_eq!((machine.weight, machine.id.as_str()), (5, "web.7.abc"));
    }
}
