//! Another program in the same process: it proves itself, takes over, and is taken back if it fails.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::control::event_kind::EventKind;
use crate::control::protocol::CommandResult;
use crate::supervisor::Supervisor;
use crate::supervisor::deployment::handoff::Handoff;
use crate::supervisor::deployment::preflight::{Preflight, PreflightPoll};
use crate::supervisor::deployment::state::Claimed;
use crate::supervisor::deployment::takeover_env::{TakeoverDirection, TakeoverEnv};
use crate::supervisor::effects::event_now;
use crate::supervisor::operators::CommandGoal;
use crate::supervisor::slots::plan::DesiredState;
use crate::sys::exec::Executable;
use crate::sys::process::{ExitStatus, Pid};
use crate::sys::signal::Signal;
use crate::sys::{exec, path, process, signal};
use crate::{config, logging};

impl Supervisor<'_> {
    /// Requests an upgrade, to the program at this path or to what lies at the path of this one.
    pub(in crate::supervisor) fn request_upgrade(&mut self, binary: Option<PathBuf>) -> Result<(), String> {
        if self.deployment.queue_upgrade(binary)? {
            tracing::info!("upgrade queued behind a rollout");
        }
        Ok(())
    }

    pub(in crate::supervisor) fn upgrade_by_signal(&mut self) {
        if let Err(reason) = self.request_upgrade(None) {
            tracing::warn!(reason, "not upgraded: {reason}");
        }
    }

    /// Takes the next step of an upgrade; when the one after it is due.
    pub(in crate::supervisor) fn advance_upgrade(&mut self, now: Duration) -> Option<Duration> {
        if self.lifecycle.desired_state != DesiredState::Running {
            self.cancel_upgrade();
            return None;
        }
        let Some(preflight) = self.deployment.preflight_mut() else { return self.start_upgrade(now) };
        let pid = preflight.pid;
        match preflight.poll(now) {
            PreflightPoll::Pending(at) => return at,
            PreflightPoll::MustKill => kill_preflight(pid),
            PreflightPoll::Exited => self.finish_preflight(),
        }
        None
    }

    /// Starts the preflight of a queued upgrade, if nothing else is under way.
    fn start_upgrade(&mut self, now: Duration) -> Option<Duration> {
        if !self.lifecycle.ever_ready {
            return None;
        }
        let Claimed { request, superseded } = self.deployment.claim_upgrade()?;
        self.report_superseded(superseded);
        let path = request.binary.unwrap_or_else(|| self.deployment.program().path.clone());
        match self.start_preflight(&path, now) {
            Ok(preflight) => {
                let deadline = preflight.deadline;
                let pid = preflight.pid.as_raw();
                let message = format!("{} proves that it can take over", path.display());
                tracing::info!(program = %path.display(), pid, "upgrade preflight started: {message}");
                self.record_event(event_now(EventKind::UpgradePreflightStarted, message));
                self.deployment.start_preflight(preflight);
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
        Preflight::start(path, self.deployment.program(), (&self.start_folder(), &state), now)
    }

    /// The folder in which a new program begins: where the fleet was started, by the name it had for the operator.
    fn start_folder(&self) -> PathBuf {
        self.host.config_inputs(self.scoreboard.generation()).folder
    }

    /// Kills what a preflight has started, when the preflight has ended and is not reaped yet: once it is, its process
    /// group may belong to other processes.
    pub(in crate::supervisor) fn kill_preflight_group(&self, pid: Pid) {
        if self.deployment.preflight().is_some_and(|preflight| preflight.pid == pid) {
            kill_preflight(pid);
        }
    }

    /// Takes the exit of a child; whether it was the preflight.
    pub(in crate::supervisor) fn on_preflight_exit(&mut self, pid: Pid, exit: ExitStatus) -> bool {
        let preflight = self.deployment.preflight_mut().filter(|preflight| preflight.pid == pid);
        preflight.map(|preflight| preflight.set_exit(exit)).is_some()
    }

    /// What the loop waits for on behalf of an upgrade.
    pub(in crate::supervisor) fn preflight_pipes(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
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
                // This call returns only if it failed.
                self.exec_new_program(&preflight.program).to_string()
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
                std::iter::once(name).chain(self.deployment.program().arguments.iter().cloned()).collect();
            let way = TakeoverDirection::Forward { old: own.as_raw_fd() };
            let folder = self.start_folder();
            let run = |environment: &Environment| {
                if let Err(error) = path::set_working_folder(&folder) {
                    let folder = folder.display();
                    tracing::warn!(%error, "the new program begins where this one is, not in {folder}: {error}");
                }
                let failed = program.exec(&arguments, environment);
                // This program goes on, where it was.
                let _ = self.lifecycle.working_dir.as_ref().map(path::restore_working_folder);
                failed
            };
            self.exec_with_handoff(&state, way, &[own.as_raw_fd()], run)
        };
        attempt().unwrap_or_else(|error| error)
    }

    /// Goes back to the old program once the rollout of this one has failed.
    pub(in crate::supervisor) fn exec_previous_program(&mut self) {
        if self.lifecycle.desired_state != DesiredState::Running {
            return;
        }
        let Some(old) = self.deployment.program_to_restore() else { return };
        // The old program knows nothing of what this one added.
        self.slots.addresses_change.cancel();
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
                let _ = self.lifecycle.working_dir.as_ref().map(path::restore_working_folder);
                failed
            };
            self.exec_with_handoff(&state, back, &[], run)
        };
        // The way back does not return either.
        let error = attempt().unwrap_or_else(|error| error);
        tracing::error!(%error, "cannot execute the old program, resuming the rollout of the new one: {error}");
        self.deployment.resume_rollout();
    }

    /// The fleet stops: no new program, and no way back to the old one.
    fn cancel_upgrade(&mut self) {
        let Some(cancelled) = self.deployment.cancel_upgrade() else { return };
        // Once it is reaped its number may be another process's.
        if let Some(preflight) = cancelled.preflight.filter(|preflight| !preflight.has_exited()) {
            kill_preflight(preflight.pid);
        }
        tracing::warn!("upgrade cancelled: the fleet stops");
        self.record_event(event_now(EventKind::UpgradeCancelled, "the fleet stops"));
    }

    fn reject_upgrade(&mut self, path: &Path, reason: &str) {
        let message = format!("nothing is changed, {} cannot take over: {reason}", path.display());
        tracing::error!(program = %path.display(), reason, "upgrade refused, {message}");
        self.record_event(event_now(EventKind::UpgradeRefused, message.clone()));
        self.operators.resolve(
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
        let failed = match marked.and_then(|()| self.operators.control.set_inheritable(true)) {
            Ok(()) => {
                logging::finish();
                let failed = run(&environment);
                logging::report_missing_lines();
                failed
            }
            Err(error) => error,
        };
        for fd in kept {
            // Those that could not be marked are as they were.
            let _ = exec::set_inheritable(fd, false);
        }
        self.operators.control.set_inheritable(false)?;
        Ok(failed)
    }
}

/// Kills a preflight, and what it started.
fn kill_preflight(pid: Pid) {
    if let Err(error) = signal::send_group(pid, Signal::SIGKILL) {
        tracing::error!(pid = pid.as_raw(), %error, "cannot kill the preflight: {error}");
    }
}

/// Variables and their values.
type Environment = [(OsString, OsString)];
