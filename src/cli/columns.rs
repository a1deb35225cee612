//! The columns in which a slot is shown: their titles, texts, and what they are sorted by.
//!
//! `status` and `top` show the same table.

use std::collections::BTreeMap;

use crate::cli::units;
use crate::control::status::Slot;
use crate::control::status::Worker;
use crate::scoreboard::cell::WorkerState;
use crate::scoreboard::row::SlotState;

/// Spaces between two columns.
pub(super) const GAP: usize = 2;

/// One column.
#[derive(Debug)]
pub(super) struct Column {
    /// Its title.
    pub(super) title: &'static str,
    /// The higher, the sooner it is left out where the terminal is narrow; 0 never.
    rank: u8,
    /// Whether it holds numbers, which stand at its right edge.
    pub(super) is_number: bool,
    /// What a slot's line says.
    slot: fn(&Slot) -> String,
    /// What the line of another worker of the slot says.
    other: fn(&Worker) -> String,
    /// What it is sorted by; what has none comes last.
    key: fn(&Slot) -> Option<f64>,
}

const fn text(
    title: &'static str,
    rank: u8,
    slot: fn(&Slot) -> String,
    other: fn(&Worker) -> String,
) -> Column {
    Column { title, rank, is_number: false, slot, other, key: |_| None }
}

const fn number(
    title: &'static str,
    rank: u8,
    slot: fn(&Slot) -> String,
    other: fn(&Worker) -> String,
    key: fn(&Slot) -> Option<f64>,
) -> Column {
    Column { title, rank, is_number: true, slot, other, key }
}

fn nothing(_: &Worker) -> String {
    String::new()
}

/// Every column, from left to right.
pub(super) const COLUMNS: &[Column] = &[
    number("SLOT", 0, |slot| slot.slot.to_string(), nothing, |slot| Some(float(slot.slot as u64))),
    number(
        "PID",
        0,
        |slot| of(slot, pid),
        pid,
        |slot| slot.worker.as_ref().map(|worker| f64::from(worker.pid)),
    ),
    text("STATE", 0, state, |worker| worker.state.name().to_owned()),
    number(
        "GEN",
        3,
        |slot| of(slot, generation),
        generation,
        |slot| slot.worker.as_ref().map(|worker| float(worker.generation)),
    ),
    number(
        "UP",
        2,
        |slot| of(slot, uptime),
        uptime,
        |slot| slot.worker.as_ref().map(|worker| float(worker.uptime_s)),
    ),
    number("REQUESTS", 4, |slot| units::count(slot.requests), nothing, |slot| Some(float(slot.requests))),
    number(
        "REQ/S",
        0,
        |slot| some(slot.rates.requests_per_s, units::rate),
        nothing,
        |slot| slot.rates.requests_per_s,
    ),
    number(
        "BUSY",
        1,
        |slot| some(slot.rates.busy_percent, units::percent),
        busy,
        |slot| slot.rates.busy_percent,
    ),
    number(
        "P50",
        6,
        |slot| some(slot.rates.latency_p50_us, units::micros),
        nothing,
        |slot| slot.rates.latency_p50_us.map(float),
    ),
    number(
        "P99",
        1,
        |slot| some(slot.rates.latency_p99_us, units::micros),
        nothing,
        |slot| slot.rates.latency_p99_us.map(float),
    ),
    number(
        "FLIGHT",
        5,
        |slot| units::short(slot.in_flight),
        |worker| units::short(worker.in_flight),
        |slot| Some(float(slot.in_flight)),
    ),
    number(
        "CONNS",
        3,
        |slot| units::short(slot.connections),
        |worker| units::short(worker.connections),
        |slot| Some(float(slot.connections)),
    ),
    number("QUEUE", 6, |slot| some(slot.queued, units::short), nothing, |slot| slot.queued.map(float)),
    number(
        "MEMORY",
        2,
        |slot| units::bytes(slot.memory_bytes),
        |worker| units::bytes(worker.memory_bytes),
        |slot| Some(float(slot.memory_bytes)),
    ),
    number(
        "5XX",
        5,
        |slot| units::short(slot.responses.server_error),
        nothing,
        |slot| Some(float(slot.responses.server_error)),
    ),
    number("RESTARTS", 2, |slot| restarts(slot).to_string(), nothing, |slot| Some(float(restarts(slot)))),
    text(
        "LAST",
        4,
        |slot| slot.last_reason.map_or_else(String::new, |reason| reason.name().to_owned()),
        nothing,
    ),
    text("BUILD", 7, |slot| of(slot, |worker| worker.build.clone()), |worker| worker.build.clone()),
];

/// What is sorted by when no one has chosen: the slot.
pub(super) const SLOT: usize = 0;

fn of(slot: &Slot, text: fn(&Worker) -> String) -> String {
    slot.worker.as_ref().map_or_else(|| units::NONE.to_owned(), text)
}

fn some<T>(number: Option<T>, text: fn(T) -> String) -> String {
    number.map_or_else(|| units::NONE.to_owned(), text)
}

#[allow(clippy::cast_precision_loss, reason = "a key to sort by")]
fn float(number: u64) -> f64 {
    number as f64
}

fn pid(worker: &Worker) -> String {
    worker.pid.to_string()
}

fn generation(worker: &Worker) -> String {
    worker.generation.to_string()
}

fn uptime(worker: &Worker) -> String {
    units::age(worker.uptime_s)
}

fn busy(worker: &Worker) -> String {
    some(worker.busy_percent, units::percent)
}

/// Workers that were replaced, for whatever reason.
pub(super) fn restarts(slot: &Slot) -> u64 {
    slot.starts.saturating_sub(1)
}

/// The slot's state; a slot that new connections are kept off says so.
fn state(slot: &Slot) -> String {
    let hung = slot.worker.as_ref().filter(|worker| worker.state == WorkerState::Hung);
    let name = hung.map_or(slot.state.name(), |worker| worker.state.name()).replace('_', " ");
    if slot.open || slot.worker.is_none() { name } else { format!("{name}, closed") }
}

/// How much a line wants to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    /// As it should be.
    Good,
    /// On its way.
    Passing,
    /// An operator should look at it.
    Bad,
    /// Nothing to see.
    Quiet,
}

/// How a slot is.
pub(super) fn mood(slot: &Slot) -> Mood {
    if slot.worker.as_ref().is_some_and(|worker| worker.state == WorkerState::Hung) {
        return Mood::Bad;
    }
    match slot.state {
        SlotState::Ready => Mood::Good,
        SlotState::Booting | SlotState::Draining => Mood::Passing,
        SlotState::BackedOff => Mood::Bad,
        SlotState::Empty => Mood::Quiet,
    }
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    /// A text for every one of [`COLUMNS`].
    pub(super) cells: Vec<String>,
    /// How it is.
    pub(super) mood: Mood,
    /// Index of its slot.
    pub(super) slot: usize,
}

/// The lines of a slot: its own, and one for each worker beside the one that serves.
pub(super) fn lines(slot: &Slot) -> Vec<Line> {
    let own = COLUMNS.iter().map(|column| (column.slot)(slot)).collect();
    let own = Line { cells: own, mood: mood(slot), slot: slot.slot };
    let others = slot.others.iter().map(|worker| Line {
        cells: COLUMNS.iter().map(|column| (column.other)(worker)).collect(),
        mood: if worker.state == WorkerState::Killed { Mood::Bad } else { Mood::Passing },
        slot: slot.slot,
    });
    std::iter::once(own).chain(others).collect()
}

/// Widths of the columns that are shown, by index into [`COLUMNS`]: all, or as many as fit into `columns`.
pub(super) fn widths(lines: &[Line], columns: Option<usize>) -> BTreeMap<usize, usize> {
    let wide = |index: usize| lines.iter().map(|line| units::width(&line.cells[index])).max().unwrap_or(0);
    let mut shown: BTreeMap<usize, usize> = COLUMNS
        .iter()
        .enumerate()
        .map(|(index, column)| (index, wide(index).max(units::width(column.title))))
        .collect();
    let total =
        |shown: &BTreeMap<usize, usize>| shown.values().sum::<usize>() + GAP * shown.len().saturating_sub(1);
    while columns.is_some_and(|columns| total(&shown) > columns) {
        let droppable = shown.keys().copied().filter(|index| COLUMNS[*index].rank > 0);
        let Some(least) = droppable.max_by_key(|index| (COLUMNS[*index].rank, *index)) else { break };
        shown.remove(&least);
    }
    shown
}

/// A text in its column.
pub(super) fn padded(text: &str, column: usize, width: usize) -> String {
    let text = units::fit(&units::plain(text), width);
    let room = " ".repeat(width.saturating_sub(units::width(&text)));
    if COLUMNS[column].is_number { room + &text } else { text + &room }
}

/// The slots by a column, the least first; equals by slot, and what has no number last.
pub(super) fn sort(slots: &mut [Slot], column: usize, reverse: bool) {
    let column = &COLUMNS[column];
    slots.sort_by(|left, right| {
        let order = match ((column.key)(left), (column.key)(right)) {
            (Some(left), Some(right)) if reverse => right.total_cmp(&left),
            (Some(left), Some(right)) => left.total_cmp(&right),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (None, None) if reverse => (column.slot)(right).cmp(&(column.slot)(left)),
            (None, None) => (column.slot)(left).cmp(&(column.slot)(right)),
        };
        order.then(left.slot.cmp(&right.slot))
    });
}
