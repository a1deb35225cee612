//! The life of the private Redis beside the workers: started first, restarted, stopped last.

use std::time::Duration;

use crate::supervisor::Supervisor;
use crate::supervisor::backoff::Backoff;
use crate::supervisor::backoff::Death;
use crate::supervisor::history::happened;
use crate::supervisor::plan::Target;
use crate::supervisor::redis_server::RedisServer;
use crate::sys::path::Identity;
use crate::sys::proc;
use crate::sys::proc::Exit;
use crate::sys::proc::Pid;
use crate::sys::random;
use crate::sys::signal::Signal;
use crate::sys::time;

/// How long the private Redis may take to load its data before workers start without it.
const REDIS_BOOT: Duration = Duration::from_secs(5);

/// How long it may take to save and leave.
const REDIS_STOP: Duration = Duration::from_secs(10);

/// How long after its start it has a socket at the latest.
const SOCKET_BOOT: Duration = Duration::from_secs(10);

/// Step in which the two waits above look again; nothing else runs in this process meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The private Redis, if the fleet has one.
#[derive(Debug)]
pub(super) struct Private {
    pub(super) server: RedisServer,
    /// Its process; none while it is stopped or waits to be restarted.
    pub(super) pid: Option<Pid>,
    pub(super) restart_at: Duration,
    pub(super) backoff: Backoff,
    pub(super) started: Duration,
    /// Its socket's file, once it was seen; it makes that once, and a new process is needed for another.
    socket: Option<Identity>,
    /// Whether it was told to leave, to make its socket anew.
    restarts: bool,
    /// What keeps that from being done; it is said once.
    told: Option<&'static str>,
}

impl Private {
    pub(super) fn new(server: RedisServer) -> Self {
        Self {
            server,
            pid: None,
            restart_at: Duration::ZERO,
            backoff: Backoff::default(),
            started: Duration::ZERO,
            socket: None,
            restarts: false,
            told: None,
        }
    }

    /// The same in another program that goes on with it.
    pub(super) fn resume(
        server: RedisServer,
        pid: Option<Pid>,
        (started, restart_at): (Duration, Duration),
        backoff: Backoff,
    ) -> Self {
        Self { pid, started, restart_at, backoff, ..Self::new(server) }
    }

    /// Whether its socket's file is gone, so that no new connection finds it, and what keeps it from being started again.
    fn lost_socket(&mut self, now: Duration) -> Option<Result<Pid, &'static str>> {
        let pid = self.pid.filter(|_| !self.restarts)?;
        match (Identity::at(&self.server.socket()), self.socket) {
            (Ok(file), None) => {
                self.socket = Some(file);
                None
            }
            (Ok(file), Some(seen)) if file == seen => None,
            (Ok(_), Some(_)) => Some(Err("another socket or file is in its place: remove it")),
            // It is not so far yet.
            (Err(_), None) if now < self.started + SOCKET_BOOT => None,
            (Err(_), _) if self.server.has_its_data() => Some(Ok(pid)),
            (Err(_), _) => Some(Err(
                "its data was removed too, and is in its memory only: it is not started again, because it would forget \
                 everything",
            )),
        }
    }
}

impl Supervisor<'_> {
    /// Has the private Redis make its socket anew when the file was removed: it cannot while it runs, so it saves what
    /// it has, leaves and is started again at once. Requests wait for it as they wait for any Redis (`redis.patience`).
    pub(super) fn keep_private_socket(&mut self, now: Duration) {
        let Some(private) = &mut self.private else { return };
        let lost = private.lost_socket(now);
        let socket = private.server.socket();
        match lost {
            None => private.told = None,
            Some(Ok(pid)) => {
                private.restarts = true;
                let sentence = format!(
                    "the private Redis, pid {pid}, is started again: its socket {} had been removed",
                    socket.display()
                );
                tracing::warn!(pid = pid.as_raw(), "{sentence}");
                self.note(happened("redis_restarts", sentence));
                self.send(pid, Signal::SIGTERM);
            }
            Some(Err(why)) if private.told != Some(why) => {
                private.told = Some(why);
                let sentence = format!("the private Redis has lost its socket {}: {why}", socket.display());
                tracing::error!("{sentence}");
                self.note(happened("redis_lost", sentence));
            }
            Some(Err(_)) => {}
        }
    }

    /// Starts the private Redis, if the fleet has one.
    pub(super) fn start_private_redis(&mut self) {
        let memory = self.settings.redis_memory;
        let Some(private) = &mut self.private else { return };
        (private.socket, private.restarts) = (None, false);
        private.started = time::monotonic();
        match private.server.start(memory) {
            Ok(pid) => {
                private.pid = Some(pid);
                tracing::info!(pid = pid.as_raw(), socket = %private.server.socket().display(), "private Redis started");
                self.note(happened("redis_started", format!("the private Redis is started, pid {pid}")));
            }
            Err(error) => {
                let delay = private.backoff.after(Death::BeforeReady, random::jitter());
                private.restart_at = private.started + delay;
                tracing::error!(%error, "cannot start the private Redis");
            }
        }
    }

    /// Gives the private Redis a moment, so that the first visit already finds it.
    pub(super) fn await_private_redis(&mut self) {
        let until = time::monotonic() + REDIS_BOOT;
        while time::monotonic() < until {
            let Some(private) = &self.private else { return };
            if private.pid.is_none() || private.server.answers() {
                return;
            }
            if self.reap().and_then(|()| self.read_signals()).is_err() || self.target != Target::Serve {
                return;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Starts it again when its delay has passed.
    pub(super) fn revive_private_redis(&mut self, now: Duration) {
        let due = |private: &Private| private.pid.is_none() && private.restart_at <= now;
        if self.private.as_ref().is_some_and(due) {
            self.start_private_redis();
        }
    }

    /// It ended without being asked to.
    pub(super) fn private_redis_ended(&mut self, pid: Pid, exit: Exit, now: Duration) {
        let Some(private) = &mut self.private else { return };
        private.pid = None;
        if private.restarts {
            // It has left as it was told to, and what it had is on disk.
            private.restart_at = now;
            tracing::info!(pid = pid.as_raw(), cause = %exit, "private Redis left, and is started again");
            return;
        }
        let delay =
            private.backoff.after(Death::AfterServing(now.saturating_sub(private.started)), random::jitter());
        private.restart_at = now + delay;
        if exit == Exit::Signal(Signal::SIGKILL) {
            // If the kernel has counted a kill, it was this one: it explains no worker's death.
            self.senses.memory_killed();
        }
        let (pid, log) = (pid.as_raw(), private.server.log());
        tracing::error!(pid, cause = %exit, log = %log.display(), "private Redis died: {exit}");
        self.note(happened("redis_died", format!("the private Redis, pid {pid}, died: {exit}")));
    }

    /// Lets it save and leave; the workers that need it are gone by now.
    pub(super) fn stop_private_redis(&mut self) {
        let Some(Private { pid: Some(pid), .. }) = self.private else { return };
        self.send(pid, Signal::SIGTERM);
        if self.await_end(pid, REDIS_STOP) {
            return;
        }
        tracing::warn!(pid = pid.as_raw(), "private Redis killed: it did not leave in time");
        self.send(pid, Signal::SIGKILL);
        self.await_end(pid, REDIS_STOP);
    }

    /// Waits until this child has ended; an order to stop at once ends the wait.
    fn await_end(&mut self, pid: Pid, patience: Duration) -> bool {
        let hurried = self.target == Target::StopNow;
        let until = time::monotonic() + patience;
        while time::monotonic() < until {
            match proc::reap_next() {
                Ok(Some((ended, exit))) if ended == pid => {
                    tracing::info!(pid = pid.as_raw(), cause = %exit, "private Redis stopped");
                    return true;
                }
                Ok(Some(_)) => {}
                Ok(None) => std::thread::sleep(LOOK_AGAIN),
                Err(_) => return false,
            }
            if self.read_signals().is_err() || (self.target == Target::StopNow && !hurried) {
                return false;
            }
        }
        false
    }
}
