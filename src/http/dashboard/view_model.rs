//! What the page shows, as text: rendered into the template first, sent as JSON every second afterwards.
//!
//! Both come from these types, so a page that the script has updated equals one that the server renders. The fields change
//! with the page; programs read `/fleet.json`.

use serde::Serialize;

/// The whole page.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct DashboardView {
    /// The id of the instance whose page this is: forms carry it.
    pub(super) instance: String,
    /// Time of day of these figures, UTC.
    pub(super) at: String,
    /// `serving`, `rolling out`, ….
    pub(super) state: String,
    pub(super) state_tone: StatusSeverity,
    /// The same in a sentence.
    pub(super) state_text: String,
    /// The change under way, empty when there is none.
    pub(super) rollout: String,
    /// Progress of the change, 0 to 100.
    pub(super) rollout_percent: u64,
    pub(super) rate: String,
    pub(super) rate_path: String,
    pub(super) p99: String,
    pub(super) p99_path: String,
    pub(super) busy: String,
    pub(super) busy_path: String,
    pub(super) in_flight: String,
    pub(super) connections: String,
    pub(super) memory: String,
    pub(super) views: String,
    pub(super) sessions: String,
    pub(super) limited: String,
    pub(super) subscribers: String,
    pub(super) redis: String,
    pub(super) redis_tone: StatusSeverity,
    pub(super) redis_text: String,
    /// Warnings about a Redis that works.
    pub(super) warnings: Vec<ListItem>,
    /// Every instance, this one first.
    pub(super) instances: Vec<InstanceView>,
    /// Why some may be missing; empty when none can be.
    pub(super) instances_note: String,
    /// The queue in a sentence.
    pub(super) queue: String,
    pub(super) running: Vec<TaskView>,
    pub(super) dead: Vec<DeadTaskView>,
    /// The newest first; `None`: as in the update before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) events: Option<Vec<EventView>>,
    /// Why there are no events; empty if there are.
    pub(super) events_note: String,
}

/// How good a state is, as the stylesheet names it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum StatusSeverity {
    /// Neither good nor bad.
    #[default]
    Neutral,
    /// As desired.
    Ok,
    /// In transition, or degraded.
    Pending,
    /// An operator should look.
    Error,
}

impl StatusSeverity {
    /// As in JSON.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Neutral => "neutral",
            Self::Ok => "ok",
            Self::Pending => "pending",
            Self::Error => "error",
        }
    }
}

/// A sentence in a list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct ListItem {
    pub(super) key: String,
    pub(super) text: String,
}

/// One instance.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct InstanceView {
    pub(super) key: String,
    pub(super) host: String,
    /// `this instance`, or the age of its last heartbeat.
    pub(super) which: String,
    pub(super) tone: StatusSeverity,
    /// Its figures in a sentence.
    pub(super) text: String,
    pub(super) slots: Vec<SlotView>,
}

/// One slot.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct SlotView {
    pub(super) key: String,
    pub(super) slot: String,
    pub(super) state: String,
    pub(super) tone: StatusSeverity,
    pub(super) pid: String,
    /// The slot's other workers, empty when there are none.
    pub(super) other_workers: String,
    pub(super) generation: String,
    pub(super) rate: String,
    /// The last minute of the rate as an SVG path; empty for other instances.
    pub(super) path: String,
    pub(super) in_flight: String,
    pub(super) busy: String,
    /// The same as a number, 0 to 100.
    pub(super) busy_percent: u64,
    pub(super) p99: String,
    pub(super) memory: String,
    pub(super) redis: String,
    pub(super) redis_tone: StatusSeverity,
    pub(super) restarts: String,
    /// Why its workers exited.
    pub(super) reasons: String,
    /// The slot's index in the restart form; empty for other instances.
    pub(super) restart_slot: String,
}

/// A task that runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct TaskView {
    pub(super) key: String,
    pub(super) kind: String,
    pub(super) percent: u64,
    pub(super) percent_text: String,
    pub(super) text: String,
}

/// A dead task.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct DeadTaskView {
    pub(super) key: String,
    pub(super) kind: String,
    pub(super) at: String,
    pub(super) text: String,
}

/// An event.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct EventView {
    pub(super) key: String,
    /// Time of day, UTC.
    pub(super) at: String,
    /// Date and time, UTC.
    pub(super) stamp: String,
    pub(super) kind: String,
    pub(super) tone: StatusSeverity,
    pub(super) text: String,
}
