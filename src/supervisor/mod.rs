//! The supervisor: one loop that waits, reaps, plans and acts.
//!
//! It is one thread and knows no tokio, no HTTP and no Redis protocol: a process that has used tokio must not fork
//! workers that use it. It owns the slots, and the slots own the listening sockets.

mod act;
mod announce;
pub mod autoscale;
pub mod backoff;
pub mod handoff;
mod hangs;
mod history;
mod host;
mod keeper;
pub mod leftovers;
mod log;
pub mod notify;
pub mod orders;
pub mod plan;
mod private;
mod program;
mod reap;
pub mod recycle;
pub mod redis_server;
mod reload;
mod resume;
pub mod rollout;
pub mod run_dir;
mod scale;
pub mod senses;
mod service;
mod signals;
pub mod slot;
pub mod sockets;
mod spawn;
pub mod stats;
mod status;
pub mod ticket;
mod trial;
mod upgrade;
pub mod vigil;
mod watch;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::time::Duration;

pub use host::Host;
pub use host::Pinned;
pub use host::Refusal;
pub use host::Reloaded;
pub use host::Settings;
use keeper::Keeper;
use leftovers::Leftovers;
use notify::Notifier;
use orders::Waiter;
use plan::Plan;
use plan::Target;
use plan::View;
use private::Private;
pub use program::Program;
use reap::Report;
use redis_server::RedisServer;
pub use resume::Coming;
pub use resume::Resumption;
pub use resume::Taken;
pub use resume::settle;
use rollout::Rollout;
use run_dir::RunDir;
use senses::Senses;
pub use signals::SIGNALS;
pub use signals::take_signals;
use slot::Slot;
pub use spawn::Seat;
use stats::Stats;
pub use upgrade::Old;
use upgrade::Upgrade;
pub use watch::Watched;

use crate::config::schema::Steering;
use crate::control::rates::Window;
use crate::control::server::Server;
use crate::control::status::Decision;
use crate::control::status::Finished;
use crate::listener::Addresses;
use crate::listener::SlotListeners;
use crate::listener::shared::SharedQueue;
use crate::scoreboard::Reason;
use crate::scoreboard::Scoreboard;
use crate::sys::fd;
use crate::sys::fd::Interest;
use crate::sys::path;
use crate::sys::proc::Pid;
use crate::sys::signal::Signals;
use crate::sys::start::has_terminal;
use crate::sys::time;

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

/// What a new fleet is made of.
#[derive(Debug)]
pub struct Start<'a> {
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
    /// The program this process runs.
    pub program: Program,
    /// The run folder, which an upgrade hands over.
    pub run_dir: &'a RunDir,
    /// Workers of the fleet before this one.
    pub leftovers: Leftovers,
}

/// One fleet's supervisor.
pub struct Supervisor<'a> {
    settings: Settings,
    scoreboard: &'a Scoreboard,
    host: &'a mut dyn Host,
    run_dir: &'a RunDir,
    keeper: Keeper,
    program: Program,
    /// The working folder, to come back to it.
    home: Option<OwnedFd>,
    watched: Option<Watched>,
    addresses: Addresses,
    slots: Vec<Slot>,
    /// The listeners of each slot; none once it has retired.
    sockets: Vec<Option<SlotListeners>>,
    reports: BTreeMap<Pid, Report>,
    leftovers: Leftovers,
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
    upgrade: Upgrade,
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
    /// The service manager, if there is one.
    service: Notifier,
    /// Which slots new connections may go to.
    steered: Vec<bool>,
    /// And how they are chosen among those.
    steered_by: Steering,
    signals: Signals,
    /// Whether this process began on a terminal, which may be closed under it.
    had_terminal: bool,
    /// Connections on their way from one worker to another.
    shared: Option<SharedQueue>,
    /// Read end, inherited by every worker.
    lifeline: OwnedFd,
    /// Write end; it closes when this process ends, whichever way, and that is what it is for.
    lifeline_held: OwnedFd,
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
    pub fn new(start: Start<'a>, scoreboard: &'a Scoreboard, host: &'a mut dyn Host) -> io::Result<Self> {
        let (lifeline, held) = fd::pipe()?;
        signals::adopt_orphans();
        let wanted = start.listeners.len();
        scoreboard.set_slots(wanted);
        let generation = scoreboard.generation();
        Ok(Self {
            settings: start.settings,
            before: start.settings,
            scoreboard,
            run_dir: start.run_dir,
            home: path::working_folder().ok(),
            keeper: Keeper::default(),
            program: start.program,
            watched: None,
            addresses: start.addresses,
            slots: vec![Slot::new(generation); wanted],
            sockets: start.listeners.into_iter().map(Some).collect(),
            reports: BTreeMap::new(),
            leftovers: start.leftovers,
            private: start.redis.map(Private::new),
            senses: Senses::new(),
            target: Target::Serve,
            wanted,
            generation,
            next_generation: generation + 1,
            oldest: generation,
            rollout: None,
            upgrade: Upgrade::Idle,
            reload_waits: false,
            workers_wanted: None,
            pinned: Vec::new(),
            ever_ready: false,
            announced: false,
            last_failure: String::from("no worker was started"),
            killed: 0,
            control: start.control,
            waiters: Vec::new(),
            window: Window::new(SAMPLED),
            decided: None,
            last_rollout: None,
            builds: BTreeMap::new(),
            configured: wanted,
            steered: vec![true; wanted],
            steered_by: start.settings.steering,
            signals: start.signals,
            had_terminal: has_terminal(),
            stats: Stats::new(start.settings.stats_interval, time::monotonic(), &scoreboard.snapshot()),
            service: service::manager(&*host),
            host,
            shared: open_shared_queue(),
            lifeline,
            lifeline_held: held,
        })
    }

    /// Runs the fleet until it has stopped.
    ///
    /// # Errors
    /// When the operating system refuses what a supervisor cannot live without.
    pub fn run(mut self) -> io::Result<Outcome> {
        self.start_private_redis();
        self.await_private_redis();
        self.go_on()
    }

    /// Runs a fleet that is there already until it has stopped.
    ///
    /// # Errors
    /// As [`Supervisor::run`].
    pub fn go_on(mut self) -> io::Result<Outcome> {
        loop {
            self.reap()?;
            // READY may have come while this process was suspended: it counts before any deadline does.
            self.read_reports();
            let now = time::monotonic();
            // A rollout that fails with its program is the old program's to end.
            self.take_program_back();
            let followed = [
                self.follow_files(now),
                self.follow_rollout(now),
                self.follow_upgrade(now),
                self.follow_leftovers(now),
            ];
            let followed = followed.into_iter().flatten().min();
            self.begin_reload(now);
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
                self.keep_places(now);
                // Who reads that all serve may at once ask whom they like.
                self.steer();
                self.announce();
                let sampled = self.sample(now);
                let logged = self.log_stats(now);
                self.service.beat(now);
                let wakes = [plan.wake_at, followed, looked, sampled, logged, self.service.next_beat()];
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
        let reports = self.reports.values().filter_map(|report| Some(report.pipe.as_ref()?.as_fd()));
        let files = self.watched.iter().map(AsFd::as_fd);
        let own = std::iter::once(self.signals.as_fd()).chain(reports).chain(self.trial_pipes()).chain(files);
        let own = own.map(|fd| (fd, Interest::Read));
        let fds = own.chain(self.control.watched());
        log::wait(fds, wake_at, now)
    }
}

/// The queue of connections that workers pass on; without one each keeps what it accepts.
fn open_shared_queue() -> Option<SharedQueue> {
    let opened = SharedQueue::open();
    let warn = |error: &io::Error| {
        tracing::warn!(%error, "workers keep every connection the kernel gives them (listen.balance): {error}");
    };
    opened.inspect_err(warn).ok()
}
