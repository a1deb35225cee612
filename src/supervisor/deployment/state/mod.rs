//! What the fleet is being changed to, as one value, and what is queued behind it; no input or output.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::scoreboard::ExitReason;
use crate::status::document::{FinishedRollout, RolloutOutcome};
use crate::supervisor::deployment::preflight::Preflight;
use crate::supervisor::deployment::program::{PreviousProgram, ProgramSpec};
use crate::supervisor::deployment::rollout::{
    DeploymentKind, Rollout, RolloutDirection, RolloutProgress, SavedRollout,
};
use crate::supervisor::settings::{SupervisorSettings, UnchangedSetting};
use crate::supervisor::slots::slot::Slot;

/// What the fleet is being changed to: two changes at once cannot be written down.
#[derive(Debug, Default)]
pub(in crate::supervisor) enum Deployment {
    /// Every slot has, or gets, the one generation.
    #[default]
    Stable,
    /// The new binary proves that it can take over, beside the running fleet.
    Preflight(Box<Preflight>),
    /// A generation goes through the slots.
    RollingOut { rollout: Rollout, context: Box<RolloutContext> },
    /// A worker of the new generation failed, and the slots go back to the old one.
    RollingBack { rollout: Rollout, reason: String, context: Box<RolloutContext> },
}

/// What a rollout changes besides the slots, and what brings it back.
#[derive(Debug)]
pub(in crate::supervisor) struct RolloutContext {
    /// The settings before it.
    pub(in crate::supervisor) settings_before: SupervisorSettings,
    /// The program before it, if this one has just taken over.
    pub(in crate::supervisor) previous: Option<Box<PreviousProgram>>,
    /// The number of workers that the new configuration names, if it is another one.
    pub(in crate::supervisor) workers: Option<usize>,
    /// Settings that the new configuration cannot change.
    pub(in crate::supervisor) unchanged: Vec<UnchangedSetting>,
}

impl RolloutContext {
    /// Of a rollout that changes the slots only.
    pub(in crate::supervisor) fn new(settings_before: SupervisorSettings) -> Self {
        Self { settings_before, previous: None, workers: None, unchanged: Vec::new() }
    }
}

/// An upgrade that an operator requested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::supervisor) struct UpgradeRequest {
    /// The new binary; none: what lies at the path of the running one.
    pub(in crate::supervisor) binary: Option<PathBuf>,
}

/// A queued change that starts now.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::supervisor) struct Claimed<T> {
    /// What was queued.
    pub(in crate::supervisor) request: T,
    /// The rollback that it ended.
    pub(in crate::supervisor) superseded: Option<FailedRollout>,
}

/// A rollout that failed.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::supervisor) struct FailedRollout {
    pub(in crate::supervisor) rollout: Rollout,
    pub(in crate::supervisor) reason: String,
}

/// An upgrade that a stop ended.
#[derive(Debug)]
pub(in crate::supervisor) struct CancelledUpgrade {
    /// Its preflight, which may still run.
    pub(in crate::supervisor) preflight: Option<Box<Preflight>>,
}

/// Reloads, upgrades and rollbacks of one fleet.
#[derive(Debug)]
pub(in crate::supervisor) struct Deployments {
    current: Deployment,
    /// Whether a reload waits; however often it was requested, it is one.
    reload_queued: bool,
    upgrade_queued: Option<UpgradeRequest>,
    /// The generation every slot is to have.
    generation: u64,
    next_generation: u64,
    /// The oldest generation this program can start workers of.
    oldest_generation: u64,
    /// Builds of the older generations that another program runs.
    builds: BTreeMap<u64, String>,
    /// How the last rollout ended.
    last: Option<FinishedRollout>,
    program: ProgramSpec,
}

/// What a handoff holds of [`Deployments`].
#[derive(Debug)]
pub(in crate::supervisor) struct DeploymentsState {
    pub(in crate::supervisor) rollout: Option<SavedRollout>,
    pub(in crate::supervisor) reload_queued: bool,
    pub(in crate::supervisor) generation: u64,
    pub(in crate::supervisor) next_generation: u64,
    pub(in crate::supervisor) builds: BTreeMap<u64, String>,
    pub(in crate::supervisor) last: Option<FinishedRollout>,
}

impl Deployments {
    pub(in crate::supervisor) fn new(generation: u64, program: ProgramSpec) -> Self {
        Self {
            current: Deployment::Stable,
            reload_queued: false,
            upgrade_queued: None,
            generation,
            next_generation: generation + 1,
            oldest_generation: generation,
            builds: BTreeMap::new(),
            last: None,
            program,
        }
    }

    /// As another program left them.
    pub(in crate::supervisor) fn restore(
        state: DeploymentsState,
        program: ProgramSpec,
        settings: SupervisorSettings,
    ) -> Self {
        let context = || Box::new(RolloutContext::new(settings));
        let current = match state.rollout.map(SavedRollout::into_parts) {
            None => Deployment::Stable,
            Some((rollout, None)) => Deployment::RollingOut { rollout, context: context() },
            Some((rollout, Some(reason))) => Deployment::RollingBack { rollout, reason, context: context() },
        };
        Self {
            current,
            reload_queued: state.reload_queued,
            next_generation: state.next_generation,
            builds: state.builds,
            last: state.last,
            ..Self::new(state.generation, program)
        }
    }

    /// What another program needs to go on with them. A queued upgrade and a preflight stay behind: the program that
    /// takes over is what they lead to.
    pub(in crate::supervisor) fn save(&self) -> DeploymentsState {
        let rollout = match &self.current {
            Deployment::Stable | Deployment::Preflight(_) => None,
            Deployment::RollingOut { rollout, .. } => Some(SavedRollout::new(rollout.clone(), None)),
            Deployment::RollingBack { rollout, reason, .. } => {
                Some(SavedRollout::new(rollout.clone(), Some(reason.clone())))
            }
        };
        DeploymentsState {
            rollout,
            reload_queued: self.reload_queued,
            generation: self.generation,
            next_generation: self.next_generation,
            builds: self.builds.clone(),
            last: self.last.clone(),
        }
    }

    /// The generation every slot is to have.
    pub(in crate::supervisor) fn generation(&self) -> u64 {
        self.generation
    }

    /// The number that the next generation will have.
    pub(in crate::supervisor) fn next_generation(&self) -> u64 {
        self.next_generation
    }

    /// The oldest generation this program can start workers of.
    pub(in crate::supervisor) fn oldest_generation(&self) -> u64 {
        self.oldest_generation
    }

    /// The generation of a slot that is opened now: a rollout brings it the new one in its turn.
    pub(in crate::supervisor) fn base_generation(&self) -> u64 {
        self.rollout().map_or(self.generation, |rollout| rollout.from)
    }

    /// Builds of the generations that another program runs.
    pub(in crate::supervisor) fn builds(&self) -> &BTreeMap<u64, String> {
        &self.builds
    }

    /// How the last rollout ended.
    pub(in crate::supervisor) fn last(&self) -> Option<&FinishedRollout> {
        self.last.as_ref()
    }

    /// The program this process runs.
    pub(in crate::supervisor) fn program(&self) -> &ProgramSpec {
        &self.program
    }

    /// The rollout under way, whichever direction it has.
    pub(in crate::supervisor) fn rollout(&self) -> Option<&Rollout> {
        match &self.current {
            Deployment::Stable | Deployment::Preflight(_) => None,
            Deployment::RollingOut { rollout, .. } | Deployment::RollingBack { rollout, .. } => Some(rollout),
        }
    }

    /// The rollout that goes back, and why.
    pub(in crate::supervisor) fn rollback(&self) -> Option<(&Rollout, &str)> {
        match &self.current {
            Deployment::RollingBack { rollout, reason, .. } => Some((rollout, reason)),
            _ => None,
        }
    }

    /// The rollout that goes forward.
    pub(in crate::supervisor) fn forward(&self) -> Option<&Rollout> {
        match &self.current {
            Deployment::RollingOut { rollout, .. } => Some(rollout),
            _ => None,
        }
    }

    /// The generation on its way into the slots.
    pub(in crate::supervisor) fn rolling_out_to(&self) -> Option<u64> {
        self.forward().map(|rollout| rollout.to)
    }

    /// How far the rollout under way is.
    pub(in crate::supervisor) fn progress(
        &self,
        slots: &[Slot],
        canary_period: Duration,
        now: Duration,
    ) -> Option<RolloutProgress> {
        let direction = match self.current {
            Deployment::RollingBack { .. } => RolloutDirection::RollingBack,
            _ => RolloutDirection::Forward,
        };
        self.rollout().map(|rollout| rollout.progress(direction, slots, canary_period, now))
    }

    /// The slot whose new worker the others wait for.
    pub(in crate::supervisor) fn canary_slot(&self, slots: &[Slot]) -> Option<usize> {
        self.forward()?.canary_slot(slots)
    }

    /// Why workers of another generation are replaced.
    pub(in crate::supervisor) fn replace_reason(&self) -> ExitReason {
        self.rollout().map_or(ExitReason::Reload, |rollout| rollout.kind.replace_reason())
    }

    /// The program to go back to: the rollout of this one failed.
    pub(in crate::supervisor) fn program_to_restore(&self) -> Option<&PreviousProgram> {
        match &self.current {
            Deployment::RollingBack { context, .. } => context.previous.as_deref(),
            _ => None,
        }
    }

    /// The preflight under way.
    pub(in crate::supervisor) fn preflight(&self) -> Option<&Preflight> {
        match &self.current {
            Deployment::Preflight(preflight) => Some(preflight),
            _ => None,
        }
    }

    /// The same, to drive it.
    pub(in crate::supervisor) fn preflight_mut(&mut self) -> Option<&mut Preflight> {
        match &mut self.current {
            Deployment::Preflight(preflight) => Some(preflight),
            _ => None,
        }
    }

    /// Whether an upgrade is queued or under way.
    fn has_upgrade(&self) -> bool {
        let under_way = match &self.current {
            Deployment::Stable => false,
            Deployment::Preflight(_) => true,
            Deployment::RollingOut { context, .. } | Deployment::RollingBack { context, .. } => {
                context.previous.is_some()
            }
        };
        under_way || self.upgrade_queued.is_some()
    }

    /// Requests a reload: now, or once after the rollout under way, however often it is requested.
    pub(in crate::supervisor) fn request_reload(&mut self) {
        if self.queue_reload() {
            tracing::info!("reload queued behind a rollout");
        }
    }

    /// Requests an upgrade, to the program at this path or to what lies at the path of this one.
    ///
    /// # Errors
    /// As [`Deployments::queue_upgrade`].
    pub(in crate::supervisor) fn request_upgrade(&mut self, binary: Option<PathBuf>) -> Result<(), String> {
        if self.queue_upgrade(binary)? {
            tracing::info!("upgrade queued behind a rollout");
        }
        Ok(())
    }

    /// Queues a reload; whether it is new and waits for a rollout.
    pub(in crate::supervisor) fn queue_reload(&mut self) -> bool {
        !std::mem::replace(&mut self.reload_queued, true) && self.rollout().is_some()
    }

    /// Queues an upgrade; whether it waits for a rollout.
    ///
    /// # Errors
    /// When the path is relative, or another upgrade is in progress.
    pub(in crate::supervisor) fn queue_upgrade(&mut self, binary: Option<PathBuf>) -> Result<bool, String> {
        if let Some(relative) = binary.as_ref().filter(|binary| binary.is_relative()) {
            return Err(format!("{} is not an absolute path", relative.display()));
        }
        if self.has_upgrade() {
            return Err("an upgrade is in progress".to_owned());
        }
        self.upgrade_queued = Some(UpgradeRequest { binary });
        Ok(self.rollout().is_some())
    }

    /// The queued reload, if it can start now.
    pub(in crate::supervisor) fn claim_reload(&mut self) -> Option<Claimed<()>> {
        if !self.reload_queued || self.has_upgrade() || self.rolling_out_to().is_some() {
            return None;
        }
        self.reload_queued = false;
        Some(Claimed { request: (), superseded: self.supersede_rollback() })
    }

    /// The queued upgrade, if it can start now.
    pub(in crate::supervisor) fn claim_upgrade(&mut self) -> Option<Claimed<UpgradeRequest>> {
        if self.rolling_out_to().is_some() {
            return None;
        }
        let request = self.upgrade_queued.take()?;
        Some(Claimed { request, superseded: self.supersede_rollback() })
    }

    /// A rollback gives way to what is queued: the old generation may be what does not boot, and this the repair.
    fn supersede_rollback(&mut self) -> Option<FailedRollout> {
        match std::mem::take(&mut self.current) {
            Deployment::RollingBack { rollout, reason, .. } => Some(FailedRollout { rollout, reason }),
            other => {
                self.current = other;
                None
            }
        }
    }

    /// The new binary starts its proof.
    pub(in crate::supervisor) fn start_preflight(&mut self, preflight: Preflight) {
        self.current = Deployment::Preflight(Box::new(preflight));
    }

    /// The preflight has ended, whichever way: the fleet is stable, unless the new program takes over.
    pub(in crate::supervisor) fn finish_preflight(&mut self) -> Option<Box<Preflight>> {
        match std::mem::take(&mut self.current) {
            Deployment::Preflight(preflight) => Some(preflight),
            other => {
                self.current = other;
                None
            }
        }
    }

    /// Starts the rollout of the next generation; its number.
    pub(in crate::supervisor) fn start_rollout(
        &mut self,
        kind: DeploymentKind,
        context: RolloutContext,
        now: Duration,
    ) -> u64 {
        let (from, to) = (self.generation, self.next_generation);
        self.next_generation = to + 1;
        self.generation = to;
        let rollout = Rollout { kind, from, to, started: now };
        self.current = Deployment::RollingOut { rollout, context: Box::new(context) };
        to
    }

    /// This program has taken over from one with `build`: its own generation comes next, and older ones it cannot
    /// start.
    pub(in crate::supervisor) fn start_upgrade_rollout(
        &mut self,
        build: String,
        context: RolloutContext,
        now: Duration,
    ) -> u64 {
        self.builds.insert(self.generation, build);
        let to = self.start_rollout(DeploymentKind::Upgrade, context, now);
        self.oldest_generation = to;
        to
    }

    /// The new program could not take over, so that none of its workers was started; the generation it would have had.
    pub(in crate::supervisor) fn start_upgrade_rollback(
        &mut self,
        reason: String,
        settings: SupervisorSettings,
        now: Duration,
    ) -> u64 {
        let (from, to) = (self.generation, self.next_generation);
        self.next_generation = to + 1;
        let rollout = Rollout { kind: DeploymentKind::Upgrade, from, to, started: now };
        let context = Box::new(RolloutContext::new(settings));
        self.current = Deployment::RollingBack { rollout, reason, context };
        to
    }

    /// The program that has the newest generation's workers has another build.
    pub(in crate::supervisor) fn set_newest_build(&mut self, build: String) {
        self.builds.insert(self.next_generation.saturating_sub(1), build);
    }

    /// Forgets the builds of all generations but these.
    pub(in crate::supervisor) fn retain_builds(&mut self, generations: &[u64]) {
        self.builds.retain(|generation, _| generations.contains(generation));
    }

    /// A worker of the new generation failed: back to the old one. The rollout, and the settings to go back to.
    pub(in crate::supervisor) fn roll_back(
        &mut self,
        reason: String,
    ) -> Option<(Rollout, SupervisorSettings)> {
        match std::mem::take(&mut self.current) {
            Deployment::RollingOut { rollout, mut context } => {
                self.generation = rollout.from;
                context.workers = None;
                let settings = context.settings_before;
                self.current = Deployment::RollingBack { rollout: rollout.clone(), reason, context };
                Some((rollout, settings))
            }
            other => {
                self.current = other;
                None
            }
        }
    }

    /// The old program cannot be executed any more: the new one has to go on.
    pub(in crate::supervisor) fn resume_rollout(&mut self) {
        self.current = match std::mem::take(&mut self.current) {
            Deployment::RollingBack { rollout, mut context, .. } => {
                self.generation = rollout.to;
                context.previous = None;
                Deployment::RollingOut { rollout, context }
            }
            other => other,
        };
    }

    /// Every slot has the new generation.
    pub(in crate::supervisor) fn complete(
        &mut self,
        finished_ms: u64,
    ) -> Option<(Rollout, Box<RolloutContext>)> {
        match std::mem::take(&mut self.current) {
            Deployment::RollingOut { rollout, context } => {
                self.record_finished(&rollout, None, finished_ms);
                Some((rollout, context))
            }
            other => {
                self.current = other;
                None
            }
        }
    }

    /// Every slot has the old generation again.
    pub(in crate::supervisor) fn finish_rollback(&mut self, finished_ms: u64) -> Option<FailedRollout> {
        let failed = self.supersede_rollback()?;
        self.record_finished(&failed.rollout, Some(failed.reason.clone()), finished_ms);
        Some(failed)
    }

    /// Records how a rollout ended; `reason`: why it failed.
    pub(in crate::supervisor) fn record_finished(
        &mut self,
        rollout: &Rollout,
        reason: Option<String>,
        finished_ms: u64,
    ) {
        let outcome = if reason.is_some() { RolloutOutcome::RolledBack } else { RolloutOutcome::Done };
        let (kind, generation) = (rollout.kind.into(), rollout.to);
        self.last = Some(FinishedRollout { kind, generation, outcome, reason, finished_ms });
    }

    /// The fleet stops: no upgrade starts, and none is taken back. A rollout stays what it was, for the status.
    pub(in crate::supervisor) fn cancel_upgrade(&mut self) -> Option<CancelledUpgrade> {
        let had_upgrade = self.has_upgrade();
        self.upgrade_queued = None;
        let preflight = self.finish_preflight();
        if let Deployment::RollingOut { context, .. } | Deployment::RollingBack { context, .. } =
            &mut self.current
        {
            context.previous = None;
        }
        had_upgrade.then_some(CancelledUpgrade { preflight })
    }
}

#[cfg(test)]
mod tests;
