//! Delays before something is tried again.
//!
//! They grow with every failure in a row and are jittered, so that processes that failed together do not try again
//! together. Pure: the random number and the count of failures come from the caller, which does the waiting.

use std::time::Duration;

/// Delays that grow by a factor from failure to failure, up to a longest one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExponentialBackoff {
    first: Duration,
    factor: f64,
    longest: Duration,
}

impl ExponentialBackoff {
    /// `first` after the first failure, `factor` times as long after each further one, never longer than `longest`.
    pub const fn new(first: Duration, factor: f64, longest: Duration) -> Self {
        Self { first, factor, longest }
    }

    /// The whole delay after so many failures in a row; none counts as one.
    pub fn delay(self, failures: u64) -> Duration {
        let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        // Compared as seconds: beyond the longest delay the product leaves the range of a `Duration`.
        let seconds = self.first.as_secs_f64() * self.factor.powi(exponent);
        if seconds < self.longest.as_secs_f64() { Duration::from_secs_f64(seconds) } else { self.longest }
    }

    /// The same less up to half of it; `random` is from 0 to 1.
    pub fn jittered_delay(self, failures: u64, random: f64) -> Duration {
        let longest = self.delay(failures);
        pause_between([longest / 2, longest], random)
    }
}

/// A pause between two bounds; `random` is from 0 to 1.
pub fn pause_between([shortest, longest]: [Duration; 2], random: f64) -> Duration {
    shortest + longest.saturating_sub(shortest).mul_f64(random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: ExponentialBackoff =
        ExponentialBackoff::new(Duration::from_secs(1), 1.5, Duration::from_secs(30));

    #[test]
    fn delays_grow_by_the_factor_up_to_the_longest() {
        let delays: Vec<_> = (0..4).map(|failures| BACKOFF.delay(failures).as_millis()).collect();
        assert_eq!(delays, [1000, 1000, 1500, 2250]);
        for failures in [20, 1 << 40, u64::MAX] {
            assert_eq!(BACKOFF.delay(failures), Duration::from_secs(30));
        }
        let constant = ExponentialBackoff::new(Duration::from_secs(2), 2.0, Duration::from_secs(1));
        assert_eq!(constant.delay(1), Duration::from_secs(1), "the longest delay bounds the first one too");
    }

    #[test]
    fn jitter_takes_off_at_most_half() {
        for failures in [1, 5, 100] {
            let full = BACKOFF.delay(failures);
            assert_eq!(BACKOFF.jittered_delay(failures, 1.0), full);
            assert_eq!(BACKOFF.jittered_delay(failures, 0.0), full / 2);
            assert_eq!(BACKOFF.jittered_delay(failures, -7.0), full / 2, "a random number out of range");
        }
    }

    #[test]
    fn a_pause_lies_between_its_bounds() {
        let bounds = [Duration::from_millis(50), Duration::from_millis(100)];
        assert_eq!(pause_between(bounds, 0.0), bounds[0]);
        assert_eq!(pause_between(bounds, 0.5), Duration::from_millis(75));
        assert_eq!(pause_between(bounds, 9.0), bounds[1]);
        assert_eq!(pause_between([bounds[1], bounds[0]], 1.0), bounds[1], "bounds the wrong way round");
    }
}
