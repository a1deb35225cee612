//! What is said and done when a reload or a rollout begins, fails and ends; no input or output.

use std::path::Path;
use std::time::Duration;

use crate::config::ConfigInputs;
use crate::control::event_kind::EventKind;
use crate::control::protocol::CommandResult;
use crate::listener::ListenChange;
use crate::supervisor::deployment::program::ProgramSpec;
use crate::supervisor::deployment::rollout::{DeploymentKind, Rollout};
use crate::supervisor::deployment::state::{Deployments, FailedRollout};
use crate::supervisor::effects::{Effect, event_now, unix_ms};
use crate::supervisor::operators::command_goal::CommandGoal;
use crate::supervisor::settings::{ReloadError, ReloadedConfig, SupervisorSettings, UnchangedSetting};
use crate::supervisor::slots::table::SlotTable;
use crate::sys::path;
use crate::units;

/// What a rollout took, for people and programs: a path as it is written, and where it led if that is elsewhere.
#[derive(Debug)]
pub(in crate::supervisor) struct RolloutInputs {
    kind: DeploymentKind,
    program: String,
    /// None: there is no configuration file.
    file: Option<String>,
    /// Whether the fleet had none before.
    is_new: bool,
}

impl RolloutInputs {
    /// Of a rollout to the generation that `inputs` led to; `before`: those of the generation before.
    pub(in crate::supervisor) fn new(
        kind: DeploymentKind,
        program: &ProgramSpec,
        inputs: &ConfigInputs,
        before: &ConfigInputs,
    ) -> Self {
        let shown = |(written, real): (&Path, &Path)| path::display_path(written, real);
        Self {
            kind,
            program: program.display_path(),
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

/// A configuration is not taken: nothing is changed.
pub(in crate::supervisor) fn refuse(refusal: ReloadError) -> Vec<Effect> {
    let (reason, result): (_, fn(String) -> CommandResult) = match refusal {
        ReloadError::Invalid(reason) => (reason, CommandResult::rejected),
        ReloadError::Unavailable(reason) => (reason, CommandResult::failed),
    };
    tracing::error!(%reason, "reload refused, nothing is changed: {reason}");
    let message = format!("nothing is changed: {reason}");
    vec![
        Effect::NotifyReady(format!("reload refused: {reason}")),
        Effect::Record(event_now(EventKind::ReloadRefused, message.clone())),
        Effect::Resolve(CommandGoal::NextReload, result(message)),
    ]
}

/// Opens the addresses that a configuration adds, while everything else is as it was.
pub(in crate::supervisor) fn prepare_addresses(
    slots: &SlotTable,
    reloaded: &ReloadedConfig,
) -> Result<Option<ListenChange>, ReloadError> {
    let Some(wanted) = &reloaded.listen else { return Ok(None) };
    let prepared = wanted.prepare(&slots.addresses, slots.sockets.len());
    // What is in use, or not there yet, may be had later.
    prepared.map_err(|error| ReloadError::Unavailable(error.to_string()))
}

/// A rollout whose slots all have the new generation.
#[derive(Debug)]
pub(in crate::supervisor) struct CompletedRollout {
    pub(in crate::supervisor) rollout: Rollout,
    pub(in crate::supervisor) inputs: RolloutInputs,
    pub(in crate::supervisor) workers: usize,
    /// Addresses that were added or ended, if any.
    pub(in crate::supervisor) moved: Option<String>,
    /// Settings that the new configuration cannot change.
    pub(in crate::supervisor) unchanged: Vec<UnchangedSetting>,
}

impl CompletedRollout {
    /// What those learn that wait for it; `refused`: why the number of workers is not what the configuration names.
    pub(in crate::supervisor) fn report(self, refused: Option<String>, now: Duration) -> Vec<Effect> {
        let Self { rollout, inputs, workers, moved, unchanged } = self;
        let (kind, generation) = (rollout.kind.name(), rollout.to);
        let seconds = units::rounded_seconds(now.saturating_sub(rollout.started));
        tracing::info!(
            generation,
            workers,
            took_seconds = seconds,
            file = inputs.file,
            program = inputs.program,
            "{kind} done: {workers} workers of generation {generation}"
        );
        let mut message =
            format!("{kind} done: {workers} workers of generation {generation} in {seconds:.1} s; {inputs}");
        if let Some(moved) = moved {
            message.push_str(&format!("; listen: {moved}"));
        }
        for setting in unchanged {
            message.push_str(&format!("; {} was not changed: {}", setting.name, setting.needs));
        }
        if let Some(reason) = refused {
            tracing::warn!(%reason, "workers.count cannot be changed: {reason}");
            message.push_str(&format!("; workers.count was not changed: {reason}"));
        }
        let event = event_now(rollout.kind.completed_event(), message.clone()).generation(generation);
        let result = CommandResult::ok(message.clone())
            .with_detail("generation", generation)
            .with_detail("seconds", seconds)
            .with_detail("file", inputs.file)
            .with_detail("program", inputs.program);
        vec![
            Effect::NotifyReady(message),
            Effect::Record(event),
            Effect::Resolve(CommandGoal::Rollout(generation), result),
        ]
    }
}

impl Deployments {
    /// A rollback gave way to another reload or upgrade: its result is reported now.
    pub(in crate::supervisor) fn report_superseded(
        &mut self,
        superseded: Option<FailedRollout>,
    ) -> Option<Effect> {
        let FailedRollout { rollout, reason } = superseded?;
        let message = format!("{} failed: {reason}; superseded during rollback", rollout.kind.name());
        self.record_finished(&rollout, Some(reason), unix_ms());
        Some(Effect::Resolve(CommandGoal::Rollout(rollout.to), CommandResult::failed(message)))
    }

    /// The rollback fails too: its command gets that result, and the rollback is retried.
    pub(in crate::supervisor) fn on_rollback_failed(&self, slot: usize, cause: &str) -> Vec<Effect> {
        let Some((rollout, reason)) = self.rollback() else { return Vec::new() };
        let (kind, to) = (rollout.kind.name(), rollout.to);
        let message = format!(
            "{kind} failed: {reason}; rolling back fails too, in slot {slot}: {cause}; it is retried, and another \
             reload or upgrade supersedes it"
        );
        tracing::error!(slot, %cause, "{message}");
        // The rollback may never end, and `systemctl reload` must not wait for it.
        vec![
            Effect::NotifyReady(message.clone()),
            Effect::Resolve(CommandGoal::Rollout(to), CommandResult::failed(message)),
        ]
    }

    /// A worker of the generation on its way failed: back to the old one, with these settings.
    pub(in crate::supervisor) fn on_generation_failed(
        &mut self,
        reason: &str,
    ) -> Option<(SupervisorSettings, Effect)> {
        let (rollout, settings) = self.roll_back(reason.to_owned())?;
        let (kind, generation) = (rollout.kind.name(), rollout.to);
        tracing::warn!(generation, %reason, "{kind} failed, rolling back: {reason}");
        let event = event_now(EventKind::RolloutFailed, format!("{kind} failed, rolling back: {reason}"));
        Some((settings, Effect::Record(event.generation(generation))))
    }

    /// Every slot has the old generation again.
    pub(in crate::supervisor) fn on_rolled_back(&mut self, now: Duration) -> Vec<Effect> {
        let Some(failed) = self.finish_rollback(unix_ms()) else { return Vec::new() };
        let FailedRollout { rollout, reason } = failed;
        let (kind, generation) = (rollout.kind.name(), rollout.from);
        let message = format!("{kind} rolled back: {reason}; generation {generation} serves as before");
        let took_seconds = units::rounded_seconds(now.saturating_sub(rollout.started));
        tracing::warn!(generation, took_seconds, %reason, "{message}");
        let event = event_now(EventKind::RolloutRolledBack, message.clone()).generation(generation);
        let result = CommandResult::failed(message.clone()).with_detail("generation", generation);
        vec![
            Effect::NotifyReady(message),
            Effect::Record(event),
            Effect::Resolve(CommandGoal::Rollout(rollout.to), result),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(kind: DeploymentKind, file: Option<&str>, is_new: bool) -> RolloutInputs {
        RolloutInputs { kind, program: "/bin/app".into(), file: file.map(str::to_owned), is_new }
    }

    #[test]
    fn the_inputs_of_a_rollout_are_in_one_line() {
        let says = |inputs: RolloutInputs| inputs.to_string();
        let reload = DeploymentKind::Reload;
        assert_eq!(
            says(inputs(reload, Some("a.toml"), true)),
            "it took the file a.toml, which was not there before, the program is still /bin/app"
        );
        assert_eq!(
            says(inputs(DeploymentKind::Upgrade, None, true)),
            "there is no configuration file, the program is /bin/app"
        );
    }

    #[test]
    fn a_completed_rollout_tells_what_it_could_not_change() {
        let kind = DeploymentKind::Reload;
        let now = Duration::from_secs(100);
        let done = CompletedRollout {
            rollout: Rollout { kind, from: 1, to: 2, started: now - Duration::from_secs(2) },
            inputs: inputs(kind, Some("a.toml"), false),
            workers: 4,
            moved: None,
            unchanged: vec![UnchangedSetting { name: "listen".into(), needs: "an upgrade" }],
        };
        let effects = done.report(Some("no room".into()), now);
        let [Effect::NotifyReady(message), Effect::Record(event), Effect::Resolve(goal, result)] =
            &effects[..]
        else {
            panic!("{effects:?}")
        };
        assert_eq!(
            message,
            "reload done: 4 workers of generation 2 in 2.0 s; it took the file a.toml, the program is still \
             /bin/app; listen was not changed: an upgrade; workers.count was not changed: no room"
        );
        assert_eq!((event.generation, &event.message), (Some(2), message));
        assert_eq!(*goal, CommandGoal::Rollout(2));
        assert_eq!(result.message, *message);
    }

    #[test]
    fn a_refused_configuration_answers_the_command_and_the_service_manager() {
        let effects = refuse(ReloadError::Invalid("listen is wrong".into()));
        let [Effect::NotifyReady(status), Effect::Record(_), Effect::Resolve(goal, result)] = &effects[..]
        else {
            panic!("{effects:?}")
        };
        assert_eq!(status, "reload refused: listen is wrong");
        assert_eq!(*goal, CommandGoal::NextReload);
        assert_eq!(*result, CommandResult::rejected("nothing is changed: listen is wrong"));
    }
}
