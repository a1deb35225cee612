//! Which limits are checked often: counters that keys share, over a tenth of a second.
//!
//! Ten thousand clients that come once each cost a hash and an addition each. Two keys may share a counter: then one
//! of them counts as busy too early, which costs a bucket of its own. Pure; times are µs of the worker's clock.

/// Time over which requests are counted, µs.
const WINDOW_US: u64 = 100_000;

/// Requests in this time from which a limit is busy.
const BUSY_MIN: u8 = 32;

/// Number of counters; a power of two.
const COUNTERS: usize = 4096;

/// Requests in the present window, by the hash of their limit's key.
#[derive(Debug)]
pub(super) struct DemandSketch {
    /// Empty until the first request: a worker without such limits needs none.
    counters: Vec<u8>,
    window_start_us: u64,
    /// Secret numbers of this worker: a client that could compute which keys share a counter would make all of them
    /// busy with one request each, and fill the table of buckets with them.
    seeds: [u64; 2],
}

impl DemandSketch {
    pub(super) fn new(seeds: [u64; 2]) -> Self {
        Self { counters: Vec::new(), window_start_us: 0, seeds }
    }

    /// Counts a request; returns whether its limit is busy.
    pub(super) fn count_is_busy(&mut self, key: &str, now_us: u64) -> bool {
        if self.counters.is_empty() {
            self.counters.resize(COUNTERS, 0);
        }
        let window_us = now_us - now_us % WINDOW_US;
        if window_us != self.window_start_us {
            self.window_start_us = window_us;
            self.counters.fill(0);
        }
        let Some(counter) = self.counters.get_mut(counter_index(key, self.seeds)) else { return false };
        *counter = counter.saturating_add(1);
        *counter >= BUSY_MIN
    }
}

/// Hashes eight bytes at a time, since every request does it: the upper half of each product is folded into the
/// lower, so that no difference between keys disappears whatever the secret factor is.
fn counter_index(key: &str, [start, factor]: [u64; 2]) -> usize {
    let (words, rest) = key.as_bytes().as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let mix = |hash: u64, word: u64| {
        let product = u128::from(hash ^ word) * u128::from(factor | 1);
        // The casts truncate on purpose.
        (product as u64) ^ ((product >> 64) as u64)
    };
    let hash = words.iter().fold(start, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    // The length is included, or zeros at the end of a key would change nothing.
    let hash = mix(mix(hash, u64::from_le_bytes(last)), key.len() as u64);
    usize::try_from(hash >> (64 - COUNTERS.ilog2())).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEDS: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03];

    #[test]
    fn a_limit_is_busy_from_the_thirty_second_request_of_a_window() {
        let mut demand = DemandSketch::new(SEEDS);
        let busy: Vec<_> = (0..33).map(|n| demand.count_is_busy("k", 100_000 + n)).collect();
        assert_eq!(busy.iter().position(|busy| *busy), Some(31));
        assert!(!demand.count_is_busy("k", 200_000), "a new window");
        assert!(!demand.count_is_busy("k", 100_000), "a clock that stepped back starts a window, too");
    }

    #[test]
    fn ten_thousand_clients_that_come_once_are_spread_over_the_counters() {
        let mut demand = DemandSketch::new(SEEDS);
        let key =
            |n: u32| format!("regatta:l:default:Zm9vYmFy:10.{}.{}.{}", n >> 16, (n >> 8) & 255, n & 255);
        let busy = (0..10_000).filter(|n| demand.count_is_busy(&key(*n), 0)).count();
        assert!(busy < 200, "{busy} of 10,000, at 2.4 a counter");
    }

    #[test]
    fn which_keys_share_a_counter_depends_on_the_seeds() {
        // Under FxHash these two collide whatever it starts with.
        let [one, two] = [[0_u64, 0], [1 << 63, 1 << 4]].map(|words| {
            let bytes = words.map(u64::to_le_bytes).concat();
            bytes.into_iter().map(char::from).collect::<String>()
        });
        let shared = (1..200_u64).filter(|seed| {
            let seeds = SEEDS.map(|word| word.wrapping_mul(2 * seed + 1));
            counter_index(&one, seeds) == counter_index(&two, seeds)
                || counter_index("a", seeds) == counter_index("b", seeds)
        });
        assert!(shared.count() <= 2);
    }
}
