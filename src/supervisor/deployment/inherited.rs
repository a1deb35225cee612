//! What the program before has left open, and which way the fleet came to this one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use crate::config::settings::RedisUrl;
use crate::listener::shared_queue::SharedQueue;
use crate::listener::{ListenAddresses, ListenChange, Listener, ListeningSocket, SlotListeners};
use crate::supervisor::deployment::handoff::{Handoff, StatusPipeState};
use crate::supervisor::deployment::program::{PreviousProgram, ProgramSpec};
use crate::supervisor::deployment::takeover_env::{TakeoverDirection, TakeoverEnv};
use crate::supervisor::private_redis::PrivateRedis;
use crate::supervisor::private_redis::server::PrivateRedisServer;
use crate::supervisor::run_dir::RunDir;
use crate::supervisor::settings::{ReloadedConfig, SupervisorSettings};
use crate::supervisor::slots::status_pipe::StatusPipe;
use crate::supervisor::sockets::{ListenerFd, SlotFds};
use crate::sys::exec;
use crate::sys::process::Pid;
use crate::sys::signal::SignalReader;

/// Copies of what the program before has left open; the originals stay until [`close_originals`].
#[derive(Debug)]
pub struct InheritedResources {
    pub(super) lifeline: OwnedFd,
    pub(super) lifeline_write: OwnedFd,
    pub(super) shared_queue: Option<SharedQueue>,
    pub(super) sockets: Vec<Option<SlotListeners>>,
    pub(super) status_pipes: BTreeMap<Pid, StatusPipe>,
    pub(super) private_redis: Option<PrivateRedis>,
}

impl InheritedResources {
    /// Copies all of them.
    ///
    /// # Errors
    /// When one was not handed over, or no descriptor is left.
    pub fn duplicate(state: &Handoff) -> io::Result<Self> {
        let listener = |given: &ListenerFd| -> io::Result<Listener> {
            let socket = ListeningSocket::from_fd(exec::duplicate_inherited(given.fd)?)?;
            Ok(Listener { socket, owner: given.owner })
        };
        let slot = |numbers: &SlotFds| -> io::Result<SlotListeners> {
            let all = |given: &[ListenerFd]| given.iter().map(listener).collect::<Result<_, _>>();
            Ok(SlotListeners::new(all(&numbers.public)?, all(&numbers.admin)?))
        };
        let sockets = state.sockets.iter().map(|slot_sockets| slot_sockets.as_ref().map(slot).transpose());
        let report = |(pid, saved): (&i32, &StatusPipeState)| -> io::Result<(Pid, StatusPipe)> {
            let pipe = saved.pipe.map(|fd| exec::duplicate_inherited(fd).map(File::from)).transpose()?;
            Ok((Pid::from_raw(*pid), StatusPipe::restore(pipe, saved.text.clone())))
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

    /// Opens the addresses that a configuration adds, while the program before still has everything else.
    ///
    /// # Errors
    /// Why that cannot be; nothing is changed then.
    pub fn prepare_addresses(&self, reloaded: &ReloadedConfig) -> Result<Option<ListenChange>, String> {
        let Some(wanted) = &reloaded.listen else { return Ok(None) };
        let Some(first) = self.sockets.iter().flatten().next() else { return Ok(None) };
        let present = ListenAddresses::from_slot(first).map_err(|error| error.to_string())?;
        wanted.prepare(&present, self.sockets.len()).map_err(|error| error.to_string())
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
        /// Addresses that its configuration adds or names no more.
        change: Option<ListenChange>,
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
    /// Timeouts and limits of the supervisor.
    pub settings: SupervisorSettings,
    /// The signals it takes, from [`crate::supervisor::block_signals`].
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
