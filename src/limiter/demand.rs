//! Which limits are asked about often, without a word about each: counters that keys share, over a tenth of a second.
//!
//! Ten thousand clients that come once each cost nothing here but a hash and an addition. Two keys may share a counter:
//! then one of them counts as busy too early, which costs a table entry in which it is counted by itself. Pure; times
//! are µs of the worker's clock.

/// Time over which requests are counted, µs.
const SPAN_US: u64 = 100_000;

/// Requests in this time from which a limit is busy.
const BUSY: u8 = 32;

/// Counters; a power of two.
const COUNTERS: usize = 4096;

/// Requests lately, by the hash of their limit's key.
#[derive(Debug)]
pub(super) struct Demand {
    /// Empty until the first request: a worker without such limits needs none.
    counters: Vec<u8>,
    span_us: u64,
}

impl Demand {
    pub(super) fn new() -> Self {
        Self { counters: Vec::new(), span_us: 0 }
    }

    /// Counts a request; whether its limit is busy.
    pub(super) fn is_busy(&mut self, key: &str, now_us: u64) -> bool {
        if self.counters.is_empty() {
            self.counters.resize(COUNTERS, 0);
        }
        let span_us = now_us - now_us % SPAN_US;
        if span_us != self.span_us {
            self.span_us = span_us;
            self.counters.fill(0);
        }
        let Some(counter) = self.counters.get_mut(slot(key)) else { return false };
        *counter = counter.saturating_add(1);
        *counter >= BUSY
    }
}

/// Eight bytes at a time (FxHash): a key has some fifty bytes, and this is done for every request.
fn slot(key: &str) -> usize {
    let (words, rest) = key.as_bytes().as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let mix = |hash: u64, word: u64| (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    let hash = words.iter().fold(0, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    let hash = mix(hash, u64::from_le_bytes(last));
    // The product's upper bits depend on all of the key.
    usize::try_from(hash >> (64 - COUNTERS.ilog2())).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thirty_second_request_of_a_tenth_of_a_second_is_a_busy_one() {
        let mut demand = Demand::new();
        let seen: Vec<_> = (0..33).map(|n| demand.is_busy("k", 100_000 + n)).collect();
        assert_eq!(seen.iter().position(|busy| *busy), Some(31));
        assert!(!demand.is_busy("k", 200_000), "a new span");
        assert!(!demand.is_busy("k", 100_000), "a clock that went back begins a span, too");
    }

    #[test]
    fn ten_thousand_clients_that_come_once_are_spread_over_the_counters() {
        let mut demand = Demand::new();
        let key =
            |n: u32| format!("regatta:l:default:Zm9vYmFy:10.{}.{}.{}", n >> 16, (n >> 8) & 255, n & 255);
        let busy = (0..10_000).filter(|n| demand.is_busy(&key(*n), 0)).count();
        assert!(busy < 200, "{busy} of 10,000, at 2.4 a counter");
    }
}
