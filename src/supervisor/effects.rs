//! What happened: each event is kept under a number and told to all who follow.

use crate::control::events::FleetEvent;
use crate::scoreboard::ExitReason;
use crate::supervisor::Supervisor;
use crate::sys::clock;
use crate::sys::process::Pid;

/// Something that happened to a worker.
#[derive(Debug, Clone, Copy)]
pub(super) struct WorkerEvent {
    /// What, for programs.
    pub(super) kind: &'static str,
    /// In which slot.
    pub(super) slot: usize,
    /// To which worker.
    pub(super) pid: Pid,
}

impl WorkerEvent {
    /// The event of it; `what` goes on after the worker's name.
    fn event(self, generation: Option<u64>, reason: Option<ExitReason>, what: &str) -> FleetEvent {
        let Self { kind, slot, pid } = self;
        let event = event_now(kind, format!("worker {pid} in slot {slot} {what}"));
        let event = event.slot(slot).pid(pid.as_raw().unsigned_abs());
        let event = generation.into_iter().fold(event, FleetEvent::generation);
        reason.into_iter().fold(event, |event, reason| event.reason(reason.name()))
    }
}

impl Supervisor<'_> {
    /// Writes an event into the log of events and tells it to all who follow.
    pub(super) fn record_event(&mut self, event: FleetEvent) {
        self.control.publish(event);
    }

    /// The same of a worker that is in its slot.
    pub(super) fn record_worker_event(
        &mut self,
        incident: WorkerEvent,
        reason: Option<ExitReason>,
        what: &str,
    ) {
        let worker = self.slots[incident.slot].worker_mut(incident.pid);
        let generation = worker.map(|worker| worker.generation);
        self.record_event(incident.event(generation, reason, what));
    }

    /// The same of a worker that has ended.
    pub(super) fn record_worker_exit(
        &mut self,
        incident: WorkerEvent,
        generation: u64,
        reason: ExitReason,
        what: &str,
    ) {
        self.record_event(incident.event(Some(generation), Some(reason), what));
    }
}

/// An event of now.
pub(super) fn event_now(kind: &'static str, text: impl Into<String>) -> FleetEvent {
    FleetEvent::new(kind, unix_ms(), text)
}

/// Now, Unix milliseconds.
pub(super) fn unix_ms() -> u64 {
    u64::try_from(clock::wall_clock().as_millis()).unwrap_or(0)
}
