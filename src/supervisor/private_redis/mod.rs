//! The private Redis beside the workers: started first, restarted, stopped last.

pub mod server;

use std::time::Duration;

use crate::control::event_kind::EventKind;
use crate::control::events::FleetEvent;
use crate::supervisor::effects::event_now;
use crate::supervisor::private_redis::server::PrivateRedisServer;
use crate::supervisor::slots::backoff::{RestartBackoff, WorkerDeath};
use crate::supervisor::slots::send_signal;
use crate::sys::path::FileId;
use crate::sys::process::{ExitStatus, Pid};
use crate::sys::signal::Signal;
use crate::sys::{clock, random};

/// How long after its start it has a socket at the latest.
const SOCKET_BOOT_TIMEOUT: Duration = Duration::from_secs(10);

/// The private Redis, if the fleet has one.
#[derive(Debug)]
pub(super) struct PrivateRedis {
    pub(super) server: PrivateRedisServer,
    /// Its process; none while it is stopped or waits to be restarted.
    pub(super) pid: Option<Pid>,
    pub(super) restart_at: Duration,
    pub(super) backoff: RestartBackoff,
    pub(super) started: Duration,
    /// Its socket's file, once it was seen; it makes that once, and a new process is needed for another.
    socket: Option<FileId>,
    /// Whether it was ordered to exit, to make its socket anew; else its exit is a crash.
    pub(super) is_restarting: bool,
    /// What keeps that from being done; it is reported once.
    reported: Option<&'static str>,
}

impl PrivateRedis {
    pub(super) fn new(server: PrivateRedisServer) -> Self {
        Self {
            server,
            pid: None,
            restart_at: Duration::ZERO,
            backoff: RestartBackoff::default(),
            started: Duration::ZERO,
            socket: None,
            is_restarting: false,
            reported: None,
        }
    }

    /// The same in another program that goes on with it.
    pub(super) fn restore(
        server: PrivateRedisServer,
        pid: Option<Pid>,
        (started, restart_at): (Duration, Duration),
        backoff: RestartBackoff,
    ) -> Self {
        Self { pid, started, restart_at, backoff, ..Self::new(server) }
    }

    /// Whether its socket's file is gone, so that no new connection finds it, and what keeps it from being started again.
    fn check_socket(&mut self, now: Duration) -> Option<Result<Pid, &'static str>> {
        let pid = self.pid.filter(|_| !self.is_restarting)?;
        match (FileId::from_entry(&self.server.socket_path()), self.socket) {
            (Ok(file), None) => {
                self.socket = Some(file);
                None
            }
            (Ok(file), Some(seen)) if file == seen => None,
            (Ok(_), Some(_)) => Some(Err("another socket or file is in its place: remove it")),
            // It is not so far yet.
            (Err(_), None) if now < self.started + SOCKET_BOOT_TIMEOUT => None,
            (Err(_), _) if self.server.has_data_files() => Some(Ok(pid)),
            (Err(_), _) => Some(Err(
                "its data was removed too, and is in its memory only: it is not started again, because it would forget \
                 everything",
            )),
        }
    }

    /// Has it make its socket anew when the file was removed: it cannot while it runs, so it saves what it has, leaves and
    /// is started again at once. Requests wait for it as they wait for any Redis (`redis.patience`).
    pub(super) fn restore_socket(&mut self, now: Duration) -> Option<FleetEvent> {
        let lost = self.check_socket(now);
        let socket = self.server.socket_path();
        match lost {
            None => self.reported = None,
            Some(Ok(pid)) => {
                self.is_restarting = true;
                let message = format!(
                    "the private Redis, pid {pid}, is started again: its socket {} had been removed",
                    socket.display()
                );
                tracing::warn!(pid = pid.as_raw(), "{message}");
                send_signal(pid, Signal::SIGTERM);
                return Some(event_now(EventKind::PrivateRedisRestarting, message));
            }
            Some(Err(why)) if self.reported != Some(why) => {
                self.reported = Some(why);
                let message = format!("the private Redis has lost its socket {}: {why}", socket.display());
                tracing::error!("{message}");
                return Some(event_now(EventKind::PrivateRedisLost, message));
            }
            Some(Err(_)) => {}
        }
        None
    }

    /// Starts it, with so much memory for its data.
    pub(super) fn start(&mut self, memory: Option<u64>) -> Option<FleetEvent> {
        (self.socket, self.is_restarting) = (None, false);
        self.started = clock::monotonic();
        match self.server.start(memory) {
            Ok(pid) => {
                self.pid = Some(pid);
                tracing::info!(pid = pid.as_raw(), socket = %self.server.socket_path().display(), "private Redis started");
                let message = format!("the private Redis is started, pid {pid}");
                Some(event_now(EventKind::PrivateRedisStarted, message))
            }
            Err(error) => {
                let delay = self.backoff.delay_after(WorkerDeath::BeforeReady, random::jitter());
                self.restart_at = self.started + delay;
                tracing::error!(%error, "cannot start the private Redis");
                None
            }
        }
    }

    /// Whether it is to be started again: its delay has passed.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        self.pid.is_none() && self.restart_at <= now
    }

    /// Whether it still loads its data.
    pub(super) fn is_loading(&self) -> bool {
        self.pid.is_some() && !self.server.is_ready()
    }

    /// It exited; unless it is restarting, that is a crash.
    pub(super) fn on_exit(&mut self, pid: Pid, exit: ExitStatus, now: Duration) -> Option<FleetEvent> {
        self.pid = None;
        if self.is_restarting {
            // It has exited as ordered, and what it had is on disk.
            self.restart_at = now;
            tracing::info!(pid = pid.as_raw(), cause = %exit, "private Redis exited, restarting it");
            return None;
        }
        let served = WorkerDeath::AfterServing(now.saturating_sub(self.started));
        self.restart_at = now + self.backoff.delay_after(served, random::jitter());
        let (pid, log) = (pid.as_raw(), self.server.log_path());
        tracing::error!(pid, cause = %exit, log = %log.display(), "private Redis crashed: {exit}");
        let message = format!("the private Redis, pid {pid}, crashed: {exit}");
        Some(event_now(EventKind::PrivateRedisCrashed, message))
    }
}
