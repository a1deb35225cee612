//! Commands of operators whose result is not known yet.
//!
//! A result is sent when it is true, not when its command was accepted: in every turn of the loop each pending command is
//! checked for its goal.

pub(in crate::supervisor) mod command_goal;
pub(in crate::supervisor) mod fleet_view;

use std::time::Duration;

pub use command_goal::{CommandGoal, PendingCommand};

use crate::control::protocol::{CommandResult, ControlReply};
use crate::control::server::{ClientId, ControlServer};
use crate::supervisor::operators::fleet_view::FleetView;

/// How long a stopping fleet waits for operators to read their result.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);

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

    /// Sends the results that are known, and the progress of the other commands.
    pub(in crate::supervisor) fn report_progress(&mut self, fleet: &FleetView<'_>, now: Duration) {
        for mut waiter in std::mem::take(&mut self.pending) {
            // A client that has disconnected waits for no result.
            if !self.control.is_connected(waiter.client) {
                continue;
            }
            if let Some(result) = fleet.evaluate(&waiter.goal) {
                self.send_result(waiter.client, result);
                continue;
            }
            let mut progress = fleet.command_progress(&waiter.goal, now);
            if let (Some(progress), Some((_, total))) = (&mut progress, waiter.reported) {
                // What was counted before and is gone now is done.
                progress.completed += total.saturating_sub(progress.total);
                progress.total = progress.total.max(total);
            }
            if let Some(progress) = progress.filter(|new| waiter.reported != Some((new.completed, new.total)))
            {
                waiter.reported = Some((progress.completed, progress.total));
                self.control.reply(waiter.client, &ControlReply::Progress(progress));
            }
            self.pending.push(waiter);
        }
    }

    /// The successor in a slot failed: commands that wait for it fail.
    pub(in crate::supervisor) fn fail_replacement(&mut self, index: usize, result: &CommandResult) {
        let waits =
            |goal: &CommandGoal| matches!(goal, CommandGoal::Replacement { slot, .. } if *slot == index);
        let goals: Vec<_> = self.pending.iter().map(|waiter| waiter.goal.clone()).filter(waits).collect();
        for goal in goals {
            self.resolve(&goal, result);
        }
    }

    /// The fleet has ended: the last results, `result` for those who wait for its end.
    pub(in crate::supervisor) fn finish(mut self, result: &CommandResult) {
        for waiter in std::mem::take(&mut self.pending) {
            let result = match waiter.goal {
                CommandGoal::Stop => result.clone(),
                _ => CommandResult::failed("cancelled: the fleet stops"),
            };
            self.send_result(waiter.client, result);
        }
        self.control.finish(FINISH_TIMEOUT);
    }
}
