//! What the supervisor does for the log: figures in it, and rotations of its file.

use std::time::Duration;

use crate::supervisor::Supervisor;
use crate::supervisor::stats::Stats;
use crate::sys::signal::Signal;
use crate::telemetry;

impl Supervisor<'_> {
    /// Logs the figures if they are due; when the next ones are.
    pub(super) fn log_stats(&mut self, now: Duration) -> Option<Duration> {
        let interval = self.settings.stats_interval;
        if self.stats.interval() != interval {
            self.stats = Stats::new(interval, now, &self.scoreboard.snapshot());
        }
        if let Some(figures) = self.stats.due(now, || self.scoreboard.snapshot()) {
            figures.log();
        }
        self.stats.next_at()
    }

    /// After a rotation: this process first, so that its workers find the new file.
    pub(super) fn reopen_logs(&self) {
        telemetry::reopen();
        for worker in self.slots.iter().flat_map(|slot| &slot.workers) {
            self.send(worker.pid, Signal::SIGUSR1);
        }
    }
}
