//! What one worker knows of its limits: the Redis client, the clock and every cache, each behind its own lock.
//!
//! No lock is held over an `.await`.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rand::TryRngCore;
use rand::rngs::OsRng;

use crate::limiter::denial_cache::{DenialCache, TrackedCheck};
use crate::limiter::local_fallback::LocalLimiter;
use crate::limiter::message_meter::MessageMeters;
use crate::limiter::permit::LocalPermits;
use crate::limiter::prefetch::QuotaPrefetch;
use crate::limiter::reclaim::ReclaimTracker;
use crate::redis::RedisClient;

/// The clock of a limiter; tests pass one that they can set.
pub(super) type ClockFn = fn() -> Instant;

/// A worker's caches of its limits.
pub(super) struct LimiterState {
    pub(super) redis: RedisClient,
    /// Zero of this worker's µs.
    clock_start: Instant,
    clock: ClockFn,
    /// Longest wait for a reply of Redis.
    pub(super) redis_timeout: Duration,
    pub(super) denials: Mutex<DenialCache>,
    pub(super) local_limiter: Mutex<LocalLimiter>,
    pub(super) prefetch: Mutex<QuotaPrefetch>,
    pub(super) reclaims: Mutex<ReclaimTracker>,
    pub(super) local_permits: LocalPermits,
    pub(super) meters: Mutex<MessageMeters>,
    /// Since when this worker subscribes to notifications of limits, µs.
    pub(super) subscribed_us: OnceLock<u64>,
    pub(super) deferred_scheduled: AtomicBool,
    /// Names of this worker's permits and batches: a random start and a count.
    name_seed: u64,
    names_issued: AtomicU64,
}

/// Locks one of the caches.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for LimiterState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimiterState").finish_non_exhaustive()
    }
}

impl LimiterState {
    pub(super) fn new(redis: RedisClient, redis_timeout: Duration, clock: ClockFn) -> Arc<Self> {
        // Without random bytes permits of two workers may share a name: one of them then ends early.
        let random = || OsRng.try_next_u64().unwrap_or(0);
        let name_seed = random();
        Arc::new(Self {
            redis,
            clock_start: clock(),
            clock,
            redis_timeout,
            denials: Mutex::default(),
            local_limiter: Mutex::default(),
            prefetch: Mutex::new(QuotaPrefetch::new([random(), random()])),
            reclaims: Mutex::default(),
            local_permits: LocalPermits::default(),
            meters: Mutex::default(),
            subscribed_us: OnceLock::new(),
            deferred_scheduled: AtomicBool::new(false),
            name_seed,
            names_issued: AtomicU64::new(0),
        })
    }

    /// Now, µs of this worker's clock.
    pub(super) fn now_us(&self) -> u64 {
        self.to_us((self.clock)())
    }

    pub(super) fn to_us(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.clock_start).as_micros()).unwrap_or(u64::MAX)
    }

    pub(super) fn redis_timeout_us(&self) -> u64 {
        u64::try_from(self.redis_timeout.as_micros()).unwrap_or(u64::MAX)
    }

    /// Age at which no call is in flight any more, µs.
    pub(super) fn in_flight_max_us(&self) -> u64 {
        self.redis_timeout_us().saturating_mul(4)
    }

    /// A name that no other worker uses.
    pub(super) fn unique_name(&self) -> String {
        format!("{:016x}-{:x}", self.name_seed, self.names_issued.fetch_add(1, Relaxed))
    }

    /// Since when notifications of returned quota arrive here, µs; `None`: they do not.
    pub(super) fn subscribed_since_us(&self) -> Option<u64> {
        let complete_us = self.to_us(self.redis.notifications_complete_since()?);
        self.subscribed_us.get().map(|subscribed_us| complete_us.max(*subscribed_us))
    }

    /// A limit has quota again.
    pub(super) fn on_replenished(&self, key: &str) {
        let now_us = self.now_us();
        lock(&self.denials).invalidate(key, now_us);
        lock(&self.prefetch).on_quota_returned(key, now_us);
        lock(&self.reclaims).record_return(key, now_us);
        lock(&self.meters).clear_denial(key);
    }

    /// Removes checks that got no reply.
    pub(super) fn abandon_probes(&self, tracked: &[TrackedCheck]) {
        if tracked.is_empty() {
            return;
        }
        let mut denials = lock(&self.denials);
        tracked.iter().for_each(|check| denials.abandon_probe(check));
    }
}
