//! The signals of a supervisor: a verb each, and no work in a handler.

use std::io;

use crate::supervisor::Supervisor;
use crate::supervisor::history::happened;
use crate::supervisor::plan::Target;
use crate::sys::signal::Signal;
use crate::sys::signal::Signals;

/// The signals the supervisor takes, the verb each stands for, and what it does.
pub const SIGNALS: &[(Signal, &str, &str)] = &[
    (Signal::SIGTERM, "stop", "drain every worker, then end"),
    (Signal::SIGINT, "stop", "the same; a second one stops at once"),
    (Signal::SIGQUIT, "stop now", "kill every worker, then end"),
    (Signal::SIGHUP, "reload", "read the configuration anew and bring it into one slot after another"),
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
pub fn take_signals() -> io::Result<Signals> {
    let taken: Vec<Signal> = SIGNALS.iter().map(|row| row.0).chain(IGNORED.iter().copied()).collect();
    Signals::take(&taken)
}

impl Supervisor<'_> {
    /// Takes the signals that have come.
    pub(super) fn read_signals(&mut self) -> io::Result<()> {
        while let Some(signal) = self.signals.next()? {
            match (signal, self.target) {
                (Signal::SIGTERM | Signal::SIGINT, Target::Serve) => self.aim(Target::Stop, signal.as_str()),
                (Signal::SIGINT, Target::Stop) => self.aim(Target::StopNow, signal.as_str()),
                (Signal::SIGQUIT, Target::Serve | Target::Stop) => self.aim(Target::StopNow, signal.as_str()),
                (Signal::SIGHUP, Target::Serve) => self.want_reload(),
                (Signal::SIGUSR2, Target::Serve) => self.upgrade_by_signal(),
                (Signal::SIGTTIN, Target::Serve) => self.scale_by_signal(self.wanted + 1),
                (Signal::SIGTTOU, Target::Serve) => self.scale_by_signal(self.wanted - 1),
                (Signal::SIGUSR1, _) => self.reopen_logs(),
                (Signal::SIGCHLD | Signal::SIGPIPE, _) => {}
                (other, _) => tracing::debug!(signal = %other, "signal has nothing to do"),
            }
        }
        Ok(())
    }

    fn scale_by_signal(&mut self, wanted: usize) {
        if let Err(reason) = self.scale_to(wanted) {
            tracing::warn!(%reason, "not scaled: {reason}");
        }
    }

    /// Wants the fleet to end.
    pub(super) fn aim(&mut self, target: Target, by: &str) {
        let what = if target == Target::StopNow { "stopping at once" } else { "stopping: workers drain" };
        tracing::info!(by, "{what}");
        self.tell_stopping();
        self.note(happened("stopping", format!("{what} ({by})")));
        self.target = target;
        self.close_empty_seats();
    }

    /// Closes the listeners of slots without a worker: what came there would wait for nobody.
    fn close_empty_seats(&mut self) {
        for slot in 0..self.slots.len() {
            if self.slots[slot].workers.is_empty() {
                self.close_seat(slot);
            }
        }
    }
}
