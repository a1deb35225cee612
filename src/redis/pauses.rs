//! How long to wait before a connection is tried again: random, so that a fleet does not come back as one.
//!
//! While requests wait for the connection it is tried every 50 to 100 ms, so that a restart of Redis costs them little
//! more than the restart. Afterwards about once in 0.8 s, each worker at a time of its own.

use std::time::Duration;

use rand::TryRngCore;
use rand::rngs::OsRng;

/// Longest pause before the first attempt after a connection that worked: most likely the server is there.
const PAUSE_FIRST: Duration = Duration::from_millis(10);
/// Pause while requests wait.
const PAUSE_HELD: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(100)];
/// Pause when none waits any more, below the second within which a fleet is to be back. It varies little: of pauses that
/// vary much more end soon than late, and more of a fleet would come back in the first moments.
const PAUSE_LATER: [Duration; 2] = [Duration::from_millis(700), Duration::from_millis(900)];

/// From 0 to 1, by the operating system: workers forked from one supervisor share the state of any other generator.
pub(super) fn random() -> f64 {
    OsRng.try_next_u32().map_or(0.5, |number| f64::from(number) / f64::from(u32::MAX))
}

/// Pause before the n-th attempt, from 0, of a server that has been away for so long; requests wait while that is below
/// `hold`. `random` is from 0 to 1.
pub(super) fn pause(attempt: u32, away: Duration, hold: Duration, random: f64) -> Duration {
    let bounds = match attempt {
        0 => [Duration::ZERO, PAUSE_FIRST],
        _ if away < hold => PAUSE_HELD,
        // Those who were refused as one until now are spread first.
        _ if away < hold + PAUSE_LATER[0] => [Duration::ZERO, PAUSE_LATER[1]],
        _ => PAUSE_LATER,
    };
    between(bounds, random)
}

pub(super) fn between([shortest, longest]: [Duration; 2], random: f64) -> Duration {
    shortest + longest.saturating_sub(shortest).mul_f64(random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_millis(2500);

    #[test]
    fn pauses_are_short_while_requests_wait_and_never_as_long_as_a_second() {
        let of = |attempt, away_ms, random| {
            pause(attempt, Duration::from_millis(away_ms), HOLD, random).as_millis()
        };
        assert_eq!((of(0, 0, 1.0), of(0, 0, 0.0)), (10, 0));
        assert_eq!((of(1, 0, 0.0), of(9, 2499, 1.0)), (50, 100));
        assert_eq!((of(30, 2500, 0.0), of(30, 2500, 1.0)), (0, 900));
        assert_eq!((of(40, 3200, 0.0), of(u32::MAX, 86_400_000, 1.0)), (700, 900));
    }

    #[test]
    fn a_fleet_whose_redis_comes_back_does_not_come_back_as_one() {
        use rand::Rng;
        use rand::SeedableRng;
        use rand::rngs::SmallRng;
        let workers = 256 * 50;
        let mut dice = SmallRng::seed_from_u64(1);
        for (hold, back) in [(0, 2), (0, 3), (1, 3), (2500, 4), (2500, 5), (2500, 60)] {
            let (hold, back) = (Duration::from_millis(hold), Duration::from_secs(back));
            let mut tenths = [0; 10];
            for _ in 0..workers {
                let (mut attempt, mut at) = (0, Duration::ZERO);
                while at < back {
                    at += pause(attempt, at, hold, dice.random());
                    attempt += 1;
                }
                tenths[((at - back).as_millis() / 100) as usize] += 1;
            }
            assert!(tenths.iter().all(|tenth| *tenth * 5 <= workers), "{back:?} {tenths:?}");
        }
    }
}
