//! The signals of a supervisor: a verb each, and no work in a handler.

use std::io;

use crate::sys::process;
use crate::sys::signal::{Signal, SignalReader};

/// The signals the supervisor takes, the verb each stands for, and what it does.
pub const SIGNALS: &[(Signal, &str, &str)] = &[
    (Signal::SIGTERM, "stop", "drain every worker, then end"),
    (Signal::SIGINT, "stop", "the same; a second one stops at once"),
    (Signal::SIGQUIT, "stop now", "kill every worker, then end"),
    (
        Signal::SIGHUP,
        "reload",
        "read the configuration anew and bring it into one slot after another; stop, when the terminal was closed",
    ),
    (Signal::SIGUSR1, "reopen logs", "open the log's file again, in every process"),
    (
        Signal::SIGUSR2,
        "upgrade",
        "become the program that lies where this one was started from, with the same pid",
    ),
    (Signal::SIGTTIN, "scale +1", "one worker more"),
    (Signal::SIGTTOU, "scale -1", "one worker less, at least one"),
    (Signal::SIGCHLD, "(internal)", "a worker, or an orphan of PID 1, ended"),
];

/// Signals that have no meaning yet but must not end a fleet by their default action.
const IGNORED: &[Signal] = &[Signal::SIGPIPE];

/// Takes the signals of a supervisor: from now on they wait to be read instead of ending the process.
///
/// To be called before anything is bound or started, so that a stop in that moment is a stop like any other.
///
/// # Errors
/// When the kernel refuses the descriptor.
pub fn block_signals() -> io::Result<SignalReader> {
    let taken: Vec<Signal> = SIGNALS.iter().map(|row| row.0).chain(IGNORED.iter().copied()).collect();
    SignalReader::block(&taken)
}

/// Has orphans of workers become children of this process, where the kernel knows how.
pub(super) fn adopt_orphans() {
    if let Err(error) = process::become_subreaper() {
        tracing::warn!(%error, "cannot become a subreaper (PR_SET_CHILD_SUBREAPER): what workers leave behind is not reaped here, and \
            they start with copies of what libraries keep per thread: {error}");
    }
}

/// What a hang-up stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HangUp {
    /// An operator's order.
    Reload,
    /// The terminal of a fleet in the foreground was closed: it ends as any program there does.
    Stop,
    /// The same, but the fleet was started so that it outlives its terminal (`nohup`).
    Ignore,
}

impl HangUp {
    /// `from_terminal`: the kernel sent it, or the shell of this session, whose terminal is gone.
    pub(super) fn from_origin(from_terminal: bool, outlives_terminal: bool) -> Self {
        match (from_terminal, outlives_terminal) {
            (false, _) => Self::Reload,
            (true, true) => Self::Ignore,
            (true, false) => Self::Stop,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hang_up_stops_a_fleet_only_if_its_terminal_was_closed() {
        assert_eq!(HangUp::from_origin(true, false), HangUp::Stop);
        assert_eq!(HangUp::from_origin(true, true), HangUp::Ignore);
        assert_eq!(HangUp::from_origin(false, false), HangUp::Reload);
        assert_eq!(HangUp::from_origin(false, true), HangUp::Reload);
    }
}
