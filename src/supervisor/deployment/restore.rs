//! A supervisor written down, and one that goes on from it in another program.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use crate::control::event_kind::EventKind;
use crate::control::server::ControlServer;
use crate::listener::shared_queue::SharedQueue;
use crate::listener::{ListenAddresses, Listener, SlotListeners};
use crate::scoreboard::Scoreboard;
use crate::supervisor::deployment::handoff::{Handoff, HandoffFds, PrivateRedisState, StatusPipeState};
use crate::supervisor::deployment::inherited::{RestoreOptions, Takeover};
use crate::supervisor::deployment::rollout::DeploymentKind;
use crate::supervisor::deployment::state::{Deployments, DeploymentsState, RolloutContext};
use crate::supervisor::effects::event_now;
use crate::supervisor::lifecycle::Lifecycle;
use crate::supervisor::monitor::HealthMonitor;
use crate::supervisor::operators::Operators;
use crate::supervisor::orphans::OrphanedWorkers;
use crate::supervisor::private_redis::PrivateRedis;
use crate::supervisor::reporting::Reporting;
use crate::supervisor::run_dir_check::RunDirCheck;
use crate::supervisor::slots::addresses_change::AddressesChange;
use crate::supervisor::slots::status_pipe::StatusPipe;
use crate::supervisor::slots::table;
use crate::supervisor::slots::table::SlotTable;
use crate::supervisor::sockets::{ListenerFd, SlotFds};
use crate::supervisor::{Supervisor, WorkerHost, service_manager, signals};
use crate::sys::process::Pid;
use crate::sys::{clock, process};
use crate::{config, scoreboard};

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
        let path = self.deployment.program().path.clone().into_os_string();
        let (lock, folder) = self.run_dir.folder.fds();
        let deployment = self.deployment.save();
        Ok(Handoff {
            build: self.host.build().to_owned(),
            arguments: std::iter::once(path)
                .chain(self.deployment.program().arguments.iter().cloned())
                .collect(),
            environment: config::process_environment(),
            inputs: self.host.config_inputs(self.scoreboard.generation()),
            layout: scoreboard::LAYOUT_VERSION,
            descriptors: HandoffFds {
                scoreboard: self.scoreboard.file()?.as_raw_fd(),
                lock,
                folder: Some(folder),
                working_dir: self.lifecycle.working_dir.as_ref().map(AsRawFd::as_raw_fd),
                lifeline: number(&self.lifecycle.lifeline),
                lifeline_write: number(&self.lifecycle.lifeline_write),
                shared: self.slots.shared_queue.as_ref().map(SharedQueue::end_fds),
                bells: self.slots.shared_queue.as_ref().map(SharedQueue::wake_fds),
            },
            slots: self.slots.entries.clone(),
            sockets: self.slots.sockets.iter().map(|slot| slot.as_ref().map(sockets)).collect(),
            status_pipes: self.slots.status_pipes.iter().map(status_pipe_state).collect(),
            redis: self.private_redis.as_ref().map(redis),
            desired_slots: self.slots.desired,
            generation: deployment.generation,
            next_generation: deployment.next_generation,
            rollout: deployment.rollout,
            reload_queued: deployment.reload_queued,
            ever_ready: self.lifecycle.ever_ready,
            announced: self.lifecycle.announced,
            killed: self.lifecycle.killed,
            control: self.operators.control.save(),
            pending_commands: self.operators.pending.clone(),
            last_rollout: deployment.last.map(Into::into),
            builds: deployment.builds,
            configured_workers: self.slots.configured,
            instances: self.scoreboard.instance_count(),
            companion: process::companion().map(Pid::as_raw),
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
        // A program that wrote no number has added transferred connections to it: by their sum, each worker's share of a
        // limit would be next to nothing until the next heartbeat.
        scoreboard.set_instance_count(state.instances);
        process::set_companion(state.companion.map(Pid::from_raw));
        let inherited = with.inherited;
        let first = inherited.sockets.iter().flatten().next().ok_or(io::ErrorKind::NotConnected)?;
        let addresses = ListenAddresses::from_slot(first)?;
        let deployment = DeploymentsState {
            rollout: state.rollout,
            reload_queued: state.reload_queued,
            generation: state.generation,
            next_generation: state.next_generation,
            builds: state.builds,
            last: state.last_rollout.map(Into::into),
        };
        let slots = SlotTable {
            entries: state.slots,
            sockets: inherited.sockets,
            status_pipes: inherited.status_pipes,
            addresses,
            desired: state.desired_slots,
            configured: state.configured_workers,
            steered: Vec::new(),
            steering_mode: with.settings.steering,
            // Workers of a program that had none keep what they accept; those to come share a new one.
            shared_queue: inherited.shared_queue.or_else(table::open_shared_queue),
            addresses_change: AddressesChange::default(),
        };
        let lifecycle = Lifecycle {
            ever_ready: state.ever_ready,
            announced: state.announced,
            killed: state.killed,
            ..Lifecycle::new(with.signals, (inherited.lifeline, inherited.lifeline_write))
        };
        let control = ControlServer::restore(state.control)?;
        let mut supervisor = Self {
            settings: with.settings,
            scoreboard,
            slots,
            deployment: Deployments::restore(deployment, with.program, with.settings),
            monitor: HealthMonitor::new(),
            operators: Operators { control, pending: state.pending_commands },
            private_redis: inherited.private_redis,
            lifecycle,
            reporting: Reporting::new(with.settings.stats_interval, scoreboard, &*host),
            run_dir: RunDirCheck::new(with.run_dir),
            orphans: OrphanedWorkers::default(),
            host,
        };
        supervisor.start_rollout_after_takeover(with.takeover, state.build, clock::monotonic());
        Ok(supervisor)
    }

    /// `build` is the one that wrote the state.
    fn start_rollout_after_takeover(&mut self, coming: Takeover, build: String, now: Duration) {
        let at_work: Vec<u64> = self
            .slots
            .entries
            .iter()
            .flat_map(|slot| slot.workers.iter().map(|worker| worker.generation))
            .collect();
        self.deployment.retain_builds(&at_work);
        match coming {
            Takeover::Forward { old, reloaded, change } => {
                let to = self.deployment.next_generation();
                self.slots.addresses_change.start(to, change);
                let own = self.host.build().to_owned();
                tracing::info!(
                    generation = to,
                    from = old.build,
                    build = own,
                    "upgrade: build {own} took over"
                );
                let text = format!("build {own} took over from {build}");
                self.record_event(event_now(EventKind::UpgradeTookOver, text).generation(to));
                service_manager::notify_reloading(&self.reporting.service_notifier, "upgrading", now);
                self.operators.on_upgrade_started(to);
                let context = RolloutContext { previous: Some(old), ..self.apply_settings(*reloaded) };
                let to = self.deployment.start_upgrade_rollout(build, context, now);
                self.on_rollout_started(DeploymentKind::Upgrade, to);
            }
            Takeover::Back { reason: Some(reason) } => {
                let to = self.deployment.start_upgrade_rollback(reason, self.settings, now);
                self.operators.on_upgrade_started(to);
            }
            Takeover::Back { reason: None } => self.deployment.set_newest_build(build),
        }
    }
}
