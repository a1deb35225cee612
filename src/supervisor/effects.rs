//! What state machines want done, and builders of events.

use crate::control::event_kind::EventKind;
use crate::control::events::FleetEvent;
use crate::control::protocol::CommandResult;
use crate::scoreboard::ExitReason;
use crate::supervisor::operators::command_goal::CommandGoal;
use crate::sys::clock;
use crate::sys::process::Pid;
use crate::sys::signal::Signal;

/// What a state machine wants done outside of itself; the driver does it, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    /// An event for the log of events and its followers.
    Record(FleetEvent),
    /// A signal to a worker.
    Signal(Pid, Signal),
    /// A hung worker reports where it stands.
    RequestBacktrace(Pid),
    /// The list of workers has changed.
    SaveWorkerList,
    /// The service manager learns that everything is as it should be, at first or again.
    NotifyReady(String),
    /// The result of every command with this goal.
    Resolve(CommandGoal, CommandResult),
    /// The result of every command that waits for a successor in this slot.
    FailReplacement(usize, CommandResult),
    /// A worker of the generation on its way failed, for this reason.
    RollBack(String),
    /// A worker of the generation gone back to does not become READY.
    RollbackFailed {
        /// Its slot.
        slot: usize,
        /// Why.
        cause: String,
    },
}

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
