//! The fleet's facts as the page's texts. Pure.

use crate::control::events::FleetEvent;
use crate::http::dashboard::metric_history::MetricHistory;
use crate::http::dashboard::queue_view::QueueFacts;
use crate::http::dashboard::view_model::{DashboardView, EventView, InstanceView, ListItem, StatusSeverity};
use crate::http::dashboard::{formatting, queue_view, slot_view};
use crate::redis::{BreakerStates, RedisStatus, ServerWarning, ServerWarnings};
use crate::registry::{InstanceList, ListedInstance};
use crate::scoreboard::snapshot::ScoreboardSnapshot;
use crate::status::document::{InstanceState, InstanceStatus, RolloutOutcome};

/// The facts of one moment.
#[derive(Debug)]
pub(super) struct DashboardFacts<'a> {
    /// Unix time, milliseconds.
    pub(super) unix_ms: u64,
    /// This instance with its figures.
    pub(super) own: ListedInstance,
    pub(super) snapshot: &'a ScoreboardSnapshot,
    /// All instances as Redis lists them, or why there is no list; `None`: heartbeats are off.
    pub(super) listed: Option<Result<InstanceList, String>>,
    /// The supervisor's status, or why it is unknown.
    pub(super) supervisor: Result<&'a InstanceStatus, &'a str>,
    /// The oldest first.
    pub(super) events: &'a [FleetEvent],
    pub(super) redis: RedisStatus,
    pub(super) breakers: BreakerStates,
    pub(super) server_warnings: ServerWarnings,
    /// All views ever counted.
    pub(super) views: Option<i64>,
    /// Sessions used in the last minutes.
    pub(super) sessions: Option<u64>,
    pub(super) queue: QueueFacts,
}

impl DashboardFacts<'_> {
    /// Every live instance, this one first.
    pub(super) fn instances(&self) -> Vec<&ListedInstance> {
        let others = self.listed.iter().flatten().flat_map(|listed| &listed.instances);
        let others = others.filter(|seen| seen.instance.id != self.own.instance.id);
        std::iter::once(&self.own).chain(others).collect()
    }
}

/// Sums and extremes of all instances.
#[derive(Debug, Default)]
pub(super) struct FleetTotals {
    pub(super) requests_per_s: Option<f64>,
    /// Of the slowest instance, microseconds.
    pub(super) latency_p99_us: Option<u64>,
    /// The average of all ready workers.
    pub(super) busy_percent: Option<f64>,
    in_flight: u64,
    connections: u64,
    memory_bytes: u64,
    limited: u64,
    subscribers: u64,
}

impl FleetTotals {
    #[allow(clippy::cast_precision_loss, reason = "a number of workers")]
    pub(super) fn from_instances(instances: &[&ListedInstance]) -> Self {
        let mut totals = Self::default();
        let (mut busy, mut serving) = (0.0, 0.0);
        for instance in instances.iter().map(|seen| &seen.instance) {
            let Some(figures) = &instance.figures else { continue };
            if let Some(rate) = figures.requests_per_s {
                *totals.requests_per_s.get_or_insert(0.0) += rate;
            }
            if let Some(share) = figures.busy_percent {
                let workers = instance.ready_slots().max(1) as f64;
                (busy, serving) = (busy + share * workers, serving + workers);
            }
            totals.latency_p99_us = totals.latency_p99_us.max(figures.latency_p99_us);
            totals.in_flight += figures.in_flight;
            totals.connections += figures.connections;
            totals.memory_bytes += figures.memory_bytes;
            totals.limited += figures.rate_limited;
            totals.subscribers += figures.subscribers;
        }
        totals.busy_percent = (serving > 0.0).then(|| busy / serving);
        totals
    }
}

/// The whole page.
pub(super) fn present(facts: &DashboardFacts<'_>, history: &MetricHistory) -> DashboardView {
    let instances = facts.instances();
    let totals = FleetTotals::from_instances(&instances);
    let mut view = DashboardView {
        instance: facts.own.instance.id.clone(),
        at: formatting::clock(facts.unix_ms),
        rate: formatting::rate(totals.requests_per_s),
        rate_path: history.rate.svg_path(history.rate.max()),
        p99: formatting::micros(totals.latency_p99_us),
        p99_path: history.p99.svg_path(history.p99.max()),
        busy: formatting::percent(totals.busy_percent),
        busy_path: history.busy.svg_path(100.0),
        in_flight: formatting::count(totals.in_flight),
        connections: formatting::count(totals.connections),
        memory: formatting::bytes(totals.memory_bytes),
        views: facts
            .views
            .and_then(|views| u64::try_from(views).ok())
            .map_or(formatting::UNKNOWN.into(), formatting::count),
        sessions: facts.sessions.map_or(formatting::UNKNOWN.into(), formatting::count),
        limited: formatting::count(totals.limited),
        subscribers: formatting::count(totals.subscribers),
        instances: instances.iter().map(|seen| instance_view(facts, seen, history)).collect(),
        instances_note: missing_instances_note(facts),
        queue: queue_view::queue_summary(&facts.queue),
        running: queue_view::running_tasks(&facts.queue),
        dead: queue_view::dead_tasks(&facts.queue),
        events: Some(facts.events.iter().rev().map(event_view).collect()),
        events_note: match facts.supervisor {
            Err(reason) => format!("The supervisor is unavailable: {reason}."),
            Ok(_) if facts.events.is_empty() => "No events yet.".to_owned(),
            Ok(_) => String::new(),
        },
        ..DashboardView::default()
    };
    present_state(&mut view, facts);
    present_redis(&mut view, facts);
    view
}

fn present_state(view: &mut DashboardView, facts: &DashboardFacts<'_>) {
    let ready = facts.snapshot.ready();
    let generation = facts.snapshot.generation;
    let age = formatting::age(facts.unix_ms.saturating_sub(facts.snapshot.started_ms) / 1000);
    let serve = |desired: usize| match ready == desired {
        true => {
            format!(
                "{} of generation {generation}, up {age}",
                formatting::counted(ready, "worker", "workers")
            )
        }
        false => format!("{ready} of {desired} workers, generation {generation}, up {age}"),
    };
    let Ok(status) = facts.supervisor else {
        view.state = "supervisor unavailable".into();
        view.state_tone = StatusSeverity::Error;
        view.state_text = serve(ready);
        return;
    };
    let target = status.workers.target;
    view.state = status.state.name().into();
    view.state_tone = match status.state {
        InstanceState::Serving if ready >= target => StatusSeverity::Ok,
        InstanceState::Stopping => StatusSeverity::Error,
        _ => StatusSeverity::Pending,
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
        view.state_text += &format!("; the last {} was rolled back: {reason}", last.kind.name());
    }
}

fn present_redis(view: &mut DashboardView, facts: &DashboardFacts<'_>) {
    let slots = facts.snapshot.slots.iter().filter_map(|slot| slot.active_worker.as_ref());
    let (connected, all) =
        slots.fold((0, 0), |(connected, all), worker| (connected + usize::from(worker.redis_up), all + 1));
    let breakers = format!(
        "breakers of this worker: reads {}, writes {}",
        facts.breakers.reads.state.name(),
        facts.breakers.writes.state.name()
    );
    let cause = facts.breakers.reads.cause.as_ref().or(facts.breakers.writes.cause.as_ref());
    (view.redis, view.redis_tone, view.redis_text) = match (&facts.redis, cause) {
        (RedisStatus::Up, None) if connected == all => {
            ("up".into(), StatusSeverity::Ok, format!("{} it; {breakers}", workers_with_redis(all, all)))
        }
        (RedisStatus::Up, None) => (
            "up".into(),
            StatusSeverity::Pending,
            format!("{} it; {breakers}", workers_with_redis(connected, all)),
        ),
        (RedisStatus::Up, Some(cause)) => {
            ("degraded".into(), StatusSeverity::Pending, format!("{cause}; {breakers}"))
        }
        (RedisStatus::Connecting, _) => ("connecting".into(), StatusSeverity::Pending, breakers),
        (RedisStatus::Down { reason }, _) => {
            ("unavailable".into(), StatusSeverity::Error, format!("{reason}; {breakers}"))
        }
    };
    let advice = facts.server_warnings.iter().map(ServerWarning::advice);
    view.warnings = advice.map(|text| ListItem { key: text.to_owned(), text: text.to_owned() }).collect();
}

fn workers_with_redis(connected: usize, all: usize) -> String {
    match connected == all {
        true => {
            format!(
                "{} {}",
                formatting::counted(all, "worker", "workers"),
                if all == 1 { "has" } else { "have" }
            )
        }
        false => format!("{connected} of {all} workers have"),
    }
}

/// Why instances may be missing.
fn missing_instances_note(facts: &DashboardFacts<'_>) -> String {
    match &facts.listed {
        None => "Other instances are not shown: fleet.heartbeat_interval is 0.".into(),
        Some(Err(reason)) => format!("Other instances are unknown: {reason}."),
        Some(Ok(listed)) if listed.unreadable > 0 => {
            format!(
                "{} of another version cannot be read.",
                formatting::counted(listed.unreadable, "instance", "instances")
            )
        }
        Some(Ok(listed)) if !listed.complete => "Instances without a heartbeat yet may be missing.".into(),
        Some(Ok(_)) => String::new(),
    }
}

fn instance_view(facts: &DashboardFacts<'_>, seen: &ListedInstance, history: &MetricHistory) -> InstanceView {
    let instance = &seen.instance;
    let own = instance.id == facts.own.instance.id;
    let ready = instance.ready_slots();
    let mut parts = vec![match ready == instance.weight {
        true => format!("{} ready", formatting::counted(ready, "worker", "workers")),
        false => format!("{ready} of {} ready", formatting::counted(instance.weight, "worker", "workers")),
    }];
    if let Some(figures) = &instance.figures {
        parts.push(format!("{} requests/s", formatting::rate(figures.requests_per_s)));
        parts.push(format!("{} busy", formatting::percent(figures.busy_percent)));
        parts.push(format!("p99 {}", formatting::micros(figures.latency_p99_us)));
        parts.push(formatting::bytes(figures.memory_bytes));
    }
    parts.push(format!("generation {}", instance.generation));
    parts.push(format!("supervisor {}", instance.pid));
    if !instance.build.is_empty() {
        parts.push(instance.build.clone());
    }
    let slots = match own {
        true => slot_view::own_slots(facts.snapshot, instance, history),
        false => instance.slots.iter().map(slot_view::slot_view).collect(),
    };
    InstanceView {
        key: instance.id.clone(),
        host: instance.host.clone(),
        which: match own {
            true => "this instance".into(),
            false => format!("last heartbeat {} ago", formatting::age(seen.age_ms / 1000)),
        },
        tone: if ready >= instance.weight { StatusSeverity::Ok } else { StatusSeverity::Pending },
        text: parts.join(" · "),
        slots,
    }
}

/// Kinds of events that an operator should look at, by their last words.
const ERROR_SUFFIXES: [&str; 8] =
    ["_failed", "_crashed", "_killed", "_hung", "_aborted", "_died", "_hangs", "_cut"];

fn event_view(event: &FleetEvent) -> EventView {
    let is_error = ERROR_SUFFIXES.iter().any(|suffix| event.kind.ends_with(suffix));
    EventView {
        key: event.sequence.to_string(),
        at: formatting::clock(event.timestamp_ms),
        stamp: formatting::stamp(event.timestamp_ms),
        kind: event.kind.replace('_', " "),
        tone: if is_error { StatusSeverity::Error } else { StatusSeverity::Neutral },
        text: event.message.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::registry::figures::InstanceFigures;
    use crate::registry::{InstanceRecord, SlotRecord};
    use crate::scoreboard::Scoreboard;
    use crate::scoreboard::row::SlotState;

    fn listed_instance(host: &str, requests_per_s: f64, busy_percent: f64) -> ListedInstance {
        let figures = InstanceFigures {
            requests_per_s: Some(requests_per_s),
            busy_percent: Some(busy_percent),
            latency_p99_us: Some(requests_per_s as u64),
            in_flight: 2,
            ..InstanceFigures::default()
        };
        let slots = vec![SlotRecord { state: "ready".into(), ..SlotRecord::default() }];
        let (id, host) = (host.to_owned(), host.to_owned());
        let instance = InstanceRecord {
            id,
            host,
            weight: 1,
            slots,
            figures: Some(figures),
            ..InstanceRecord::default()
        };
        ListedInstance { age_ms: 2_500, instance }
    }

    fn facts<'a>(
        snapshot: &'a ScoreboardSnapshot,
        listed: Option<Result<InstanceList, String>>,
    ) -> DashboardFacts<'a> {
        DashboardFacts {
            unix_ms: 1_700_000_000_123,
            own: listed_instance("own", 10.0, 20.0),
            snapshot,
            listed,
            supervisor: Err("it is stopped"),
            events: &[],
            redis: RedisStatus::Down { reason: "refused".into() },
            breakers: BreakerStates::default(),
            server_warnings: ServerWarnings::default(),
            views: None,
            sessions: None,
            queue: Err("Redis is unavailable".into()),
        }
    }

    fn snapshot() -> ScoreboardSnapshot {
        let table = Scoreboard::create(NonZeroUsize::MIN, 1, 0).unwrap();
        table.set_slots(1);
        table.cell(0, 0).reset(1, 0);
        table.cell(0, 0).set_pid(42);
        table.row(0).set_state(SlotState::Ready, Some(0));
        table.snapshot()
    }

    #[test]
    fn unknown_facts_are_explained_and_the_rest_is_shown() {
        let snapshot = snapshot();
        let view = present(&facts(&snapshot, Some(Err("no connection".into()))), &MetricHistory::default());
        assert_eq!((view.state.as_str(), view.state_tone), ("supervisor unavailable", StatusSeverity::Error));
        assert_eq!(
            (view.redis.as_str(), view.views.as_str(), view.sessions.as_str()),
            ("unavailable", "–", "–")
        );
        assert!(view.redis_text.contains("refused") && view.instances_note.contains("no connection"));
        assert!(view.events_note.contains("it is stopped") && view.queue.contains("Redis is unavailable"));
        assert_eq!((view.rate.as_str(), view.in_flight.as_str(), view.at.as_str()), ("10", "2", "22:13:20"));
        assert!(
            present(&facts(&snapshot, None), &MetricHistory::default())
                .instances_note
                .contains("fleet.heartbeat_interval")
        );
    }

    #[test]
    fn instances_are_added_up_the_own_one_first_and_none_twice() {
        let snapshot = snapshot();
        let seen = vec![listed_instance("another", 30.0, 60.0), listed_instance("own", 999.0, 99.0)];
        let listed = InstanceList { instances: seen, unreadable: 0, complete: true };
        let view = present(&facts(&snapshot, Some(Ok(listed))), &MetricHistory::default());
        let hosts: Vec<_> =
            view.instances.iter().map(|row| (row.host.as_str(), row.which.as_str())).collect();
        assert_eq!(hosts, [("own", "this instance"), ("another", "last heartbeat 2\u{2009}s ago")]);
        assert_eq!((view.rate.as_str(), view.busy.as_str()), ("40", "40\u{2009}%"));
        assert_eq!((view.p99.as_str(), view.instances_note.as_str()), ("30\u{2009}µs", ""));
        assert_eq!(view.instances[0].slots[0].restart_slot, "0", "its slots can be restarted here");
        assert_eq!(view.instances[1].slots[0].restart_slot, "", "another one's cannot");
    }
}
