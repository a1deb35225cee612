//! Another program in the same process: it proves itself, takes over, and is taken back if it fails.

use std::ffi::OsStr;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use crate::config;
use crate::config::Inputs;
use crate::control::protocol::Verdict;
use crate::supervisor::Supervisor;
use crate::supervisor::handoff::Handoff;
use crate::supervisor::history::happened;
use crate::supervisor::orders::Goal;
use crate::supervisor::plan::Target;
use crate::supervisor::rollout::Course;
use crate::supervisor::rollout::Kind;
use crate::supervisor::ticket::Ticket;
use crate::supervisor::ticket::Way;
use crate::supervisor::trial::Look;
use crate::supervisor::trial::Trial;
use crate::sys::exec;
use crate::sys::proc;
use crate::sys::proc::Exit;
use crate::sys::proc::Pid;
use crate::sys::signal;
use crate::sys::signal::Signal;
use crate::telemetry;

/// The program a supervisor runs as, and would become again.
#[derive(Debug, Clone)]
pub struct Program {
    /// Its file: an absolute path, whatever lies there by now.
    pub path: PathBuf,
    /// Its arguments, without its own name.
    pub arguments: Vec<OsString>,
}

impl Program {
    /// The program that was started with these arguments, its own name first.
    ///
    /// `/proc/self/exe` would name the file that runs; an upgrade wants the one that lies where it was started from.
    pub fn new(arguments: &[OsString], folder: &Path, path: &OsStr) -> Self {
        let name = arguments.first().map(Path::new).unwrap_or(Path::new("/proc/self/exe"));
        let plain = name.components().count() == 1 && !name.is_absolute();
        let found = match (plain, name.to_str()) {
            (true, Some(name)) => proc::find_program(&[name], path),
            _ => None,
        };
        // Without the `.` of `./program`.
        let path = folder.join(found.unwrap_or_else(|| name.to_path_buf())).components().collect();
        Self { path, arguments: arguments.iter().skip(1).cloned().collect() }
    }
}

/// Where an upgrade stands.
#[derive(Debug, Default)]
pub(super) enum Upgrade {
    /// None is under way.
    #[default]
    Idle,
    /// It was asked for and waits for the rollout that runs.
    Waits { binary: Option<PathBuf> },
    /// The new program shows that it can take over.
    Proving(Trial),
    /// This is the new program, and the old one can be taken back.
    OnTrial(Box<Old>),
}

/// The program that served before.
#[derive(Debug)]
pub struct Old {
    /// Itself, wherever its file is by now.
    pub program: OwnedFd,
    /// How it was started, its own path first.
    pub arguments: Vec<OsString>,
    /// Its environment.
    pub environment: Vec<(OsString, OsString)>,
    /// What its configuration was read from.
    pub inputs: Inputs,
    /// Which build it is.
    pub build: String,
}

impl Supervisor<'_> {
    /// An upgrade is wanted, to the program at this path or to what lies at the path of this one.
    pub(super) fn want_upgrade(&mut self, binary: Option<PathBuf>) -> Result<(), String> {
        if let Some(relative) = binary.as_ref().filter(|binary| binary.is_relative()) {
            return Err(format!("{} is not an absolute path", relative.display()));
        }
        match self.upgrade {
            Upgrade::Idle => {}
            _ => return Err("an upgrade is in progress".to_owned()),
        }
        if self.rollout.is_some() {
            tracing::info!("upgrade waits for the rollout that runs");
        }
        self.upgrade = Upgrade::Waits { binary };
        Ok(())
    }

    pub(super) fn upgrade_by_signal(&mut self) {
        if let Err(reason) = self.want_upgrade(None) {
            tracing::warn!(reason, "not upgraded: {reason}");
        }
    }

    /// Does what the next step of an upgrade needs; when to look again.
    pub(super) fn follow_upgrade(&mut self, now: Duration) -> Option<Duration> {
        if self.target != Target::Serve {
            self.cancel_upgrade();
            return None;
        }
        match &mut self.upgrade {
            Upgrade::Idle | Upgrade::OnTrial(_) => None,
            Upgrade::Waits { .. } => self.begin_upgrade(now),
            Upgrade::Proving(trial) => {
                let pid = trial.pid;
                match trial.follow(now) {
                    Look::Again(at) => return at,
                    Look::Kill => kill_trial(pid),
                    Look::Ended => self.trial_is_over(),
                }
                None
            }
        }
    }

    /// Asks the new program, if nothing else is on its way.
    fn begin_upgrade(&mut self, now: Duration) -> Option<Duration> {
        if !matches!(self.upgrade, Upgrade::Waits { .. }) || !self.ever_ready || !self.give_way() {
            return None;
        }
        let Upgrade::Waits { binary } = std::mem::take(&mut self.upgrade) else { return None };
        let path = binary.unwrap_or_else(|| self.program.path.clone());
        match self.ask(path.clone(), now) {
            Ok(trial) => {
                let deadline = trial.deadline;
                let sentence = format!("{} is asked whether it can take over", path.display());
                tracing::info!(program = %path.display(), pid = trial.pid.as_raw(), "upgrade begins: {sentence}");
                self.note(happened("upgrade_asked", sentence));
                self.upgrade = Upgrade::Proving(trial);
                Some(deadline)
            }
            Err(reason) => {
                self.upgrade_refused(&path, &reason);
                None
            }
        }
    }

    fn ask(&self, path: PathBuf, now: Duration) -> Result<Trial, String> {
        let state = self.handoff().and_then(|state| state.write());
        let state = state.map_err(|error| format!("the state cannot be written: {error}"))?;
        Trial::begin(path, &state, now)
    }

    /// A child has ended and is not reaped yet: if it is the program that was asked, what it started ends with it.
    pub(super) fn end_trial_group(&self, pid: Pid) {
        if matches!(&self.upgrade, Upgrade::Proving(trial) if trial.pid == pid) {
            kill_trial(pid);
        }
    }

    /// A child ended; true when it was the program that was asked.
    pub(super) fn trial_ended(&mut self, pid: Pid, exit: Exit) -> bool {
        match &mut self.upgrade {
            Upgrade::Proving(trial) if trial.pid == pid => {
                trial.ended(exit);
                true
            }
            _ => false,
        }
    }

    /// What the loop waits for on behalf of an upgrade.
    pub(super) fn trial_pipes(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let trial = match &self.upgrade {
            Upgrade::Proving(trial) => Some(trial),
            _ => None,
        };
        trial.into_iter().flat_map(Trial::pipes)
    }

    /// The program that was asked has answered.
    fn trial_is_over(&mut self) {
        let Upgrade::Proving(trial) = std::mem::take(&mut self.upgrade) else { return };
        // The way forward does not return.
        let reason = match trial.verdict() {
            Ok(proof) => {
                tracing::info!(program = %trial.path.display(), build = proof.build, "upgrade: build {} takes over", proof.build);
                self.become_program(&trial.path).to_string()
            }
            Err(reason) => reason,
        };
        self.upgrade_refused(&trial.path, &reason);
    }

    /// Becomes the program; returns only when that fails, and then nothing has changed.
    fn become_program(&self, path: &Path) -> io::Error {
        let attempt = || -> io::Result<io::Error> {
            let own = exec::own_executable()?;
            let state = self.handoff()?;
            let arguments: Vec<OsString> =
                std::iter::once(path.into()).chain(self.program.arguments.iter().cloned()).collect();
            let way = Way::Forward { old: own.as_raw_fd() };
            let run = |environment: &Environment| exec::exec(path, &arguments, environment);
            self.leave(&state, way, &[own.as_raw_fd()], run)
        };
        attempt().unwrap_or_else(|error| error)
    }

    /// Goes back to the old program once the rollout of this one has failed.
    pub(super) fn take_program_back(&mut self) {
        // A fleet that stops goes nowhere any more.
        if self.target != Target::Serve {
            return;
        }
        let back = |course: &Course| matches!(course, Course::Back { .. });
        if !self
            .rollout
            .as_ref()
            .is_some_and(|rollout| rollout.kind == Kind::Upgrade && back(&rollout.course))
        {
            return;
        }
        let Upgrade::OnTrial(old) = &self.upgrade else { return };
        let attempt = || -> io::Result<io::Error> {
            let state = Handoff {
                inputs: old.inputs.clone(),
                arguments: old.arguments.clone(),
                environment: old.environment.clone(),
                ..self.handoff()?
            };
            let back = Way::Back { reason: None };
            let run = |environment: &Environment| exec::exec_fd(&old.program, &old.arguments, environment);
            self.leave(&state, back, &[], run)
        };
        // The way back does not return either.
        let error = attempt().unwrap_or_else(|error| error);
        tracing::error!(%error, "cannot go back to the old program, going on with the new one: {error}");
        self.upgrade = Upgrade::Idle;
        if let Some(rollout) = &mut self.rollout {
            rollout.course = Course::Forward;
            self.generation = rollout.to;
        }
    }

    /// Whether no upgrade is under way or waits.
    pub(super) fn no_upgrade(&self) -> bool {
        matches!(self.upgrade, Upgrade::Idle)
    }

    /// The rollout of the new program is through.
    pub(super) fn upgrade_settled(&mut self) {
        if let Upgrade::OnTrial(old) = std::mem::take(&mut self.upgrade) {
            tracing::debug!(build = old.build, "the old program is let go");
        }
    }

    /// The fleet stops: no new program, and no way back to the old one.
    pub(super) fn cancel_upgrade(&mut self) {
        match std::mem::take(&mut self.upgrade) {
            Upgrade::Idle => {}
            Upgrade::Proving(trial) => {
                // Once it is reaped its number may be another process's.
                if !trial.has_ended() {
                    kill_trial(trial.pid);
                }
                self.cancelled();
            }
            Upgrade::Waits { .. } | Upgrade::OnTrial(_) => self.cancelled(),
        }
    }

    fn cancelled(&mut self) {
        tracing::warn!("upgrade cancelled: the fleet stops");
        self.note(happened("upgrade_cancelled", "the fleet stops"));
    }

    fn upgrade_refused(&mut self, path: &Path, reason: &str) {
        let sentence = format!("nothing is changed, {} cannot take over: {reason}", path.display());
        tracing::error!(program = %path.display(), reason, "upgrade refused, {sentence}");
        self.note(happened("upgrade_refused", sentence.clone()));
        self.settle(&Goal::NextUpgrade, &Verdict::failed(format!("upgrade refused, {sentence}")));
    }

    /// Leaves `state` and the descriptors in it, and those in `also`, to the program that `run` becomes. When it
    /// returns, nothing is left behind.
    fn leave(
        &self,
        state: &Handoff,
        way: Way,
        also: &[RawFd],
        run: impl FnOnce(&Environment) -> io::Error,
    ) -> io::Result<io::Error> {
        let memory = state.write()?;
        let ticket = Ticket { state: memory.as_raw_fd(), way };
        let mut environment = state.environment.clone();
        environment.push(config::handoff_variable(ticket.text(proc::pid().as_raw().unsigned_abs())));
        let mut kept = state.kept();
        kept.extend(also);
        kept.push(memory.as_raw_fd());
        let marked = kept.iter().try_for_each(|fd| exec::keep(*fd, true));
        let failed = match marked.and_then(|()| self.control.keep_on_exec(true)) {
            Ok(()) => {
                telemetry::finish();
                let failed = run(&environment);
                telemetry::take_over();
                failed
            }
            Err(error) => error,
        };
        for fd in kept {
            // Those that could not be marked are as they were.
            let _ = exec::keep(fd, false);
        }
        self.control.keep_on_exec(false)?;
        Ok(failed)
    }
}

/// Ends a program that is asked, and what it started.
fn kill_trial(pid: Pid) {
    if let Err(error) = signal::send_group(pid, Signal::SIGKILL) {
        tracing::error!(pid = pid.as_raw(), %error, "cannot kill the program that was asked: {error}");
    }
}

/// Variables and their values.
type Environment = [(OsString, OsString)];

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str, folder: &Path, search: &Path) -> PathBuf {
        let arguments = [OsString::from(name), "--workers".into(), "3".into()];
        let program = Program::new(&arguments, folder, search.as_os_str());
        assert_eq!(program.arguments, arguments[1..]);
        program.path
    }

    #[test]
    fn a_program_is_where_it_was_started_from() {
        let folder = tempfile::tempdir().unwrap();
        let bin = folder.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        let installed = bin.join("regatta");
        std::fs::copy("/bin/true", &installed).unwrap();
        let srv = Path::new("/srv");
        assert_eq!(path("regatta", srv, &bin), installed);
        assert_eq!(path("./target/regatta", srv, &bin), Path::new("/srv/target/regatta"));
        assert_eq!(path("/opt/current/regatta", srv, &bin), Path::new("/opt/current/regatta"));
        assert_eq!(path("elsewhere", srv, &bin), Path::new("/srv/elsewhere"));
    }
}
