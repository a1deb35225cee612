//! Counts of the last while, in slices that fall out one by one.

use std::time::Duration;

/// Slices of a window: what falls out at once is a tenth of it.
const SLICES: usize = 10;

/// `KINDS` counts over ten slices of time.
#[derive(Debug, Clone)]
pub(super) struct Window<const KINDS: usize> {
    slice: Duration,
    /// Number of the newest slice since the clock's origin.
    newest: u64,
    counts: [[u32; KINDS]; SLICES],
}

impl<const KINDS: usize> Window<KINDS> {
    /// An empty window of ten slices.
    pub(super) const fn new(slice: Duration) -> Self {
        Self { slice, newest: 0, counts: [[0; KINDS]; SLICES] }
    }

    /// Counts one more of a kind.
    pub(super) fn add(&mut self, now: Duration, kind: usize) {
        self.turn(now);
        let count = &mut self.counts[Self::place(self.newest)][kind];
        *count = count.saturating_add(1);
    }

    /// The counts of the window that ends now.
    pub(super) fn sums(&mut self, now: Duration) -> [u32; KINDS] {
        self.turn(now);
        std::array::from_fn(|kind| {
            self.counts.iter().fold(0, |sum: u32, slice| sum.saturating_add(slice[kind]))
        })
    }

    /// Empties the slices that have become too old. A clock that goes back is taken to stand still.
    fn turn(&mut self, now: Duration) {
        let current = u64::try_from(now.as_nanos() / self.slice.as_nanos().max(1)).unwrap_or(u64::MAX);
        let passed = current.saturating_sub(self.newest).min(SLICES as u64);
        for back in 0..passed {
            self.counts[Self::place(current - back)] = [0; KINDS];
        }
        self.newest = self.newest.max(current);
    }

    #[allow(clippy::cast_possible_truncation, reason = "a remainder below ten")]
    fn place(slice: u64) -> usize {
        (slice % SLICES as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_the_window_is_forgotten_slice_by_slice() {
        let ms = Duration::from_millis;
        let mut window = Window::<2>::new(ms(100));
        window.add(ms(5000), 0);
        window.add(ms(5950), 1);
        assert_eq!(window.sums(ms(5999)), [1, 1]);
        assert_eq!(window.sums(ms(6000)), [0, 1]);
        assert_eq!(window.sums(ms(6900)), [0, 0]);
        window.add(ms(6900), 0);
        // A clock that goes back neither panics nor empties anything.
        assert_eq!(window.sums(ms(100)), [1, 0]);
        assert_eq!(window.sums(ms(1_000_000)), [0, 0]);
    }
}
