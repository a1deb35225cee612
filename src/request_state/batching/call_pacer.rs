//! When another call is sent although others are under way, because the server is far away. No I/O.
//!
//! With a close server the reply arrives before many entries have queued, and waiting for it costs nothing. Over 20 ms
//! it would double the latency of a request while most of the allowed calls are unused. So calls are sent once per
//! round trip divided by the number of calls that may be under way, and no more often than [`GAP_MIN`].

use std::time::{Duration, Instant};

use crate::request_state::batching::caller_table::OUT_MAX;

/// Least time between calls that nothing else makes due: with a close server a batch saves more than that.
const GAP_MIN: Duration = Duration::from_millis(1);

/// The smoothed round trip, and when the last call was sent.
#[derive(Debug, Default)]
pub(super) struct CallPacer {
    last: Option<Instant>,
    round_trip: Duration,
}

impl CallPacer {
    /// A call is sent now.
    pub(super) fn sent(&mut self, now: Instant) {
        self.last = Some(now);
    }

    /// A reply arrived after this time. The first one sets the estimate, later ones count an eighth.
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
    fn with_a_close_server_no_call_is_sent_before_the_reply() {
        let (start, mut pace) = (Instant::now(), CallPacer::default());
        assert!(pace.is_due(start), "the first");
        pace.answered(MS / 5);
        pace.sent(start);
        assert!(!pace.is_due(start + MS / 5));
        assert!(pace.is_due(start + MS));
    }

    #[test]
    fn with_a_distant_server_calls_are_spread_evenly() {
        let (start, mut pace) = (Instant::now(), CallPacer::default());
        pace.answered(24 * MS);
        pace.sent(start);
        assert_eq!([2, 3].map(|ms| pace.is_due(start + ms * MS)), [false, true]);
        // One slow reply does not delay the calls that follow for long.
        pace.answered(1000 * MS);
        (0..40).for_each(|_| pace.answered(24 * MS));
        assert!(pace.is_due(start + 4 * MS));
    }
}
