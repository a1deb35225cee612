//! How often and how long requests waited for Redis to come back, for metrics.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::Instant;

use crate::redis::Redis;

/// Calls that wait, or did, because there was no connection.
#[derive(Debug, Default)]
pub(super) struct Waits {
    now: AtomicUsize,
    begun: AtomicU64,
    longest_us: AtomicU64,
    /// Connections that fell silent.
    pub(super) silences: AtomicU64,
}

/// One of them.
pub(super) struct Wait<'a> {
    waits: &'a Waits,
    since: Instant,
}

impl Waits {
    pub(super) fn begin(&self) -> Wait<'_> {
        self.now.fetch_add(1, Relaxed);
        self.begun.fetch_add(1, Relaxed);
        Wait { waits: self, since: Instant::now() }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let us = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.waits.longest_us.fetch_max(us, Relaxed);
        self.waits.now.fetch_sub(1, Relaxed);
    }
}

/// What absences of Redis have cost this worker so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Absences {
    /// Times a connection fell silent: calls waited on it and nothing was answered.
    pub silences: u64,
    /// Calls that wait for a connection at this moment.
    pub waiting: usize,
    /// Calls that have waited for one.
    pub waited: u64,
    /// The longest of these waits.
    pub longest: Duration,
}

impl Redis {
    /// What absences of Redis have cost so far.
    pub fn absences(&self) -> Absences {
        let waits = &self.inner.waits;
        Absences {
            silences: waits.silences.load(Relaxed),
            waiting: waits.now.load(Relaxed),
            waited: waits.begun.load(Relaxed),
            longest: Duration::from_micros(waits.longest_us.load(Relaxed)),
        }
    }
}
