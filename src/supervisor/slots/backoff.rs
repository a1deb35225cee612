//! How long a slot waits before its next worker; pure.

use std::time::Duration;

use crate::backoff::ExponentialBackoff;

/// Longest wait.
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// 1.5ⁿ s after the n-th early death but the first, einhorn's rule.
const EARLY_DEATHS: ExponentialBackoff = ExponentialBackoff::new(Duration::from_secs(1), 1.5, BACKOFF_MAX);

/// A worker that served for this long counts as long-lived: its death is a first one again.
pub const LONG_LIVED: Duration = Duration::from_secs(1);

/// What a slot's latest worker got to before it died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerDeath {
    /// It never became READY.
    BeforeReady,
    /// It served for this long.
    AfterServing(Duration),
}

/// Early deaths of a slot in a row, and the delay that follows from them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RestartBackoff {
    early_deaths: u32,
}

impl RestartBackoff {
    /// Records a death; the delay before the next worker.
    ///
    /// A long-lived worker is replaced at once, and so is the first that dies soon after READY. From then on the
    /// n-th early death in a row waits 1.5ⁿ s (einhorn's rule), at most `BACKOFF_MAX`, of which up to half is taken
    /// off by `jitter` (0 to 1), so that slots that died together do not come back together.
    pub fn delay_after(&mut self, death: WorkerDeath, jitter: f64) -> Duration {
        match death {
            WorkerDeath::AfterServing(uptime) if uptime >= LONG_LIVED => {
                self.early_deaths = 0;
                Duration::ZERO
            }
            WorkerDeath::AfterServing(_) if self.early_deaths == 0 => {
                self.early_deaths = 1;
                Duration::ZERO
            }
            WorkerDeath::AfterServing(_) | WorkerDeath::BeforeReady => {
                self.early_deaths = self.early_deaths.saturating_add(1);
                EARLY_DEATHS.jittered_delay(u64::from(self.early_deaths), 1.0 - jitter)
            }
        }
    }

    /// Early deaths in a row.
    pub fn early_deaths(self) -> u32 {
        self.early_deaths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_lived_worker_is_replaced_at_once_however_often_it_dies() {
        let mut backoff = RestartBackoff::default();
        for _ in 0..100 {
            assert_eq!(backoff.delay_after(WorkerDeath::AfterServing(LONG_LIVED), 0.0), Duration::ZERO);
        }
    }

    #[test]
    fn deaths_before_ready_wait_longer_and_longer_up_to_the_cap() {
        let mut backoff = RestartBackoff::default();
        let waits: Vec<_> = (0..20).map(|_| backoff.delay_after(WorkerDeath::BeforeReady, 0.0)).collect();
        assert_eq!(waits[0], Duration::from_secs(1));
        assert_eq!(waits[1], Duration::from_millis(1500));
        assert!(waits.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(waits[19], BACKOFF_MAX);
    }

    #[test]
    fn jitter_takes_off_at_most_half() {
        let full = RestartBackoff::default().delay_after(WorkerDeath::BeforeReady, 0.0);
        let half = RestartBackoff::default().delay_after(WorkerDeath::BeforeReady, 1.0);
        assert_eq!(half * 2, full);
    }

    #[test]
    fn serving_long_forgives() {
        let mut backoff = RestartBackoff::default();
        backoff.delay_after(WorkerDeath::BeforeReady, 0.0);
        backoff.delay_after(WorkerDeath::AfterServing(Duration::from_secs(5)), 0.0);
        assert_eq!(backoff.early_deaths(), 0);
    }

    #[test]
    fn dying_right_after_ready_is_forgiven_once() {
        let mut backoff = RestartBackoff::default();
        assert_eq!(backoff.delay_after(WorkerDeath::AfterServing(Duration::ZERO), 0.0), Duration::ZERO);
        assert!(backoff.delay_after(WorkerDeath::AfterServing(Duration::ZERO), 0.0) > Duration::ZERO);
    }
}
