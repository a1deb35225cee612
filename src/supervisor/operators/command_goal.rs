//! What commands of operators are to bring about.

use crate::control::server::ClientId;

/// A command whose result an operator waits for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PendingCommand {
    pub(super) client: ClientId,
    pub(super) goal: CommandGoal,
    /// The progress last reported.
    #[serde(rename = "told")]
    pub(super) reported: Option<(usize, usize)>,
}

/// What a command is to bring about.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum CommandGoal {
    /// The reload that has not started yet.
    NextReload,
    /// The upgrade whose program has not taken over yet.
    NextUpgrade,
    /// The end of the rollout that leads to this generation.
    Rollout(u64),
    /// This number of workers.
    Workers(usize),
    /// Another worker in this slot than these.
    #[serde(rename = "Successor")]
    Replacement {
        /// The slot.
        slot: usize,
        /// Pids of the workers it had.
        before: Vec<i32>,
    },
    /// The end of the fleet.
    Stop,
}
