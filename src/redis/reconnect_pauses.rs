//! Pauses between attempts to connect: random, so that the workers of a fleet do not reconnect at the same moment.
//!
//! While requests wait for the connection it is tried every 50 to 100 ms, so that a restart of Redis costs them little
//! more than the restart itself. Afterwards it is tried about once in 0.8 s, by each worker at a different time.

use std::time::Duration;

use tokio::time::Instant;

pub(super) use crate::backoff::pause_between;
use crate::sys::random;

/// Longest pause before the first attempt after a working connection: most likely the server is there.
const FIRST_PAUSE_MAX: Duration = Duration::from_millis(10);
/// Pause while requests wait.
const WAITING_PAUSE: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(100)];
/// Pause when no request waits any more, below the second within which a fleet must be back. It varies little: widely
/// varying pauses end early more often than late, and too many workers would come back in the first moments.
const LATER_PAUSE: [Duration; 2] = [Duration::from_millis(700), Duration::from_millis(900)];

/// A random number from 0 to 1 from the operating system: workers forked from one supervisor would share the state of
/// any other generator.
pub(super) fn random_unit() -> f64 {
    random::jitter()
}

/// The pauses of one connection's attempts.
#[derive(Debug, Clone)]
pub(super) struct ReconnectPauses {
    /// How long requests wait.
    reconnect_wait: Duration,
    lost_at: Instant,
    attempts: u32,
    /// Whether this worker's attempts are spread away from those of workers that failed at the same moments.
    spread: bool,
}

impl ReconnectPauses {
    /// There is no connection since now; requests wait for one for `hold`.
    pub(super) fn new(hold: Duration, now: Instant) -> Self {
        Self { reconnect_wait: hold, lost_at: now, attempts: 1, spread: false }
    }

    /// A connection was lost at this time; `settled` if it had lived for a while.
    pub(super) fn on_lost(&mut self, since: Instant, stable: bool) {
        (self.lost_at, self.spread) = (since, false);
        self.attempts = u32::from(!stable);
    }

    /// Since when there is no connection.
    pub(super) fn lost_at(&self) -> Instant {
        self.lost_at
    }

    /// Pause before the next attempt; `random` is from 0 to 1.
    pub(super) fn next_pause(&mut self, now: Instant, random: f64) -> Duration {
        self.attempts = self.attempts.saturating_add(1);
        let bounds = if self.attempts == 1 {
            [Duration::ZERO, FIRST_PAUSE_MAX]
        } else if now.saturating_duration_since(self.lost_at) < self.reconnect_wait {
            WAITING_PAUSE
        } else if std::mem::replace(&mut self.spread, true) {
            LATER_PAUSE
        } else {
            // As long as a later pause is on average, so that attempts are spread evenly.
            [Duration::ZERO, (LATER_PAUSE[0] + LATER_PAUSE[1]) / 2]
        };
        pause_between(bounds, random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_millis(2500);

    #[test]
    fn pauses_are_short_while_requests_wait_and_never_as_long_as_a_second() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pauses = ReconnectPauses::new(HOLD, start);
        assert_eq!(
            pauses.next_pause(at(0), 1.0).as_millis(),
            100,
            "the first attempt was made without a pause"
        );
        pauses.on_lost(start, true);
        let steps = [
            (0, 1.0, 10),
            (10, 0.0, 50),
            (2499, 1.0, 100),
            (2600, 1.0, 800),
            (3400, 0.0, 700),
            (9000, 1.0, 900),
        ];
        for (ms, random, expected) in steps {
            assert_eq!(pauses.next_pause(at(ms), random).as_millis(), expected, "after {ms} ms");
        }
        pauses.on_lost(at(10_000), false);
        assert_eq!(pauses.next_pause(at(10_000), 1.0).as_millis(), 100, "it had not lived");
    }

    #[test]
    fn workers_do_not_reconnect_at_the_same_moment() {
        use rand::rngs::SmallRng;
        use rand::{Rng, SeedableRng};
        let workers = 256 * 50;
        let mut dice = SmallRng::seed_from_u64(1);
        for (hold, back) in [(0, 2), (0, 3), (1, 3), (2500, 4), (2500, 5), (2500, 60)] {
            let (hold, back) = (Duration::from_millis(hold), Duration::from_secs(back));
            let (start, mut tenths) = (Instant::now(), [0; 10]);
            for _ in 0..workers {
                let (mut pauses, mut at) = (ReconnectPauses::new(hold, start), Duration::ZERO);
                pauses.on_lost(start, true);
                while at < back {
                    at += pauses.next_pause(start + at, dice.random());
                }
                tenths[((at - back).as_millis() / 100) as usize] += 1;
            }
            assert!(tenths.iter().all(|tenth| *tenth * 5 <= workers), "{back:?} {tenths:?}");
        }
    }
}
