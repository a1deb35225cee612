//! How often and how long calls waited for Redis to come back, for metrics.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Duration;

use tokio::time::Instant;

/// What outages of Redis have cost this worker so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutageStats {
    /// Times a connection fell silent: calls waited on it and nothing was answered.
    pub silences: u64,
    /// Calls that wait for a connection now.
    pub waiting: usize,
    /// Calls that have waited for one.
    pub waited: u64,
    /// The longest of these waits.
    pub longest: Duration,
}

/// Counts calls that wait because there is no connection.
#[derive(Debug, Default)]
pub(super) struct ReconnectWaits {
    waiting: AtomicUsize,
    started: AtomicU64,
    longest_us: AtomicU64,
    silences: AtomicU64,
}

/// Counts one wait until it is dropped.
pub(super) struct ReconnectWaitGuard<'a> {
    waits: &'a ReconnectWaits,
    since: Instant,
}

impl ReconnectWaits {
    pub(super) fn start(&self) -> ReconnectWaitGuard<'_> {
        self.waiting.fetch_add(1, Relaxed);
        self.started.fetch_add(1, Relaxed);
        ReconnectWaitGuard { waits: self, since: Instant::now() }
    }

    pub(super) fn count_silence(&self) {
        self.silences.fetch_add(1, Relaxed);
    }

    pub(super) fn stats(&self) -> OutageStats {
        OutageStats {
            silences: self.silences.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
            waited: self.started.load(Relaxed),
            longest: Duration::from_micros(self.longest_us.load(Relaxed)),
        }
    }
}

impl Drop for ReconnectWaitGuard<'_> {
    fn drop(&mut self) {
        let us = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.waits.longest_us.fetch_max(us, Relaxed);
        self.waits.waiting.fetch_sub(1, Relaxed);
    }
}
