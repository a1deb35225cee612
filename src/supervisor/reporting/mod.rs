//! What only the supervisor knows of the fleet, for `status` and `top`.

pub(in crate::supervisor) mod stats;
pub(in crate::supervisor) mod status;

use std::time::Duration;

use crate::scoreboard::Scoreboard;
use crate::status::rates::RateWindow;
use crate::supervisor::reporting::stats::StatsLogger;
use crate::supervisor::service_manager;
use crate::supervisor::service_manager::protocol::ServiceNotifier;
use crate::supervisor::settings::WorkerHost;
use crate::sys::clock;

/// How much earlier a sample is taken when the loop is awake anyway: at rest it wakes up once a second, and not twice.
const SAMPLE_TOLERANCE: Duration = Duration::from_millis(100);

/// Time that rates are measured in.
const RATE_WINDOW: Duration = Duration::from_secs(1);

/// What the supervisor reports by itself: rates, lines of figures in the log, the service manager.
#[derive(Debug)]
pub(super) struct Reporting {
    /// Snapshots of the last moments, for rates.
    pub(super) rate_window: RateWindow,
    pub(super) stats: StatsLogger,
    /// The service manager, if there is one.
    pub(super) service_notifier: ServiceNotifier,
}

impl Reporting {
    pub(super) fn new(stats_interval: Duration, scoreboard: &Scoreboard, host: &dyn WorkerHost) -> Self {
        Self {
            rate_window: RateWindow::new(RATE_WINDOW),
            stats: StatsLogger::new(stats_interval, clock::monotonic(), &scoreboard.snapshot()),
            service_notifier: service_manager::service_notifier(host),
        }
    }

    /// Takes the samples that rates are made of, once a second; when the next one is due.
    pub(super) fn sample_rates(&mut self, scoreboard: &Scoreboard, now: Duration) -> Option<Duration> {
        if self.rate_window.next_sample_at().is_none_or(|at| at <= now + SAMPLE_TOLERANCE) {
            self.rate_window.record(now, &scoreboard.snapshot());
        }
        self.rate_window.next_sample_at()
    }

    /// Logs the figures if they are due; when the next ones are.
    pub(super) fn log_stats(
        &mut self,
        interval: Duration,
        scoreboard: &Scoreboard,
        now: Duration,
    ) -> Option<Duration> {
        if self.stats.interval() != interval {
            self.stats = StatsLogger::new(interval, now, &scoreboard.snapshot());
        }
        if let Some(figures) = self.stats.line_if_due(now, || scoreboard.snapshot()) {
            figures.log();
        }
        self.stats.next_at()
    }
}
