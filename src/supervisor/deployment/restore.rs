//! A supervisor written down, and one that goes on from it in another program.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use crate::config::settings::RedisUrl;
use crate::control::server::ControlServer;
use crate::listener::shared_queue::SharedQueue;
use crate::listener::{ListenAddresses, Listener, SlotListeners};
use crate::scoreboard::Scoreboard;
use crate::status::rates::RateWindow;
use crate::supervisor::deployment::handoff::{Handoff, HandoffFds, PrivateRedisState, StatusPipeState};
use crate::supervisor::deployment::rollout::{DeploymentKind, Rollout, RolloutDirection};
use crate::supervisor::deployment::takeover::{PreviousProgram, UpgradeState};
use crate::supervisor::deployment::takeover_env::{TakeoverDirection, TakeoverEnv};
use crate::supervisor::effects::event_now;
use crate::supervisor::monitor::HealthMonitor;
use crate::supervisor::orphans::OrphanedWorkers;
use crate::supervisor::private_redis::PrivateRedis;
use crate::supervisor::private_redis::server::PrivateRedisServer;
use crate::supervisor::reporting::stats::StatsLogger;
use crate::supervisor::run_dir::RunDir;
use crate::supervisor::run_dir_check::RunDirCheck;
use crate::supervisor::slots::exits::StatusPipe;
use crate::supervisor::slots::plan::DesiredState;
use crate::supervisor::sockets::{ListenerFd, SlotFds};
use crate::supervisor::{
    ProgramSpec, RATE_WINDOW, ReloadedConfig, Supervisor, SupervisorSettings, WorkerHost, service_manager,
    signals,
};
use crate::sys::process::Pid;
use crate::sys::signal::SignalReader;
use crate::sys::startup::has_terminal;
use crate::sys::{clock, exec, path};
use crate::{config, scoreboard};

/// Copies of what the program before has left open; the originals stay until [`settle`].
#[derive(Debug)]
pub struct InheritedResources {
    lifeline: OwnedFd,
    lifeline_write: OwnedFd,
    shared_queue: Option<SharedQueue>,
    sockets: Vec<Option<SlotListeners>>,
    status_pipes: BTreeMap<Pid, StatusPipe>,
    private_redis: Option<PrivateRedis>,
}

impl InheritedResources {
    /// Copies all of them.
    ///
    /// # Errors
    /// When one was not handed over, or no descriptor is left.
    pub fn duplicate(state: &Handoff) -> io::Result<Self> {
        let listener = |given: &ListenerFd| -> io::Result<Listener> {
            Ok(Listener { socket: exec::duplicate_inherited(given.fd)?.into(), owner: given.owner })
        };
        let slot = |numbers: &SlotFds| -> io::Result<SlotListeners> {
            let all = |given: &[ListenerFd]| given.iter().map(listener).collect::<Result<_, _>>();
            Ok(SlotListeners { public: all(&numbers.public)?, admin: all(&numbers.admin)? })
        };
        let sockets = state.sockets.iter().map(|slot_sockets| slot_sockets.as_ref().map(slot).transpose());
        let report = |(pid, saved): (&i32, &StatusPipeState)| -> io::Result<(Pid, StatusPipe)> {
            let pipe = saved.pipe.map(|fd| exec::duplicate_inherited(fd).map(File::from)).transpose()?;
            Ok((Pid::from_raw(*pid), StatusPipe { pipe, text: saved.text.clone(), frames: String::new() }))
        };
        let redis = state.redis.as_ref().map(|redis| -> io::Result<PrivateRedis> {
            let lock = exec::duplicate_inherited(redis.lock)?.into();
            let server = PrivateRedisServer::restore(redis.program.clone(), redis.folder.clone(), lock);
            let times = (redis.started, redis.restart_at);
            Ok(PrivateRedis::restore(server, redis.pid.map(Pid::from_raw), times, redis.backoff))
        });
        let shared = state.descriptors.shared.map(|[entrance, exit]| -> io::Result<SharedQueue> {
            let bells = state.descriptors.bells.map(|bells| bells.map(exec::duplicate_inherited));
            SharedQueue::from_parts(
                [exec::duplicate_inherited(entrance)?, exec::duplicate_inherited(exit)?],
                bells,
            )
        });
        Ok(Self {
            shared_queue: shared.transpose()?,
            lifeline: exec::duplicate_inherited(state.descriptors.lifeline)?,
            lifeline_write: exec::duplicate_inherited(state.descriptors.lifeline_write)?,
            sockets: sockets.collect::<Result<_, _>>()?,
            status_pipes: state.status_pipes.iter().map(report).collect::<Result<_, _>>()?,
            private_redis: redis.transpose()?,
        })
    }

    /// Where the private Redis is reached, if the fleet has one.
    pub fn private_redis_url(&self) -> Option<RedisUrl> {
        self.private_redis.as_ref().map(|private| RedisUrl::from_socket_path(&private.server.socket_path()))
    }
}

/// Closes the originals of everything that was copied: from now on this program has the fleet.
pub fn close_originals(state: &Handoff, takeover: &TakeoverEnv) {
    let old = match takeover.direction {
        TakeoverDirection::Forward { old } => Some(old),
        TakeoverDirection::Back { .. } => None,
    };
    for fd in state.inherited_fds().into_iter().chain([takeover.state]).chain(old) {
        // What was not handed over is not there to be closed.
        drop(exec::adopt_fd(fd));
    }
}

/// Which way the fleet came to this program.
#[derive(Debug)]
pub enum Takeover {
    /// This is the new one: it has to prove itself slot by slot.
    Forward {
        /// The one before it.
        old: Box<PreviousProgram>,
        /// What is different about its configuration.
        reloaded: Box<ReloadedConfig>,
    },
    /// This is the old one, again.
    Back {
        /// Why the new one could not take over; none when its rollout failed.
        reason: Option<String>,
    },
}

/// What a supervisor goes on with, besides the state.
#[derive(Debug)]
pub struct RestoreOptions<'a> {
    /// How patient it is.
    pub settings: SupervisorSettings,
    /// The signals it takes, from [`crate::supervisor::take_signals`].
    pub signals: SignalReader,
    /// The program it runs as.
    pub program: ProgramSpec,
    /// The run folder.
    pub run_dir: &'a RunDir,
    /// What was left open.
    pub inherited: InheritedResources,
    /// Which way it came.
    pub takeover: Takeover,
}

impl<'a> Supervisor<'a> {
    /// Everything another program needs to go on from here.
    ///
    /// # Errors
    /// None today; what cannot be written is found out by writing it.
    pub(in crate::supervisor) fn create_handoff(&self) -> io::Result<Handoff> {
        let number = |fd: &dyn AsRawFd| fd.as_raw_fd();
        let socket = |listener: &Listener| ListenerFd { fd: listener.as_raw_fd(), owner: listener.owner };
        let sockets = |slot: &SlotListeners| SlotFds {
            public: slot.public.iter().map(socket).collect(),
            admin: slot.admin.iter().map(socket).collect(),
        };
        let status_pipe_state = |(pid, report): (&Pid, &StatusPipe)| {
            let pipe = report.pipe.as_ref().map(|pipe| pipe.as_raw_fd());
            (pid.as_raw(), StatusPipeState { pipe, text: report.text.clone() })
        };
        let redis = |private: &PrivateRedis| PrivateRedisState {
            program: private.server.program().into(),
            folder: private.server.folder().into(),
            lock: private.server.lock().as_raw_fd(),
            pid: private.pid.map(Pid::as_raw),
            started: private.started,
            restart_at: private.restart_at,
            backoff: private.backoff,
        };
        let path = self.program.path.clone().into_os_string();
        let (lock, folder) = self.run_dir.fds();
        Ok(Handoff {
            build: self.host.build().to_owned(),
            arguments: std::iter::once(path).chain(self.program.arguments.iter().cloned()).collect(),
            environment: config::process_environment(),
            inputs: self.host.config_inputs(self.scoreboard.generation()),
            layout: scoreboard::LAYOUT_VERSION,
            descriptors: HandoffFds {
                scoreboard: self.scoreboard.as_fd().as_raw_fd(),
                lock,
                folder: Some(folder),
                working_dir: self.working_dir.as_ref().map(AsRawFd::as_raw_fd),
                lifeline: number(&self.lifeline),
                lifeline_write: number(&self.lifeline_write),
                shared: self.shared_queue.as_ref().map(SharedQueue::end_fds),
                bells: self.shared_queue.as_ref().map(SharedQueue::wake_fds),
            },
            slots: self.slots.clone(),
            sockets: self.sockets.iter().map(|slot| slot.as_ref().map(sockets)).collect(),
            status_pipes: self.status_pipes.iter().map(status_pipe_state).collect(),
            redis: self.private_redis.as_ref().map(redis),
            desired_slots: self.desired_slots,
            generation: self.generation,
            next_generation: self.next_generation,
            rollout: self.rollout.clone(),
            reload_queued: self.reload_queued,
            ever_ready: self.ever_ready,
            announced: self.announced,
            killed: self.killed,
            control: self.control.save(),
            pending_commands: self.pending_commands.clone(),
            last_rollout: self.last_rollout.clone(),
            builds: self.builds.clone(),
            configured_workers: self.configured_workers,
        })
    }

    /// Goes on from a state.
    ///
    /// # Errors
    /// When the operating system refuses what a supervisor cannot live without.
    pub fn restore(
        state: Handoff,
        with: RestoreOptions<'a>,
        scoreboard: &'a Scoreboard,
        host: &'a mut dyn WorkerHost,
    ) -> io::Result<Self> {
        signals::adopt_orphans();
        let inherited = with.inherited;
        let first = inherited.sockets.iter().flatten().next().ok_or(io::ErrorKind::NotConnected)?;
        let addresses = ListenAddresses::from_slot(first)?;
        let mut supervisor = Self {
            settings: with.settings,
            settings_before_rollout: with.settings,
            scoreboard,
            run_dir: with.run_dir,
            run_dir_check: RunDirCheck::default(),
            working_dir: path::open_working_folder().ok(),
            program: with.program,
            addresses,
            slots: state.slots,
            sockets: inherited.sockets,
            status_pipes: inherited.status_pipes,
            orphans: OrphanedWorkers::default(),
            private_redis: inherited.private_redis,
            desired_state: DesiredState::Running,
            desired_slots: state.desired_slots,
            generation: state.generation,
            next_generation: state.next_generation,
            oldest_generation: state.generation,
            rollout: state.rollout,
            upgrade: UpgradeState::Idle,
            reload_queued: state.reload_queued,
            configured_after_rollout: None,
            ever_ready: state.ever_ready,
            announced: state.announced,
            last_failure: String::from("no worker was started"),
            killed: state.killed,
            unchanged_settings: Vec::new(),
            control: ControlServer::restore(state.control)?,
            pending_commands: state.pending_commands,
            rate_window: RateWindow::new(RATE_WINDOW),
            last_rollout: state.last_rollout,
            builds: state.builds,
            configured_workers: state.configured_workers,
            steered_slots: Vec::new(),
            steering_mode: with.settings.steering,
            scaling_decision: None,
            monitor: HealthMonitor::new(),
            stats: StatsLogger::new(with.settings.stats_interval, clock::monotonic(), &scoreboard.snapshot()),
            signals: with.signals,
            had_terminal: has_terminal(),
            service_notifier: service_manager::service_notifier(&*host),
            host,
            // Workers of a program that had none keep what they accept; those to come share a new one.
            shared_queue: inherited.shared_queue.or_else(crate::supervisor::open_shared_queue),
            lifeline: inherited.lifeline,
            lifeline_write: inherited.lifeline_write,
        };
        supervisor.start_rollout_after_takeover(with.takeover, state.build, clock::monotonic());
        Ok(supervisor)
    }

    /// `build` is the one that wrote the state.
    fn start_rollout_after_takeover(&mut self, coming: Takeover, build: String, now: Duration) {
        let at_work: Vec<u64> =
            self.slots.iter().flat_map(|slot| slot.workers.iter().map(|worker| worker.generation)).collect();
        self.builds.retain(|generation, _| at_work.contains(generation));
        match coming {
            Takeover::Forward { old, reloaded } => {
                let to = self.next_generation;
                let own = self.host.build().to_owned();
                tracing::info!(
                    generation = to,
                    from = old.build,
                    build = own,
                    "upgrade: build {own} has the fleet"
                );
                self.record_event(
                    event_now("upgrade_started", format!("build {own} has the fleet, after {build}"))
                        .generation(to),
                );
                self.notify_reloading("upgrading", now);
                self.builds.insert(self.generation, build);
                self.on_upgrade_started(to);
                self.upgrade = UpgradeState::RollingOut(old);
                self.apply_settings(*reloaded);
                self.start_rollout(DeploymentKind::Upgrade, to, now);
                self.oldest_generation = to;
            }
            Takeover::Back { reason: Some(reason) } => {
                let direction = RolloutDirection::RollingBack { reason };
                let (from, to) = (self.generation, self.next_generation);
                self.rollout =
                    Some(Rollout { kind: DeploymentKind::Upgrade, from, to, direction, started: now });
                self.next_generation = to + 1;
                self.on_upgrade_started(to);
            }
            Takeover::Back { reason: None } => {
                self.builds.insert(self.next_generation.saturating_sub(1), build);
            }
        }
    }
}
