//! Commands of operators whose result is not known yet.
//!
//! A result is sent when it is true, not when its command was accepted: in every turn of the loop each pending command is
//! checked for its goal.

mod commands;

use crate::control::server::{ClientId, ControlServer};

/// A command whose result an operator waits for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PendingCommand {
    client: ClientId,
    goal: CommandGoal,
    /// The progress last reported.
    #[serde(rename = "told")]
    reported: Option<(usize, usize)>,
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

/// What operators request, and the events that they follow.
#[derive(Debug)]
pub(super) struct Operators {
    pub(super) control: ControlServer,
    /// Commands whose result is not known yet.
    pub(super) pending: Vec<PendingCommand>,
}

impl Operators {
    pub(super) fn new(control: ControlServer) -> Self {
        Self { control, pending: Vec::new() }
    }
}
