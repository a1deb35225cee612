//! What the supervisor does for the log: figures in it, rotations of its file, and lines that could not be written at
//! once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use crate::supervisor::Supervisor;
use crate::supervisor::reporting::stats::StatsLogger;
use crate::sys::fd::Interest;
use crate::sys::signal::Signal;
use crate::sys::{clock, fd};
use crate::telemetry;
use crate::telemetry::LogWait;

impl Supervisor<'_> {
    /// Logs the figures if they are due; when the next ones are.
    pub(super) fn log_stats(&mut self, now: Duration) -> Option<Duration> {
        let interval = self.settings.stats_interval;
        if self.stats.interval() != interval {
            self.stats = StatsLogger::new(interval, now, &self.scoreboard.snapshot());
        }
        if let Some(figures) = self.stats.line_if_due(now, || self.scoreboard.snapshot()) {
            figures.log();
        }
        self.stats.next_at()
    }

    /// After a rotation: this process first, so that its workers find the new file.
    pub(super) fn reopen_logs(&self) {
        telemetry::reopen();
        for worker in self.slots.iter().flat_map(|slot| &slot.workers) {
            self.send_signal(worker.pid, Signal::SIGUSR1);
        }
    }
}

/// Waits for one of `fds`, until `wake_at`, or until lines of the log that wait can be written, and writes them.
pub(super) fn wait_for_fds<'a>(
    fds: impl Iterator<Item = (BorrowedFd<'a>, Interest)>,
    wake_at: Option<Duration>,
    now: Duration,
) -> io::Result<()> {
    let pending = telemetry::pending();
    let (end, flush_at) = match &pending {
        Some(LogWait::Writable(end)) => (Some(end), None),
        Some(LogWait::At(at)) => (None, Some(*at)),
        None => (None, None),
    };
    let timeout = wake_at.into_iter().chain(flush_at).min().map(|at| at.saturating_sub(now));
    let end = end.map(|end| (end.as_fd(), Interest::Write));
    let mut waited: Vec<_> = end.into_iter().collect();
    fds.for_each(|fd| waited.push(fd));
    let ready = fd::poll(&waited, timeout)?;
    let has_room = end.is_some() && ready.first().is_some_and(|end| end.any());
    // Asking a full log again before it has room would be taken for room that is none.
    if has_room || flush_at.is_some_and(|at| at <= clock::monotonic()) {
        telemetry::flush();
    }
    Ok(())
}
