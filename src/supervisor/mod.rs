//! The supervisor: one loop that waits, reaps, plans and acts.
//!
//! It is one thread and knows no tokio, no HTTP and no Redis protocol: a process that has used tokio must not fork
//! workers that use it. It owns the slots, and the slots own the listening sockets.

mod announce;
pub mod deployment;
mod effects;
mod log_output;
pub mod monitor;
pub mod operators;
pub mod orphans;
pub mod private_redis;
mod reporting;
pub mod run_dir;
mod run_dir_check;
mod service_manager;
mod settings;
mod signals;
pub mod slots;
pub mod sockets;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use monitor::HealthMonitor;
use operators::PendingCommand;
use orphans::OrphanedWorkers;
use private_redis::PrivateRedis;
use run_dir::RunDir;
use run_dir_check::RunDirCheck;
pub use settings::{ReloadError, ReloadedConfig, SupervisorSettings, UnchangedSetting, WorkerHost};
pub use signals::{SIGNALS, block_signals};

use crate::config::settings::SteeringMode;
use crate::control::server::ControlServer;
use crate::listener::shared_queue::SharedQueue;
use crate::listener::{ListenAddresses, SlotListeners};
use crate::scoreboard::{ExitReason, Scoreboard};
use crate::status::document::{FinishedRollout, ScalingDecision};
use crate::status::rates::RateWindow;
pub use crate::supervisor::deployment::program::ProgramSpec;
pub use crate::supervisor::deployment::restore::{
    InheritedResources, RestoreOptions, Takeover, close_originals,
};
use crate::supervisor::deployment::rollout::Rollout;
pub use crate::supervisor::deployment::takeover::PreviousProgram;
use crate::supervisor::deployment::takeover::UpgradeState;
use crate::supervisor::private_redis::server::PrivateRedisServer;
use crate::supervisor::reporting::stats::StatsLogger;
use crate::supervisor::service_manager::protocol::ServiceNotifier;
use crate::supervisor::slots::exits::StatusPipe;
use crate::supervisor::slots::plan::{DesiredState, Plan, PlanInput};
use crate::supervisor::slots::slot::Slot;
pub use crate::supervisor::slots::spawn::WorkerSpec;
use crate::sys::fd::Interest;
use crate::sys::process::Pid;
use crate::sys::signal::SignalReader;
use crate::sys::startup::has_terminal;
use crate::sys::{clock, fd, path};

/// Time that rates are measured in.
const RATE_WINDOW: Duration = Duration::from_secs(1);

/// How a fleet ended.
#[derive(Debug, PartialEq, Eq)]
pub enum SupervisorExit {
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
pub struct SupervisorOptions<'a> {
    /// How patient the supervisor is.
    pub settings: SupervisorSettings,
    /// The signals it takes, from [`take_signals`].
    pub signals: SignalReader,
    /// From which more slots can be opened.
    pub addresses: ListenAddresses,
    /// The listeners of each slot.
    pub listeners: Vec<SlotListeners>,
    /// The private Redis, if the fleet has one.
    pub redis: Option<PrivateRedisServer>,
    /// Where operators ask.
    pub control: ControlServer,
    /// The program this process runs.
    pub program: ProgramSpec,
    /// The run folder, which an upgrade hands over.
    pub run_dir: &'a RunDir,
    /// Workers of the fleet before this one.
    pub orphans: OrphanedWorkers,
}

/// One fleet's supervisor.
pub struct Supervisor<'a> {
    settings: SupervisorSettings,
    scoreboard: &'a Scoreboard,
    host: &'a mut dyn WorkerHost,
    run_dir: &'a RunDir,
    run_dir_check: RunDirCheck,
    program: ProgramSpec,
    /// The working folder, to come back to it.
    working_dir: Option<OwnedFd>,
    addresses: ListenAddresses,
    slots: Vec<Slot>,
    /// The listeners of each slot; none once it has retired.
    sockets: Vec<Option<SlotListeners>>,
    status_pipes: BTreeMap<Pid, StatusPipe>,
    orphans: OrphanedWorkers,
    private_redis: Option<PrivateRedis>,
    monitor: HealthMonitor,
    desired_state: DesiredState,
    /// How many slots are to serve.
    desired_slots: usize,
    /// The generation every slot is to have, and the number of the next one.
    generation: u64,
    next_generation: u64,
    /// The oldest generation this program can start workers of.
    oldest_generation: u64,
    rollout: Option<Rollout>,
    upgrade: UpgradeState,
    /// Whether a reload was asked for and has not begun.
    reload_queued: bool,
    /// What the settings were before the rollout.
    settings_before_rollout: SupervisorSettings,
    /// The number of workers that the configuration on its way names, if it is another one.
    configured_after_rollout: Option<usize>,
    /// Settings that the configuration on its way cannot change.
    unchanged_settings: Vec<UnchangedSetting>,
    ever_ready: bool,
    announced: bool,
    last_failure: String,
    killed: usize,
    control: ControlServer,
    /// Operators who wait for a verdict.
    pending_commands: Vec<PendingCommand>,
    /// Snapshots of the last moments, for rates.
    rate_window: RateWindow,
    /// What autoscaling decided last.
    scaling_decision: Option<ScalingDecision>,
    /// How the last rollout ended.
    last_rollout: Option<FinishedRollout>,
    /// What workers of older generations run, where it is not what this program is.
    builds: BTreeMap<u64, String>,
    /// Workers as the configuration names them.
    configured_workers: usize,
    stats: StatsLogger,
    /// The service manager, if there is one.
    service_notifier: ServiceNotifier,
    /// Which slots new connections may go to.
    steered_slots: Vec<bool>,
    /// And how they are chosen among those.
    steering_mode: SteeringMode,
    signals: SignalReader,
    /// Whether this process began on a terminal, which may be closed under it.
    had_terminal: bool,
    /// Connections on their way from one worker to another.
    shared_queue: Option<SharedQueue>,
    /// Read end, inherited by every worker.
    lifeline: OwnedFd,
    /// Write end; it closes when this process ends, whichever way, and that is what it is for.
    lifeline_write: OwnedFd,
}

impl std::fmt::Debug for Supervisor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervisor")
            .field("target", &self.desired_state)
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
    pub fn new(
        start: SupervisorOptions<'a>,
        scoreboard: &'a Scoreboard,
        host: &'a mut dyn WorkerHost,
    ) -> io::Result<Self> {
        let (lifeline, held) = fd::pipe()?;
        signals::adopt_orphans();
        let slot_count = start.listeners.len();
        scoreboard.set_slots(slot_count);
        let generation = scoreboard.generation();
        Ok(Self {
            settings: start.settings,
            settings_before_rollout: start.settings,
            scoreboard,
            run_dir: start.run_dir,
            working_dir: path::open_working_folder().ok(),
            run_dir_check: RunDirCheck::default(),
            program: start.program,
            addresses: start.addresses,
            slots: vec![Slot::new(generation); slot_count],
            sockets: start.listeners.into_iter().map(Some).collect(),
            status_pipes: BTreeMap::new(),
            orphans: start.orphans,
            private_redis: start.redis.map(PrivateRedis::new),
            monitor: HealthMonitor::new(),
            desired_state: DesiredState::Running,
            desired_slots: slot_count,
            generation,
            next_generation: generation + 1,
            oldest_generation: generation,
            rollout: None,
            upgrade: UpgradeState::Idle,
            reload_queued: false,
            configured_after_rollout: None,
            unchanged_settings: Vec::new(),
            ever_ready: false,
            announced: false,
            last_failure: String::from("no worker was started"),
            killed: 0,
            control: start.control,
            pending_commands: Vec::new(),
            rate_window: RateWindow::new(RATE_WINDOW),
            scaling_decision: None,
            last_rollout: None,
            builds: BTreeMap::new(),
            configured_workers: slot_count,
            steered_slots: vec![true; slot_count],
            steering_mode: start.settings.steering,
            signals: start.signals,
            had_terminal: has_terminal(),
            stats: StatsLogger::new(
                start.settings.stats_interval,
                clock::monotonic(),
                &scoreboard.snapshot(),
            ),
            service_notifier: service_manager::service_notifier(&*host),
            host,
            shared_queue: open_shared_queue(),
            lifeline,
            lifeline_write: held,
        })
    }

    /// Runs the fleet until it has stopped.
    ///
    /// # Errors
    /// When the operating system refuses what a supervisor cannot live without.
    pub fn run(mut self) -> io::Result<SupervisorExit> {
        self.start_private_redis();
        self.await_private_redis();
        self.run_loop()
    }

    /// Runs a fleet that is there already until it has stopped.
    ///
    /// # Errors
    /// As [`Supervisor::run`].
    pub fn run_loop(mut self) -> io::Result<SupervisorExit> {
        loop {
            self.reap()?;
            // READY may have come while this process was suspended: it counts before any deadline does.
            self.read_status_pipes();
            let now = clock::monotonic();
            // A rollout that fails with its program is the old program's to end.
            self.exec_previous_program();
            let followed =
                [self.advance_rollout(now), self.advance_upgrade(now), self.kill_overdue_orphans(now)];
            let followed = followed.into_iter().flatten().min();
            self.start_reload(now);
            self.report_progress(now);
            let monitor_at = self.monitor_workers(now);
            let resized = self.resize();
            let plan = self.make_plan(now);
            let acted = resized || !plan.actions.is_empty();
            for action in plan.actions {
                if let Some(outcome) = self.apply_action(action, now) {
                    self.stop_private_redis();
                    self.finish_commands(&outcome);
                    return Ok(outcome);
                }
            }
            if !acted {
                self.restart_private_redis(now);
                self.restore_run_dir(now);
                // Who reads that all serve may at once ask whom they like.
                self.steer();
                self.announce_serving();
                let sampled = self.sample_rates(now);
                let logged = self.log_stats(now);
                self.service_notifier.send_watchdog(now);
                let wakes = [
                    plan.wake_at,
                    followed,
                    monitor_at,
                    sampled,
                    logged,
                    self.service_notifier.next_watchdog(),
                ];
                self.wait(wakes.into_iter().flatten().min(), now)?;
                self.handle_signals()?;
                self.handle_commands();
            }
        }
    }

    fn make_plan(&self, now: Duration) -> Plan {
        let view = PlanInput {
            desired_state: self.desired_state,
            slots: &self.slots,
            generation: self.generation,
            oldest_generation: self.oldest_generation,
            replace_reason: self
                .rollout
                .as_ref()
                .map_or(ExitReason::Reload, |rollout| rollout.kind.replace_reason()),
            canary_slot: self.rollout.as_ref().and_then(|rollout| rollout.canary_slot(&self.slots)),
            ever_ready: self.ever_ready,
            canary_period: self.settings.canary_period,
            drain_timeout: self.settings.drain_timeout,
            max_draining_workers: self.settings.max_draining_workers,
        };
        slots::plan::plan(&view, now)
    }

    /// Sleeps until a signal, a report or the next deadline.
    fn wait(&self, wake_at: Option<Duration>, now: Duration) -> io::Result<()> {
        let restart = self
            .private_redis
            .as_ref()
            .filter(|private| private.pid.is_none())
            .map(|private| private.restart_at);
        let wake_at = wake_at.into_iter().chain(restart).min();
        let reports = self.status_pipes.values().filter_map(|report| Some(report.pipe.as_ref()?.as_fd()));
        let own = std::iter::once(self.signals.as_fd()).chain(reports).chain(self.preflight_pipes());
        let own = own.map(|fd| (fd, Interest::Read));
        let fds = own.chain(self.control.poll_fds());
        log_output::wait_for_fds(fds, wake_at, now)
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
