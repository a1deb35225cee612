//! The life of the private Redis beside the workers: started first, restarted, stopped last.

use std::time::Duration;

use crate::supervisor::Supervisor;
use crate::supervisor::backoff::Backoff;
use crate::supervisor::backoff::Death;
use crate::supervisor::history::happened;
use crate::supervisor::plan::Target;
use crate::supervisor::redis_server::RedisServer;
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
}

impl Private {
    pub(super) fn new(server: RedisServer) -> Self {
        Self {
            server,
            pid: None,
            restart_at: Duration::ZERO,
            backoff: Backoff::default(),
            started: Duration::ZERO,
        }
    }
}

impl Supervisor<'_> {
    /// Starts the private Redis, if the fleet has one.
    pub(super) fn start_private_redis(&mut self) {
        let Some(private) = &mut self.private else { return };
        private.started = time::monotonic();
        match private.server.start() {
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
        let delay =
            private.backoff.after(Death::AfterServing(now.saturating_sub(private.started)), random::jitter());
        private.restart_at = now + delay;
        if exit == Exit::Signal(Signal::SIGKILL) {
            // Whatever the kernel counted for it says nothing about a worker.
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
