//! How many cores this process may use: the smaller of affinity and cgroup quota.

use std::num::NonZeroUsize;

/// Cores allowed by `sched_getaffinity(2)` and the CPU quota of cgroup v1 or v2, rounded down, at least 1.
///
/// The standard library reads both; where `/proc` or `/sys` is hidden it knows only the affinity.
pub fn allowed() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}
