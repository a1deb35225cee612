//! The columns in which a slot is shown: their titles, texts, and what they are sorted by.
//!
//! `status` and `top` show the same table.

use std::collections::BTreeMap;

use crate::cli::units;
use crate::scoreboard::cell::CellState;
use crate::scoreboard::row::SlotState;
use crate::status::document::{SlotStatus, WorkerStatus};

/// Spaces between two columns.
pub(in crate::cli) const GAP: usize = 2;

/// One column.
#[derive(Debug)]
pub(in crate::cli) struct TableColumn {
    /// Its title.
    pub(in crate::cli) title: &'static str,
    /// The higher, the sooner it is left out where the terminal is narrow; 0 never.
    drop_order: u8,
    /// Whether it holds numbers, which stand at its right edge.
    pub(in crate::cli) is_number: bool,
    /// What a slot's line says.
    slot: fn(&SlotStatus) -> String,
    /// What the line of another worker of the slot says.
    other: fn(&WorkerStatus) -> String,
    /// What it is sorted by; what has none comes last.
    key: fn(&SlotStatus) -> Option<f64>,
}

const fn text(
    title: &'static str,
    rank: u8,
    slot: fn(&SlotStatus) -> String,
    other: fn(&WorkerStatus) -> String,
) -> TableColumn {
    TableColumn { title, drop_order: rank, is_number: false, slot, other, key: |_| None }
}

const fn number(
    title: &'static str,
    rank: u8,
    slot: fn(&SlotStatus) -> String,
    other: fn(&WorkerStatus) -> String,
    key: fn(&SlotStatus) -> Option<f64>,
) -> TableColumn {
    TableColumn { title, drop_order: rank, is_number: true, slot, other, key }
}

fn nothing(_: &WorkerStatus) -> String {
    String::new()
}

/// Every column, from left to right.
pub(in crate::cli) const COLUMNS: &[TableColumn] = &[
    number("SLOT", 0, |slot| slot.slot.to_string(), nothing, |slot| Some(float(slot.slot as u64))),
    number(
        "PID",
        0,
        |slot| worker_text(slot, pid),
        pid,
        |slot| slot.worker.as_ref().map(|worker| f64::from(worker.pid)),
    ),
    text("STATE", 0, state, |worker| worker.state.name().to_owned()),
    number(
        "GEN",
        3,
        |slot| worker_text(slot, generation),
        generation,
        |slot| slot.worker.as_ref().map(|worker| float(worker.generation)),
    ),
    number(
        "UP",
        2,
        |slot| worker_text(slot, uptime),
        uptime,
        |slot| slot.worker.as_ref().map(|worker| float(worker.uptime_s)),
    ),
    number("REQUESTS", 4, |slot| units::count(slot.requests), nothing, |slot| Some(float(slot.requests))),
    number(
        "REQ/S",
        0,
        |slot| optional_text(slot.rates.requests_per_s, units::rate),
        nothing,
        |slot| slot.rates.requests_per_s,
    ),
    number(
        "BUSY",
        1,
        |slot| optional_text(slot.rates.busy_percent, units::percent),
        busy,
        |slot| slot.rates.busy_percent,
    ),
    number(
        "P50",
        6,
        |slot| optional_text(slot.rates.latency_p50_us, units::micros),
        nothing,
        |slot| slot.rates.latency_p50_us.map(float),
    ),
    number(
        "P99",
        1,
        |slot| optional_text(slot.rates.latency_p99_us, units::micros),
        nothing,
        |slot| slot.rates.latency_p99_us.map(float),
    ),
    number(
        "FLIGHT",
        5,
        |slot| units::abbreviated(slot.in_flight),
        |worker| units::abbreviated(worker.in_flight),
        |slot| Some(float(slot.in_flight)),
    ),
    number(
        "CONNS",
        3,
        |slot| units::abbreviated(slot.connections),
        |worker| units::abbreviated(worker.connections),
        |slot| Some(float(slot.connections)),
    ),
    number(
        "QUEUE",
        6,
        |slot| optional_text(slot.queued, units::abbreviated),
        nothing,
        |slot| slot.queued.map(float),
    ),
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
        |slot| units::abbreviated(slot.responses.server_error),
        nothing,
        |slot| Some(float(slot.responses.server_error)),
    ),
    number("RESTARTS", 2, |slot| restarts(slot).to_string(), nothing, |slot| Some(float(restarts(slot)))),
    text(
        "LAST",
        4,
        |slot| slot.last_exit_reason.map_or_else(String::new, |reason| reason.name().to_owned()),
        nothing,
    ),
    text("BUILD", 7, |slot| worker_text(slot, build), build),
];

/// What is sorted by unless another column was chosen: the slot.
pub(in crate::cli) const SLOT_COLUMN: usize = 0;

fn worker_text(slot: &SlotStatus, text: fn(&WorkerStatus) -> String) -> String {
    slot.worker.as_ref().map_or_else(|| units::NONE.to_owned(), text)
}

fn optional_text<T>(number: Option<T>, text: fn(T) -> String) -> String {
    number.map_or_else(|| units::NONE.to_owned(), text)
}

#[allow(clippy::cast_precision_loss, reason = "a key to sort by")]
fn float(number: u64) -> f64 {
    number as f64
}

fn pid(worker: &WorkerStatus) -> String {
    worker.pid.to_string()
}

fn generation(worker: &WorkerStatus) -> String {
    worker.generation.to_string()
}

fn build(worker: &WorkerStatus) -> String {
    worker.build.clone().unwrap_or_else(|| units::NONE.to_owned())
}

fn uptime(worker: &WorkerStatus) -> String {
    units::age(worker.uptime_s)
}

fn busy(worker: &WorkerStatus) -> String {
    optional_text(worker.busy_percent, units::percent)
}

/// Workers that were replaced, for whatever reason.
pub(in crate::cli) fn restarts(slot: &SlotStatus) -> u64 {
    slot.starts.saturating_sub(1)
}

/// The slot's state; a slot that new connections are kept off says so.
fn state(slot: &SlotStatus) -> String {
    let hung = slot.worker.as_ref().filter(|worker| worker.state == CellState::Hung);
    let name = hung.map_or(slot.state.name(), |worker| worker.state.name()).replace('_', " ");
    if slot.open != Some(false) || slot.worker.is_none() { name } else { format!("{name}, closed") }
}

/// How much a line wants to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Severity {
    /// As it should be.
    Good,
    /// On its way.
    Transitional,
    /// An operator should look at it.
    Bad,
    /// Nothing to see.
    Muted,
}

/// How a slot is.
pub(in crate::cli) fn severity(slot: &SlotStatus) -> Severity {
    if slot.worker.as_ref().is_some_and(|worker| worker.state == CellState::Hung) {
        return Severity::Bad;
    }
    match slot.state {
        SlotState::Ready => Severity::Good,
        SlotState::Booting | SlotState::Draining => Severity::Transitional,
        SlotState::BackedOff => Severity::Bad,
        SlotState::Empty => Severity::Muted,
    }
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::cli) struct TableRow {
    /// A text for every one of [`COLUMNS`].
    pub(in crate::cli) cells: Vec<String>,
    /// How it is.
    pub(in crate::cli) severity: Severity,
    /// Index of its slot.
    pub(in crate::cli) slot: usize,
}

/// The lines of a slot: its own, and one for each worker beside the one that serves.
pub(in crate::cli) fn rows(slot: &SlotStatus) -> Vec<TableRow> {
    let own = COLUMNS.iter().map(|column| (column.slot)(slot)).collect();
    let own = TableRow { cells: own, severity: severity(slot), slot: slot.slot };
    let others = slot.others.iter().map(|worker| TableRow {
        cells: COLUMNS.iter().map(|column| (column.other)(worker)).collect(),
        severity: if worker.state == CellState::Killed { Severity::Bad } else { Severity::Transitional },
        slot: slot.slot,
    });
    std::iter::once(own).chain(others).collect()
}

/// Widths of the columns that are shown, by index into [`COLUMNS`]: all, or as many as fit into `columns`.
pub(in crate::cli) fn widths(lines: &[TableRow], columns: Option<usize>) -> BTreeMap<usize, usize> {
    let wide = |index: usize| lines.iter().map(|line| units::width(&line.cells[index])).max().unwrap_or(0);
    let mut shown: BTreeMap<usize, usize> = COLUMNS
        .iter()
        .enumerate()
        .map(|(index, column)| (index, wide(index).max(units::width(column.title))))
        .collect();
    let total =
        |shown: &BTreeMap<usize, usize>| shown.values().sum::<usize>() + GAP * shown.len().saturating_sub(1);
    while columns.is_some_and(|columns| total(&shown) > columns) {
        let droppable = shown.keys().copied().filter(|index| COLUMNS[*index].drop_order > 0);
        let Some(least) = droppable.max_by_key(|index| (COLUMNS[*index].drop_order, *index)) else { break };
        shown.remove(&least);
    }
    shown
}

/// A text in its column.
pub(in crate::cli) fn pad(text: &str, column: usize, width: usize) -> String {
    let text = units::truncate(&units::sanitize(text), width);
    let room = " ".repeat(width.saturating_sub(units::width(&text)));
    if COLUMNS[column].is_number { room + &text } else { text + &room }
}

/// The slots by a column, the least first; equals by slot, and what has no number last.
pub(in crate::cli) fn sort(slots: &mut [SlotStatus], column: usize, reverse: bool) {
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
