//! The preflight: a new program proves that it can take over, while the fleet goes on.

use std::fs::File;
use std::io;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use crate::config;
use crate::supervisor::deployment::handoff;
use crate::supervisor::deployment::handoff::PreflightReport;
use crate::supervisor::deployment::program::{ProbeWords, ProgramSpec};
use crate::supervisor::deployment::takeover_env::PREFLIGHT;
use crate::sys::exec::{Executable, ProbeProcess};
use crate::sys::process::{ExitStatus, Pid};
use crate::sys::{exec, executable, path};

/// How long a new program may take to show that it can take over.
const PREFLIGHT_TIMEOUT: Duration = Duration::from_secs(15);

/// Most of what it prints that is kept, bytes.
const CAPTURE_MAX: usize = 64 * 1024;

/// Most that it may print at all, bytes: one that prints without end is killed then, and not at its deadline.
const READ_MAX: usize = 1024 * 1024;

/// Bytes read in one turn of the supervisor's loop.
const CHUNK: usize = 16 * 1024;

/// Longest line of it that is repeated, bytes.
const QUOTE_MAX: usize = 500;

/// A new program that proves that it can take over.
#[derive(Debug)]
pub(in crate::supervisor) struct Preflight {
    /// What has proven itself is what is executed, whatever lies at its path by then.
    pub(in crate::supervisor) program: Executable,
    pub(in crate::supervisor) pid: Pid,
    output: CapturedOutput,
    error_output: CapturedOutput,
    pub(in crate::supervisor) deadline: Duration,
    /// How it ended.
    exit: Option<ExitStatus>,
    /// Why it is killed, if it is.
    kill_cause: Option<PreflightKillCause>,
}

/// What a program prints, as far as it came.
#[derive(Debug)]
struct CapturedOutput {
    /// None when the program has closed it.
    pipe: Option<File>,
    text: Vec<u8>,
    /// Bytes that came, kept or not.
    total_read: usize,
}

impl CapturedOutput {
    fn new(pipe: File) -> Self {
        Self { pipe: Some(pipe), text: Vec::new(), total_read: 0 }
    }

    /// Takes one chunk: what prints faster than it is read must not hold up the loop.
    fn fill(&mut self) {
        let Some(pipe) = &mut self.pipe else { return };
        let mut chunk = [0; CHUNK];
        match pipe.read(&mut chunk) {
            Ok(0) => self.pipe = None,
            Ok(len) => {
                self.total_read += len;
                self.text.extend(&chunk[..len.min(CAPTURE_MAX.saturating_sub(self.text.len()))]);
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(_) => self.pipe = None,
        }
    }

    /// Takes what is left once the program has ended, as far as it is kept: nothing more comes.
    fn finish(&mut self) {
        while self.pipe.is_some() && self.text.len() < CAPTURE_MAX {
            let before = self.total_read;
            self.fill();
            if self.total_read == before {
                return;
            }
        }
    }

    /// Its last line that is not empty.
    fn last_line(&self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.text);
        text.lines().map(str::trim).rfind(|line| !line.is_empty()).map(str::to_owned)
    }

    /// The line that names an error, as command lines do before their advice; else its last.
    fn error_line(&self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.text);
        let named = text.lines().find(|line| line.starts_with("error: ")).map(|line| line.trim().to_owned());
        let mut line = named.or_else(|| self.last_line())?;
        line.truncate(line.floor_char_boundary(QUOTE_MAX));
        Some(line)
    }
}

impl Preflight {
    /// Starts the program at this path, to prove that it can go on from `state` in the folder where it would.
    pub(in crate::supervisor) fn start(
        path: &Path,
        current: &ProgramSpec,
        (folder, state): (&Path, &OwnedFd),
        now: Duration,
    ) -> Result<Self, String> {
        let program = Executable::open(path).map_err(|error| match &error {
            executable::ExecutableError::Unreadable(source) => {
                format!("{error}: {}", path::error_detail(path, source))
            }
            _ => error.to_string(),
        })?;
        let arguments = match current.probe_words {
            ProbeWords::Check => {
                vec!["check".into(), "--handoff".into(), state.as_raw_fd().to_string().into()]
            }
            ProbeWords::OwnArguments => current.arguments.clone(),
        };
        let mut environment = config::process_environment();
        // What is read before any argument.
        let request = format!("{PREFLIGHT}{}", state.as_raw_fd());
        environment.push(config::handoff_variable(request));
        let folder = Some(folder).filter(|folder| folder.is_dir());
        let ProbeProcess { pid, stdout: answer, stderr: complaint } =
            exec::spawn_probe(&program, &arguments, &environment, folder, state)
                .map_err(|error| format!("it cannot be started: {error}"))?;
        let (answer, complaint) = (CapturedOutput::new(answer), CapturedOutput::new(complaint));
        let deadline = now + PREFLIGHT_TIMEOUT;
        Ok(Self {
            program,
            pid,
            output: answer,
            error_output: complaint,
            deadline,
            exit: None,
            kill_cause: None,
        })
    }

    /// Takes what it has printed; how far it is.
    pub(in crate::supervisor) fn poll(&mut self, now: Duration) -> PreflightPoll {
        if self.exit.is_some() {
            self.output.finish();
            self.error_output.finish();
            return PreflightPoll::Exited;
        }
        if self.kill_cause.is_some() {
            return PreflightPoll::Pending(None);
        }
        self.output.fill();
        self.error_output.fill();
        if self.output.total_read.max(self.error_output.total_read) > READ_MAX {
            self.kill_cause = Some(PreflightKillCause::TooMuchOutput);
        } else if now >= self.deadline {
            self.kill_cause = Some(PreflightKillCause::TimedOut);
        }
        if self.kill_cause.is_some() {
            PreflightPoll::MustKill
        } else {
            PreflightPoll::Pending(Some(self.deadline))
        }
    }

    /// It has ended.
    pub(in crate::supervisor) fn set_exit(&mut self, exit: ExitStatus) {
        self.exit = Some(exit);
    }

    /// Whether it was reaped.
    pub(in crate::supervisor) fn has_exited(&self) -> bool {
        self.exit.is_some()
    }

    /// What it prints on.
    pub(in crate::supervisor) fn pipes(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        // One that is killed may have left a pipe full: it would wake the loop for nothing until it is reaped.
        let pipes = [&self.output.pipe, &self.error_output.pipe].into_iter().flatten();
        pipes.filter(|_| self.kill_cause.is_none()).map(AsFd::as_fd)
    }

    /// Whether the program has ended well and answered what only one answers that can take over.
    pub(in crate::supervisor) fn result(&self) -> Result<PreflightReport, String> {
        let quoted = self.error_output.error_line();
        let quoted = quoted.map(|line| format!(", it says: {line}")).unwrap_or_default();
        match self.exit {
            _ if self.kill_cause == Some(PreflightKillCause::TimedOut) => Err(format!(
                "it did not say within {} s whether it can take over{quoted}",
                PREFLIGHT_TIMEOUT.as_secs()
            )),
            _ if self.kill_cause == Some(PreflightKillCause::TooMuchOutput) => {
                Err(format!("it prints without end, more than {} KiB{quoted}", READ_MAX / 1024))
            }
            Some(ExitStatus::Code(0)) => {
                let line = self.output.last_line().unwrap_or_default();
                match serde_json::from_str::<PreflightReport>(&line) {
                    Ok(proof) if proof.handoff == handoff::VERSION => {
                        self.program.check_unchanged().map(|()| proof).map_err(|error| error.to_string())
                    }
                    Ok(proof) => Err(format!(
                        "it hands over in version {}, this program in version {}: stop the fleet and start it anew",
                        proof.handoff,
                        handoff::VERSION
                    )),
                    Err(_) => Err(
                        "it does not say whether it can take over: it runs no fleet, or is too old for it"
                            .to_owned(),
                    ),
                }
            }
            Some(exit) => Err(format!("it refuses with {exit}{quoted}")),
            None => Err("it has not ended".to_owned()),
        }
    }
}

/// Why a preflight is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PreflightKillCause {
    /// It did not answer in time.
    TimedOut,
    /// It prints without end.
    TooMuchOutput,
}

/// How far a preflight is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::supervisor) enum PreflightPoll {
    /// It has not ended; when to poll again at the latest.
    Pending(Option<Duration>),
    /// It takes too long, or prints without end, and is to be killed.
    MustKill,
    /// It has ended.
    Exited,
}

#[cfg(test)]
impl Preflight {
    /// One of a program that has ended without output.
    pub(super) fn for_tests() -> Self {
        tests::preflight("", "", ExitStatus::Code(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::signal::Signal;

    pub(super) fn preflight(answer: &str, complaint: &str, exit: ExitStatus) -> Preflight {
        let captured = |text: &str| CapturedOutput { pipe: None, text: text.into(), total_read: text.len() };
        Preflight {
            program: Executable::open("/proc/self/exe".as_ref()).unwrap(),
            pid: Pid::from_raw(1),
            output: captured(answer),
            error_output: captured(complaint),
            deadline: PREFLIGHT_TIMEOUT,
            exit: Some(exit),
            kill_cause: None,
        }
    }

    #[test]
    fn only_the_right_answer_is_a_proof() {
        let good = format!("some line\n{{\"handoff\":{},\"build\":\"x\"}}\n\n", handoff::VERSION);
        assert_eq!(preflight(&good, "a warning", ExitStatus::Code(0)).result().unwrap().build, "x");
        assert!(preflight(&good, "", ExitStatus::Code(1)).result().is_err());
        assert!(
            preflight(&good, "", ExitStatus::Signal(Signal::SIGSEGV))
                .result()
                .unwrap_err()
                .contains("SIGSEGV")
        );
        let late = Preflight {
            kill_cause: Some(PreflightKillCause::TimedOut),
            ..preflight(&good, "", ExitStatus::Signal(Signal::SIGKILL))
        };
        assert!(late.result().unwrap_err().contains("within 15 s"));
    }

    #[test]
    fn a_refusal_repeats_its_error_line() {
        let error =
            preflight("", "one\nworkers.count is \"x\"\n", ExitStatus::Code(64)).result().unwrap_err();
        assert_eq!(error, "it refuses with exit code 64, it says: workers.count is \"x\"");
        for silent in ["", "hello\n", "{}", "{\"handoff\":\"x\"}"] {
            assert!(
                preflight(silent, "", ExitStatus::Code(0)).result().unwrap_err().contains("no fleet"),
                "{silent}"
            );
        }
        let advice = "error: unexpected argument\n\nFor more information, try\n";
        assert!(
            preflight("", advice, ExitStatus::Code(64))
                .result()
                .unwrap_err()
                .ends_with("says: error: unexpected argument")
        );
        let newer =
            preflight("{\"handoff\":99,\"build\":\"x\"}", "", ExitStatus::Code(0)).result().unwrap_err();
        assert!(newer.contains("version 99"), "{newer}");
    }
}
