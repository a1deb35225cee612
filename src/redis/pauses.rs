//! How long to wait before a connection is tried again: random, so that a fleet does not come back as one.

use std::time::Duration;

use rand::TryRngCore;
use rand::rngs::OsRng;

/// Longest pause before the first attempt after a connection that worked: most likely the server is there.
const PAUSE_FIRST: Duration = Duration::from_millis(10);
/// Longest pauses before the next attempts; those after them are from the first to the second of [`PAUSE_LATER`],
/// so that of a fleet that waits for its Redis no tenth of a second sees more than a fifth.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(200), Duration::from_millis(400)];
const PAUSE_LATER: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(1200)];

/// From 0 to 1, by the operating system: workers forked from one supervisor share the state of any other generator.
pub(super) fn random() -> f64 {
    OsRng.try_next_u32().map_or(0.5, |number| f64::from(number) / f64::from(u32::MAX))
}

/// Pause before the n-th attempt, from 0; `random` is from 0 to 1.
pub(super) fn pause(attempt: u32, random: f64) -> Duration {
    let longest = match attempt.checked_sub(1).map(|later| PAUSES.get(later as usize)) {
        None => PAUSE_FIRST,
        Some(Some(longest)) => *longest,
        Some(None) => return between(PAUSE_LATER, random),
    };
    between([Duration::ZERO, longest], random)
}

pub(super) fn between([shortest, longest]: [Duration; 2], random: f64) -> Duration {
    shortest + longest.saturating_sub(shortest).mul_f64(random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_random() {
        assert_eq!([0, 1, 2, 3].map(|attempt| pause(attempt, 1.0).as_millis()), [10, 100, 200, 400]);
        assert_eq!([0, 1, 2, 3].map(|attempt| pause(attempt, 0.0).as_millis()), [0, 0, 0, 0]);
        assert_eq!([4, u32::MAX].map(|attempt| pause(attempt, 1.0).as_millis()), [1200, 1200]);
        assert_eq!(pause(4, 0.0).as_millis(), 200);
    }

    #[test]
    fn a_fleet_whose_redis_comes_back_does_not_come_back_as_one() {
        use rand::Rng;
        use rand::SeedableRng;
        use rand::rngs::SmallRng;
        let workers = 256 * 50;
        let mut dice = SmallRng::seed_from_u64(1);
        for back in [Duration::from_secs(2), Duration::from_secs(3), Duration::from_secs(60)] {
            let mut tenths = [0; 20];
            for _ in 0..workers {
                let (mut attempt, mut at) = (0, Duration::ZERO);
                while at < back {
                    at += pause(attempt, dice.random());
                    attempt += 1;
                }
                tenths[((at - back).as_millis() / 100) as usize] += 1;
            }
            assert!(tenths.iter().all(|tenth| *tenth * 5 <= workers), "{tenths:?}");
        }
    }

    #[test]
    fn a_day_without_redis_ends_like_any_other() {
        let (mut attempt, mut at) = (0u32, Duration::ZERO);
        while at < Duration::from_secs(24 * 60 * 60) {
            let wait = pause(attempt, 1.0);
            assert!(wait <= PAUSE_LATER[1]);
            at += wait;
            attempt += 1;
        }
    }
}
