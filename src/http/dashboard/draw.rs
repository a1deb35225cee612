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
        dead: work::dead(&known.work, known.unix_ms),
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
