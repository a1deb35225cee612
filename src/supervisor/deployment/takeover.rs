//! Another program in the same process: it takes over with a handoff, and is taken back if it fails.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use crate::control::event_kind::EventKind;
use crate::control::protocol::CommandResult;
use crate::control::server::ControlServer;
use crate::supervisor::deployment::handoff::Handoff;
use crate::supervisor::deployment::program::PreviousProgram;
use crate::supervisor::deployment::takeover_env::{TakeoverDirection, TakeoverEnv};
use crate::supervisor::effects::{Effect, event_now};
use crate::supervisor::operators::command_goal::CommandGoal;
use crate::sys::exec::Executable;
use crate::sys::process::Pid;
use crate::sys::signal::Signal;
use crate::sys::{exec, path, process, signal};
use crate::{config, logging};

/// Variables and their values.
type Environment = [(OsString, OsString)];

/// What this process leaves to another program, and where it stands itself.
#[derive(Debug)]
pub(in crate::supervisor) struct Departure<'a> {
    pub(in crate::supervisor) control: &'a ControlServer,
    /// The working folder, to come back to it.
    pub(in crate::supervisor) working_dir: Option<&'a OwnedFd>,
    pub(in crate::supervisor) state: Handoff,
}

impl Departure<'_> {
    /// Becomes the program, in this folder; returns only when that fails, and then nothing has changed.
    pub(in crate::supervisor) fn exec_new_program(
        &self,
        program: &Executable,
        arguments: &[OsString],
        folder: &Path,
    ) -> io::Result<io::Error> {
        let own = exec::open_self()?;
        let name = program.path().as_os_str().to_owned();
        let arguments: Vec<OsString> = std::iter::once(name).chain(arguments.iter().cloned()).collect();
        let way = TakeoverDirection::Forward { old: own.as_raw_fd() };
        let run = |environment: &Environment| {
            if let Err(error) = path::set_working_folder(folder) {
                let folder = folder.display();
                tracing::warn!(%error, "the new program begins where this one is, not in {folder}: {error}");
            }
            let failed = program.exec(&arguments, environment);
            // This program goes on, where it was.
            let _ = self.working_dir.map(path::restore_working_folder);
            failed
        };
        self.exec(way, &[own.as_raw_fd()], run)
    }

    /// Goes back to the old program; returns only when that fails.
    pub(in crate::supervisor) fn exec_previous_program(
        mut self,
        old: &PreviousProgram,
    ) -> io::Result<io::Error> {
        self.state = Handoff {
            inputs: old.inputs.clone(),
            arguments: old.arguments.clone(),
            environment: old.environment.clone(),
            ..self.state
        };
        let run = |environment: &Environment| {
            let _ = old.working_dir.as_ref().map(path::restore_working_folder);
            let failed = exec::exec_fd(&old.program, &old.arguments, environment);
            let _ = self.working_dir.map(path::restore_working_folder);
            failed
        };
        self.exec(TakeoverDirection::Back { reason: None }, &[], run)
    }

    /// Leaves the state and the descriptors in it, and those in `also`, to the program that `run` becomes. When it
    /// returns, nothing is left behind.
    fn exec(
        &self,
        way: TakeoverDirection,
        also: &[RawFd],
        run: impl FnOnce(&Environment) -> io::Error,
    ) -> io::Result<io::Error> {
        let memory = self.state.write()?;
        let takeover = TakeoverEnv { state: memory.as_raw_fd(), direction: way };
        let mut environment = self.state.environment.clone();
        environment.push(config::handoff_variable(takeover.encode(process::pid().as_raw().unsigned_abs())));
        let mut kept = self.state.inherited_fds();
        kept.extend(also);
        kept.push(memory.as_raw_fd());
        let marked = kept.iter().try_for_each(|fd| exec::set_inheritable(*fd, true));
        let failed = match marked.and_then(|()| self.control.set_inheritable(true)) {
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
        self.control.set_inheritable(false)?;
        Ok(failed)
    }
}

/// The program at this path does not take over.
pub(in crate::supervisor) fn refuse(path: &Path, reason: &str) -> [Effect; 2] {
    let message = format!("nothing is changed, {} cannot take over: {reason}", path.display());
    tracing::error!(program = %path.display(), reason, "upgrade refused, {message}");
    let result = CommandResult::failed(format!("upgrade refused, {message}"));
    [
        Effect::Record(event_now(EventKind::UpgradeRefused, message)),
        Effect::Resolve(CommandGoal::NextUpgrade, result),
    ]
}

/// Kills a preflight, and what it started.
pub(in crate::supervisor) fn kill_preflight(pid: Pid) {
    if let Err(error) = signal::send_group(pid, Signal::SIGKILL) {
        tracing::error!(pid = pid.as_raw(), %error, "cannot kill the preflight: {error}");
    }
}
