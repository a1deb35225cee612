//! The time in which a request's response has to begin.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// The time in which a response has to begin.
#[derive(Debug)]
pub(crate) struct ResponseTimeout(AtomicU64);

impl ResponseTimeout {
    pub(crate) fn new(time: Duration) -> Self {
        Self(AtomicU64::new(millis(time)))
    }

    pub(crate) fn set(&self, time: Duration) {
        self.0.store(millis(time), Relaxed);
    }

    pub(crate) fn get(&self) -> Option<Duration> {
        Some(self.0.load(Relaxed)).filter(|millis| *millis > 0).map(Duration::from_millis)
    }
}

/// Zero stays zero, and what is not zero does not become it.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
