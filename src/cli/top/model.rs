//! What `top` knows and shows: pure, told of statuses, keys and the time.

use std::collections::VecDeque;
use std::time::Duration;

use crate::cli::columns;
use crate::cli::columns::COLUMNS;
use crate::cli::columns::Mood;
use crate::cli::top::keys::Key;
use crate::control::status::Slot;
use crate::control::status::Status;

/// Points of the little graphs: more than any terminal is wide.
const HISTORY: usize = 512;

/// How long a note stays.
const NOTE: Duration = Duration::from_secs(10);

/// How long an answer may take before that is worth a word.
const SLOW: Duration = Duration::from_secs(2);

/// Something the fleet can be asked to do from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Replace every worker.
    Reload,
    /// Replace the worker of one slot.
    Restart {
        /// Which.
        slot: usize,
    },
}

impl Order {
    /// What the operator is asked before it is given.
    pub(super) fn question(self) -> String {
        match self {
            Self::Reload => "reload every slot?".to_owned(),
            Self::Restart { slot } => format!("replace the worker of slot {slot}?"),
        }
    }
}

/// What a key asks of the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// End.
    Quit,
    /// Give the fleet an order.
    Give(Order),
}

/// What the keys mean now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// The table.
    Table,
    /// The help lies over it.
    Help,
    /// An order waits for yes or no.
    Confirm(Order),
}

/// How the fleet was heard last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Link {
    /// It answers.
    Up,
    /// It is gone, or cannot be asked; why.
    Lost(String),
}

/// A sentence for the operator, until a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Note {
    /// What.
    pub(super) text: String,
    /// How it is meant.
    pub(super) mood: Mood,
    until: Duration,
}

/// Everything that is shown.
#[derive(Debug)]
pub(super) struct Model {
    /// The last status, its request rates those since the one before.
    pub(super) status: Status,
    received: Duration,
    /// Requests per second, the newest first.
    pub(super) rates: VecDeque<u64>,
    /// p99 in microseconds, the newest first.
    pub(super) p99: VecDeque<u64>,
    /// Column that is sorted by, an index into [`COLUMNS`].
    pub(super) sort: usize,
    /// The greatest first.
    pub(super) reverse: bool,
    /// Index of the slot that keys act on.
    pub(super) selected: usize,
    /// What the keys mean now.
    pub(super) mode: Mode,
    /// How the fleet was heard last.
    pub(super) link: Link,
    note: Option<Note>,
    is_ordering: bool,
}

impl Model {
    /// Begins with a first status.
    pub(super) fn new(status: Status, now: Duration) -> Self {
        let mut model = Self {
            status,
            received: now,
            rates: VecDeque::new(),
            p99: VecDeque::new(),
            sort: columns::SLOT,
            reverse: false,
            selected: 0,
            mode: Mode::Table,
            link: Link::Up,
            note: None,
            is_ordering: false,
        };
        model.remember();
        model
    }

    /// A new status; request rates become those since the last one.
    pub(super) fn update(&mut self, status: Status, now: Duration) {
        let before = std::mem::replace(&mut self.status, status);
        let passed = now.saturating_sub(self.received);
        self.received = now;
        self.link = Link::Up;
        if (before.supervisor_pid, before.started_ms) != (self.status.supervisor_pid, self.status.started_ms)
        {
            // Another fleet: nothing of it compares with the one before.
            self.rates.clear();
            self.p99.clear();
        } else if !passed.is_zero() {
            rates_since(&mut self.status, &before, passed);
        }
        self.remember();
        let last =
            self.status.slots.iter().filter(|slot| !self.status.is_retired(slot)).map(|slot| slot.slot).max();
        self.selected = self.selected.min(last.unwrap_or(0));
    }

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rates are small and never negative"
    )]
    fn remember(&mut self) {
        let rates = self.status.rates;
        self.rates.push_front(rates.requests_per_s.unwrap_or(0.0).round() as u64);
        self.p99.push_front(rates.latency_p99_us.unwrap_or(0));
        self.rates.truncate(HISTORY);
        self.p99.truncate(HISTORY);
    }

    /// The fleet cannot be asked.
    pub(super) fn lose(&mut self, why: String) {
        self.link = Link::Lost(why);
    }

    /// How long ago the fleet answered, if that is longer than it should be.
    pub(super) fn silence(&self, now: Duration) -> Option<Duration> {
        let since = now.saturating_sub(self.received);
        (since >= SLOW && self.link == Link::Up).then_some(since)
    }

    /// Says something for a while.
    pub(super) fn say(&mut self, text: String, mood: Mood, now: Duration) {
        self.note = Some(Note { text, mood, until: now + NOTE });
    }

    /// What is to be said now.
    pub(super) fn note(&self, now: Duration) -> Option<&Note> {
        self.note.as_ref().filter(|note| note.until > now || self.is_ordering)
    }

    /// An order was given; another one has to wait for its verdict.
    pub(super) fn ordering(&mut self, is_ordering: bool) {
        self.is_ordering = is_ordering;
    }

    /// The slots in the order of the table.
    pub(super) fn slots(&self) -> Vec<Slot> {
        let shown = self.status.slots.iter().filter(|slot| !self.status.is_retired(slot));
        let mut slots: Vec<Slot> = shown.cloned().collect();
        columns::sort(&mut slots, self.sort, self.reverse);
        slots
    }

    /// A key was pressed.
    pub(super) fn press(&mut self, key: Key, now: Duration) -> Option<Act> {
        match (self.mode, key) {
            (_, Key::Interrupt) => return Some(Act::Quit),
            (Mode::Confirm(order), Key::Yes) => {
                self.mode = Mode::Table;
                return Some(Act::Give(order));
            }
            (Mode::Confirm(_) | Mode::Help, _) => self.mode = Mode::Table,
            (Mode::Table, Key::Quit) => return Some(Act::Quit),
            (Mode::Table, Key::Help) => self.mode = Mode::Help,
            (Mode::Table, Key::Reload) => self.ask(Order::Reload, now),
            (Mode::Table, Key::Restart) => self.ask(Order::Restart { slot: self.selected }, now),
            (Mode::Table, Key::Up) => self.step(false),
            (Mode::Table, Key::Down) => self.step(true),
            (Mode::Table, Key::Left) => self.sort_by((self.sort + COLUMNS.len() - 1) % COLUMNS.len()),
            (Mode::Table, Key::Right) => self.sort_by((self.sort + 1) % COLUMNS.len()),
            (Mode::Table, Key::Column(number)) if number < COLUMNS.len() => self.sort_by(number),
            (Mode::Table, Key::Reverse) => self.reverse = !self.reverse,
            (Mode::Table, Key::Column(_) | Key::Yes | Key::Other) => {}
        }
        None
    }

    fn ask(&mut self, order: Order, now: Duration) {
        if self.is_ordering {
            self.say("an order is under way: wait for its verdict".to_owned(), Mood::Passing, now);
        } else {
            self.mode = Mode::Confirm(order);
        }
    }

    /// Sorts by a column, the greatest first where that is what one looks for; the same once more turns it round.
    fn sort_by(&mut self, column: usize) {
        let again = self.sort == column;
        self.reverse =
            if again { !self.reverse } else { COLUMNS[column].is_number && column != columns::SLOT };
        self.sort = column;
    }

    /// Selects the slot above or below.
    fn step(&mut self, down: bool) {
        let slots = self.slots();
        let at = slots.iter().position(|slot| slot.slot == self.selected).unwrap_or(0);
        let next = if down { (at + 1).min(slots.len().saturating_sub(1)) } else { at.saturating_sub(1) };
        self.selected = slots.get(next).map_or(0, |slot| slot.slot);
    }
}

/// Replaces the request rates by those since an earlier status: as current as the operator's interval.
#[allow(clippy::cast_precision_loss, reason = "a rate for people")]
fn rates_since(status: &mut Status, before: &Status, passed: Duration) {
    let rate = |now: u64, before: u64| Some(now.saturating_sub(before) as f64 / passed.as_secs_f64());
    status.rates.requests_per_s = rate(status.totals.requests, before.totals.requests);
    for slot in &mut status.slots {
        let requests = before
            .slots
            .iter()
            .find(|earlier| earlier.slot == slot.slot)
            .map_or(0, |earlier| earlier.requests);
        slot.rates.requests_per_s = rate(slot.requests, requests);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::samples;

    const SECOND: Duration = Duration::from_secs(1);

    fn model() -> Model {
        Model::new(samples::fleet(), SECOND)
    }

    fn order(model: &Model) -> Vec<usize> {
        model.slots().iter().map(|slot| slot.slot).collect()
    }

    #[test]
    fn rates_are_those_between_two_statuses() {
        let mut model = model();
        let mut next = samples::fleet();
        next.totals.requests += 500;
        next.slots[0].requests += 300;
        model.update(next, SECOND * 3);
        assert_eq!(model.status.rates.requests_per_s, Some(250.0));
        assert_eq!(model.status.slots[0].rates.requests_per_s, Some(150.0));
        assert_eq!(model.rates, [250, 150]);
    }

    #[test]
    fn another_fleet_begins_anew() {
        let mut model = model();
        let mut other = samples::fleet();
        (other.supervisor_pid, other.totals.requests) = (1, 3);
        model.update(other, SECOND * 2);
        assert_eq!(model.rates, [150], "the rate is the new fleet's own");
    }

    #[test]
    fn numbers_are_sorted_from_the_greatest_and_the_selection_stays_with_its_slot() {
        let mut model = model();
        assert_eq!(order(&model), [0, 1, 2], "a retired slot is not shown");
        model.press(Key::Down, SECOND);
        assert_eq!(model.selected, 1);
        let requests = COLUMNS.iter().position(|column| column.title == "REQUESTS").unwrap();
        model.press(Key::Column(requests), SECOND);
        assert_eq!(order(&model), [0, 1, 2]);
        model.press(Key::Reverse, SECOND);
        assert_eq!(order(&model), [2, 1, 0]);
        assert_eq!(model.selected, 1);
        model.press(Key::Down, SECOND);
        model.press(Key::Down, SECOND);
        assert_eq!(model.selected, 0, "the end of the table is its end");
    }

    #[test]
    fn what_has_no_number_comes_last_either_way() {
        let mut model = model();
        let rates = COLUMNS.iter().position(|column| column.title == "P99").unwrap();
        model.press(Key::Column(rates), SECOND);
        assert_eq!(order(&model)[2], 2);
        model.press(Key::Column(rates), SECOND);
        assert_eq!(order(&model)[2], 2);
    }

    #[test]
    fn an_order_needs_a_yes_and_only_one_is_given_at_a_time() {
        let mut model = model();
        assert_eq!(model.press(Key::Restart, SECOND), None);
        assert_eq!(model.mode, Mode::Confirm(Order::Restart { slot: 0 }));
        assert_eq!(model.press(Key::Quit, SECOND), None, "anything but yes is a no");
        assert_eq!(model.mode, Mode::Table);
        model.press(Key::Reload, SECOND);
        assert_eq!(model.press(Key::Yes, SECOND), Some(Act::Give(Order::Reload)));
        model.ordering(true);
        model.press(Key::Reload, SECOND);
        assert_eq!(model.mode, Mode::Table);
        assert!(model.note(SECOND).is_some());
        assert_eq!(model.press(Key::Interrupt, SECOND), Some(Act::Quit));
    }

    #[test]
    fn silence_is_noticed_and_notes_fade() {
        let mut model = model();
        assert_eq!(model.silence(SECOND * 2), None);
        assert_eq!(model.silence(SECOND * 5), Some(SECOND * 4));
        model.say("done".into(), Mood::Good, SECOND);
        assert!(model.note(SECOND * 2).is_some());
        assert!(model.note(SECOND * 60).is_none());
    }
}
