//! What the page shows, as text: filled into the template for the first paint, sent as JSON every second afterwards.
//!
//! Both come from here, so that what a browser builds of the one is what the server built of the other. These are the
//! page's own fields and change with it; programs read `/fleet.json`.

use serde::Serialize;

/// The whole page.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct DashboardView {
    /// Whose buttons these are: the id of the machine that drew the page.
    #[serde(rename = "machine")]
    pub(super) instance: String,
    /// Time of day of these figures, UTC.
    pub(super) at: String,
    /// Where the fleet stands: `serving`, `rolling out`, ….
    pub(super) state: String,
    pub(super) state_tone: StatusSeverity,
    /// The same in a sentence.
    pub(super) state_text: String,
    /// The change under way, empty when there is none.
    pub(super) rollout: String,
    /// How far it is, 0 to 100.
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
    /// What is wrong with a Redis that works.
    pub(super) warnings: Vec<ListItem>,
    /// Every machine, this one first.
    #[serde(rename = "machines")]
    pub(super) instances: Vec<InstanceView>,
    /// Why some may be missing; empty when none can be.
    #[serde(rename = "machines_note")]
    pub(super) instances_note: String,
    /// The queue in a sentence.
    pub(super) queue: String,
    pub(super) running: Vec<TaskView>,
    pub(super) dead: Vec<DeadTaskView>,
    /// What happened, the newest first; none: as it was told last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) events: Option<Vec<EventView>>,
    /// Why there are none, if there are none.
    pub(super) events_note: String,
}

/// How good a state is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum StatusSeverity {
    /// Nothing to say.
    #[default]
    #[serde(rename = "plain")]
    Neutral,
    /// As wanted.
    #[serde(rename = "good")]
    Ok,
    /// On its way, or not quite as wanted.
    #[serde(rename = "wait")]
    Pending,
    /// Somebody should look.
    #[serde(rename = "bad")]
    Error,
}

impl StatusSeverity {
    /// As the stylesheet knows it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Neutral => "plain",
            Self::Ok => "good",
            Self::Pending => "wait",
            Self::Error => "bad",
        }
    }
}

/// A sentence in a list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct ListItem {
    pub(super) key: String,
    pub(super) text: String,
}

/// One machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct InstanceView {
    pub(super) key: String,
    pub(super) host: String,
    /// What tells it from others: "this machine", or when it was last heard of.
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
    #[serde(rename = "also")]
    pub(super) other_workers: String,
    pub(super) generation: String,
    pub(super) rate: String,
    /// The last minute of it; empty for other machines.
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
    /// Why its workers ended.
    pub(super) reasons: String,
    /// Index of the slot for whoever wants to restart it here; empty on other machines.
    #[serde(rename = "own")]
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

/// A task that was given up.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct DeadTaskView {
    pub(super) key: String,
    pub(super) kind: String,
    pub(super) at: String,
    pub(super) text: String,
}

/// Something that happened.
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
