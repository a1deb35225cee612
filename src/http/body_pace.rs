//! How fast a request's body has to come; pure.

use std::time::Duration;

/// Waiting that a client has in hand when its body begins: its first bytes may be on their way, or its line be slow to
/// start.
const INITIAL_ALLOWANCE: Duration = Duration::from_secs(5);

/// What a client has in hand: each byte it sends buys some waiting, and waiting uses it up.
///
/// Only waiting counts. A handler that computes, or that is slow to read, is not the client's fault.
#[derive(Debug, Clone, Copy)]
pub(super) struct BodyPace {
    /// Bytes a second; zero: any number.
    rate: u64,
    /// Longest single wait, and most that can be in hand: what came fast does not excuse a byte a minute afterwards.
    max_wait: Duration,
    allowance: Duration,
}

impl BodyPace {
    pub(super) fn new(rate: u64, pause: Duration) -> Self {
        Self { rate, max_wait: pause, allowance: INITIAL_ALLOWANCE }
    }

    /// How long may be waited now.
    pub(super) fn wait_allowed(&self) -> Duration {
        if self.rate == 0 { self.max_wait } else { self.max_wait.min(self.allowance) }
    }

    /// So many bytes came after a wait.
    pub(super) fn record_received(&mut self, bytes: usize, waited: Duration) {
        if self.rate == 0 {
            return;
        }
        let micros = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(1_000_000) / self.rate;
        let allowance = self.allowance.saturating_sub(waited).saturating_add(Duration::from_micros(micros));
        self.allowance = allowance.min(self.max_wait.max(INITIAL_ALLOWANCE));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAUSE: Duration = Duration::from_secs(30);

    /// How long a body lasts of which so much comes every so often; none: for as long as it likes.
    fn lasts(mut pace: BodyPace, bytes: usize, every: Duration) -> Option<Duration> {
        let mut passed = Duration::ZERO;
        for _ in 0..10_000 {
            if every > pace.wait_allowed() {
                return Some(passed + pace.wait_allowed());
            }
            pace.record_received(bytes, every);
            passed += every;
        }
        None
    }

    #[test]
    fn a_byte_now_and_then_ends_soon_whatever_came_before() {
        let mut pace = BodyPace::new(240, PAUSE);
        assert_eq!(lasts(pace, 1, Duration::from_secs(20)), Some(INITIAL_ALLOWANCE));
        pace.record_received(2 << 20, Duration::from_millis(10));
        assert!(lasts(pace, 1, Duration::from_secs(20)).unwrap() <= PAUSE + Duration::from_secs(1));
        assert_eq!(lasts(pace, 4800, Duration::from_secs(20)), None, "just fast enough");
        assert_eq!(lasts(BodyPace::new(0, PAUSE), 1, Duration::from_secs(20)), None, "switched off");
        assert_eq!(lasts(BodyPace::new(0, PAUSE), 1, Duration::from_secs(31)), Some(PAUSE));
    }

    proptest! {
        #[test]
        fn a_client_that_keeps_the_rate_is_never_cut_and_one_that_halves_it_always_is(millis in 10_u64..4000, rate in 100_u64..100_000) {
            let every = Duration::from_millis(millis);
            let enough = usize::try_from(rate * millis / 1000 + 1).unwrap();
            prop_assert_eq!(lasts(BodyPace::new(rate, PAUSE), enough, every), None);
            let half = usize::try_from(rate * millis / 2000).unwrap();
            prop_assert!(lasts(BodyPace::new(rate, PAUSE), half, every).is_some());
        }
    }
}
