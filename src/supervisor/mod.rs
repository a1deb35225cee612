//! The supervisor: one loop that waits, reaps, plans and acts.
//!
//! It is one thread and knows no tokio, no HTTP and no Redis protocol: a process that has used tokio must not fork
//! workers that use it. It owns the slots, and the slots own the listening sockets.

mod act;
mod announce;
pub mod autoscale;
pub mod backoff;
mod log;
pub mod orders;
pub mod plan;
mod private;
mod reap;
pub mod recycle;
pub mod redis_server;
mod reload;
pub mod rollout;
mod scale;
pub mod senses;
pub mod slot;
mod spawn;
pub mod stats;
mod status;
pub mod vigil;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::time::Duration;

use orders::Waiter;
use orders::happened;
use plan::Plan;
use plan::Target;
use plan::View;
use private::Private;
use reap::Report;
use redis_server::RedisServer;
use rollout::Rollout;
use senses::Care;
use senses::Senses;
use slot::Slot;
pub use spawn::Seat;
use stats::Stats;

use crate::config::schema::Steering;
use crate::control::events::EventLog;
use crate::control::rates::Window;
use crate::control::server::Server;
use crate::control::status::Decision;
use crate::control::status::Finished;
use crate::listener::Addresses;
use crate::listener::SlotListeners;
use crate::scoreboard::Reason;
use crate::scoreboard::Scoreboard;
use crate::sys::fd;
use crate::sys::fd::Interest;
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
    (Signal::SIGHUP, "reload", "read the configuration anew and bring it into one slot after another"),
    (Signal::SIGUSR1, "reopen logs", "open the log's file again, in every process"),
    (Signal::SIGTTIN, "scale +1", "one worker more"),
    (Signal::SIGTTOU, "scale -1", "one worker less, at least one"),
    (Signal::SIGCHLD, "(internal)", "a worker, or an orphan of PID 1, ended"),
];

/// Signals that have no meaning yet but must not end a fleet by their default action.
const IGNORED: &[Signal] = &[Signal::SIGUSR2, Signal::SIGPIPE];

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

/// Time that rates are measured in.
const SAMPLED: Duration = Duration::from_secs(1);

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
    /// How long the first worker of a new generation is watched before the others follow.
    pub probation: Duration,
    /// Longest drain.
    pub drain_timeout: Duration,
    /// Most leaving workers of a slot.
    pub leaving: usize,
    /// How new connections are spread over the slots.
    pub steering: Steering,
    /// What it looks after besides crashes.
    pub care: Care,
    /// Time between two lines of figures in the log; zero: none.
    pub stats_interval: Duration,
}

/// What a configuration that was read anew means for the supervisor.
#[derive(Debug, Clone)]
pub struct Reloaded {
    /// How patient it is from now on.
    pub settings: Settings,
    /// The number of workers, if it was changed.
    pub workers: Option<usize>,
    /// Names of the settings that have another value.
    pub changed: Vec<String>,
    /// Those of them that a reload cannot change.
    pub pinned: Vec<Pinned>,
}

/// A setting that a reload cannot change.
#[derive(Debug, Clone)]
pub struct Pinned {
    /// Its name.
    pub name: String,
    /// What would change it.
    pub needs: &'static str,
}

/// The program around the supervisor: it knows the configuration and what a worker does.
pub trait Host {
    /// A worker's whole life: from its seat to its exit code. Called in the worker's own process.
    fn work(&self, seat: Seat) -> u8;

    /// Reads the configuration anew, for workers of this generation.
    ///
    /// # Errors
    /// What is wrong with it, in one sentence; nothing is changed then.
    fn reload(&mut self, generation: u64) -> Result<Reloaded, String>;

    /// What this program is: a version and what tells one build of it from another.
    fn build(&self) -> &str;

    /// Forgets all generations but these.
    fn keep(&mut self, generations: &[u64]);
}

/// What a new fleet is made of.
#[derive(Debug)]
pub struct Start {
    /// How patient the supervisor is.
    pub settings: Settings,
    /// The signals it takes, from [`take_signals`].
    pub signals: Signals,
    /// From which more slots can be opened.
    pub addresses: Addresses,
    /// The listeners of each slot.
    pub listeners: Vec<SlotListeners>,
    /// The private Redis, if the fleet has one.
    pub redis: Option<RedisServer>,
    /// Where operators ask.
    pub control: Server,
}

/// One fleet's supervisor.
pub struct Supervisor<'a> {
    settings: Settings,
    scoreboard: &'a Scoreboard,
    host: &'a mut dyn Host,
    addresses: Addresses,
    slots: Vec<Slot>,
    /// The listeners of each slot; none once it has retired.
    sockets: Vec<Option<SlotListeners>>,
    reports: BTreeMap<Pid, Report>,
    private: Option<Private>,
    senses: Senses,
    target: Target,
    /// How many slots are to serve.
    wanted: usize,
    /// The generation every slot is to have, and the number of the next one.
    generation: u64,
    next_generation: u64,
    /// The oldest generation this program can start workers of.
    oldest: u64,
    rollout: Option<Rollout>,
    /// Whether a reload was asked for and has not begun.
    reload_waits: bool,
    /// What the settings were before the rollout.
    before: Settings,
    /// The number of workers that the configuration on its way names, if it is another one.
    workers_wanted: Option<usize>,
    /// Settings that the configuration on its way cannot change.
    pinned: Vec<Pinned>,
    ever_ready: bool,
    announced: bool,
    last_failure: String,
    killed: usize,
    control: Server,
    /// Operators who wait for a verdict.
    waiters: Vec<Waiter>,
    events: EventLog,
    /// Snapshots of the last moments, for rates.
    window: Window,
    /// What autoscaling decided last.
    decided: Option<Decision>,
    /// How the last rollout ended.
    last_rollout: Option<Finished>,
    /// What workers of older generations run, where it is not what this program is.
    builds: BTreeMap<u64, String>,
    /// Workers as the configuration names them.
    configured: usize,
    stats: Stats,
    /// Which slots new connections may go to.
    steered: Vec<bool>,
    /// And how they are chosen among those.
    steered_by: Steering,
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
            .field("generation", &self.generation)
            .field("slots", &self.slots)
            .finish_non_exhaustive()
    }
}

impl<'a> Supervisor<'a> {
    /// A supervisor over these listeners, one slot each.
    ///
    /// # Errors
    /// When the kernel refuses the life-line.
    pub fn new(start: Start, scoreboard: &'a Scoreboard, host: &'a mut dyn Host) -> io::Result<Self> {
        let (lifeline, held) = fd::pipe()?;
        proc::adopt_orphans()?;
        let wanted = start.listeners.len();
        scoreboard.set_slots(wanted);
        let generation = scoreboard.generation();
        Ok(Self {
            settings: start.settings,
            before: start.settings,
            scoreboard,
            host,
            addresses: start.addresses,
            slots: vec![Slot::new(generation); wanted],
            sockets: start.listeners.into_iter().map(Some).collect(),
            reports: BTreeMap::new(),
            private: start.redis.map(Private::new),
            senses: Senses::new(),
            target: Target::Serve,
            wanted,
            generation,
            next_generation: generation + 1,
            oldest: generation,
            rollout: None,
            reload_waits: false,
            workers_wanted: None,
            pinned: Vec::new(),
            ever_ready: false,
            announced: false,
            last_failure: String::from("no worker was started"),
            killed: 0,
            control: start.control,
            waiters: Vec::new(),
            events: EventLog::default(),
            window: Window::new(SAMPLED),
            decided: None,
            last_rollout: None,
            builds: BTreeMap::new(),
            configured: wanted,
            steered: vec![true; wanted],
            steered_by: start.settings.steering,
            signals: start.signals,
            stats: Stats::new(start.settings.stats_interval, time::monotonic(), &scoreboard.snapshot()),
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
            self.begin_reload(now);
            let followed = self.follow_rollout(now);
            self.follow_orders(now);
            let looked = self.look(now);
            let resized = self.resize();
            let plan = self.plan(now);
            let acted = resized || !plan.actions.is_empty();
            for action in plan.actions {
                if let Some(outcome) = self.act(action, now) {
                    self.stop_private_redis();
                    self.farewell(&outcome);
                    return Ok(outcome);
                }
            }
            if !acted {
                self.revive_private_redis(now);
                self.announce();
                self.steer();
                let sampled = self.sample(now);
                let logged = self.log_stats(now);
                let wakes = [plan.wake_at, followed, looked, sampled, logged];
                self.wait(wakes.into_iter().flatten().min(), now)?;
                self.read_signals()?;
                self.take_orders();
            }
        }
    }

    fn plan(&self, now: Duration) -> Plan {
        let view = View {
            target: self.target,
            slots: &self.slots,
            generation: self.generation,
            oldest: self.oldest,
            rollout: self.rollout.as_ref().map_or(Reason::Reload, |rollout| rollout.kind.reason()),
            canary: self.rollout.as_ref().and_then(|rollout| rollout.canary(&self.slots)),
            ever_ready: self.ever_ready,
            probation: self.settings.probation,
            drain_timeout: self.settings.drain_timeout,
            leaving: self.settings.leaving,
        };
        plan::plan(&view, now)
    }

    /// Sleeps until a signal, a report or the next deadline.
    fn wait(&self, wake_at: Option<Duration>, now: Duration) -> io::Result<()> {
        let restart =
            self.private.as_ref().filter(|private| private.pid.is_none()).map(|private| private.restart_at);
        let wake_at = wake_at.into_iter().chain(restart).min();
        let timeout = wake_at.map(|at| at.saturating_sub(now));
        let reports = self.reports.values().filter_map(|report| Some(report.pipe.as_ref()?.as_fd()));
        let own = std::iter::once(self.signals.as_fd()).chain(reports).map(|fd| (fd, Interest::Read));
        let fds: Vec<_> = own.chain(self.control.watched()).collect();
        fd::wait(&fds, timeout).map(|_| ())
    }

    fn read_signals(&mut self) -> io::Result<()> {
        while let Some(signal) = self.signals.next()? {
            match (signal, self.target) {
                (Signal::SIGTERM | Signal::SIGINT, Target::Serve) => self.aim(Target::Stop, signal.as_str()),
                (Signal::SIGINT, Target::Stop) => self.aim(Target::StopNow, signal.as_str()),
                (Signal::SIGQUIT, Target::Serve | Target::Stop) => self.aim(Target::StopNow, signal.as_str()),
                (Signal::SIGHUP, Target::Serve) => self.want_reload(),
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

    fn aim(&mut self, target: Target, by: &str) {
        let what = if target == Target::StopNow { "stopping at once" } else { "stopping: workers drain" };
        tracing::info!(by, "{what}");
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
