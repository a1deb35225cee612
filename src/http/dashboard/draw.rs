//! Everything that is known of the fleet becomes the page's texts. Pure.

use crate::control::events::Event;
use crate::control::status::FleetState;
use crate::control::status::RolloutOutcome;
use crate::control::status::Status;
use crate::http::dashboard::history::History;
use crate::http::dashboard::rows;
use crate::http::dashboard::view::EventRow;
use crate::http::dashboard::view::Line;
use crate::http::dashboard::view::MachineRow;
use crate::http::dashboard::view::Tone;
use crate::http::dashboard::view::View;
use crate::http::dashboard::words;
use crate::http::dashboard::work;
use crate::http::dashboard::work::Work;
use crate::redis::Finding;
use crate::redis::Findings;
use crate::redis::Health;
use crate::redis::LaneStates;
use crate::redis::fleet::Machines;
use crate::redis::fleet::Seen;
use crate::scoreboard::snapshot::Snapshot;

/// What is known at one moment.
#[derive(Debug)]
pub(super) struct Known<'a> {
    /// Unix time, milliseconds.
    pub(super) unix_ms: u64,
    /// This machine with its figures.
    pub(super) own: Seen,
    pub(super) snapshot: &'a Snapshot,
    /// All machines as Redis knows them, or why it does not say; none: machines do not tell it.
    pub(super) told: Option<Result<Machines, String>>,
    /// What the supervisor said, or why it did not.
    pub(super) supervisor: Result<&'a Status, &'a str>,
    /// What happened, the oldest first.
    pub(super) events: &'a [Event],
    pub(super) redis: Health,
    pub(super) lanes: LaneStates,
    pub(super) findings: Findings,
    /// All views ever counted.
    pub(super) views: Option<i64>,
    /// Sessions seen in the last minutes.
    pub(super) sessions: Option<u64>,
    pub(super) work: Work,
}

impl Known<'_> {
    /// Every machine that is known to live, this one first.
    pub(super) fn machines(&self) -> Vec<&Seen> {
        let others = self.told.iter().flatten().flat_map(|told| &told.seen);
        let others = others.filter(|seen| seen.machine.id != self.own.machine.id);
        std::iter::once(&self.own).chain(others).collect()
    }
}

/// The sums and extremes of all machines.
#[derive(Debug, Default)]
pub(super) struct Sums {
    pub(super) requests_per_s: Option<f64>,
    /// Of the slowest machine, microseconds.
    pub(super) latency_p99_us: Option<u64>,
    /// On average of the machines that serve.
    pub(super) busy_percent: Option<f64>,
    in_flight: u64,
    connections: u64,
    memory_bytes: u64,
    limited: u64,
    subscribers: u64,
}

impl Sums {
    #[allow(clippy::cast_precision_loss, reason = "a number of workers")]
    pub(super) fn of(machines: &[&Seen]) -> Self {
        let mut sums = Self::default();
        let (mut busy, mut serving) = (0.0, 0.0);
        for machine in machines.iter().map(|seen| &seen.machine) {
            let Some(figures) = &machine.figures else { continue };
            if let Some(rate) = figures.requests_per_s {
                *sums.requests_per_s.get_or_insert(0.0) += rate;
            }
            if let Some(share) = figures.busy_percent {
                let workers = machine.ready().max(1) as f64;
                (busy, serving) = (busy + share * workers, serving + workers);
            }
            sums.latency_p99_us = sums.latency_p99_us.max(figures.latency_p99_us);
            sums.in_flight += figures.in_flight;
            sums.connections += figures.connections;
            sums.memory_bytes += figures.memory_bytes;
            sums.limited += figures.limited;
            sums.subscribers += figures.subscribers;
        }
        sums.busy_percent = (serving > 0.0).then(|| busy / serving);
        sums
    }
}

/// The page.
pub(super) fn draw(known: &Known<'_>, history: &History) -> View {
    let machines = known.machines();
    let sums = Sums::of(&machines);
    let mut view = View {
        machine: known.own.machine.id.clone(),
        at: words::clock(known.unix_ms),
        rate: words::rate(sums.requests_per_s),
        rate_path: history.rate.path(history.rate.max()),
        p99: words::micros(sums.latency_p99_us),
        p99_path: history.p99.path(history.p99.max()),
        busy: words::percent(sums.busy_percent),
        busy_path: history.busy.path(100.0),
        in_flight: words::count(sums.in_flight),
        connections: words::count(sums.connections),
        memory: words::bytes(sums.memory_bytes),
        views: known
            .views
            .and_then(|views| u64::try_from(views).ok())
            .map_or(words::NONE.into(), words::count),
        sessions: known.sessions.map_or(words::NONE.into(), words::count),
        limited: words::count(sums.limited),
        subscribers: words::count(sums.subscribers),
        machines: machines.iter().map(|seen| machine(known, seen, history)).collect(),
        machines_note: missing(known),
        queue: work::sentence(&known.work),
        running: work::running(&known.work),
        dead: work::dead(&known.work),
        events: Some(known.events.iter().rev().map(event).collect()),
        events_note: match known.supervisor {
            Err(reason) => format!("The supervisor does not say: {reason}."),
            Ok(_) if known.events.is_empty() => "Nothing has happened yet.".to_owned(),
            Ok(_) => String::new(),
        },
        ..View::default()
    };
    state(&mut view, known);
    redis(&mut view, known);
    view
}

fn state(view: &mut View, known: &Known<'_>) {
    let ready = known.snapshot.ready();
    let generation = known.snapshot.generation;
    let age = words::age(known.unix_ms.saturating_sub(known.snapshot.started_ms) / 1000);
    let serve = |wanted: usize| match ready == wanted {
        true => format!("{} of generation {generation}, up {age}", words::some(ready, "worker", "workers")),
        false => format!("{ready} of {wanted} workers, generation {generation}, up {age}"),
    };
    let Ok(status) = known.supervisor else {
        view.state = "supervisor silent".into();
        view.state_tone = Tone::Bad;
        view.state_text = serve(ready);
        return;
    };
    let target = status.workers.target;
    view.state = status.state.name().into();
    view.state_tone = match status.state {
        FleetState::Serving if ready >= target => Tone::Good,
        FleetState::Stopping => Tone::Bad,
        _ => Tone::Wait,
    };
    view.state_text = serve(target);
    if let Some(rollout) = &status.rollout {
        let (kind, done, total) = (rollout.kind.name(), rollout.done, rollout.total);
        view.rollout = format!("{kind} to generation {}: {done} of {total} slots", rollout.generation);
        view.rollout_percent = (done * 100 / total.max(1)) as u64;
    }
    if let Some(last) = status.last_rollout.as_ref().filter(|last| last.outcome == RolloutOutcome::RolledBack)
    {
        let reason = last.reason.as_deref().unwrap_or("no reason given");
        view.state_text += &format!("; the last {} was taken back: {reason}", last.kind.name());
    }
}

fn redis(view: &mut View, known: &Known<'_>) {
    let slots = known.snapshot.slots.iter().filter_map(|slot| slot.incumbent.as_ref());
    let (have, all) =
        slots.fold((0, 0), |(have, all), worker| (have + usize::from(worker.redis_up), all + 1));
    let breakers = format!(
        "breakers of this worker: reads {}, writes {}",
        known.lanes.reads.position.name(),
        known.lanes.writes.position.name()
    );
    let held = known.lanes.reads.cause.as_ref().or(known.lanes.writes.cause.as_ref());
    (view.redis, view.redis_tone, view.redis_text) = match (&known.redis, held) {
        (Health::Up, None) if have == all => {
            ("up".into(), Tone::Good, format!("{} it; {breakers}", have_it(all, all)))
        }
        (Health::Up, None) => ("up".into(), Tone::Wait, format!("{} it; {breakers}", have_it(have, all))),
        (Health::Up, Some(cause)) => ("held back".into(), Tone::Wait, format!("{cause}; {breakers}")),
        (Health::Connecting, _) => ("connecting".into(), Tone::Wait, breakers),
        (Health::Down { reason }, _) => ("away".into(), Tone::Bad, format!("{reason}; {breakers}")),
    };
    let advice = known.findings.iter().map(Finding::advice);
    view.warnings = advice.map(|text| Line { key: text.to_owned(), text: text.to_owned() }).collect();
}

fn have_it(have: usize, all: usize) -> String {
    match have == all {
        true => {
            format!("{} {}", words::some(all, "worker", "workers"), if all == 1 { "has" } else { "have" })
        }
        false => format!("{have} of {all} workers have"),
    }
}

/// Why machines may be missing.
fn missing(known: &Known<'_>) -> String {
    match &known.told {
        None => "Other machines are not shown: fleet.heartbeat is 0.".into(),
        Some(Err(reason)) => format!("Other machines are not known now: {reason}."),
        Some(Ok(told)) if told.strange > 0 => {
            format!("{} of another version cannot be read.", words::some(told.strange, "machine", "machines"))
        }
        Some(Ok(told)) if !told.complete => "Machines that have not spoken yet may be missing.".into(),
        Some(Ok(_)) => String::new(),
    }
}

fn machine(known: &Known<'_>, seen: &Seen, history: &History) -> MachineRow {
    let machine = &seen.machine;
    let own = machine.id == known.own.machine.id;
    let ready = machine.ready();
    let mut parts = vec![match ready == machine.weight {
        true => format!("{} ready", words::some(ready, "worker", "workers")),
        false => format!("{ready} of {} ready", words::some(machine.weight, "worker", "workers")),
    }];
    if let Some(figures) = &machine.figures {
        parts.push(format!("{} requests/s", words::rate(figures.requests_per_s)));
        parts.push(format!("{} busy", words::percent(figures.busy_percent)));
        parts.push(format!("p99 {}", words::micros(figures.latency_p99_us)));
        parts.push(words::bytes(figures.memory_bytes));
    }
    parts.push(format!("generation {}", machine.generation));
    parts.push(format!("supervisor {}", machine.pid));
    if !machine.build.is_empty() {
        parts.push(machine.build.clone());
    }
    let slots = match own {
        true => rows::own(known.snapshot, machine, history),
        false => machine.slots.iter().map(rows::other).collect(),
    };
    MachineRow {
        key: machine.id.clone(),
        host: machine.host.clone(),
        which: match own {
            true => "this machine".into(),
            false => format!("heard {} ago", words::age(seen.age_ms / 1000)),
        },
        tone: if ready >= machine.weight { Tone::Good } else { Tone::Wait },
        text: parts.join(" · "),
        slots,
    }
}

/// Kinds of events that somebody should look at, by their last words.
const BAD: [&str; 5] = ["_failed", "_died", "_killed", "_hangs", "_cut"];

fn event(event: &Event) -> EventRow {
    let bad = BAD.iter().any(|ending| event.kind.ends_with(ending));
    EventRow {
        key: event.seq.to_string(),
        at: words::clock(event.at_ms),
        stamp: words::stamp(event.at_ms),
        kind: event.kind.replace('_', " "),
        tone: if bad { Tone::Bad } else { Tone::Plain },
        text: event.text.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::redis::figures::Figures;
    use crate::redis::fleet::Machine;
    use crate::redis::fleet::Seat;
    use crate::scoreboard::Scoreboard;
    use crate::scoreboard::row::SlotState;

    fn machine(host: &str, requests_per_s: f64, busy_percent: f64) -> Seen {
        let figures = Figures {
            requests_per_s: Some(requests_per_s),
            busy_percent: Some(busy_percent),
            latency_p99_us: Some(requests_per_s as u64),
            in_flight: 2,
            ..Figures::default()
        };
        let slots = vec![Seat { state: "ready".into(), ..Seat::default() }];
        let (id, host) = (host.to_owned(), host.to_owned());
        let machine = Machine { id, host, weight: 1, slots, figures: Some(figures), ..Machine::default() };
        Seen { age_ms: 2_500, machine }
    }

    fn known<'a>(snapshot: &'a Snapshot, told: Option<Result<Machines, String>>) -> Known<'a> {
        Known {
            unix_ms: 1_700_000_000_123,
            own: machine("own", 10.0, 20.0),
            snapshot,
            told,
            supervisor: Err("it is stopped"),
            events: &[],
            redis: Health::Down { reason: "refused".into() },
            lanes: LaneStates::default(),
            findings: Findings::default(),
            views: None,
            sessions: None,
            work: Err("Redis is away".into()),
        }
    }

    fn snapshot() -> Snapshot {
        let table = Scoreboard::create(NonZeroUsize::MIN, 1, 0).unwrap();
        table.set_slots(1);
        table.cell(0, 0).prepare(1, 0);
        table.cell(0, 0).seated(42);
        table.row(0).set_state(SlotState::Ready, Some(0));
        table.snapshot()
    }

    #[test]
    fn what_is_not_known_is_said_and_the_rest_is_shown() {
        let snapshot = snapshot();
        let view = draw(&known(&snapshot, Some(Err("no connection".into()))), &History::default());
        assert_eq!((view.state.as_str(), view.state_tone), ("supervisor silent", Tone::Bad));
        assert_eq!((view.redis.as_str(), view.views.as_str(), view.sessions.as_str()), ("away", "–", "–"));
        assert!(view.redis_text.contains("refused") && view.machines_note.contains("no connection"));
        assert!(view.events_note.contains("it is stopped") && view.queue.contains("Redis is away"));
        assert_eq!((view.rate.as_str(), view.in_flight.as_str(), view.at.as_str()), ("10", "2", "22:13:20"));
        assert!(draw(&known(&snapshot, None), &History::default()).machines_note.contains("fleet.heartbeat"));
    }

    #[test]
    fn machines_are_added_up_this_one_first_and_none_twice() {
        let snapshot = snapshot();
        let seen = vec![machine("another", 30.0, 60.0), machine("own", 999.0, 99.0)];
        let told = Machines { seen, strange: 0, complete: true };
        let view = draw(&known(&snapshot, Some(Ok(told))), &History::default());
        let hosts: Vec<_> = view.machines.iter().map(|row| (row.host.as_str(), row.which.as_str())).collect();
        assert_eq!(hosts, [("own", "this machine"), ("another", "heard 2\u{2009}s ago")]);
        assert_eq!((view.rate.as_str(), view.busy.as_str()), ("40", "40\u{2009}%"));
        assert_eq!((view.p99.as_str(), view.machines_note.as_str()), ("30\u{2009}µs", ""));
        assert_eq!(view.machines[0].slots[0].own, "0", "its slots can be restarted here");
        assert_eq!(view.machines[1].slots[0].own, "", "another one's cannot");
    }
}
