//! The supervisor: one loop that waits, reaps, plans and acts.
//!
//! It is one thread and knows no tokio, no HTTP and no Redis protocol: a process that has used tokio must not fork
//! workers that use it. It owns the slots, and the slots own the listening sockets.

mod act;
pub mod backoff;
pub mod plan;
mod reap;
pub mod redis_server;
pub mod slot;
mod spawn;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::time::Duration;

use plan::Target;
use plan::View;
use redis_server::RedisServer;
use slot::Lifecycle;
use slot::Slot;
pub use spawn::Entry;
pub use spawn::Seat;

use crate::listener::SlotListeners;
use crate::scoreboard::Scoreboard;
use crate::scoreboard::cell::Order;
use crate::sys::fd;
use crate::sys::proc;
use crate::sys::proc::Pid;
use crate::sys::signal::Signal;
use crate::sys::signal::Signals;
use crate::sys::time;

/// The signals the supervisor takes, the verb each stands for, and what it does.
pub const SIGNALS: &[(Signal, &str, &str)] = &[
    (Signal::SIGTERM, "stop", "drain every worker, then end"),
    (Signal::SIGINT, "stop", "the same; a second one stops at once"),
    (Signal::SIGQUIT, "stop now", "kill every worker, then end"),
    (Signal::SIGCHLD, "(internal)", "a worker, or an orphan of PID 1, ended"),
];

/// Signals that have no meaning yet but must not end a fleet by their default action.
const IGNORED: &[Signal] =
    &[Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGTTIN, Signal::SIGTTOU, Signal::SIGPIPE];

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

/// How a fleet ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As wanted; this many workers had to be killed.
    Stopped {
        /// Workers that did not leave in time.
        killed: usize,
    },
    /// No worker could be brought up.
    BootFailed {
        /// What the last one said.
        reason: String,
    },
}

/// How patient the supervisor is.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Longest time until a worker is READY.
    pub boot_timeout: Duration,
    /// Longest drain.
    pub drain_timeout: Duration,
}

/// The private Redis, if the fleet has one.
#[derive(Debug)]
struct Private {
    server: RedisServer,
    /// Its process; none while it is stopped or waits to be restarted.
    pid: Option<Pid>,
    restart_at: Duration,
    backoff: backoff::Backoff,
    started: Duration,
}

/// One fleet's supervisor.
pub struct Supervisor<'a> {
    settings: Settings,
    scoreboard: &'a Scoreboard,
    entry: Entry<'a>,
    slots: Vec<Slot>,
    private: Option<Private>,
    target: Target,
    ever_ready: bool,
    announced: bool,
    last_failure: String,
    killed: usize,
    /// Which slots new connections may go to.
    steered: Vec<bool>,
    signals: Signals,
    /// Read end, inherited by every worker.
    lifeline: OwnedFd,
    /// Write end; it closes when this process ends, whichever way, and that is what it is for.
    _lifeline_held: OwnedFd,
}

impl std::fmt::Debug for Supervisor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervisor")
            .field("target", &self.target)
            .field("slots", &self.slots)
            .finish_non_exhaustive()
    }
}

impl<'a> Supervisor<'a> {
    /// A supervisor over these listeners, one slot each; `entry` is the life of a worker.
    ///
    /// # Errors
    /// When the kernel refuses the life-line.
    pub fn new(
        settings: Settings,
        signals: Signals,
        listeners: Vec<SlotListeners>,
        server: Option<RedisServer>,
        scoreboard: &'a Scoreboard,
        entry: Entry<'a>,
    ) -> io::Result<Self> {
        let (lifeline, held) = fd::pipe()?;
        proc::adopt_orphans()?;
        scoreboard.set_slots(listeners.len());
        let private = server.map(|server| Private {
            server,
            pid: None,
            restart_at: Duration::ZERO,
            backoff: backoff::Backoff::default(),
            started: Duration::ZERO,
        });
        Ok(Self {
            settings,
            scoreboard,
            entry,
            steered: vec![true; listeners.len()],
            slots: listeners.into_iter().map(Slot::new).collect(),
            private,
            target: Target::Serve,
            ever_ready: false,
            announced: false,
            last_failure: String::from("no worker was started"),
            killed: 0,
            signals,
            lifeline,
            _lifeline_held: held,
        })
    }

    /// Runs the fleet until it has stopped.
    ///
    /// # Errors
    /// When the operating system refuses what a supervisor cannot live without.
    pub fn run(mut self) -> io::Result<Outcome> {
        self.start_private_redis();
        self.await_private_redis();
        loop {
            self.reap()?;
            // READY may have come while this process was suspended: it counts before any deadline does.
            self.read_reports();
            let now = time::monotonic();
            let plan = plan::plan(&self.view(), now);
            let acted = !plan.actions.is_empty();
            for action in plan.actions {
                if let Some(outcome) = self.act(action, now) {
                    self.stop_private_redis();
                    return Ok(outcome);
                }
            }
            if !acted {
                self.revive_private_redis(now);
                self.announce();
                self.steer();
                self.wait(plan.wake_at, now)?;
                self.read_signals()?;
            }
        }
    }

    fn view(&self) -> View {
        View {
            target: self.target,
            slots: self.slots.iter().map(|slot| (slot.lifecycle, slot.backoff.early_deaths())).collect(),
            ever_ready: self.ever_ready,
            drain_timeout: self.settings.drain_timeout,
        }
    }

    /// Sleeps until a signal, a report or the next deadline.
    fn wait(&self, wake_at: Option<Duration>, now: Duration) -> io::Result<()> {
        let restart =
            self.private.as_ref().filter(|private| private.pid.is_none()).map(|private| private.restart_at);
        let wake_at = wake_at.into_iter().chain(restart).min();
        let timeout = wake_at.map(|at| at.saturating_sub(now));
        let reports = self.slots.iter().filter_map(|slot| Some(slot.report.as_ref()?.pipe.as_ref()?.as_fd()));
        let fds: Vec<_> = std::iter::once(self.signals.as_fd()).chain(reports).collect();
        fd::wait_readable(&fds, timeout).map(|_| ())
    }

    fn read_signals(&mut self) -> io::Result<()> {
        while let Some(signal) = self.signals.next()? {
            match (signal, self.target) {
                (Signal::SIGTERM | Signal::SIGINT, Target::Serve) => self.aim(Target::Stop, signal),
                (Signal::SIGINT, Target::Stop) => self.aim(Target::StopNow, signal),
                (Signal::SIGQUIT, Target::Serve | Target::Stop) => self.aim(Target::StopNow, signal),
                (Signal::SIGCHLD | Signal::SIGPIPE, _) => {}
                (other, _) => tracing::debug!(signal = %other, "signal has nothing to do"),
            }
        }
        Ok(())
    }

    fn aim(&mut self, target: Target, signal: Signal) {
        let what = if target == Target::StopNow { "stopping at once" } else { "stopping: workers drain" };
        tracing::info!(signal = %signal, "{what}");
        self.target = target;
        for slot in 0..self.slots.len() {
            self.scoreboard.cell(slot, 0).set_order(Order::Close);
        }
        self.close_empty_seats();
    }

    /// Closes the listeners of slots without a worker: what came there would wait for nobody.
    fn close_empty_seats(&self) {
        for slot in self.slots.iter().filter(|slot| slot.lifecycle.pid().is_none()) {
            slot.listeners.close();
        }
    }

    /// Keeps new connections off slots whose workers died early, until one of them is READY, as long as there are
    /// others.
    fn steer(&mut self) {
        let serves = |slot: &Slot| matches!(slot.lifecycle, Lifecycle::Ready { .. });
        let open: Vec<bool> =
            self.slots.iter().map(|slot| serves(slot) || slot.backoff.early_deaths() == 0).collect();
        if open == self.steered || self.target != Target::Serve {
            return;
        }
        if let Some(Err(error)) = self.slots.first().map(|first| first.listeners.steer(&open)) {
            tracing::warn!(%error, "cannot steer connections past a slot that waits: {error}");
        }
        self.steered = open;
    }

    /// Says once that every slot serves for the first time.
    fn announce(&mut self) {
        let ready = |slot: &Slot| matches!(slot.lifecycle, Lifecycle::Ready { .. });
        if self.announced || self.target != Target::Serve || !self.slots.iter().all(ready) {
            return;
        }
        self.announced = true;
        let joined = |addresses: Vec<String>| addresses.join(",");
        let Some(first) = self.slots.first() else { return };
        let public = first
            .listeners
            .public
            .iter()
            .filter_map(|one| Some(one.local_addr().ok()?.to_string()))
            .collect();
        let admin = first.listeners.admin.local_addr().map(|address| address.to_string()).unwrap_or_default();
        let url = first
            .listeners
            .public
            .first()
            .and_then(|one| one.local_addr().ok())
            .map(shown)
            .unwrap_or_default();
        tracing::info!(listen = joined(public), admin, workers = self.slots.len(), "serving on {url}");
    }
}

/// The address as a person types it.
fn shown(address: SocketAddr) -> String {
    match address.ip().is_unspecified() {
        true => format!("http://localhost:{}", address.port()),
        false => format!("http://{address}"),
    }
}
