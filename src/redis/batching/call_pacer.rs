//! When the way to the server is so long that another call is worth its price although some are out.
//!
//! Next door an answer is there before much has gathered, and waiting for it costs nothing. Over 20 ms it would double
//! what a request waits, with most of the calls that may be out unused. So calls go as often as the way there and back
//! is long, divided by how many may be out, and no more often than [`GAP_MIN`]. Pure.

use std::time::{Duration, Instant};

use crate::redis::batching::caller_table::OUT_MAX;

/// Least time between calls that nothing else makes due: what a batch saves is less than that next door.
const GAP_MIN: Duration = Duration::from_millis(1);

/// What the last trips took and when the last call went.
#[derive(Debug, Default)]
pub(super) struct CallPacer {
    last: Option<Instant>,
    round_trip: Duration,
}

impl CallPacer {
    /// A call goes now.
    pub(super) fn sent(&mut self, now: Instant) {
        self.last = Some(now);
    }

    /// An answer has come after so long. The first counts whole, later ones by an eighth.
    pub(super) fn answered(&mut self, took: Duration) {
        self.round_trip = if self.round_trip.is_zero() { took } else { (self.round_trip * 7 + took) / 8 };
    }

    /// Whether enough time has passed for another call.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let gap = (self.round_trip / OUT_MAX as u32).max(GAP_MIN);
        self.last.is_none_or(|last| now.saturating_duration_since(last) >= gap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn on_a_short_way_no_call_goes_before_the_answer() {
        let (start, mut pace) = (Instant::now(), CallPacer::default());
        assert!(pace.is_due(start), "the first");
        pace.answered(MS / 5);
        pace.sent(start);
        assert!(!pace.is_due(start + MS / 5));
        assert!(pace.is_due(start + MS));
    }

    #[test]
    fn on_a_long_way_the_calls_in_flight_are_spread_evenly() {
        let (start, mut pace) = (Instant::now(), CallPacer::default());
        pace.answered(24 * MS);
        pace.sent(start);
        assert_eq!([2, 3].map(|ms| pace.is_due(start + ms * MS)), [false, true]);
        // One that was late does not hold up all that follow.
        pace.answered(1000 * MS);
        (0..40).for_each(|_| pace.answered(24 * MS));
        assert!(pace.is_due(start + 4 * MS));
    }
}
