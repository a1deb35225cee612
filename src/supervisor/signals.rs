//! The signals of a supervisor: a verb each, and no work in a handler.

use std::io;

use crate::supervisor::Supervisor;
use crate::supervisor::effects::event_now;
use crate::supervisor::slots::plan::DesiredState;
use crate::sys::process::Pid;
use crate::sys::signal::{ReceivedSignal, Signal, SignalReader};
use crate::sys::{process, signal, startup};

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
        tracing::warn!(%error, "orphans do not come to this process (PR_SET_CHILD_SUBREAPER): what workers leave behind is \
            not reaped here, and they begin with copies of what libraries keep per thread: {error}");
    }
}

/// What a hang-up stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HangUp {
    /// An operator's order.
    Reload,
    /// The terminal of a fleet in the foreground was closed: it ends as any program there does.
    Stop,
    /// The same, but the fleet was started so that it outlives its terminal (`nohup`).
    Ignore,
}

impl HangUp {
    /// `from_terminal`: the kernel sent it, or the shell of this session, whose terminal is gone.
    fn from_origin(from_terminal: bool, outlives_terminal: bool) -> Self {
        match (from_terminal, outlives_terminal) {
            (false, _) => Self::Reload,
            (true, true) => Self::Ignore,
            (true, false) => Self::Stop,
        }
    }
}

impl Supervisor<'_> {
    /// The kernel tells the foreground of a terminal that was closed; an interactive shell tells the rest of its jobs.
    fn on_hang_up(&mut self, sender: Option<Pid>) {
        let from_terminal = match sender {
            None => true,
            Some(pid) => self.had_terminal && startup::is_session_leader(pid) && !startup::has_terminal(),
        };
        match HangUp::from_origin(from_terminal, signal::ignores_hangup()) {
            HangUp::Reload => self.request_reload(),
            HangUp::Stop => self.set_desired_state(DesiredState::Stopping, "SIGHUP: the terminal was closed"),
            HangUp::Ignore => {
                tracing::info!("terminal closed; ignored: the fleet was started to outlive it (nohup)")
            }
        }
    }

    /// Takes the signals that have come.
    pub(super) fn handle_signals(&mut self) -> io::Result<()> {
        while let Some(ReceivedSignal { signal, sender }) = self.signals.next()? {
            match (signal, self.desired_state) {
                (Signal::SIGTERM | Signal::SIGINT, DesiredState::Running) => {
                    self.set_desired_state(DesiredState::Stopping, signal.as_str())
                }
                (Signal::SIGINT, DesiredState::Stopping) => {
                    self.set_desired_state(DesiredState::Killing, signal.as_str())
                }
                (Signal::SIGQUIT, DesiredState::Running | DesiredState::Stopping) => {
                    self.set_desired_state(DesiredState::Killing, signal.as_str())
                }
                (Signal::SIGHUP, DesiredState::Running) => self.on_hang_up(sender),
                (Signal::SIGUSR2, DesiredState::Running) => self.upgrade_by_signal(),
                (Signal::SIGTTIN, DesiredState::Running) => self.scale_by_signal(self.desired_slots + 1),
                (Signal::SIGTTOU, DesiredState::Running) => self.scale_by_signal(self.desired_slots - 1),
                (Signal::SIGUSR1, _) => self.reopen_logs(),
                (Signal::SIGCHLD | Signal::SIGPIPE, _) => {}
                (other, _) => tracing::debug!(signal = %other, "signal ignored"),
            }
        }
        Ok(())
    }

    fn scale_by_signal(&mut self, slots: usize) {
        if let Err(reason) = self.scale_to(slots) {
            tracing::warn!(%reason, "not scaled: {reason}");
        }
    }

    /// Wants the fleet to end.
    pub(super) fn set_desired_state(&mut self, target: DesiredState, by: &str) {
        let what =
            if target == DesiredState::Killing { "stopping at once" } else { "stopping: workers drain" };
        tracing::info!(by, "{what}");
        self.notify_stopping();
        self.record_event(event_now("fleet_stopping", format!("{what} ({by})")));
        self.desired_state = target;
        self.close_empty_slots();
    }

    /// Closes the listeners of slots without a worker: what came there would wait for nobody.
    fn close_empty_slots(&mut self) {
        for slot in 0..self.slots.len() {
            if self.slots[slot].workers.is_empty() {
                self.close_listeners(slot);
            }
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
