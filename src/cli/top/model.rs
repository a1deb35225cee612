//! What `top` knows and shows: pure, told of statuses, keys and the time.

use std::collections::VecDeque;
use std::time::Duration;

use crate::cli::status::table;
use crate::cli::status::table::{COLUMNS, Severity};
use crate::cli::top::keys::TopKey;
use crate::status::document::{InstanceStatus, SlotStatus};

/// Points of the little graphs: more than any terminal is wide.
const HISTORY: usize = 512;

/// How long a note stays.
const NOTE_DURATION: Duration = Duration::from_secs(10);

/// How long an answer may take before that is worth a word.
const SLOW: Duration = Duration::from_secs(2);

/// Something the fleet can be asked to do from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TopCommand {
    /// Replace every worker.
    Reload,
    /// Replace the worker of one slot.
    Restart {
        /// Which.
        slot: usize,
    },
}

impl TopCommand {
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
pub(super) enum KeyAction {
    /// End.
    Quit,
    /// Give the fleet a command.
    Run(TopCommand),
}

/// What the keys mean now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InputMode {
    /// The table.
    Table,
    /// The help lies over it.
    Help,
    /// A command waits for yes or no.
    Confirm(TopCommand),
}

/// How the fleet was heard last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FleetConnection {
    /// It answers.
    Up,
    /// It is gone, or cannot be asked; why.
    Lost(String),
}

/// A sentence for the operator, until a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StatusNote {
    /// What.
    pub(super) text: String,
    /// How it is meant.
    pub(super) severity: Severity,
    until: Duration,
}

/// Everything that is shown.
#[derive(Debug)]
pub(super) struct TopModel {
    /// The last status, its request rates those since the one before.
    pub(super) status: InstanceStatus,
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
    pub(super) mode: InputMode,
    /// How the fleet was heard last.
    pub(super) connection: FleetConnection,
    note: Option<StatusNote>,
    is_command_pending: bool,
}

impl TopModel {
    /// Begins with a first status.
    pub(super) fn new(status: InstanceStatus, now: Duration) -> Self {
        let mut model = Self {
            status,
            received: now,
            rates: VecDeque::new(),
            p99: VecDeque::new(),
            sort: table::SLOT_COLUMN,
            reverse: false,
            selected: 0,
            mode: InputMode::Table,
            connection: FleetConnection::Up,
            note: None,
            is_command_pending: false,
        };
        model.record_rates();
        model
    }

    /// A new status; request rates become those since the last one.
    pub(super) fn update(&mut self, status: InstanceStatus, now: Duration) {
        let before = std::mem::replace(&mut self.status, status);
        let passed = now.saturating_sub(self.received);
        self.received = now;
        self.connection = FleetConnection::Up;
        if (before.supervisor_pid, before.started_ms) != (self.status.supervisor_pid, self.status.started_ms)
        {
            // Another fleet: nothing of it compares with the one before.
            self.rates.clear();
            self.p99.clear();
        } else if !passed.is_zero() {
            rates_since(&mut self.status, &before, passed);
        }
        self.record_rates();
        let last =
            self.status.slots.iter().filter(|slot| !self.status.is_retired(slot)).map(|slot| slot.slot).max();
        self.selected = self.selected.min(last.unwrap_or(0));
    }

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rates are small and never negative"
    )]
    fn record_rates(&mut self) {
        let rates = self.status.rates;
        self.rates.push_front(rates.requests_per_s.unwrap_or(0.0).round() as u64);
        self.p99.push_front(rates.latency_p99_us.unwrap_or(0));
        self.rates.truncate(HISTORY);
        self.p99.truncate(HISTORY);
    }

    /// The fleet cannot be asked.
    pub(super) fn set_disconnected(&mut self, why: String) {
        self.connection = FleetConnection::Lost(why);
    }

    /// How long ago the fleet answered, if that is longer than it should be.
    pub(super) fn silent_for(&self, now: Duration) -> Option<Duration> {
        let since = now.saturating_sub(self.received);
        (since >= SLOW && self.connection == FleetConnection::Up).then_some(since)
    }

    /// Says something for a while.
    pub(super) fn show_note(&mut self, text: String, severity: Severity, now: Duration) {
        self.note = Some(StatusNote { text, severity, until: now + NOTE_DURATION });
    }

    /// What is to be said now.
    pub(super) fn note(&self, now: Duration) -> Option<&StatusNote> {
        self.note.as_ref().filter(|note| note.until > now || self.is_command_pending)
    }

    /// A command was given; another one has to wait for its result.
    pub(super) fn set_command_pending(&mut self, is_pending: bool) {
        self.is_command_pending = is_pending;
    }

    /// The slots in the order of the table.
    pub(super) fn slots(&self) -> Vec<SlotStatus> {
        let shown = self.status.slots.iter().filter(|slot| !self.status.is_retired(slot));
        let mut slots: Vec<SlotStatus> = shown.cloned().collect();
        table::sort(&mut slots, self.sort, self.reverse);
        slots
    }

    /// A key was pressed.
    pub(super) fn handle_key(&mut self, key: TopKey, now: Duration) -> Option<KeyAction> {
        match (self.mode, key) {
            (_, TopKey::Interrupt) => return Some(KeyAction::Quit),
            (InputMode::Confirm(command), TopKey::Yes) => {
                self.mode = InputMode::Table;
                return Some(KeyAction::Run(command));
            }
            (InputMode::Confirm(_) | InputMode::Help, _) => self.mode = InputMode::Table,
            (InputMode::Table, TopKey::Quit) => return Some(KeyAction::Quit),
            (InputMode::Table, TopKey::Help) => self.mode = InputMode::Help,
            (InputMode::Table, TopKey::Reload) => self.confirm(TopCommand::Reload, now),
            (InputMode::Table, TopKey::Restart) => {
                self.confirm(TopCommand::Restart { slot: self.selected }, now)
            }
            (InputMode::Table, TopKey::Up) => self.move_selection(false),
            (InputMode::Table, TopKey::Down) => self.move_selection(true),
            (InputMode::Table, TopKey::Left) => self.sort_by((self.sort + COLUMNS.len() - 1) % COLUMNS.len()),
            (InputMode::Table, TopKey::Right) => self.sort_by((self.sort + 1) % COLUMNS.len()),
            (InputMode::Table, TopKey::Column(number)) if number < COLUMNS.len() => self.sort_by(number),
            (InputMode::Table, TopKey::Reverse) => self.reverse = !self.reverse,
            (InputMode::Table, TopKey::Column(_) | TopKey::Yes | TopKey::Other) => {}
        }
        None
    }

    fn confirm(&mut self, command: TopCommand, now: Duration) {
        if self.is_command_pending {
            self.show_note(
                "a command is under way: wait for its result".to_owned(),
                Severity::Transitional,
                now,
            );
        } else {
            self.mode = InputMode::Confirm(command);
        }
    }

    /// Sorts by a column, the greatest first where that is what one looks for; the same once more turns it round.
    fn sort_by(&mut self, column: usize) {
        let again = self.sort == column;
        self.reverse =
            if again { !self.reverse } else { COLUMNS[column].is_number && column != table::SLOT_COLUMN };
        self.sort = column;
    }

    /// Selects the slot above or below.
    fn move_selection(&mut self, down: bool) {
        let slots = self.slots();
        let at = slots.iter().position(|slot| slot.slot == self.selected).unwrap_or(0);
        let next = if down { (at + 1).min(slots.len().saturating_sub(1)) } else { at.saturating_sub(1) };
        self.selected = slots.get(next).map_or(0, |slot| slot.slot);
    }
}

/// Replaces the request rates by those since an earlier status: as current as the operator's interval.
#[allow(clippy::cast_precision_loss, reason = "a rate for people")]
fn rates_since(status: &mut InstanceStatus, before: &InstanceStatus, passed: Duration) {
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
    use crate::cli::test_fixtures;

    const SECOND: Duration = Duration::from_secs(1);

    fn model() -> TopModel {
        TopModel::new(test_fixtures::instance_status(), SECOND)
    }

    fn order(model: &TopModel) -> Vec<usize> {
        model.slots().iter().map(|slot| slot.slot).collect()
    }

    #[test]
    fn rates_are_those_between_two_statuses() {
        let mut model = model();
        let mut next = test_fixtures::instance_status();
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
        let mut other = test_fixtures::instance_status();
        (other.supervisor_pid, other.totals.requests) = (1, 3);
        model.update(other, SECOND * 2);
        assert_eq!(model.rates, [150], "the rate is the new fleet's own");
    }

    #[test]
    fn numbers_are_sorted_from_the_greatest_and_the_selection_stays_with_its_slot() {
        let mut model = model();
        assert_eq!(order(&model), [0, 1, 2], "a retired slot is not shown");
        model.handle_key(TopKey::Down, SECOND);
        assert_eq!(model.selected, 1);
        let requests = COLUMNS.iter().position(|column| column.title == "REQUESTS").unwrap();
        model.handle_key(TopKey::Column(requests), SECOND);
        assert_eq!(order(&model), [0, 1, 2]);
        model.handle_key(TopKey::Reverse, SECOND);
        assert_eq!(order(&model), [2, 1, 0]);
        assert_eq!(model.selected, 1);
        model.handle_key(TopKey::Down, SECOND);
        model.handle_key(TopKey::Down, SECOND);
        assert_eq!(model.selected, 0, "the end of the table is its end");
    }

    #[test]
    fn what_has_no_number_comes_last_either_way() {
        let mut model = model();
        let rates = COLUMNS.iter().position(|column| column.title == "P99").unwrap();
        model.handle_key(TopKey::Column(rates), SECOND);
        assert_eq!(order(&model)[2], 2);
        model.handle_key(TopKey::Column(rates), SECOND);
        assert_eq!(order(&model)[2], 2);
    }

    #[test]
    fn a_command_needs_a_yes_and_only_one_is_given_at_a_time() {
        let mut model = model();
        assert_eq!(model.handle_key(TopKey::Restart, SECOND), None);
        assert_eq!(model.mode, InputMode::Confirm(TopCommand::Restart { slot: 0 }));
        assert_eq!(model.handle_key(TopKey::Quit, SECOND), None, "anything but yes is a no");
        assert_eq!(model.mode, InputMode::Table);
        model.handle_key(TopKey::Reload, SECOND);
        assert_eq!(model.handle_key(TopKey::Yes, SECOND), Some(KeyAction::Run(TopCommand::Reload)));
        model.set_command_pending(true);
        model.handle_key(TopKey::Reload, SECOND);
        assert_eq!(model.mode, InputMode::Table);
        assert!(model.note(SECOND).is_some());
        assert_eq!(model.handle_key(TopKey::Interrupt, SECOND), Some(KeyAction::Quit));
    }

    #[test]
    fn silence_is_detected_and_messages_fade() {
        let mut model = model();
        assert_eq!(model.silent_for(SECOND * 2), None);
        assert_eq!(model.silent_for(SECOND * 5), Some(SECOND * 4));
        model.show_note("done".into(), Severity::Good, SECOND);
        assert!(model.note(SECOND * 2).is_some());
        assert!(model.note(SECOND * 60).is_none());
    }
}
