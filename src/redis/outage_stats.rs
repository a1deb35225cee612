//! How often and how long requests waited for Redis to come back, for metrics.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Duration;

use tokio::time::Instant;

use crate::redis::RedisClient;

/// Calls that wait, or did, because there was no connection.
#[derive(Debug, Default)]
pub(super) struct ReconnectWaits {
    waiting: AtomicUsize,
    started: AtomicU64,
    longest_us: AtomicU64,
    /// Connections that fell silent.
    pub(super) silences: AtomicU64,
}

/// One of them.
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
}

impl Drop for ReconnectWaitGuard<'_> {
    fn drop(&mut self) {
        let us = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.waits.longest_us.fetch_max(us, Relaxed);
        self.waits.waiting.fetch_sub(1, Relaxed);
    }
}

/// What absences of Redis have cost this worker so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutageStats {
    /// Times a connection fell silent: calls waited on it and nothing was answered.
    pub silences: u64,
    /// Calls that wait for a connection at this moment.
    pub waiting: usize,
    /// Calls that have waited for one.
    pub waited: u64,
    /// The longest of these waits.
    pub longest: Duration,
}

impl RedisClient {
    /// What absences of Redis have cost so far.
    pub fn outage_stats(&self) -> OutageStats {
        let waits = &self.inner.reconnect_waits;
        OutageStats {
            silences: waits.silences.load(Relaxed),
            waiting: waits.waiting.load(Relaxed),
            waited: waits.started.load(Relaxed),
            longest: Duration::from_micros(waits.longest_us.load(Relaxed)),
        }
    }
}
