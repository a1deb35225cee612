//! Whether commands have reached their goal, and how far they are; no input or output.

use std::time::Duration;

use crate::control::protocol::{CommandProgress, CommandResult};
use crate::supervisor::deployment::rollout::RolloutProgress;
use crate::supervisor::deployment::state::Deployments;
use crate::supervisor::operators::command_goal::CommandGoal;
use crate::supervisor::slots::plan::DesiredState;
use crate::supervisor::slots::slot::{Slot, SlotListening};
use crate::supervisor::slots::table::SlotTable;

/// Early deaths of a new slot after which its command fails.
const EARLY_DEATHS_BEFORE_FAILURE: u32 = 2;

/// What commands wait for.
#[derive(Debug)]
pub(in crate::supervisor) struct FleetView<'a> {
    pub(in crate::supervisor) desired_state: DesiredState,
    pub(in crate::supervisor) slots: &'a SlotTable,
    pub(in crate::supervisor) deployment: &'a Deployments,
    pub(in crate::supervisor) canary_period: Duration,
    /// Why a worker last failed to become READY.
    pub(in crate::supervisor) last_failure: &'a str,
}

impl FleetView<'_> {
    /// The result of a command with this goal, if it is known.
    pub(super) fn evaluate(&self, goal: &CommandGoal) -> Option<CommandResult> {
        let stopping = self.desired_state != DesiredState::Running;
        match goal {
            CommandGoal::Stop => None,
            _ if stopping => Some(CommandResult::failed("cancelled: the fleet stops")),
            // Answered where the rollout begins and ends.
            CommandGoal::NextReload | CommandGoal::NextUpgrade | CommandGoal::Rollout(_) => None,
            CommandGoal::Workers(workers) => self.evaluate_scale(*workers),
            CommandGoal::Replacement { slot, before } => {
                let state =
                    self.slots.entries.get(*slot).filter(|slot| slot.listening == SlotListening::Open);
                let Some(state) = state else {
                    return Some(CommandResult::failed(format!("slot {slot} is retired meanwhile")));
                };
                let pid = state.current_worker()?.pid.as_raw();
                let message = format!("slot {slot} has a new worker with pid {pid}");
                (!before.contains(&pid)).then(|| CommandResult::ok(message).with_detail("pid", pid))
            }
        }
    }

    fn evaluate_scale(&self, workers: usize) -> Option<CommandResult> {
        if self.slots.desired != workers {
            let message =
                format!("superseded: the fleet scales to {} workers, not {workers}", self.slots.desired);
            return Some(CommandResult::failed(message));
        }
        if self.slots.is_stable() {
            let draining: usize =
                self.slots.entries.iter().skip(workers).map(|slot| slot.workers.len()).sum();
            let rest = match draining {
                0 => String::new(),
                some => format!("; {some} of retired slots still draining"),
            };
            let noun = if workers == 1 { "worker serves" } else { "workers serve" };
            let result = CommandResult::ok(format!("{workers} {noun}{rest}"));
            return Some(result.with_detail("workers", workers).with_detail("draining", draining));
        }
        let failing = |slot: &&Slot| slot.backoff.early_deaths() >= EARLY_DEATHS_BEFORE_FAILURE;
        self.slots.entries.iter().take(workers).any(|slot| failing(&slot)).then(|| {
            let reason = self.last_failure;
            CommandResult::failed(format!("a new worker does not become ready, and is retried: {reason}"))
        })
    }

    /// How far a command with this goal is.
    pub(super) fn command_progress(&self, goal: &CommandGoal, now: Duration) -> Option<CommandProgress> {
        let (done, total, text) = match goal {
            CommandGoal::NextReload | CommandGoal::NextUpgrade | CommandGoal::Replacement { .. } => {
                return None;
            }
            CommandGoal::Rollout(generation) => {
                self.deployment.rollout().filter(|rollout| rollout.to == *generation)?;
                let progress = self.deployment.progress(&self.slots.entries, self.canary_period, now)?;
                let RolloutProgress::InProgress { completed: done, total, .. } = progress else {
                    return None;
                };
                (
                    done,
                    total,
                    format!("{} of {total} slots have generation {}", done, self.deployment.generation()),
                )
            }
            CommandGoal::Workers(workers) => {
                let ready = self.slots.entries.iter().take(*workers).filter(|slot| slot.is_serving()).count();
                let retiring = self
                    .slots
                    .entries
                    .iter()
                    .filter(|slot| slot.listening == SlotListening::Retiring)
                    .count();
                (ready, workers + retiring, format!("{ready} of {workers} workers serve"))
            }
            CommandGoal::Stop => {
                let left: usize = self.slots.entries.iter().map(|slot| slot.workers.len()).sum();
                let total = self.slots.entries.len().max(left);
                let noun = if left == 1 { "worker" } else { "workers" };
                (total - left, total, format!("{left} {noun} still draining"))
            }
        };
        Some(CommandProgress { completed: done, total, message: text })
    }
}
