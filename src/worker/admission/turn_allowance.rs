//! How many requests may begin in one turn of the event loop; pure.
//!
//! A turn is one pass through the run queue. Everything in the worker waits for it: timers, accepting, answers of Redis,
//! the admin listener. So turns are kept short: handlers that compute shrink the allowance until a turn is of the wanted
//! length, and handlers that only wait (they make short turns) let it grow until all of them are in.

use std::time::Duration;

/// Wanted length of a turn. Twice as long is too long.
const TARGET_LENGTH: Duration = Duration::from_millis(4);

/// Fewest requests a turn may begin: the queue moves however slow the handlers are.
const MIN_ALLOWANCE: u32 = 4;

/// Most requests a turn may begin.
const MAX_ALLOWANCE: u32 = 1024;

/// Requests that a worker's first turn may begin.
const INITIAL_ALLOWANCE: u32 = 256;

/// The allowance of the next turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TurnAllowance(u32);

impl Default for TurnAllowance {
    fn default() -> Self {
        Self(INITIAL_ALLOWANCE)
    }
}

impl TurnAllowance {
    /// Requests that may begin in the next turn.
    pub(super) fn get(self) -> u32 {
        self.0
    }

    /// Records a turn's length, and whether requests were kept waiting at its end.
    pub(super) fn record_turn(&mut self, length: Duration, any_waits: bool) {
        if length > 2 * TARGET_LENGTH {
            self.0 = (self.0 / 2).max(MIN_ALLOWANCE);
        } else if length < TARGET_LENGTH && any_waits {
            self.0 = (self.0 + (self.0 / 4).max(1)).min(MAX_ALLOWANCE);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Turns until `waiting` requests of this cost have begun; the longest of the second half, and how many there were.
    fn play(cost: Duration, mut waiting: u32) -> (Duration, u32) {
        let mut allowance = TurnAllowance::default();
        let (mut longest, mut turns) = (Duration::ZERO, 0);
        let half = waiting / 2;
        while waiting > 0 {
            let started = allowance.get().min(waiting);
            waiting -= started;
            let length = cost * started;
            allowance.record_turn(length, waiting > 0);
            turns += 1;
            if waiting < half {
                longest = longest.max(length);
            }
        }
        (longest, turns)
    }

    #[test]
    fn handlers_that_compute_get_few_and_handlers_that_wait_get_in() {
        assert!(play(Duration::from_millis(1), 3000).0 <= Duration::from_millis(9));
        assert!(play(Duration::from_micros(50), 6000).0 <= Duration::from_millis(11));
        let (_, turns) = play(Duration::from_nanos(500), 6000);
        assert!(turns < 20, "{turns}");
    }

    proptest! {
        #[test]
        fn a_turn_is_short_unless_its_fewest_requests_are_long(micros in 1_u64..100_000, waiting in 2000_u32..6000) {
            let cost = Duration::from_micros(micros);
            let (longest, _) = play(cost, waiting);
            // The allowance grows by a quarter at a time, so it goes over twice the wanted length by at most that.
            let bound = (TARGET_LENGTH * 5 / 2).max(cost * (MIN_ALLOWANCE + 1));
            prop_assert!(longest <= bound, "{longest:?} > {bound:?}");
        }

        #[test]
        fn it_stays_in_its_bounds(lengths in prop::collection::vec((0_u64..50_000, any::<bool>()), 0..200)) {
            let mut allowance = TurnAllowance::default();
            for (micros, waits) in lengths {
                allowance.record_turn(Duration::from_micros(micros), waits);
                prop_assert!((MIN_ALLOWANCE..=MAX_ALLOWANCE).contains(&allowance.get()));
            }
        }
    }
}
