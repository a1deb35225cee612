//! Commands of operators whose result is not known yet.
//!
//! A result is sent when it is true, not when its command was accepted: in every turn of the loop each pending command is
//! checked for its goal.

mod commands;

use crate::control::protocol::{CommandResult, ControlReply};
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

    /// Keeps the command until its result is known, or with `wait` off replies that it is accepted.
    pub(in crate::supervisor) fn accept(
        &mut self,
        client: ClientId,
        wait: bool,
        goal: CommandGoal,
        accepted: &str,
    ) {
        if wait {
            self.pending.push(PendingCommand { client, goal, reported: None });
        } else {
            self.send_result(client, CommandResult::ok(accepted));
        }
    }

    pub(in crate::supervisor) fn send_result(&mut self, client: ClientId, result: CommandResult) {
        self.control.reply(client, &ControlReply::Result(result));
    }

    /// Sends the result of every command with this goal.
    pub(in crate::supervisor) fn resolve(&mut self, goal: &CommandGoal, result: &CommandResult) {
        let (reached, waiting) =
            std::mem::take(&mut self.pending).into_iter().partition(|waiter| waiter.goal == *goal);
        self.pending = waiting;
        let reached: Vec<PendingCommand> = reached;
        for waiter in reached {
            self.send_result(waiter.client, result.clone());
        }
    }

    /// Commands that wait for the next reload wait for this one.
    pub(in crate::supervisor) fn on_reload_started(&mut self, generation: u64) {
        for waiter in self.pending.iter_mut().filter(|waiter| waiter.goal == CommandGoal::NextReload) {
            waiter.goal = CommandGoal::Rollout(generation);
        }
    }

    /// Commands that wait for the next upgrade wait for this rollout.
    pub(in crate::supervisor) fn on_upgrade_started(&mut self, generation: u64) {
        for waiter in self.pending.iter_mut().filter(|waiter| waiter.goal == CommandGoal::NextUpgrade) {
            waiter.goal = CommandGoal::Rollout(generation);
        }
    }
}
