//! An instance's slots as rows of the page. Pure.

use crate::http::dashboard::formatting;
use crate::http::dashboard::metric_history::MetricHistory;
use crate::http::dashboard::view_model::{SlotView, StatusSeverity};
use crate::registry::figures::SlotFigures;
use crate::registry::{InstanceRecord, SlotRecord};
use crate::scoreboard::snapshot::{CellSnapshot, ScoreboardSnapshot, SlotSnapshot};

/// The slots of this instance, with what a heartbeat does not have.
pub(super) fn own_slots(
    snapshot: &ScoreboardSnapshot,
    instance: &InstanceRecord,
    history: &MetricHistory,
) -> Vec<SlotView> {
    let scale = history.slots_max();
    let row = |slot: &SlotRecord| {
        let path =
            history.slots.get(slot.slot).map(|sparkline| sparkline.svg_path(scale)).unwrap_or_default();
        let other_workers = snapshot.slots.get(slot.slot).map(other_workers).unwrap_or_default();
        SlotView { path, other_workers, restart_slot: slot.slot.to_string(), ..slot_view(slot) }
    };
    instance.slots.iter().map(row).collect()
}

/// A slot as it is in a heartbeat.
pub(super) fn slot_view(slot: &SlotRecord) -> SlotView {
    let nothing = SlotFigures::default();
    let figures = slot.figures.as_ref().unwrap_or(&nothing);
    let number = |number: u64| match &slot.figures {
        Some(_) => formatting::count(number),
        None => formatting::UNKNOWN.to_owned(),
    };
    let (redis, redis_tone) = match (&slot.figures, figures.redis_up, figures.redis_degraded) {
        (None, ..) => (formatting::UNKNOWN, StatusSeverity::Neutral),
        (Some(_), true, false) => ("up", StatusSeverity::Ok),
        (Some(_), true, true) => ("degraded", StatusSeverity::Pending),
        (Some(_), false, _) => ("unavailable", StatusSeverity::Error),
    };
    SlotView {
        key: slot.slot.to_string(),
        slot: slot.slot.to_string(),
        state: slot.state.replace('_', " "),
        tone: severity_of(&slot.state),
        pid: if slot.pid == 0 { formatting::UNKNOWN.into() } else { slot.pid.to_string() },
        other_workers: String::new(),
        generation: if slot.generation == 0 {
            formatting::UNKNOWN.into()
        } else {
            slot.generation.to_string()
        },
        rate: formatting::rate(figures.requests_per_s),
        path: String::new(),
        in_flight: number(figures.in_flight),
        busy: formatting::percent(figures.busy_percent),
        busy_percent: whole_percent(figures.busy_percent),
        p99: formatting::micros(figures.latency_p99_us),
        memory: formatting::bytes(figures.memory_bytes),
        redis: redis.to_owned(),
        redis_tone,
        restarts: number(figures.starts.saturating_sub(1)),
        reasons: exit_reasons(figures),
        restart_slot: String::new(),
    }
}

fn severity_of(state: &str) -> StatusSeverity {
    match state {
        "ready" => StatusSeverity::Ok,
        "booting" | "draining" => StatusSeverity::Pending,
        "backed_off" => StatusSeverity::Error,
        _ => StatusSeverity::Neutral,
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 100")]
fn whole_percent(share: Option<f64>) -> u64 {
    share.unwrap_or(0.0).clamp(0.0, 100.0).round() as u64
}

/// Why its workers exited, the most frequent reason first.
fn exit_reasons(figures: &SlotFigures) -> String {
    let mut exits: Vec<_> = figures.exits.iter().collect();
    exits.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), name.as_str()));
    let texts = exits.iter().map(|(name, count)| match count {
        1 => name.replace('_', " "),
        count => format!("{} {count}×", name.replace('_', " ")),
    });
    texts.collect::<Vec<_>>().join(", ")
}

/// The slot's workers beside the active one.
fn other_workers(slot: &SlotSnapshot) -> String {
    let others = slot.workers.iter().filter(|worker| Some(*worker) != slot.active_worker.as_ref());
    let text = |worker: &CellSnapshot| format!("{} {}", worker.pid, worker.state.name());
    others.map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_of_an_older_program_shows_what_it_reports_and_nothing_else() {
        let slot = SlotRecord { slot: 3, pid: 42, generation: 2, state: "backed_off".into(), figures: None };
        let row = slot_view(&slot);
        assert_eq!(
            (row.state.as_str(), row.tone, row.redis.as_str()),
            ("backed off", StatusSeverity::Error, "–")
        );
        assert_eq!((row.rate.as_str(), row.restarts.as_str(), row.restart_slot.as_str()), ("–", "–", ""));
    }

    #[test]
    fn reasons_are_listed_the_most_frequent_first() {
        let ends = [("signal", 1), ("exit_code", 1), ("reload", 3)];
        let ends = ends.into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
        let figures = SlotFigures {
            starts: 6,
            exits: ends,
            busy_percent: Some(43.6),
            redis_up: true,
            ..SlotFigures::default()
        };
        let row = slot_view(&SlotRecord { figures: Some(figures), ..SlotRecord::default() });
        assert_eq!(row.reasons, "reload 3×, exit code, signal");
        assert_eq!((row.restarts.as_str(), row.busy_percent, row.redis_tone), ("5", 44, StatusSeverity::Ok));
    }
}
