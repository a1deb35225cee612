//! How much a client that takes what it is sent owes; pure, in ticks.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::worker::connection::TICK;

/// Bytes a client has to take in a second, on average over the time in which it is waited for.
///
/// Far below any line that a browser is used on. One byte now and then excuses no client: it would be a clock that
/// the client sets back as it likes.
const MIN_RATE: u64 = 240;

/// One client's clock: it runs while something waits for the client to take it, and goes back by what it takes.
#[derive(Debug, Default)]
pub(super) struct ReadPace {
    /// Whether it runs.
    since: AtomicU64,
    /// What is owed from before, milliseconds.
    lag_ms: AtomicU64,
}

impl ReadPace {
    fn elapsed_ms(&self, tick: u64) -> u64 {
        let tick_ms = u64::try_from(TICK.as_millis()).unwrap_or(u64::MAX);
        tick.saturating_sub(self.since.load(Relaxed)).saturating_mul(tick_ms)
    }

    /// From now on the client is waited for.
    pub(super) fn start(&self, tick: u64) {
        self.since.store(tick, Relaxed);
    }

    /// The client, which was waited for, has taken so many bytes; if it is waited for again, from now on.
    pub(super) fn record_read(&self, tick: u64, bytes: usize) {
        let credit_ms = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(1000) / MIN_RATE;
        let lag_ms = self.lag_ms.load(Relaxed).saturating_add(self.elapsed_ms(tick));
        self.lag_ms.store(lag_ms.saturating_sub(credit_ms), Relaxed);
        self.since.store(tick, Relaxed);
    }

    /// What it is waited for now has nothing to do with what was before.
    pub(super) fn reset(&self) {
        self.lag_ms.store(0, Relaxed);
    }

    /// What a client that is waited for owes, milliseconds.
    pub(super) fn lag_ms(&self, tick: u64) -> u64 {
        self.lag_ms.load(Relaxed).saturating_add(self.elapsed_ms(tick))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds until this much is owed by a client that takes `bytes` every so many seconds.
    fn lasts(bytes: usize, every_s: u64, bound_ms: u64) -> Option<u64> {
        let pace = ReadPace::default();
        (0..100_000).map(|second| second * 10).find(|tick| {
            if tick % (every_s * 10) == 0 {
                pace.record_read(*tick, bytes);
            }
            pace.lag_ms(*tick) > bound_ms
        })
    }

    #[test]
    fn a_byte_a_minute_excuses_no_client_and_a_slow_line_may_take_its_time() {
        assert_eq!(lasts(1, 60, 75_000), Some(760));
        assert!(lasts(1460, 14, 75_000).is_some());
        assert_eq!(lasts(16_384, 60, 75_000), None, "273 bytes a second");
        assert_eq!(lasts(1024, 1, 75_000), None);
    }

    #[test]
    fn nothing_is_saved_up() {
        let pace = ReadPace::default();
        pace.record_read(0, 100_000_000);
        assert_eq!(pace.lag_ms(700), 70_000);
    }
}
