//! What the supervisor's machines want done, done: signals, forks, programs, and what one of them is told of another.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::control::event_kind::EventKind;
use crate::logging;
use crate::scoreboard::{ExitReason, Scoreboard};
use crate::supervisor::deployment::handoff::Handoff;
use crate::supervisor::deployment::inherited::{RestoreOptions, Takeover};
use crate::supervisor::deployment::preflight::{Preflight, PreflightPoll};
use crate::supervisor::deployment::reload::{CompletedRollout, RolloutInputs};
use crate::supervisor::deployment::restore::{HandoffSources, RestoredParts};
use crate::supervisor::deployment::rollout::{DeploymentKind, RolloutProgress};
use crate::supervisor::deployment::state::{Claimed, FailedRollout, RolloutContext};
use crate::supervisor::deployment::takeover::Departure;
use crate::supervisor::deployment::{reload, takeover};
use crate::supervisor::effects::{Effect, event_now, unix_ms};
use crate::supervisor::monitor::autoscaler::AutoscaleDecision;
use crate::supervisor::monitor::recycling::{RecycleDecision, RecycleLimits};
use crate::supervisor::monitor::tick::HangFinding;
use crate::supervisor::monitor::{HealthMonitor, ServingWorker};
use crate::supervisor::orphans::OrphanedWorkers;
use crate::supervisor::reporting::Reporting;
use crate::supervisor::run_dir_check::RunDirCheck;
use crate::supervisor::settings::{ReloadedConfig, WorkerHost};
use crate::supervisor::slots::backoff::RestartBackoff;
use crate::supervisor::slots::context::SlotContext;
use crate::supervisor::slots::exits::ExitReport;
use crate::supervisor::slots::plan::{DesiredState, KillReason, SlotAction};
use crate::supervisor::slots::slot::WorkerPhase;
use crate::supervisor::slots::{send_signal, spawn};
use crate::supervisor::{Supervisor, SupervisorExit, service_manager, signals};
use crate::sys::process::{ExitStatus, Pid};
use crate::sys::signal::Signal;
use crate::sys::{backtrace, clock, process, thread};

impl<'a> Supervisor<'a> {
    /// Does what a machine wants, in its order.
    pub(super) fn execute(&mut self, effects: impl IntoIterator<Item = Effect>) {
        for effect in effects {
            match effect {
                Effect::Record(event) => self.operators.control.publish(event),
                Effect::Signal(pid, signal) => send_signal(pid, signal),
                Effect::RequestBacktrace(pid) => {
                    if let Err(error) = backtrace::request(pid) {
                        tracing::debug!(pid = pid.as_raw(), %error, "cannot request the backtrace of a hung worker");
                    }
                }
                Effect::SaveWorkerList => self.save_worker_list(),
                Effect::NotifyReady(status) => {
                    service_manager::notify_ready(&self.reporting.service_notifier, &status);
                }
                Effect::Resolve(goal, result) => self.operators.resolve(&goal, &result),
                Effect::FailReplacement(slot, result) => self.operators.fail_replacement(slot, &result),
                Effect::RollBack(reason) => self.roll_back(&reason),
                Effect::RollbackFailed { slot, cause } => {
                    self.execute(self.deployment.on_rollback_failed(slot, &cause));
                }
            }
        }
    }

    /// What the slots are told of the rest.
    fn slot_context(&self, now: Duration) -> SlotContext<'a> {
        SlotContext {
            scoreboard: self.scoreboard,
            settings: self.settings,
            desired_state: self.lifecycle.desired_state,
            generation: self.deployment.generation(),
            rolling_out: self.deployment.forward().cloned(),
            rolling_back_to: self.deployment.rollback().map(|(rollout, _)| rollout.from),
            now,
        }
    }

    /// Takes every child that has ended: workers, the private Redis, and the orphans of a PID 1.
    pub(super) fn reap(&mut self) -> io::Result<()> {
        while let Some(pid) = process::next_exited()? {
            // Before its number is free: what it left behind has its group's.
            if self.deployment.preflight().is_some_and(|preflight| preflight.pid == pid) {
                takeover::kill_preflight(pid);
            }
            let Some(exit) = process::reap(pid)? else { return Ok(()) };
            let now = clock::monotonic();
            if let Some(slot) = self.slots.slot_of(pid) {
                self.on_worker_exit(slot, pid, exit, now);
            } else if self.private_redis.as_ref().is_some_and(|private| private.pid == Some(pid)) {
                self.on_private_redis_exit(pid, exit, now);
            } else if process::companion() == Some(pid) {
                process::set_companion(None);
                tracing::warn!(
                    pid = pid.as_raw(), cause = %exit,
                    "files are no longer watched (--watch): the process that watches them ended: {exit}"
                );
            } else if let Some(preflight) =
                self.deployment.preflight_mut().filter(|preflight| preflight.pid == pid)
            {
                preflight.set_exit(exit);
            } else {
                tracing::debug!(pid = pid.as_raw(), cause = %exit, "reaped an orphan");
            }
        }
        Ok(())
    }

    fn on_worker_exit(&mut self, slot: usize, pid: Pid, exit: ExitStatus, now: Duration) {
        let mut effects = Vec::new();
        let boot_failure = self.slots.receive_messages((slot, pid), &self.slot_context(now), &mut effects);
        self.execute(effects);
        logging::report_missing_lines();
        let ordered = self.slots.entries[slot]
            .worker_mut(pid)
            .is_some_and(|worker| matches!(worker.phase, WorkerPhase::Killed { .. }));
        let killed = exit == ExitStatus::Signal(Signal::SIGKILL) && !ordered;
        let out_of_memory = killed && self.monitor.account_memory_kill();
        let report = ExitReport { exit, boot_failure, out_of_memory };
        let effects = self.slots.on_exit((slot, pid), report, &self.slot_context(now));
        self.execute(effects);
    }

    /// Takes the messages of all workers.
    pub(super) fn read_status_pipes(&mut self, now: Duration) {
        let effects = self.slots.read_status_pipes(&self.slot_context(now));
        self.execute(effects);
    }

    /// Has the checks of a rollout's first worker reported, and ends the rollout for them; until when that worker is held.
    pub(super) fn judge_checks(&mut self, now: Duration) -> Option<Duration> {
        if self.lifecycle.desired_state != DesiredState::Running {
            return None;
        }
        let (held_until, effect) = self.slots.judge_checks(&self.slot_context(now));
        self.execute(effect);
        held_until
    }

    /// Does one thing of the plan; an outcome ends the loop.
    pub(super) fn apply_action(&mut self, action: SlotAction, now: Duration) -> Option<SupervisorExit> {
        match action {
            SlotAction::Spawn { slot, generation } => self.spawn(slot, generation, now),
            SlotAction::ReportBootFailure => {
                return Some(SupervisorExit::BootFailed { reason: self.slots.last_failure.clone() });
            }
            SlotAction::Finish => return Some(SupervisorExit::Stopped { killed: self.slots.killed }),
            action => {
                if matches!(action, SlotAction::Drain { .. }) {
                    // New connections are kept off a slot that ends before its worker begins to leave.
                    self.steer();
                }
                let effects = self.slots.apply(action, &self.slot_context(now));
                self.execute(effects);
            }
        }
        None
    }

    fn spawn(&mut self, slot: usize, generation: u64, now: Duration) {
        let context = self.slot_context(now);
        let lifeline = &self.lifecycle.lifeline;
        let Some(mut request) = self.slots.spawn_request(slot, generation, lifeline, &context) else {
            return;
        };
        let cell = request.cell;
        let changed = self.slots.addresses_change.listeners_for(slot, generation, request.listeners);
        if let Some(changed) = &changed {
            request.listeners = changed;
        }
        let spawned = spawn::spawn(&request, &*self.host);
        let effects = self.slots.on_spawned((slot, cell), generation, spawned, &context);
        self.execute(effects);
    }

    /// Samples every worker that serves, if it is time; when it is time again, if anything is monitored.
    pub(super) fn monitor_workers(&mut self, now: Duration) -> Option<Duration> {
        if self.lifecycle.desired_state != DesiredState::Running
            || !(self.settings.monitor.is_enabled() || self.slots.any_hung())
        {
            self.monitor.stop();
            return None;
        }
        if now >= self.monitor.due() {
            let seen = self.slots.serving_workers(self.scoreboard);
            self.monitor.start_sample(&seen, now);
            for worker in &seen {
                self.check_hang(worker, now);
                self.check_recycling(worker, now);
            }
            self.check_load(&seen, now);
            self.monitor.finish_sample(&self.settings.monitor, now);
        }
        Some(self.monitor.due())
    }

    fn check_hang(&mut self, worker: &ServingWorker, now: Duration) {
        let sample = self.slots.hang_sample(worker, self.scoreboard);
        let pid = worker.pid;
        let main_thread = || thread::main_thread(pid);
        match self.monitor.check_hang(worker, &sample, &self.settings.monitor, now, main_thread) {
            HangFinding::Unchanged => {}
            HangFinding::Suspect(stall) => {
                // The supervisor steers before it logs, or the line would not be true yet.
                self.steer();
                let effect = self.slots.on_suspect(worker, stall);
                self.execute([effect]);
            }
            HangFinding::Hung(stall) => {
                let pressure = self.monitor.cpu_pressure(now);
                let cpu_pressure = pressure.map(|share| format!("{:.0} %", share * 100.0));
                let (slot, reason) = (worker.slot, ExitReason::Hang);
                tracing::warn!(slot, pid = pid.as_raw(), %reason, cpu_pressure, "worker hung: {stall}");
                let effects = self.slots.on_hang(worker, stall, &self.slot_context(now));
                self.execute(effects);
            }
            HangFinding::Lost => self.kill(worker, KillReason::Hang, now),
            HangFinding::Recovered => {
                let effect = self.slots.on_recovery(worker, &self.slot_context(now));
                self.execute(effect);
            }
        }
    }

    fn kill(&mut self, worker: &ServingWorker, cause: KillReason, now: Duration) {
        let effects = self.slots.kill((worker.slot, worker.pid), cause, &self.slot_context(now));
        self.execute(effects);
    }

    fn check_recycling(&mut self, worker: &ServingWorker, now: Duration) {
        let limits = self.settings.monitor.limits;
        let occupant = self.slots.entries[worker.slot].worker_mut(worker.pid);
        let serves = occupant.is_some_and(|occupant| occupant.is_ready() || occupant.is_hung());
        if !limits.has_any_limit() || !serves {
            return;
        }
        let in_rollout = self.deployment.rollout().is_some();
        let memory = || memory_held(worker.pid, &limits);
        let (slot, pid) = (worker.slot, worker.pid.as_raw());
        match self.monitor.check_recycling(worker, &limits, in_rollout, now, memory) {
            RecycleDecision::Keep => {}
            RecycleDecision::LimitTooLow(cause) => {
                tracing::warn!(slot, pid, "workers.memory_soft is too low: {cause}, though it is new");
            }
            RecycleDecision::Replace(cause) => {
                let effect = self.slots.on_recycling(worker, cause);
                self.execute([effect]);
            }
            RecycleDecision::Kill(cause) => {
                tracing::warn!(slot, pid, reason = %cause.exit_reason(), "killing worker: {cause}");
                self.kill(worker, KillReason::Memory, now);
            }
        }
    }

    /// Does the load want another number of workers?
    fn check_load(&mut self, seen: &[ServingWorker], now: Duration) {
        let Some(mut settings) = self.settings.monitor.scaling else {
            return self.monitor.reset_autoscaler();
        };
        // More than the table has room for cannot be had until the fleet is started anew.
        settings.max = settings.max.min(self.scoreboard.capacity());
        settings.min = settings.min.min(settings.max);
        // A rollout has two workers in one slot, which is no measure of the load.
        if self.deployment.rollout().is_some() || !self.lifecycle.announced {
            return;
        }
        let (load, dry_run) = (self.slots.load_sample(seen, now), self.settings.monitor.dry_run);
        let Some(decision) = self.monitor.check_load(&load, settings, dry_run, now) else { return };
        let AutoscaleDecision { target, reason } = decision;
        let text = format!("from {} to {target} workers: {reason}", load.target);
        self.execute([Effect::Record(event_now(EventKind::Autoscaled, text))]);
        if let Err(refusal) = self.scale_to(target) {
            tracing::warn!(reason = %refusal, "not scaled: {refusal}");
            // It starts a new window, and does not repeat the request at the next sample.
            self.monitor.reset_autoscaler();
        }
    }

    /// Starts the queued reload, if it can start.
    pub(super) fn start_reload(&mut self, now: Duration) {
        if self.lifecycle.desired_state != DesiredState::Running || !self.slots.ever_ready {
            return;
        }
        let Some(Claimed { superseded, .. }) = self.deployment.claim_reload() else { return };
        self.end_superseded(superseded);
        let to = self.deployment.next_generation();
        // `systemctl reload` waits for both messages, also when the reload is rejected.
        service_manager::notify_reloading(&self.reporting.service_notifier, "reloading", now);
        let read = self.host.reload(to).and_then(|reloaded| {
            let change = reload::prepare_addresses(&self.slots, &reloaded)?;
            Ok((reloaded, change))
        });
        match read {
            Err(refusal) => {
                self.host.retain_generations(&self.generations_in_use());
                self.execute(reload::refuse(refusal));
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

    /// A rollback was cut short by what comes now: its verdict is given, and addresses that its rollout had added end, for
    /// nothing accepts there any more.
    fn end_superseded(&mut self, superseded: Option<FailedRollout>) {
        if superseded.is_some() {
            self.slots.addresses_change.cancel();
        }
        let effect = self.deployment.report_superseded(superseded);
        self.execute(effect);
    }

    /// Applies the supervisor's part of a configuration; what it replaces, to go back to it.
    fn apply_settings(&mut self, reloaded: ReloadedConfig) -> RolloutContext {
        for setting in &reloaded.unchanged {
            tracing::warn!(setting = %setting.name, "{} is not changed now: {}", setting.name, setting.needs);
        }
        let settings_before = std::mem::replace(&mut self.settings, reloaded.settings);
        let (workers, unchanged) = (reloaded.workers, reloaded.unchanged);
        RolloutContext { settings_before, previous: None, workers, unchanged }
    }

    /// A new generation is on its way.
    fn on_rollout_started(&mut self, kind: DeploymentKind, to: u64) {
        for slot in &mut self.slots.entries {
            // A slot that backs off with the old generation gets a new chance.
            (slot.backoff, slot.backoff_until) = (RestartBackoff::default(), None);
        }
        let event = event_now(kind.started_event(), format!("{} to generation {to}", kind.name()));
        self.execute([Effect::Record(event.generation(to))]);
    }

    fn roll_back(&mut self, reason: &str) {
        if self.lifecycle.desired_state != DesiredState::Running {
            return;
        }
        if let Some((settings, effect)) = self.deployment.on_generation_failed(reason) {
            self.settings = settings;
            self.execute([effect]);
        }
    }

    /// Ends the rollout when every slot has its generation; when that may be next.
    pub(super) fn advance_rollout(&mut self, now: Duration) -> Option<Duration> {
        if self.lifecycle.desired_state != DesiredState::Running {
            return None;
        }
        match self.deployment.progress(&self.slots.entries, self.settings.canary_period, now)? {
            RolloutProgress::InProgress { stable_at, .. } => return stable_at,
            RolloutProgress::Completed => self.finish_rollout(now),
            RolloutProgress::RolledBack => {
                let effects = self.deployment.on_rolled_back(now);
                self.execute(effects);
                self.slots.addresses_change.cancel();
                self.host.retain_generations(&self.generations_in_use());
            }
        }
        None
    }

    fn finish_rollout(&mut self, now: Duration) {
        let Some((rollout, context)) = self.deployment.complete(unix_ms()) else { return };
        let before = match &context.previous {
            Some(program) => program.inputs.clone(),
            None => self.host.config_inputs(rollout.from),
        };
        let taken = self.host.config_inputs(rollout.to);
        let inputs = RolloutInputs::new(rollout.kind, self.deployment.program(), &taken, &before);
        self.scoreboard.set_generation(rollout.to);
        self.host.retain_generations(&self.generations_in_use());
        let refused = context.workers.and_then(|workers| self.set_configured_workers(workers).err());
        let (workers, unchanged) = (self.slots.open_count(), context.unchanged);
        let moved = self.slots.complete_addresses_change();
        let done = CompletedRollout { rollout, inputs, workers, moved, unchanged };
        self.execute(done.report(refused, now));
    }

    /// The configuration names another number of workers.
    fn set_configured_workers(&mut self, workers: usize) -> Result<(), String> {
        self.scale_to(workers)?;
        self.slots.configured = workers;
        Ok(())
    }

    /// The generations that slots have or want.
    fn generations_in_use(&self) -> Vec<u64> {
        self.slots.entries.iter().map(|slot| slot.generation).chain([self.deployment.generation()]).collect()
    }

    /// Takes the next step of an upgrade; when the one after it is due.
    pub(super) fn advance_upgrade(&mut self, now: Duration) -> Option<Duration> {
        if self.lifecycle.desired_state != DesiredState::Running {
            self.cancel_upgrade();
            return None;
        }
        let Some(preflight) = self.deployment.preflight_mut() else { return self.start_upgrade(now) };
        let pid = preflight.pid;
        match preflight.poll(now) {
            PreflightPoll::Pending(at) => return at,
            PreflightPoll::MustKill => takeover::kill_preflight(pid),
            PreflightPoll::Exited => self.finish_preflight(),
        }
        None
    }

    /// Starts the preflight of a queued upgrade, if nothing else is under way.
    fn start_upgrade(&mut self, now: Duration) -> Option<Duration> {
        if !self.slots.ever_ready {
            return None;
        }
        let Claimed { request, superseded } = self.deployment.claim_upgrade()?;
        self.end_superseded(superseded);
        let path = request.binary.unwrap_or_else(|| self.deployment.program().path.clone());
        match self.start_preflight(&path, now) {
            Ok(preflight) => {
                let (deadline, pid) = (preflight.deadline, preflight.pid.as_raw());
                let message = format!("{} proves that it can take over", path.display());
                tracing::info!(program = %path.display(), pid, "upgrade preflight started: {message}");
                self.execute([Effect::Record(event_now(EventKind::UpgradePreflightStarted, message))]);
                self.deployment.start_preflight(preflight);
                Some(deadline)
            }
            Err(reason) => {
                self.execute(takeover::refuse(&path, &reason));
                None
            }
        }
    }

    fn start_preflight(&self, path: &Path, now: Duration) -> Result<Preflight, String> {
        let state = self.create_handoff().and_then(|state| state.write());
        let state = state.map_err(|error| format!("the state cannot be written: {error}"))?;
        Preflight::start(path, self.deployment.program(), (&self.start_folder(), &state), now)
    }

    /// The folder in which a new program begins: where the fleet was started, by the name it had for the operator.
    fn start_folder(&self) -> PathBuf {
        self.host.config_inputs(self.scoreboard.generation()).folder
    }

    /// What the loop waits for on behalf of an upgrade.
    pub(super) fn preflight_pipes(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.deployment.preflight().into_iter().flat_map(Preflight::pipes)
    }

    /// The preflight has ended: executes the new program, or rejects it.
    fn finish_preflight(&mut self) {
        let Some(preflight) = self.deployment.finish_preflight() else { return };
        let path = preflight.program.path().to_owned();
        let reason = match preflight.result() {
            Ok(report) => {
                let build = report.build;
                tracing::info!(program = %path.display(), build, "upgrade: build {build} takes over");
                let (arguments, folder) = (&self.deployment.program().arguments, self.start_folder());
                // This call returns only if it failed.
                let failed = self
                    .departure()
                    .and_then(|departure| departure.exec_new_program(&preflight.program, arguments, &folder));
                failed.unwrap_or_else(|error| error).to_string()
            }
            Err(reason) => reason,
        };
        self.execute(takeover::refuse(&path, &reason));
    }

    /// Goes back to the old program once the rollout of this one has failed.
    pub(super) fn exec_previous_program(&mut self) {
        if self.lifecycle.desired_state != DesiredState::Running {
            return;
        }
        let Some(old) = self.deployment.program_to_restore() else { return };
        // The old program knows nothing of what this one added.
        self.slots.addresses_change.cancel();
        // The way back does not return either.
        let failed = self.departure().and_then(|departure| departure.exec_previous_program(old));
        let error = failed.unwrap_or_else(|error| error);
        tracing::error!(%error, "cannot execute the old program, resuming the rollout of the new one: {error}");
        self.deployment.resume_rollout();
    }

    /// The fleet stops: no new program, and no way back to the old one.
    fn cancel_upgrade(&mut self) {
        let Some(cancelled) = self.deployment.cancel_upgrade() else { return };
        // Once it is reaped its number may be another process's.
        if let Some(preflight) = cancelled.preflight.filter(|preflight| !preflight.has_exited()) {
            takeover::kill_preflight(preflight.pid);
        }
        tracing::warn!("upgrade cancelled: the fleet stops");
        self.execute([Effect::Record(event_now(EventKind::UpgradeCancelled, "the fleet stops"))]);
    }

    /// What another program would go on with now.
    fn departure(&self) -> io::Result<Departure<'_>> {
        let working_dir = self.lifecycle.working_dir.as_ref();
        Ok(Departure { control: &self.operators.control, working_dir, state: self.create_handoff()? })
    }

    fn create_handoff(&self) -> io::Result<Handoff> {
        let sources = HandoffSources {
            host: &*self.host,
            scoreboard: self.scoreboard,
            slots: &self.slots,
            deployment: &self.deployment,
            operators: &self.operators,
            private_redis: self.private_redis.as_ref(),
            lifecycle: &self.lifecycle,
            run_dir: self.run_dir.folder,
        };
        sources.create_handoff()
    }

    /// Goes on from a state.
    ///
    /// # Errors
    /// When the operating system refuses what a supervisor cannot live without.
    pub fn restore(
        state: Handoff,
        with: RestoreOptions<'a>,
        scoreboard: &'a Scoreboard,
        host: &'a mut dyn WorkerHost,
    ) -> io::Result<Self> {
        signals::adopt_orphans();
        // A program that wrote no number has added transferred connections to it: by their sum, each worker's share of a
        // limit would be next to nothing until the next heartbeat.
        scoreboard.set_instance_count(state.instances);
        process::set_companion(state.companion.map(Pid::from_raw));
        let RestoreOptions { settings, signals, program, run_dir, inherited, takeover } = with;
        let build = state.build.clone();
        let parts = RestoredParts::new(state, inherited, program, settings, signals)?;
        let mut supervisor = Self {
            settings,
            scoreboard,
            slots: parts.slots,
            deployment: parts.deployment,
            monitor: HealthMonitor::new(),
            operators: parts.operators,
            private_redis: parts.private_redis,
            lifecycle: parts.lifecycle,
            reporting: Reporting::new(settings.stats_interval, scoreboard, &*host),
            run_dir: RunDirCheck::new(run_dir),
            orphans: OrphanedWorkers::default(),
            host,
        };
        supervisor.start_rollout_after_takeover(takeover, build, clock::monotonic());
        Ok(supervisor)
    }

    /// `build` is the one that wrote the state.
    fn start_rollout_after_takeover(&mut self, coming: Takeover, build: String, now: Duration) {
        let workers = self.slots.entries.iter().flat_map(|slot| &slot.workers);
        let at_work: Vec<u64> = workers.map(|worker| worker.generation).collect();
        self.deployment.retain_builds(&at_work);
        match coming {
            Takeover::Forward { old, reloaded, change } => {
                let to = self.deployment.next_generation();
                self.slots.addresses_change.start(to, change);
                let own = self.host.build().to_owned();
                tracing::info!(
                    generation = to,
                    from = old.build,
                    build = own,
                    "upgrade: build {own} took over"
                );
                let text = format!("build {own} took over from {build}");
                let event = event_now(EventKind::UpgradeTookOver, text).generation(to);
                self.execute([Effect::Record(event)]);
                service_manager::notify_reloading(&self.reporting.service_notifier, "upgrading", now);
                self.operators.on_upgrade_started(to);
                let context = RolloutContext { previous: Some(old), ..self.apply_settings(*reloaded) };
                let to = self.deployment.start_upgrade_rollout(build, context, now);
                self.on_rollout_started(DeploymentKind::Upgrade, to);
            }
            Takeover::Back { reason: Some(reason) } => {
                let to = self.deployment.start_upgrade_rollback(reason, self.settings, now);
                self.operators.on_upgrade_started(to);
            }
            Takeover::Back { reason: None } => self.deployment.set_newest_build(build),
        }
    }
}

/// Private memory of a process; where even all of its memory is far from the limits, that: it costs less to find out.
fn memory_held(pid: Pid, limits: &RecycleLimits) -> Option<u64> {
    let resident = process::resident_memory_of(pid)?;
    if limits.is_near(resident) { process::private_memory_of(pid) } else { Some(resident) }
}
