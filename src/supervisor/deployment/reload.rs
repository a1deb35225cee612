//! A new configuration on its way through the slots.

use std::path::Path;
use std::time::Duration;

use crate::control::protocol::CommandResult;
use crate::supervisor::deployment::rollout::{DeploymentKind, Rollout, RolloutDirection, RolloutProgress};
use crate::supervisor::deployment::takeover::UpgradeState;
use crate::supervisor::effects::event_now;
use crate::supervisor::operators::CommandGoal;
use crate::supervisor::slots::plan::DesiredState;
use crate::supervisor::{ReloadError, ReloadedConfig, Supervisor};
use crate::sys::path;

/// What a rollout took, for people and programs: a path as it is written, and where it led if that is elsewhere.
struct RolloutInputs {
    kind: DeploymentKind,
    program: String,
    /// None: there is no configuration file.
    file: Option<String>,
    /// Whether the fleet had none before.
    is_new: bool,
}

impl RolloutInputs {
    /// Of the generation that a rollout leads to; the one before is still known.
    fn from_rollout(supervisor: &Supervisor<'_>, rollout: &Rollout) -> Self {
        let inputs = supervisor.host.config_inputs(rollout.to);
        let before = match &supervisor.upgrade {
            UpgradeState::RollingOut(old) => old.inputs.clone(),
            _ => supervisor.host.config_inputs(rollout.from),
        };
        let shown = |(written, real): (&Path, &Path)| path::display_path(written, real);
        Self {
            kind: rollout.kind,
            program: supervisor.program.display_path(),
            file: inputs.loaded_file().map(shown),
            is_new: before.loaded_file().is_none(),
        }
    }
}

impl std::fmt::Display for RolloutInputs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.file {
            Some(file) if self.is_new => write!(f, "it took the file {file}, which was not there before")?,
            Some(file) => write!(f, "it took the file {file}")?,
            None => f.write_str("there is no configuration file")?,
        }
        match self.kind {
            DeploymentKind::Reload => write!(f, ", the program is still {}", self.program),
            DeploymentKind::Upgrade => write!(f, ", the program is {}", self.program),
        }
    }
}

impl Supervisor<'_> {
    /// A reload is wanted: now, or once after the one that runs, however often it was asked for.
    pub(in crate::supervisor) fn request_reload(&mut self) {
        if self.reload_queued {
            return;
        }
        self.reload_queued = true;
        if self.rollout.is_some() {
            tracing::info!("reload waits for the rollout that runs");
        }
    }

    /// Begins the reload that waits, if it can begin.
    pub(in crate::supervisor) fn start_reload(&mut self, now: Duration) {
        let can = self.reload_queued
            && self.desired_state == DesiredState::Running
            && self.ever_ready
            && self.is_upgrade_idle();
        if !can || !self.supersede_rollback() {
            return;
        }
        self.reload_queued = false;
        let to = self.next_generation;
        // Whoever asked by `systemctl reload` waits for both words, also when nothing comes of it.
        self.notify_reloading("reloading", now);
        match self.host.reload(to) {
            Err(refusal) => {
                let (reason, result): (_, fn(String) -> CommandResult) = match refusal {
                    ReloadError::Invalid(reason) => (reason, CommandResult::rejected),
                    ReloadError::Unavailable(reason) => (reason, CommandResult::failed),
                };
                self.notify_ready(&format!("reload refused: {reason}"));
                tracing::error!(%reason, "reload refused, nothing is changed: {reason}");
                self.record_event(event_now("reload_refused", format!("nothing is changed: {reason}")));
                self.resolve_commands(
                    &CommandGoal::NextReload,
                    &result(format!("nothing is changed: {reason}")),
                );
            }
            Ok(reloaded) => {
                self.on_reload_started(to);
                tracing::info!(generation = to, changed = reloaded.changed.join(","), "reload begins");
                self.apply_settings(reloaded);
                self.start_rollout(DeploymentKind::Reload, to, now);
            }
        }
    }

    /// Takes the supervisor's part of a configuration, until it is taken back.
    pub(in crate::supervisor) fn apply_settings(&mut self, reloaded: ReloadedConfig) {
        for setting in &reloaded.unchanged {
            tracing::warn!(setting = %setting.name, "{} is not changed now: {}", setting.name, setting.needs);
        }
        self.settings_before_rollout = self.settings;
        self.settings = reloaded.settings;
        self.configured_after_rollout = reloaded.workers;
        self.unchanged_settings = reloaded.unchanged;
    }

    /// Sends a new generation on its way.
    pub(in crate::supervisor) fn start_rollout(&mut self, kind: DeploymentKind, to: u64, now: Duration) {
        self.next_generation = to + 1;
        let from = self.generation;
        self.generation = to;
        for slot in &mut self.slots {
            // A slot that loops with the old generation gets a new chance.
            (slot.backoff, slot.backoff_until) =
                (crate::supervisor::slots::backoff::RestartBackoff::default(), None);
        }
        let text = format!("{} to generation {to}", kind.name());
        self.record_event(event_now(kind.started_event(), text).generation(to));
        self.rollout = Some(Rollout { kind, from, to, direction: RolloutDirection::Forward, started: now });
    }

    /// Whether another rollout may begin. One that goes back gives way: it may be that the old generation does not
    /// boot any more, and what comes now is the repair.
    pub(in crate::supervisor) fn supersede_rollback(&mut self) -> bool {
        let Some(rollout) = &self.rollout else { return true };
        let RolloutDirection::RollingBack { reason } = &rollout.direction else { return false };
        let kind = rollout.kind.name();
        let message = format!("{kind} failed: {reason}; what came next was begun before all was taken back");
        let (goal, rollout) = (CommandGoal::Rollout(rollout.to), rollout.clone());
        self.resolve_commands(&goal, &CommandResult::failed(message));
        self.record_finished(&rollout);
        self.rollout = None;
        true
    }

    /// Going back does not succeed either: whoever waits is told, and it is tried on.
    pub(in crate::supervisor) fn report_rollback_failure(&mut self, slot: usize, cause: &str) {
        let Some(Rollout { kind, to, direction: RolloutDirection::RollingBack { reason }, .. }) =
            &self.rollout
        else {
            return;
        };
        let kind = kind.name();
        let message = format!(
            "{kind} failed: {reason}; going back fails too, in slot {slot}: {cause}; it is tried on, and another \
             reload or upgrade may come before"
        );
        let goal = CommandGoal::Rollout(*to);
        tracing::error!(slot, %cause, "{message}");
        // Nobody knows whether it will end, so who waits by `systemctl reload` is not kept either.
        self.notify_ready(&message);
        self.resolve_commands(&goal, &CommandResult::failed(message));
    }

    /// A new worker failed: back to the old generation.
    pub(in crate::supervisor) fn roll_back(&mut self, reason: String) {
        if self.desired_state != DesiredState::Running {
            return;
        }
        let Some(rollout) = &mut self.rollout else { return };
        let kind = rollout.kind.name();
        tracing::warn!(generation = rollout.to, %reason, "{kind} fails, going back: {reason}");
        let event = event_now("rollout_failed", format!("{kind} fails, going back: {reason}"));
        let event = event.generation(rollout.to);
        rollout.direction = RolloutDirection::RollingBack { reason };
        self.generation = rollout.from;
        self.settings = self.settings_before_rollout;
        self.configured_after_rollout = None;
        self.record_event(event);
    }

    /// Looks how far the rollout got and ends it when it is through; when to look again.
    pub(in crate::supervisor) fn advance_rollout(&mut self, now: Duration) -> Option<Duration> {
        let rollout = self.rollout.as_ref().filter(|_| self.desired_state == DesiredState::Running)?;
        match rollout.progress(&self.slots, self.settings.canary_period, now) {
            RolloutProgress::InProgress { stable_at: settled_at, .. } => return settled_at,
            RolloutProgress::Completed => self.finish_rollout(now),
            RolloutProgress::RolledBack => self.finish_rollback(now),
        }
        None
    }

    fn finish_rollout(&mut self, now: Duration) {
        let Some(rollout) = self.rollout.take() else { return };
        self.record_finished(&rollout);
        let taken = RolloutInputs::from_rollout(self, &rollout);
        self.commit_upgrade();
        let (kind, generation) = (rollout.kind.name(), rollout.to);
        self.scoreboard.set_generation(generation);
        let took_ms = u64::try_from(now.saturating_sub(rollout.started).as_millis()).unwrap_or(u64::MAX);
        let workers = self.open_slot_count();
        tracing::info!(
            generation,
            workers,
            took_ms,
            file = taken.file,
            program = taken.program,
            "{kind} done: {workers} workers of generation {generation}"
        );
        self.host.retain_generations(&self.generations_in_use());
        let seconds = now.saturating_sub(rollout.started).as_secs_f64();
        let mut message =
            format!("{kind} done: {workers} workers of generation {generation} in {seconds:.1} s; {taken}");
        for setting in std::mem::take(&mut self.unchanged_settings) {
            message.push_str(&format!("; {} was not changed: {}", setting.name, setting.needs));
        }
        if let Some(Err(reason)) =
            self.configured_after_rollout.take().map(|workers| self.set_configured_workers(workers))
        {
            tracing::warn!(%reason, "workers.count cannot be changed: {reason}");
            message.push_str(&format!("; workers.count was not changed: {reason}"));
        }
        self.notify_ready(&message);
        self.record_event(event_now(rollout.kind.completed_event(), message.clone()).generation(generation));
        let result =
            CommandResult::ok(message).with_detail("generation", generation).with_detail("seconds", seconds);
        let result = result.with_detail("file", taken.file).with_detail("program", taken.program);
        self.resolve_commands(&CommandGoal::Rollout(generation), &result);
    }

    /// The configuration names another number of workers.
    fn set_configured_workers(&mut self, workers: usize) -> Result<(), String> {
        self.scale_to(workers)?;
        self.configured_workers = workers;
        Ok(())
    }

    fn finish_rollback(&mut self, now: Duration) {
        let Some(rollout) = self.rollout.take() else { return };
        let RolloutDirection::RollingBack { reason } = &rollout.direction else { return };
        let took_ms = u64::try_from(now.saturating_sub(rollout.started).as_millis()).unwrap_or(u64::MAX);
        self.record_finished(&rollout);
        let (kind, generation) = (rollout.kind.name(), rollout.from);
        tracing::warn!(
            generation,
            took_ms,
            %reason,
            "{kind} rolled back: {reason}; generation {generation} serves as before"
        );
        let message = format!("{kind} rolled back: {reason}; generation {generation} serves as before");
        self.notify_ready(&message);
        self.record_event(event_now("rolled_back", message.clone()).generation(generation));
        let result = CommandResult::failed(message).with_detail("generation", generation);
        self.resolve_commands(&CommandGoal::Rollout(rollout.to), &result);
        self.host.retain_generations(&self.generations_in_use());
    }

    /// The generations that slots have or want.
    fn generations_in_use(&self) -> Vec<u64> {
        self.slots.iter().map(|slot| slot.generation).chain([self.generation]).collect()
    }
}
