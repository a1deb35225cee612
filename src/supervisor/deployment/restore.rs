//! A supervisor written down, and its parts as another program goes on with them.

use std::io;
use std::os::fd::AsRawFd;

use crate::control::server::ControlServer;
use crate::listener::shared_queue::SharedQueue;
use crate::listener::{ListenAddresses, Listener, SlotListeners};
use crate::scoreboard::Scoreboard;
use crate::supervisor::deployment::handoff::{Handoff, HandoffFds, PrivateRedisState, StatusPipeState};
use crate::supervisor::deployment::inherited::InheritedResources;
use crate::supervisor::deployment::program::ProgramSpec;
use crate::supervisor::deployment::state::{Deployments, DeploymentsState};
use crate::supervisor::lifecycle::Lifecycle;
use crate::supervisor::operators::Operators;
use crate::supervisor::private_redis::PrivateRedis;
use crate::supervisor::run_dir::RunDir;
use crate::supervisor::settings::{SupervisorSettings, WorkerHost};
use crate::supervisor::slots::addresses_change::AddressesChange;
use crate::supervisor::slots::status_pipe::StatusPipe;
use crate::supervisor::slots::table;
use crate::supervisor::slots::table::SlotTable;
use crate::supervisor::sockets::{ListenerFd, SlotFds};
use crate::sys::process;
use crate::sys::process::Pid;
use crate::sys::signal::SignalReader;
use crate::{config, scoreboard};

/// What a supervisor consists of, as far as another program needs it.
pub(in crate::supervisor) struct HandoffSources<'a> {
    pub(in crate::supervisor) host: &'a dyn WorkerHost,
    pub(in crate::supervisor) scoreboard: &'a Scoreboard,
    pub(in crate::supervisor) slots: &'a SlotTable,
    pub(in crate::supervisor) deployment: &'a Deployments,
    pub(in crate::supervisor) operators: &'a Operators,
    pub(in crate::supervisor) private_redis: Option<&'a PrivateRedis>,
    pub(in crate::supervisor) lifecycle: &'a Lifecycle,
    pub(in crate::supervisor) run_dir: &'a RunDir,
}

impl HandoffSources<'_> {
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
        let (lock, folder) = self.run_dir.fds();
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
            redis: self.private_redis.map(redis),
            desired_slots: self.slots.desired,
            generation: deployment.generation,
            next_generation: deployment.next_generation,
            rollout: deployment.rollout,
            reload_queued: deployment.reload_queued,
            ever_ready: self.slots.ever_ready,
            announced: self.lifecycle.announced,
            killed: self.slots.killed,
            control: self.operators.control.save(),
            pending_commands: self.operators.pending.clone(),
            last_rollout: deployment.last.map(Into::into),
            builds: deployment.builds,
            configured_workers: self.slots.configured,
            instances: self.scoreboard.instance_count(),
            companion: process::companion().map(Pid::as_raw),
        })
    }
}

/// The parts of a supervisor that a handoff and inherited descriptors make up.
pub(in crate::supervisor) struct RestoredParts {
    pub(in crate::supervisor) slots: SlotTable,
    pub(in crate::supervisor) deployment: Deployments,
    pub(in crate::supervisor) operators: Operators,
    pub(in crate::supervisor) private_redis: Option<PrivateRedis>,
    pub(in crate::supervisor) lifecycle: Lifecycle,
}

impl RestoredParts {
    /// As the program before left them.
    ///
    /// # Errors
    /// When the operating system refuses what a supervisor cannot live without.
    pub(in crate::supervisor) fn new(
        state: Handoff,
        inherited: InheritedResources,
        program: ProgramSpec,
        settings: SupervisorSettings,
        signals: SignalReader,
    ) -> io::Result<Self> {
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
            steering_mode: settings.steering,
            // Workers of a program that had none keep what they accept; those to come share a new one.
            shared_queue: inherited.shared_queue.or_else(table::open_shared_queue),
            addresses_change: AddressesChange::default(),
            ever_ready: state.ever_ready,
            last_failure: table::no_failure(),
            killed: state.killed,
        };
        let lifecycle = Lifecycle {
            announced: state.announced,
            ..Lifecycle::new(signals, (inherited.lifeline, inherited.lifeline_write))
        };
        let control = ControlServer::restore(state.control)?;
        Ok(Self {
            slots,
            deployment: Deployments::restore(deployment, program, settings),
            operators: Operators { control, pending: state.pending_commands },
            private_redis: inherited.private_redis,
            lifecycle,
        })
    }
}
