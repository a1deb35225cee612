//! What the supervisor monitors, and how often.

use std::time::Duration;

use crate::supervisor::monitor::hang::HangThresholds;
use crate::supervisor::monitor::{autoscaler, hang, recycling};

/// Time between two samples without hang detection.
const TICK: Duration = Duration::from_secs(1);

/// The same where memory is bounded: a worker that takes it fast must not have a second to do so.
const MEMORY_TICK: Duration = Duration::from_millis(500);

/// What the supervisor monitors besides crashes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MonitorSettings {
    /// A worker that is silent for this long gets a spare beside it; zero: never.
    pub hang_timeout: Duration,
    /// One that is silent for this long is killed; zero: never.
    pub hang_kill: Duration,
    /// When workers are renewed.
    pub limits: recycling::RecycleLimits,
    /// How the load changes the number of workers; none: it does not.
    pub scaling: Option<autoscaler::AutoscaleSettings>,
    /// Whether that is only logged.
    pub dry_run: bool,
}

impl MonitorSettings {
    pub(in crate::supervisor) fn is_enabled(&self) -> bool {
        !self.hang_timeout.is_zero() || self.limits.has_any_limit() || self.scaling.is_some()
    }

    pub(super) fn hang_thresholds(&self) -> Option<HangThresholds> {
        HangThresholds::new(self.hang_timeout, self.hang_kill)
    }

    /// Time until the next sample: short for a silent worker, and for the load where it decides.
    pub(super) fn tick_interval(&self, any_silent: bool) -> Duration {
        let rest = match self.limits.has_memory_limit() {
            true => MEMORY_TICK,
            false => self.hang_thresholds().map_or(TICK, HangThresholds::rest_interval),
        };
        if any_silent || self.scaling.is_some() { rest.min(hang::CLOSE_INTERVAL) } else { rest }
    }
}
