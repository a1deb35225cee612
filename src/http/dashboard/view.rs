//! What the page shows, as text: filled into the template for the first paint, sent as JSON every second afterwards.
//!
//! Both come from here, so that what a browser builds of the one is what the server built of the other. These are the
//! page's own fields and change with it; programs read `/fleet.json`.

use serde::Serialize;

/// The whole page.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct View {
    /// Whose buttons these are: the id of the machine that drew the page.
    pub(super) machine: String,
    /// Time of day of these figures, UTC.
    pub(super) at: String,
    /// Where the fleet stands: `serving`, `rolling out`, ….
    pub(super) state: String,
    pub(super) state_tone: Tone,
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
    pub(super) redis_tone: Tone,
    pub(super) redis_text: String,
    /// What is wrong with a Redis that works.
    pub(super) warnings: Vec<Line>,
    /// Every machine, this one first.
    pub(super) machines: Vec<MachineRow>,
    /// Why some may be missing; empty when none can be.
    pub(super) machines_note: String,
    /// The queue in a sentence.
    pub(super) queue: String,
    pub(super) running: Vec<TaskRow>,
    pub(super) dead: Vec<DeadRow>,
    /// What happened, the newest first; none: as it was told last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) events: Option<Vec<EventRow>>,
    /// Why there are none, if there are none.
    pub(super) events_note: String,
}

/// How good a state is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Tone {
    /// Nothing to say.
    #[default]
    Plain,
    /// As wanted.
    Good,
    /// On its way, or not quite as wanted.
    Wait,
    /// Somebody should look.
    Bad,
}

impl Tone {
    /// As the stylesheet knows it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Good => "good",
            Self::Wait => "wait",
            Self::Bad => "bad",
        }
    }
}

/// A sentence in a list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Line {
    pub(super) key: String,
    pub(super) text: String,
}

/// One machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct MachineRow {
    pub(super) key: String,
    pub(super) host: String,
    /// What tells it from others: "this machine", or when it was last heard of.
    pub(super) which: String,
    pub(super) tone: Tone,
    /// Its figures in a sentence.
    pub(super) text: String,
    pub(super) slots: Vec<SlotRow>,
}

/// One slot.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct SlotRow {
    pub(super) key: String,
    pub(super) slot: String,
    pub(super) state: String,
    pub(super) tone: Tone,
    pub(super) pid: String,
    /// The slot's other workers, empty when there are none.
    pub(super) also: String,
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
    pub(super) redis_tone: Tone,
    pub(super) restarts: String,
    /// Why its workers ended.
    pub(super) reasons: String,
    /// Index of the slot for whoever wants to restart it here; empty on other machines.
    pub(super) own: String,
}

/// A task that runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct TaskRow {
    pub(super) key: String,
    pub(super) kind: String,
    pub(super) percent: u64,
    pub(super) percent_text: String,
    pub(super) text: String,
}

/// A task that was given up.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct DeadRow {
    pub(super) key: String,
    pub(super) kind: String,
    pub(super) at: String,
    pub(super) text: String,
}

/// Something that happened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct EventRow {
    pub(super) key: String,
    /// Time of day, UTC.
    pub(super) at: String,
    /// Date and time, UTC.
    pub(super) stamp: String,
    pub(super) kind: String,
    pub(super) tone: Tone,
    pub(super) text: String,
}
