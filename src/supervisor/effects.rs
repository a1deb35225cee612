//! Builders of events.

use crate::control::event_kind::EventKind;
use crate::control::events::FleetEvent;
use crate::scoreboard::ExitReason;
use crate::sys::clock;
use crate::sys::process::Pid;

/// Something that happened to a worker.
#[derive(Debug, Clone, Copy)]
pub(super) struct WorkerEvent {
    /// What, for programs.
    pub(super) kind: EventKind,
    /// In which slot.
    pub(super) slot: usize,
    /// To which worker.
    pub(super) pid: Pid,
}

impl WorkerEvent {
    /// The event of it; `what` is the predicate after the worker's name.
    pub(super) fn into_event(
        self,
        generation: Option<u64>,
        reason: Option<ExitReason>,
        what: &str,
    ) -> FleetEvent {
        let Self { kind, slot, pid } = self;
        let event = event_now(kind, format!("worker {pid} in slot {slot} {what}"));
        let event = event.slot(slot).pid(pid.as_raw().unsigned_abs());
        let event = generation.into_iter().fold(event, FleetEvent::generation);
        reason.into_iter().fold(event, |event, reason| event.reason(reason.name()))
    }
}

/// An event of now.
pub(super) fn event_now(kind: EventKind, text: impl Into<String>) -> FleetEvent {
    FleetEvent::new(kind, unix_ms(), text)
}

/// Now, Unix milliseconds.
pub(super) fn unix_ms() -> u64 {
    u64::try_from(clock::wall_clock().as_millis()).unwrap_or(0)
}
