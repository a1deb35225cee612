//! Commands of operators: accepted, followed and resolved.

use std::time::Duration;

use serde_json::Value;

use crate::control::protocol::{CommandProgress, CommandResult, ControlReply, ControlRequest};
use crate::control::server::ClientId;
use crate::scoreboard::ExitReason;
use crate::supervisor::deployment::rollout::RolloutProgress;
use crate::supervisor::operators::CommandGoal;
use crate::supervisor::slots::backoff::RestartBackoff;
use crate::supervisor::slots::plan::DesiredState;
use crate::supervisor::slots::slot::{Slot, SlotListening};
use crate::supervisor::{Supervisor, SupervisorExit};
use crate::sys::process::Pid;

/// How long a stopping fleet waits for operators to read their result.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);

/// Early deaths of a new slot after which its command fails.
const EARLY_DEATHS_BEFORE_FAILURE: u32 = 2;

impl Supervisor<'_> {
    /// Takes the requests of operators.
    pub(in crate::supervisor) fn handle_commands(&mut self) {
        for (client, request) in self.operators.control.poll() {
            tracing::debug!(command = request.command(), "operator command");
            self.handle_command(client, request);
        }
    }

    fn handle_command(&mut self, client: ClientId, request: ControlRequest) {
        let stopping = self.lifecycle.desired_state != DesiredState::Running;
        match request {
            ControlRequest::Status => self.send_status(client),
            ControlRequest::Events { after, follow } => {
                self.operators.control.start_events(client, after, follow)
            }
            ControlRequest::Stop { now, wait } => self.handle_stop(client, now, wait),
            _ if stopping => {
                self.operators.send_result(client, CommandResult::failed("the fleet is stopping"))
            }
            ControlRequest::Reload { wait } => {
                self.request_reload();
                self.operators.accept(client, wait, CommandGoal::NextReload, "the reload is under way");
            }
            ControlRequest::Upgrade { binary, wait } => match self.request_upgrade(binary) {
                Err(reason) => self.operators.send_result(client, CommandResult::failed(reason)),
                Ok(()) => {
                    self.operators.accept(client, wait, CommandGoal::NextUpgrade, "the upgrade is under way")
                }
            },
            ControlRequest::Scale { workers, wait } => match self.scale_to(workers) {
                Err(reason) => self.operators.send_result(client, CommandResult::rejected(reason)),
                Ok(()) => {
                    let accepted = format!("scaling to {workers} workers");
                    self.operators.accept(client, wait, CommandGoal::Workers(workers), &accepted);
                }
            },
            ControlRequest::Restart { slot, wait } => self.handle_restart(client, slot, wait),
        }
    }

    fn send_status(&mut self, client: ClientId) {
        let status = serde_json::to_value(self.status()).unwrap_or(Value::Null);
        self.operators.control.reply(client, &ControlReply::Status(status));
    }

    fn handle_stop(&mut self, client: ClientId, now: bool, wait: bool) {
        match (now, self.lifecycle.desired_state) {
            (true, DesiredState::Running | DesiredState::Stopping) => {
                self.set_desired_state(DesiredState::Killing, "an operator")
            }
            (false, DesiredState::Running) => self.set_desired_state(DesiredState::Stopping, "an operator"),
            _ => {}
        }
        self.operators.accept(client, wait, CommandGoal::Stop, "the fleet is stopping");
    }

    fn handle_restart(&mut self, client: ClientId, index: usize, wait: bool) {
        let open = self.slots.entries.get(index).is_some_and(|slot| slot.listening == SlotListening::Open);
        if !open {
            let last = self.slots.desired.saturating_sub(1);
            let message = format!("there is no slot {index}: this fleet has slots 0 to {last}");
            return self.operators.send_result(client, CommandResult::rejected(message));
        }
        let slot = &mut self.slots.entries[index];
        let before = slot.workers.iter().map(|worker| worker.pid.as_raw()).collect();
        for worker in slot.workers.iter_mut().filter(|worker| worker.is_ready() || worker.is_booting()) {
            worker.replace_reason = Some(ExitReason::Operator);
        }
        // One that waits for its delay is started now.
        (slot.backoff, slot.backoff_until) = (RestartBackoff::default(), None);
        let accepted = format!("slot {index} gets a new worker");
        self.operators.accept(client, wait, CommandGoal::Replacement { slot: index, before }, &accepted);
    }

    /// Sends the results that are known, and the progress of the other commands.
    pub(in crate::supervisor) fn report_progress(&mut self, now: Duration) {
        for mut waiter in std::mem::take(&mut self.operators.pending) {
            // A client that has disconnected waits for no result.
            if !self.operators.control.is_connected(waiter.client) {
                continue;
            }
            if let Some(result) = self.evaluate(&waiter.goal) {
                self.operators.send_result(waiter.client, result);
                continue;
            }
            let mut progress = self.command_progress(&waiter.goal, now);
            if let (Some(progress), Some((_, total))) = (&mut progress, waiter.reported) {
                // What was counted before and is gone now is done.
                progress.completed += total.saturating_sub(progress.total);
                progress.total = progress.total.max(total);
            }
            if let Some(progress) = progress.filter(|new| waiter.reported != Some((new.completed, new.total)))
            {
                waiter.reported = Some((progress.completed, progress.total));
                self.operators.control.reply(waiter.client, &ControlReply::Progress(progress));
            }
            self.operators.pending.push(waiter);
        }
    }

    fn evaluate(&self, goal: &CommandGoal) -> Option<CommandResult> {
        let stopping = self.lifecycle.desired_state != DesiredState::Running;
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
            let reason = &self.lifecycle.last_failure;
            CommandResult::failed(format!("a new worker does not become ready, and is retried: {reason}"))
        })
    }

    fn command_progress(&self, goal: &CommandGoal, now: Duration) -> Option<CommandProgress> {
        let (done, total, text) = match goal {
            CommandGoal::NextReload | CommandGoal::NextUpgrade | CommandGoal::Replacement { .. } => {
                return None;
            }
            CommandGoal::Rollout(generation) => {
                self.deployment.rollout().filter(|rollout| rollout.to == *generation)?;
                let progress =
                    self.deployment.progress(&self.slots.entries, self.settings.canary_period, now)?;
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

    /// A successor failed: its command fails, and the old worker stays.
    pub(in crate::supervisor) fn on_restart_failed(&mut self, index: usize, cause: &str) {
        let slot = &mut self.slots.entries[index];
        let mut kept = None;
        for worker in
            slot.workers.iter_mut().filter(|worker| worker.replace_reason == Some(ExitReason::Operator))
        {
            worker.replace_reason = None;
            kept = Some(worker.pid);
        }
        let rest = match kept.map(Pid::as_raw) {
            Some(pid) => format!("the old worker, pid {pid}, stays"),
            None => "it is retried".to_owned(),
        };
        let result = CommandResult::failed(format!("the new worker of slot {index} failed: {cause}; {rest}"));
        let waits =
            |goal: &CommandGoal| matches!(goal, CommandGoal::Replacement { slot, .. } if *slot == index);
        let goals: Vec<_> =
            self.operators.pending.iter().map(|waiter| waiter.goal.clone()).filter(waits).collect();
        for goal in goals {
            self.operators.resolve(&goal, &result);
        }
    }

    /// The fleet has ended: the last results.
    pub(in crate::supervisor) fn finish_commands(mut self, outcome: &SupervisorExit) {
        let result = match outcome {
            SupervisorExit::Stopped { killed: 0 } => CommandResult::ok("the fleet has stopped"),
            SupervisorExit::Stopped { killed } => {
                let text =
                    format!("the fleet has stopped; {killed} workers did not exit in time and were killed");
                CommandResult::ok(text).with_detail("killed", *killed)
            }
            SupervisorExit::BootFailed { reason } => {
                CommandResult::failed(format!("the fleet has ended: no worker became ready: {reason}"))
            }
        };
        for waiter in std::mem::take(&mut self.operators.pending) {
            let result = match waiter.goal {
                CommandGoal::Stop => result.clone(),
                _ => CommandResult::failed("cancelled: the fleet stops"),
            };
            self.operators.send_result(waiter.client, result);
        }
        self.operators.control.finish(FINISH_TIMEOUT);
    }
}
