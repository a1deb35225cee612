//! What happened: each event is kept under a number and told to all who follow.

use crate::control::events::Event;
use crate::scoreboard::Reason;
use crate::supervisor::Supervisor;
use crate::sys::proc::Pid;
use crate::sys::time;

/// Something that happened to a worker.
#[derive(Debug, Clone, Copy)]
pub(super) struct Incident {
    /// What, for programs.
    pub(super) kind: &'static str,
    /// In which slot.
    pub(super) slot: usize,
    /// To which worker.
    pub(super) pid: Pid,
}

impl Incident {
    /// The event of it; `what` goes on after the worker's name.
    fn event(self, generation: Option<u64>, reason: Option<Reason>, what: &str) -> Event {
        let Self { kind, slot, pid } = self;
        let event = happened(kind, format!("worker {pid} in slot {slot} {what}"));
        let event = event.slot(slot).pid(pid.as_raw().unsigned_abs());
        let event = generation.into_iter().fold(event, Event::generation);
        reason.into_iter().fold(event, |event, reason| event.reason(reason.name()))
    }
}

impl Supervisor<'_> {
    /// Writes an event into the log of events and tells it to all who follow.
    pub(super) fn note(&mut self, event: Event) {
        self.control.publish(event);
    }

    /// The same of a worker that is in its slot.
    pub(super) fn note_worker(&mut self, incident: Incident, reason: Option<Reason>, what: &str) {
        let worker = self.slots[incident.slot].worker(incident.pid);
        let generation = worker.map(|worker| worker.generation);
        self.note(incident.event(generation, reason, what));
    }

    /// The same of a worker that has ended.
    pub(super) fn note_end(&mut self, incident: Incident, generation: u64, reason: Reason, what: &str) {
        self.note(incident.event(Some(generation), Some(reason), what));
    }
}

/// An event of now.
pub(super) fn happened(kind: &'static str, text: impl Into<String>) -> Event {
    Event::new(kind, unix_ms(), text)
}

/// Now, Unix milliseconds.
pub(super) fn unix_ms() -> u64 {
    u64::try_from(time::unix().as_millis()).unwrap_or(0)
}
