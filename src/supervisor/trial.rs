//! A new program that is asked whether it can take over, while the fleet goes on.

use std::fs::File;
use std::io;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use crate::config;
use crate::supervisor::handoff;
use crate::supervisor::handoff::Proof;
use crate::sys::build;
use crate::sys::exec;
use crate::sys::exec::Probe;
use crate::sys::proc::Exit;
use crate::sys::proc::Pid;

/// How long a new program may take to show that it can take over.
const PROOF_PATIENCE: Duration = Duration::from_secs(15);

/// Most of what it prints that is kept, bytes.
const PRINTED_MAX: usize = 64 * 1024;

/// Most that it may print at all, bytes: one that prints without end is killed then, and not at its deadline.
const READ_MAX: usize = 1024 * 1024;

/// Bytes read in one turn of the supervisor's loop.
const CHUNK: usize = 16 * 1024;

/// Longest line of it that is repeated, bytes.
const QUOTE_MAX: usize = 500;

/// A new program that is asked whether it can take over.
#[derive(Debug)]
pub(super) struct Trial {
    pub(super) path: PathBuf,
    /// The file's identity when it was asked: what is proven is what is run.
    file: build::Identity,
    pub(super) pid: Pid,
    answer: Printed,
    complaint: Printed,
    pub(super) deadline: Duration,
    /// How it ended.
    exit: Option<Exit>,
    /// Why it is killed, if it is.
    killed: Option<Killed>,
}

/// What a program prints, as far as it came.
#[derive(Debug)]
struct Printed {
    /// None when the program has closed it.
    pipe: Option<File>,
    text: Vec<u8>,
    /// Bytes that came, kept or not.
    read: usize,
}

impl Printed {
    fn new(pipe: File) -> Self {
        Self { pipe: Some(pipe), text: Vec::new(), read: 0 }
    }

    /// Takes one chunk: what prints faster than it is read must not hold up the loop.
    fn fill(&mut self) {
        let Some(pipe) = &mut self.pipe else { return };
        let mut chunk = [0; CHUNK];
        match pipe.read(&mut chunk) {
            Ok(0) => self.pipe = None,
            Ok(len) => {
                self.read += len;
                self.text.extend(&chunk[..len.min(PRINTED_MAX.saturating_sub(self.text.len()))]);
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(_) => self.pipe = None,
        }
    }

    /// Takes what is left once the program has ended, as far as it is kept: nothing more comes.
    fn finish(&mut self) {
        while self.pipe.is_some() && self.text.len() < PRINTED_MAX {
            let before = self.read;
            self.fill();
            if self.read == before {
                return;
            }
        }
    }

    /// Its last line that says something.
    fn last_line(&self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.text);
        text.lines().map(str::trim).rfind(|line| !line.is_empty()).map(str::to_owned)
    }

    /// The line that names an error, as command lines do before their advice; else its last.
    fn complaint(&self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.text);
        let named = text.lines().find(|line| line.starts_with("error: ")).map(|line| line.trim().to_owned());
        let mut line = named.or_else(|| self.last_line())?;
        line.truncate(line.floor_char_boundary(QUOTE_MAX));
        Some(line)
    }
}

impl Trial {
    /// Asks the program at this path whether it can go on from `state`.
    pub(super) fn begin(path: PathBuf, state: &OwnedFd, now: Duration) -> Result<Self, String> {
        build::runnable(&path).map_err(|error| chain(&error))?;
        let file = build::identity(&path).map_err(|error| error.to_string())?;
        let arguments = ["check".into(), "--handoff".into(), state.as_raw_fd().to_string().into()];
        let environment = config::environment_of_process();
        let Probe { pid, answer, complaint } = exec::probe(&path, &arguments, &environment, state)
            .map_err(|error| format!("it cannot be started: {error}"))?;
        let (answer, complaint) = (Printed::new(answer), Printed::new(complaint));
        let deadline = now + PROOF_PATIENCE;
        Ok(Self { path, file, pid, answer, complaint, deadline, exit: None, killed: None })
    }

    /// Takes what it has printed, and says how far it is.
    pub(super) fn follow(&mut self, now: Duration) -> Look {
        if self.exit.is_some() {
            self.answer.finish();
            self.complaint.finish();
            return Look::Ended;
        }
        if self.killed.is_some() {
            return Look::Again(None);
        }
        self.answer.fill();
        self.complaint.fill();
        if self.answer.read.max(self.complaint.read) > READ_MAX {
            self.killed = Some(Killed::Endless);
        } else if now >= self.deadline {
            self.killed = Some(Killed::Late);
        }
        if self.killed.is_some() { Look::Kill } else { Look::Again(Some(self.deadline)) }
    }

    /// It has ended.
    pub(super) fn ended(&mut self, exit: Exit) {
        self.exit = Some(exit);
    }

    /// Whether it was reaped.
    pub(super) fn has_ended(&self) -> bool {
        self.exit.is_some()
    }

    /// What it prints on.
    pub(super) fn pipes(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        // One that is killed may have left a pipe full: it would wake the loop for nothing until it is reaped.
        let pipes = [&self.answer.pipe, &self.complaint.pipe].into_iter().flatten();
        pipes.filter(|_| self.killed.is_none()).map(AsFd::as_fd)
    }

    /// Whether the program has ended well and answered what only one answers that can take over.
    pub(super) fn verdict(&self) -> Result<Proof, String> {
        let said = self.complaint.complaint();
        let said = said.map(|line| format!(", it says: {line}")).unwrap_or_default();
        match self.exit {
            _ if self.killed == Some(Killed::Late) => Err(format!(
                "it did not say within {} s whether it can take over{said}",
                PROOF_PATIENCE.as_secs()
            )),
            _ if self.killed == Some(Killed::Endless) => {
                Err(format!("it prints without end, more than {} KiB{said}", READ_MAX / 1024))
            }
            Some(Exit::Code(0)) => {
                let line = self.answer.last_line().unwrap_or_default();
                match serde_json::from_str::<Proof>(&line) {
                    Ok(proof) if proof.handoff == handoff::VERSION => self.unchanged().map(|()| proof),
                    Ok(proof) => Err(format!(
                        "it hands over in version {}, this program in version {}: stop the fleet and start it anew",
                        proof.handoff,
                        handoff::VERSION
                    )),
                    Err(_) => {
                        Err("it does not answer `check --handoff`: it runs no fleet, or is too old for it"
                            .to_owned())
                    }
                }
            }
            Some(exit) => Err(format!("it refuses with {exit}{said}")),
            None => Err("it has not ended".to_owned()),
        }
    }

    /// What was asked must be what is run.
    fn unchanged(&self) -> Result<(), String> {
        match build::identity(&self.path) {
            Ok(file) if file == self.file => Ok(()),
            Ok(_) | Err(_) => Err("it was replaced while it was asked".to_owned()),
        }
    }
}

/// Why a program that was asked is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Killed {
    /// It did not answer in time.
    Late,
    /// It prints without end.
    Endless,
}

/// How far a program is that was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// It has not answered; when to look again at the latest.
    Again(Option<Duration>),
    /// It takes too long, or prints without end, and is to be killed.
    Kill,
    /// It has ended.
    Ended,
}

/// An error and its causes.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::signal::Signal;

    fn trial(answer: &str, complaint: &str, exit: Exit) -> Trial {
        let printed = |text: &str| Printed { pipe: None, text: text.into(), read: text.len() };
        Trial {
            path: "/proc/self/exe".into(),
            file: build::identity("/proc/self/exe".as_ref()).unwrap(),
            pid: Pid::from_raw(1),
            answer: printed(answer),
            complaint: printed(complaint),
            deadline: PROOF_PATIENCE,
            exit: Some(exit),
            killed: None,
        }
    }

    #[test]
    fn only_the_right_answer_is_a_proof() {
        let good = format!("some line\n{{\"handoff\":{},\"build\":\"x\"}}\n\n", handoff::VERSION);
        assert_eq!(trial(&good, "a warning", Exit::Code(0)).verdict().unwrap().build, "x");
        assert!(trial(&good, "", Exit::Code(1)).verdict().is_err());
        assert!(trial(&good, "", Exit::Signal(Signal::SIGSEGV)).verdict().unwrap_err().contains("SIGSEGV"));
        let late = Trial { killed: Some(Killed::Late), ..trial(&good, "", Exit::Signal(Signal::SIGKILL)) };
        assert!(late.verdict().unwrap_err().contains("within 15 s"));
    }

    #[test]
    fn a_refusal_repeats_what_it_says() {
        let said = trial("", "one\nworkers.count is \"x\"\n", Exit::Code(64)).verdict().unwrap_err();
        assert_eq!(said, "it refuses with exit code 64, it says: workers.count is \"x\"");
        for silent in ["", "hello\n", "{}", "{\"handoff\":\"x\"}"] {
            assert!(trial(silent, "", Exit::Code(0)).verdict().unwrap_err().contains("no fleet"), "{silent}");
        }
        let advice = "error: unexpected argument\n\nFor more information, try\n";
        assert!(
            trial("", advice, Exit::Code(64))
                .verdict()
                .unwrap_err()
                .ends_with("says: error: unexpected argument")
        );
        let newer = trial("{\"handoff\":99,\"build\":\"x\"}", "", Exit::Code(0)).verdict().unwrap_err();
        assert!(newer.contains("version 99"), "{newer}");
    }
}
