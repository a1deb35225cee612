//! A machine's slots as rows of the page. Pure.

use crate::http::dashboard::history::History;
use crate::http::dashboard::view::SlotRow;
use crate::http::dashboard::view::Tone;
use crate::http::dashboard::words;
use crate::redis::figures::SeatFigures;
use crate::redis::fleet::Machine;
use crate::redis::fleet::Seat;
use crate::scoreboard::snapshot::SlotSnapshot;
use crate::scoreboard::snapshot::Snapshot;
use crate::scoreboard::snapshot::WorkerSnapshot;

/// The slots of this machine, of which more is known than its heartbeat tells.
pub(super) fn own(snapshot: &Snapshot, machine: &Machine, history: &History) -> Vec<SlotRow> {
    let scale = history.slots_max();
    let row = |seat: &Seat| {
        let path = history.slots.get(seat.slot).map(|track| track.path(scale)).unwrap_or_default();
        let also = snapshot.slots.get(seat.slot).map(also).unwrap_or_default();
        SlotRow { path, also, own: seat.slot.to_string(), ..other(seat) }
    };
    machine.slots.iter().map(row).collect()
}

/// A slot as a heartbeat tells it.
pub(super) fn other(seat: &Seat) -> SlotRow {
    let nothing = SeatFigures::default();
    let figures = seat.figures.as_ref().unwrap_or(&nothing);
    let number = |number: u64| match &seat.figures {
        Some(_) => words::count(number),
        None => words::NONE.to_owned(),
    };
    let (redis, redis_tone) = match (&seat.figures, figures.redis_up, figures.redis_held_back) {
        (None, ..) => (words::NONE, Tone::Plain),
        (Some(_), true, false) => ("up", Tone::Good),
        (Some(_), true, true) => ("held back", Tone::Wait),
        (Some(_), false, _) => ("away", Tone::Bad),
    };
    SlotRow {
        key: seat.slot.to_string(),
        slot: seat.slot.to_string(),
        state: seat.state.replace('_', " "),
        tone: tone(&seat.state),
        pid: if seat.pid == 0 { words::NONE.into() } else { seat.pid.to_string() },
        also: String::new(),
        generation: if seat.generation == 0 { words::NONE.into() } else { seat.generation.to_string() },
        rate: words::rate(figures.requests_per_s),
        path: String::new(),
        in_flight: number(figures.in_flight),
        busy: words::percent(figures.busy_percent),
        busy_percent: whole(figures.busy_percent),
        p99: words::micros(figures.latency_p99_us),
        memory: words::bytes(figures.memory_bytes),
        redis: redis.to_owned(),
        redis_tone,
        restarts: number(figures.starts.saturating_sub(1)),
        reasons: reasons(figures),
        own: String::new(),
    }
}

fn tone(state: &str) -> Tone {
    match state {
        "ready" => Tone::Good,
        "booting" | "draining" => Tone::Wait,
        "backed_off" => Tone::Bad,
        _ => Tone::Plain,
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 100")]
fn whole(share: Option<f64>) -> u64 {
    share.unwrap_or(0.0).clamp(0.0, 100.0).round() as u64
}

/// Why its workers ended, the most frequent reason first.
fn reasons(figures: &SeatFigures) -> String {
    let mut ends: Vec<_> = figures.ends.iter().collect();
    ends.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), name.as_str()));
    let texts = ends.iter().map(|(name, count)| match count {
        1 => name.replace('_', " "),
        count => format!("{} {count}×", name.replace('_', " ")),
    });
    texts.collect::<Vec<_>>().join(", ")
}

/// The slot's workers beside the one that serves.
fn also(slot: &SlotSnapshot) -> String {
    let others = slot.workers.iter().filter(|worker| Some(*worker) != slot.incumbent.as_ref());
    let text = |worker: &WorkerSnapshot| format!("{} {}", worker.pid, worker.state.name());
    others.map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_programs_seat_shows_what_it_says_and_nothing_else() {
        let seat = Seat { slot: 3, pid: 42, generation: 2, state: "backed_off".into(), figures: None };
        let row = other(&seat);
        assert_eq!((row.state.as_str(), row.tone, row.redis.as_str()), ("backed off", Tone::Bad, "–"));
        assert_eq!((row.rate.as_str(), row.restarts.as_str(), row.own.as_str()), ("–", "–", ""));
    }

    #[test]
    fn reasons_are_told_the_most_frequent_first() {
        let ends = [("signal", 1), ("exit_code", 1), ("reload", 3)];
        let ends = ends.into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
        let figures = SeatFigures {
            starts: 6,
            ends,
            busy_percent: Some(43.6),
            redis_up: true,
            ..SeatFigures::default()
        };
        let row = other(&Seat { figures: Some(figures), ..Seat::default() });
        assert_eq!(row.reasons, "reload 3×, exit code, signal");
        assert_eq!((row.restarts.as_str(), row.busy_percent, row.redis_tone), ("5", 44, Tone::Good));
    }
}
