//! How much a client that takes what it is sent owes; pure, in ticks.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::worker::connection::state::{TICK, Tick};

/// Milliseconds of a tick.
const TICK_MS: u64 = TICK.as_millis() as u64;

/// Bytes a client has to take in a second, on average over the time in which it is waited for.
///
/// Far below any line that a browser is used on. One byte now and then excuses no client: it would be a clock that
/// the client sets back as it likes.
const MIN_RATE: u64 = 240;

/// One client's clock: it runs while something waits for the client to take it, and goes back by what it takes.
#[derive(Debug, Default)]
pub(super) struct ReadPace {
    /// Tick since which it runs; 0: it does not.
    since: AtomicU64,
    /// What is owed from before, milliseconds.
    lag_ms: AtomicU64,
}

impl ReadPace {
    /// Whether the client is waited for.
    pub(super) fn is_running(&self) -> bool {
        self.since.load(Relaxed) > 0
    }

    fn elapsed_ms(&self, tick: Tick) -> u64 {
        match self.since.load(Relaxed) {
            0 => 0,
            since => tick.saturating_sub(since).saturating_mul(TICK_MS),
        }
    }

    /// From now on the client is waited for, unless it is already.
    pub(super) fn start(&self, tick: Tick) {
        if !self.is_running() {
            self.since.store(tick, Relaxed);
        }
    }

    /// The client, which was waited for, has taken so many bytes; it is waited for no more.
    pub(super) fn record_read(&self, tick: Tick, bytes: usize) {
        let credit_ms = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(1000) / MIN_RATE;
        self.lag_ms.store(self.lag_ms(tick).saturating_sub(credit_ms), Relaxed);
        self.since.store(0, Relaxed);
    }

    /// What it is waited for now has nothing to do with what was owed before.
    pub(super) fn forgive(&self) {
        self.lag_ms.store(0, Relaxed);
    }

    /// The client is waited for anew from now on, and owes nothing from before.
    pub(super) fn restart(&self, tick: Tick) {
        self.forgive();
        self.since.store(tick, Relaxed);
    }

    /// What a client that is waited for owes, milliseconds.
    fn lag_ms(&self, tick: Tick) -> u64 {
        self.lag_ms.load(Relaxed).saturating_add(self.elapsed_ms(tick))
    }

    /// Last tick in which a client that takes nothing more owes at most `bound`; before now if it owes more already.
    pub(super) fn deadline(&self, bound: Duration) -> Tick {
        let bound_ms = u64::try_from(bound.as_millis()).unwrap_or(u64::MAX);
        let since = self.since.load(Relaxed);
        match bound_ms.checked_sub(self.lag_ms.load(Relaxed)) {
            Some(left_ms) => since.saturating_add(left_ms / TICK_MS),
            None => since.saturating_sub(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds until this much is owed by a client that takes `bytes` every so many seconds.
    fn lasts(bytes: usize, every_s: u64, bound_ms: u64) -> Option<u64> {
        let pace = ReadPace::default();
        pace.start(1);
        (0..100_000).map(|second| second * 10).find(|tick| {
            if tick % (every_s * 10) == 0 {
                pace.record_read(*tick + 1, bytes);
                pace.start(*tick + 1);
            }
            let owes = pace.lag_ms(*tick + 1) > bound_ms;
            assert_eq!(tick + 1 > pace.deadline(Duration::from_millis(bound_ms)), owes, "tick {tick}");
            owes
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
        pace.start(1);
        pace.record_read(1, 100_000_000);
        assert_eq!(pace.lag_ms(500), 0, "nothing is waited for");
        pace.start(1);
        pace.start(600);
        assert_eq!(pace.lag_ms(701), 70_000, "it runs since it was started first");
        pace.restart(701);
        assert_eq!(pace.lag_ms(702), 100);
    }
}
