//! Starts, restarts and stops the private Redis.

use std::time::Duration;

use crate::control::event_kind::EventKind;
use crate::supervisor::Supervisor;
use crate::supervisor::effects::event_now;
use crate::supervisor::private_redis::PrivateRedis;
use crate::supervisor::slots::backoff::WorkerDeath;
use crate::supervisor::slots::plan::DesiredState;
use crate::supervisor::slots::send_signal;
use crate::sys::process::{ExitStatus, Pid};
use crate::sys::signal::Signal;
use crate::sys::{clock, process, random};

/// How long the private Redis may take to load its data before workers start without it.
const REDIS_BOOT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long it may take to save and leave.
const REDIS_STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Interval in which the two waits above check again; nothing else runs in this process meanwhile.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

impl Supervisor<'_> {
    /// Has the private Redis make its socket anew when the file was removed: it cannot while it runs, so it saves what
    /// it has, leaves and is started again at once. Requests wait for it as they wait for any Redis (`redis.patience`).
    pub(in crate::supervisor) fn restore_private_socket(&mut self, now: Duration) {
        let Some(private) = &mut self.private_redis else { return };
        let lost = private.check_socket(now);
        let socket = private.server.socket_path();
        match lost {
            None => private.reported = None,
            Some(Ok(pid)) => {
                private.is_restarting = true;
                let message = format!(
                    "the private Redis, pid {pid}, is started again: its socket {} had been removed",
                    socket.display()
                );
                tracing::warn!(pid = pid.as_raw(), "{message}");
                self.record_event(event_now(EventKind::PrivateRedisRestarting, message));
                send_signal(pid, Signal::SIGTERM);
            }
            Some(Err(why)) if private.reported != Some(why) => {
                private.reported = Some(why);
                let message = format!("the private Redis has lost its socket {}: {why}", socket.display());
                tracing::error!("{message}");
                self.record_event(event_now(EventKind::PrivateRedisLost, message));
            }
            Some(Err(_)) => {}
        }
    }

    /// Starts the private Redis, if the fleet has one.
    pub(in crate::supervisor) fn start_private_redis(&mut self) {
        let memory = self.settings.redis_memory;
        let Some(private) = &mut self.private_redis else { return };
        (private.socket, private.is_restarting) = (None, false);
        private.started = clock::monotonic();
        match private.server.start(memory) {
            Ok(pid) => {
                private.pid = Some(pid);
                tracing::info!(pid = pid.as_raw(), socket = %private.server.socket_path().display(), "private Redis started");
                self.record_event(event_now(
                    EventKind::PrivateRedisStarted,
                    format!("the private Redis is started, pid {pid}"),
                ));
            }
            Err(error) => {
                let delay = private.backoff.delay_after(WorkerDeath::BeforeReady, random::jitter());
                private.restart_at = private.started + delay;
                tracing::error!(%error, "cannot start the private Redis");
            }
        }
    }

    /// Gives the private Redis a moment, so that the first request already finds it.
    pub(in crate::supervisor) fn await_private_redis(&mut self) {
        let until = clock::monotonic() + REDIS_BOOT_TIMEOUT;
        while clock::monotonic() < until {
            let Some(private) = &self.private_redis else { return };
            if private.pid.is_none() || private.server.is_ready() {
                return;
            }
            if self.reap().and_then(|()| self.handle_signals()).is_err()
                || self.lifecycle.desired_state != DesiredState::Running
            {
                return;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Starts it again when its delay has passed.
    pub(in crate::supervisor) fn restart_private_redis(&mut self, now: Duration) {
        let due = |private: &PrivateRedis| private.pid.is_none() && private.restart_at <= now;
        if self.private_redis.as_ref().is_some_and(due) {
            self.start_private_redis();
        }
    }

    /// It exited; unless it is restarting, that is a crash.
    pub(in crate::supervisor) fn on_private_redis_exit(&mut self, pid: Pid, exit: ExitStatus, now: Duration) {
        let Some(private) = &mut self.private_redis else { return };
        private.pid = None;
        if private.is_restarting {
            // It has exited as ordered, and what it had is on disk.
            private.restart_at = now;
            tracing::info!(pid = pid.as_raw(), cause = %exit, "private Redis exited, restarting it");
            return;
        }
        let delay = private
            .backoff
            .delay_after(WorkerDeath::AfterServing(now.saturating_sub(private.started)), random::jitter());
        private.restart_at = now + delay;
        if exit == ExitStatus::Signal(Signal::SIGKILL) {
            // If the kernel has counted a kill, it was this one: it explains no worker's death.
            self.monitor.account_memory_kill();
        }
        let (pid, log) = (pid.as_raw(), private.server.log_path());
        tracing::error!(pid, cause = %exit, log = %log.display(), "private Redis crashed: {exit}");
        self.record_event(event_now(
            EventKind::PrivateRedisCrashed,
            format!("the private Redis, pid {pid}, crashed: {exit}"),
        ));
    }

    /// Lets it save and leave; the workers that need it are gone by now.
    pub(in crate::supervisor) fn stop_private_redis(&mut self) {
        let Some(PrivateRedis { pid: Some(pid), .. }) = self.private_redis else { return };
        send_signal(pid, Signal::SIGTERM);
        if self.await_exit(pid, REDIS_STOP_TIMEOUT) {
            return;
        }
        tracing::warn!(pid = pid.as_raw(), "private Redis killed: it did not exit in time");
        send_signal(pid, Signal::SIGKILL);
        self.await_exit(pid, REDIS_STOP_TIMEOUT);
    }

    /// Waits until this child has ended; an order to stop at once ends the wait.
    fn await_exit(&mut self, pid: Pid, patience: Duration) -> bool {
        let hurried = self.lifecycle.desired_state == DesiredState::Killing;
        let until = clock::monotonic() + patience;
        while clock::monotonic() < until {
            match process::reap_next() {
                Ok(Some((reaped, exit))) if reaped == pid => {
                    tracing::info!(pid = pid.as_raw(), cause = %exit, "private Redis stopped");
                    return true;
                }
                Ok(Some(_)) => {}
                Ok(None) => std::thread::sleep(POLL_INTERVAL),
                Err(_) => return false,
            }
            if self.handle_signals().is_err()
                || (self.lifecycle.desired_state == DesiredState::Killing && !hurried)
            {
                return false;
            }
        }
        false
    }
}
