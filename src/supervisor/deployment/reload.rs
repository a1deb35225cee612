//! A new configuration on its way through the slots.

use std::path::Path;
use std::time::Duration;

use crate::control::event_kind::EventKind;
use crate::control::protocol::CommandResult;
use crate::listener::ListenChange;
use crate::supervisor::deployment::program::PreviousProgram;
use crate::supervisor::deployment::rollout::{DeploymentKind, Rollout, RolloutProgress};
use crate::supervisor::deployment::state::{Claimed, FailedRollout, RolloutContext};
use crate::supervisor::effects::{event_now, unix_ms};
use crate::supervisor::operators::CommandGoal;
use crate::supervisor::slots::backoff::RestartBackoff;
use crate::supervisor::slots::plan::DesiredState;
use crate::supervisor::slots::table::SlotTable;
use crate::supervisor::{ReloadError, ReloadedConfig, Supervisor, service_manager};
use crate::sys::path;
use crate::units;

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
    /// Of the generation that a rollout leads to; `previous` is the program before it, if it is another one.
    fn from_rollout(
        supervisor: &Supervisor<'_>,
        rollout: &Rollout,
        previous: Option<&PreviousProgram>,
    ) -> Self {
        let inputs = supervisor.host.config_inputs(rollout.to);
        let before = match previous {
            Some(program) => program.inputs.clone(),
            None => supervisor.host.config_inputs(rollout.from),
        };
        let shown = |(written, real): (&Path, &Path)| path::display_path(written, real);
        Self {
            kind: rollout.kind,
            program: supervisor.deployment.program().display_path(),
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

/// Opens the addresses that a configuration adds, while everything else is as it was.
fn prepare_addresses(
    slots: &SlotTable,
    reloaded: &ReloadedConfig,
) -> Result<Option<ListenChange>, ReloadError> {
    let Some(wanted) = &reloaded.listen else { return Ok(None) };
    let prepared = wanted.prepare(&slots.addresses, slots.sockets.len());
    // What is in use, or not there yet, may be had later.
    prepared.map_err(|error| ReloadError::Unavailable(error.to_string()))
}

impl Supervisor<'_> {
    /// Requests a reload: now, or once after the rollout under way, however often it is requested.
    pub(in crate::supervisor) fn request_reload(&mut self) {
        if self.deployment.queue_reload() {
            tracing::info!("reload queued behind a rollout");
        }
    }

    /// Starts the queued reload, if it can start.
    pub(in crate::supervisor) fn start_reload(&mut self, now: Duration) {
        if self.lifecycle.desired_state != DesiredState::Running || !self.lifecycle.ever_ready {
            return;
        }
        let Some(Claimed { superseded, .. }) = self.deployment.claim_reload() else { return };
        self.report_superseded(superseded);
        let to = self.deployment.next_generation();
        // `systemctl reload` waits for both messages, also when the reload is rejected.
        service_manager::notify_reloading(&self.reporting.service_notifier, "reloading", now);
        let read = self.host.reload(to).and_then(|reloaded| {
            let change = prepare_addresses(&self.slots, &reloaded)?;
            Ok((reloaded, change))
        });
        match read {
            Err(refusal) => {
                self.host.retain_generations(&self.generations_in_use());
                let (reason, result): (_, fn(String) -> CommandResult) = match refusal {
                    ReloadError::Invalid(reason) => (reason, CommandResult::rejected),
                    ReloadError::Unavailable(reason) => (reason, CommandResult::failed),
                };
                self.notify_ready(&format!("reload refused: {reason}"));
                tracing::error!(%reason, "reload refused, nothing is changed: {reason}");
                self.record_event(event_now(
                    EventKind::ReloadRefused,
                    format!("nothing is changed: {reason}"),
                ));
                self.operators
                    .resolve(&CommandGoal::NextReload, &result(format!("nothing is changed: {reason}")));
            }
            Ok((reloaded, change)) => {
                self.slots.addresses_change.start(to, change);
                self.operators.on_reload_started(to);
                tracing::info!(generation = to, changed = reloaded.changed.join(","), "reload started");
                let context = self.apply_settings(reloaded);
                let to = self.deployment.start_rollout(DeploymentKind::Reload, context, now);
                self.on_rollout_started(DeploymentKind::Reload, to);
            }
        }
    }

    /// Applies the supervisor's part of a configuration; what it replaces, to go back to it.
    pub(in crate::supervisor) fn apply_settings(&mut self, reloaded: ReloadedConfig) -> RolloutContext {
        for setting in &reloaded.unchanged {
            tracing::warn!(setting = %setting.name, "{} is not changed now: {}", setting.name, setting.needs);
        }
        let settings_before = std::mem::replace(&mut self.settings, reloaded.settings);
        RolloutContext {
            settings_before,
            previous: None,
            workers: reloaded.workers,
            unchanged: reloaded.unchanged,
        }
    }

    /// A new generation is on its way.
    pub(in crate::supervisor) fn on_rollout_started(&mut self, kind: DeploymentKind, to: u64) {
        for slot in &mut self.slots.entries {
            // A slot that backs off with the old generation gets a new chance.
            (slot.backoff, slot.backoff_until) = (RestartBackoff::default(), None);
        }
        let text = format!("{} to generation {to}", kind.name());
        self.record_event(event_now(kind.started_event(), text).generation(to));
    }

    /// A rollback gave way to another reload or upgrade: its result is reported now.
    pub(in crate::supervisor) fn report_superseded(&mut self, superseded: Option<FailedRollout>) {
        let Some(FailedRollout { rollout, reason }) = superseded else { return };
        let message = format!("{} failed: {reason}; superseded during rollback", rollout.kind.name());
        self.operators.resolve(&CommandGoal::Rollout(rollout.to), &CommandResult::failed(message));
        self.deployment.record_finished(&rollout, Some(reason), unix_ms());
    }

    /// The rollback fails too: its command gets that result, and the rollback is retried.
    pub(in crate::supervisor) fn report_rollback_failure(&mut self, slot: usize, cause: &str) {
        let Some((rollout, reason)) = self.deployment.rollback() else { return };
        let (kind, to) = (rollout.kind.name(), rollout.to);
        let message = format!(
            "{kind} failed: {reason}; rolling back fails too, in slot {slot}: {cause}; it is retried, and another \
             reload or upgrade supersedes it"
        );
        let goal = CommandGoal::Rollout(to);
        tracing::error!(slot, %cause, "{message}");
        // The rollback may never end, and `systemctl reload` must not wait for it.
        self.notify_ready(&message);
        self.operators.resolve(&goal, &CommandResult::failed(message));
    }

    /// A new worker failed: back to the old generation.
    pub(in crate::supervisor) fn roll_back(&mut self, reason: &str) {
        if self.lifecycle.desired_state != DesiredState::Running {
            return;
        }
        let Some((rollout, settings)) = self.deployment.roll_back(reason.to_owned()) else { return };
        self.settings = settings;
        let (kind, generation) = (rollout.kind.name(), rollout.to);
        tracing::warn!(generation, %reason, "{kind} failed, rolling back: {reason}");
        let event = event_now(EventKind::RolloutFailed, format!("{kind} failed, rolling back: {reason}"));
        self.record_event(event.generation(generation));
    }

    /// Ends the rollout when every slot has its generation; when that may be next.
    pub(in crate::supervisor) fn advance_rollout(&mut self, now: Duration) -> Option<Duration> {
        if self.lifecycle.desired_state != DesiredState::Running {
            return None;
        }
        match self.deployment.progress(&self.slots.entries, self.settings.canary_period, now)? {
            RolloutProgress::InProgress { stable_at, .. } => return stable_at,
            RolloutProgress::Completed => self.finish_rollout(now),
            RolloutProgress::RolledBack => self.finish_rollback(now),
        }
        None
    }

    fn finish_rollout(&mut self, now: Duration) {
        let Some((rollout, context)) = self.deployment.complete(unix_ms()) else { return };
        let taken = RolloutInputs::from_rollout(self, &rollout, context.previous.as_deref());
        let (kind, generation) = (rollout.kind.name(), rollout.to);
        self.scoreboard.set_generation(generation);
        let seconds = units::rounded_seconds(now.saturating_sub(rollout.started));
        let workers = self.slots.open_count();
        tracing::info!(
            generation,
            workers,
            took_seconds = seconds,
            file = taken.file,
            program = taken.program,
            "{kind} done: {workers} workers of generation {generation}"
        );
        self.host.retain_generations(&self.generations_in_use());
        let moved = self.slots.complete_addresses_change();
        let mut message =
            format!("{kind} done: {workers} workers of generation {generation} in {seconds:.1} s; {taken}");
        if let Some(moved) = moved {
            message.push_str(&format!("; listen: {moved}"));
        }
        for setting in context.unchanged {
            message.push_str(&format!("; {} was not changed: {}", setting.name, setting.needs));
        }
        if let Some(Err(reason)) = context.workers.map(|workers| self.set_configured_workers(workers)) {
            tracing::warn!(%reason, "workers.count cannot be changed: {reason}");
            message.push_str(&format!("; workers.count was not changed: {reason}"));
        }
        self.notify_ready(&message);
        self.record_event(event_now(rollout.kind.completed_event(), message.clone()).generation(generation));
        let result =
            CommandResult::ok(message).with_detail("generation", generation).with_detail("seconds", seconds);
        let result = result.with_detail("file", taken.file).with_detail("program", taken.program);
        self.operators.resolve(&CommandGoal::Rollout(generation), &result);
    }

    /// The configuration names another number of workers.
    fn set_configured_workers(&mut self, workers: usize) -> Result<(), String> {
        self.scale_to(workers)?;
        self.slots.configured = workers;
        Ok(())
    }

    fn finish_rollback(&mut self, now: Duration) {
        let Some(failed) = self.deployment.finish_rollback(unix_ms()) else { return };
        self.slots.addresses_change.cancel();
        let FailedRollout { rollout, reason } = failed;
        let (kind, generation) = (rollout.kind.name(), rollout.from);
        tracing::warn!(
            generation,
            took_seconds = units::rounded_seconds(now.saturating_sub(rollout.started)),
            %reason,
            "{kind} rolled back: {reason}; generation {generation} serves as before"
        );
        let message = format!("{kind} rolled back: {reason}; generation {generation} serves as before");
        self.notify_ready(&message);
        self.record_event(event_now(EventKind::RolloutRolledBack, message.clone()).generation(generation));
        let result = CommandResult::failed(message).with_detail("generation", generation);
        self.operators.resolve(&CommandGoal::Rollout(rollout.to), &result);
        self.host.retain_generations(&self.generations_in_use());
    }

    /// The generations that slots have or want.
    fn generations_in_use(&self) -> Vec<u64> {
        self.slots.entries.iter().map(|slot| slot.generation).chain([self.deployment.generation()]).collect()
    }
}
