//! Another program in the same process: it proves itself, takes over, and is taken back if it fails.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::ConfigInputs;
use crate::control::protocol::CommandResult;
use crate::supervisor::Supervisor;
use crate::supervisor::deployment::handoff::Handoff;
use crate::supervisor::deployment::preflight::{Preflight, PreflightPoll};
use crate::supervisor::deployment::rollout::{DeploymentKind, RolloutDirection};
use crate::supervisor::deployment::takeover_env::{TakeoverDirection, TakeoverEnv};
use crate::supervisor::effects::event_now;
use crate::supervisor::operators::CommandGoal;
use crate::supervisor::slots::plan::DesiredState;
use crate::sys::exec::Executable;
use crate::sys::process::{ExitStatus, Pid};
use crate::sys::signal::Signal;
use crate::sys::{exec, path, process, signal};
use crate::{config, telemetry};

/// Where an upgrade stands.
#[derive(Debug, Default)]
pub(in crate::supervisor) enum UpgradeState {
    /// None is under way.
    #[default]
    Idle,
    /// It was asked for and waits for the rollout that runs.
    Queued { binary: Option<PathBuf> },
    /// The new program shows that it can take over.
    Preflight(Preflight),
    /// This is the new program, and the old one can be taken back.
    RollingOut(Box<PreviousProgram>),
}

/// The program that served before.
#[derive(Debug)]
pub struct PreviousProgram {
    /// Itself, wherever its file is by now.
    pub program: OwnedFd,
    /// How it was started, its own path first.
    pub arguments: Vec<OsString>,
    /// Its environment.
    pub environment: Vec<(OsString, OsString)>,
    /// What its configuration was read from.
    pub inputs: ConfigInputs,
    /// Which build it is.
    pub build: String,
    /// The folder in which it worked.
    pub working_dir: Option<OwnedFd>,
}

impl Supervisor<'_> {
    /// An upgrade is wanted, to the program at this path or to what lies at the path of this one.
    pub(in crate::supervisor) fn request_upgrade(&mut self, binary: Option<PathBuf>) -> Result<(), String> {
        if let Some(relative) = binary.as_ref().filter(|binary| binary.is_relative()) {
            return Err(format!("{} is not an absolute path", relative.display()));
        }
        match self.upgrade {
            UpgradeState::Idle => {}
            _ => return Err("an upgrade is in progress".to_owned()),
        }
        if self.rollout.is_some() {
            tracing::info!("upgrade waits for the rollout that runs");
        }
        self.upgrade = UpgradeState::Queued { binary };
        Ok(())
    }

    pub(in crate::supervisor) fn upgrade_by_signal(&mut self) {
        if let Err(reason) = self.request_upgrade(None) {
            tracing::warn!(reason, "not upgraded: {reason}");
        }
    }

    /// Does what the next step of an upgrade needs; when to look again.
    pub(in crate::supervisor) fn advance_upgrade(&mut self, now: Duration) -> Option<Duration> {
        if self.desired_state != DesiredState::Running {
            self.cancel_upgrade();
            return None;
        }
        match &mut self.upgrade {
            UpgradeState::Idle | UpgradeState::RollingOut(_) => None,
            UpgradeState::Queued { .. } => self.start_upgrade(now),
            UpgradeState::Preflight(trial) => {
                let pid = trial.pid;
                match trial.poll(now) {
                    PreflightPoll::Pending(at) => return at,
                    PreflightPoll::MustKill => kill_preflight(pid),
                    PreflightPoll::Exited => self.finish_preflight(),
                }
                None
            }
        }
    }

    /// Asks the new program, if nothing else is on its way.
    fn start_upgrade(&mut self, now: Duration) -> Option<Duration> {
        if !matches!(self.upgrade, UpgradeState::Queued { .. })
            || !self.ever_ready
            || !self.supersede_rollback()
        {
            return None;
        }
        let UpgradeState::Queued { binary } = std::mem::take(&mut self.upgrade) else { return None };
        let path = binary.unwrap_or_else(|| self.program.path.clone());
        match self.start_preflight(&path, now) {
            Ok(trial) => {
                let deadline = trial.deadline;
                let message = format!("{} is asked whether it can take over", path.display());
                tracing::info!(program = %path.display(), pid = trial.pid.as_raw(), "upgrade begins: {message}");
                self.record_event(event_now("upgrade_asked", message));
                self.upgrade = UpgradeState::Preflight(trial);
                Some(deadline)
            }
            Err(reason) => {
                self.reject_upgrade(&path, &reason);
                None
            }
        }
    }

    fn start_preflight(&self, path: &Path, now: Duration) -> Result<Preflight, String> {
        let state = self.create_handoff().and_then(|state| state.write());
        let state = state.map_err(|error| format!("the state cannot be written: {error}"))?;
        Preflight::start(path, &self.start_folder(), &state, now)
    }

    /// The folder in which a new program begins: where the fleet was started, by the name it had for the operator.
    fn start_folder(&self) -> PathBuf {
        self.host.config_inputs(self.scoreboard.generation()).folder
    }

    /// A child has ended and is not reaped yet: if it is the program that was asked, what it started ends with it.
    pub(in crate::supervisor) fn kill_preflight_group(&self, pid: Pid) {
        if matches!(&self.upgrade, UpgradeState::Preflight(trial) if trial.pid == pid) {
            kill_preflight(pid);
        }
    }

    /// A child ended; true when it was the program that was asked.
    pub(in crate::supervisor) fn on_preflight_exit(&mut self, pid: Pid, exit: ExitStatus) -> bool {
        match &mut self.upgrade {
            UpgradeState::Preflight(trial) if trial.pid == pid => {
                trial.set_exit(exit);
                true
            }
            _ => false,
        }
    }

    /// What the loop waits for on behalf of an upgrade.
    pub(in crate::supervisor) fn preflight_pipes(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let trial = match &self.upgrade {
            UpgradeState::Preflight(trial) => Some(trial),
            _ => None,
        };
        trial.into_iter().flat_map(Preflight::pipes)
    }

    /// The program that was asked has answered.
    fn finish_preflight(&mut self) {
        let UpgradeState::Preflight(trial) = std::mem::take(&mut self.upgrade) else { return };
        // The way forward does not return.
        let path = trial.program.path().to_owned();
        let reason = match trial.result() {
            Ok(proof) => {
                let build = proof.build;
                tracing::info!(program = %path.display(), build, "upgrade: build {build} takes over");
                self.exec_new_program(&trial.program).to_string()
            }
            Err(reason) => reason,
        };
        self.reject_upgrade(&path, &reason);
    }

    /// Becomes the program; returns only when that fails, and then nothing has changed.
    fn exec_new_program(&self, program: &Executable) -> io::Error {
        let attempt = || -> io::Result<io::Error> {
            let own = exec::open_self()?;
            let state = self.create_handoff()?;
            let name = program.path().as_os_str().to_owned();
            let arguments: Vec<OsString> =
                std::iter::once(name).chain(self.program.arguments.iter().cloned()).collect();
            let way = TakeoverDirection::Forward { old: own.as_raw_fd() };
            let folder = self.start_folder();
            let run = |environment: &Environment| {
                if let Err(error) = path::set_working_folder(&folder) {
                    let folder = folder.display();
                    tracing::warn!(%error, "the new program begins where this one is, not in {folder}: {error}");
                }
                let failed = program.exec(&arguments, environment);
                // This program goes on, where it was.
                let _ = self.working_dir.as_ref().map(path::restore_working_folder);
                failed
            };
            self.exec_with_handoff(&state, way, &[own.as_raw_fd()], run)
        };
        attempt().unwrap_or_else(|error| error)
    }

    /// Goes back to the old program once the rollout of this one has failed.
    pub(in crate::supervisor) fn exec_previous_program(&mut self) {
        // A fleet that stops goes nowhere any more.
        if self.desired_state != DesiredState::Running {
            return;
        }
        let back = |direction: &RolloutDirection| matches!(direction, RolloutDirection::RollingBack { .. });
        if !self
            .rollout
            .as_ref()
            .is_some_and(|rollout| rollout.kind == DeploymentKind::Upgrade && back(&rollout.direction))
        {
            return;
        }
        let UpgradeState::RollingOut(old) = &self.upgrade else { return };
        let attempt = || -> io::Result<io::Error> {
            let state = Handoff {
                inputs: old.inputs.clone(),
                arguments: old.arguments.clone(),
                environment: old.environment.clone(),
                ..self.create_handoff()?
            };
            let back = TakeoverDirection::Back { reason: None };
            let run = |environment: &Environment| {
                let _ = old.working_dir.as_ref().map(path::restore_working_folder);
                let failed = exec::exec_fd(&old.program, &old.arguments, environment);
                let _ = self.working_dir.as_ref().map(path::restore_working_folder);
                failed
            };
            self.exec_with_handoff(&state, back, &[], run)
        };
        // The way back does not return either.
        let error = attempt().unwrap_or_else(|error| error);
        tracing::error!(%error, "cannot go back to the old program, going on with the new one: {error}");
        self.upgrade = UpgradeState::Idle;
        if let Some(rollout) = &mut self.rollout {
            rollout.direction = RolloutDirection::Forward;
            self.generation = rollout.to;
        }
    }

    /// Whether no upgrade is under way or waits.
    pub(in crate::supervisor) fn is_upgrade_idle(&self) -> bool {
        matches!(self.upgrade, UpgradeState::Idle)
    }

    /// The rollout of the new program is through.
    pub(in crate::supervisor) fn commit_upgrade(&mut self) {
        if let UpgradeState::RollingOut(old) = std::mem::take(&mut self.upgrade) {
            tracing::debug!(build = old.build, "the old program is let go");
        }
    }

    /// The fleet stops: no new program, and no way back to the old one.
    pub(in crate::supervisor) fn cancel_upgrade(&mut self) {
        match std::mem::take(&mut self.upgrade) {
            UpgradeState::Idle => {}
            UpgradeState::Preflight(trial) => {
                // Once it is reaped its number may be another process's.
                if !trial.has_exited() {
                    kill_preflight(trial.pid);
                }
                self.record_upgrade_cancelled();
            }
            UpgradeState::Queued { .. } | UpgradeState::RollingOut(_) => self.record_upgrade_cancelled(),
        }
    }

    fn record_upgrade_cancelled(&mut self) {
        tracing::warn!("upgrade cancelled: the fleet stops");
        self.record_event(event_now("upgrade_cancelled", "the fleet stops"));
    }

    fn reject_upgrade(&mut self, path: &Path, reason: &str) {
        let message = format!("nothing is changed, {} cannot take over: {reason}", path.display());
        tracing::error!(program = %path.display(), reason, "upgrade refused, {message}");
        self.record_event(event_now("upgrade_refused", message.clone()));
        self.resolve_commands(
            &CommandGoal::NextUpgrade,
            &CommandResult::failed(format!("upgrade refused, {message}")),
        );
    }

    /// Leaves `state` and the descriptors in it, and those in `also`, to the program that `run` becomes. When it
    /// returns, nothing is left behind.
    fn exec_with_handoff(
        &self,
        state: &Handoff,
        way: TakeoverDirection,
        also: &[RawFd],
        run: impl FnOnce(&Environment) -> io::Error,
    ) -> io::Result<io::Error> {
        let memory = state.write()?;
        let takeover = TakeoverEnv { state: memory.as_raw_fd(), direction: way };
        let mut environment = state.environment.clone();
        environment.push(config::handoff_variable(takeover.encode(process::pid().as_raw().unsigned_abs())));
        let mut kept = state.inherited_fds();
        kept.extend(also);
        kept.push(memory.as_raw_fd());
        let marked = kept.iter().try_for_each(|fd| exec::set_inheritable(*fd, true));
        let failed = match marked.and_then(|()| self.control.set_inheritable(true)) {
            Ok(()) => {
                telemetry::finish();
                let failed = run(&environment);
                telemetry::report_missing_lines();
                failed
            }
            Err(error) => error,
        };
        for fd in kept {
            // Those that could not be marked are as they were.
            let _ = exec::set_inheritable(fd, false);
        }
        self.control.set_inheritable(false)?;
        Ok(failed)
    }
}

/// Ends a program that is asked, and what it started.
fn kill_preflight(pid: Pid) {
    if let Err(error) = signal::send_group(pid, Signal::SIGKILL) {
        tracing::error!(pid = pid.as_raw(), %error, "cannot kill the program that was asked: {error}");
    }
}

/// Variables and their values.
type Environment = [(OsString, OsString)];
