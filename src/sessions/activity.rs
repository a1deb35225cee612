//! Sessions that were seen in the last minutes: gathered here, counted in Redis, once a second at most.
//!
//! A request costs a lookup in a set; a worker whose visitors are all known this minute sends nothing to Redis.

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::redis::RedisClient;
use crate::sys::clock;

/// How long sessions are gathered before they are sent.
const SEND_INTERVAL: Duration = Duration::from_secs(1);

/// Most sessions that a worker records within a minute, 8 bytes each; with more it may count one again, which changes
/// nothing.
const HASHES_MAX: usize = 65_536;

/// Most sessions of one call; those beyond go with the next.
const HASHES_PER_CALL: usize = 4096;

/// Slices of a minute that a count covers: the present one and those of the last five minutes.
const MINUTES_COUNTED: u64 = 6;

/// A worker's part; clones are the same one.
#[derive(Clone)]
pub(crate) struct SessionActivity(Option<Arc<ActivityInner>>);

struct ActivityInner {
    redis: RedisClient,
    state: Mutex<ActivityBatch>,
}

#[derive(Default)]
struct ActivityBatch {
    minute: u64,
    known: HashSet<u64>,
    unsent: Vec<u64>,
    /// Whether a task runs that will send what is unsent.
    is_sending: bool,
}

impl fmt::Debug for SessionActivity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionActivity").field("counts", &self.0.is_some()).finish_non_exhaustive()
    }
}

impl SessionActivity {
    /// `counts`: whether this instance has a record in Redis at all.
    pub(crate) fn new(redis: &RedisClient, counts: bool) -> Self {
        Self(counts.then(|| Arc::new(ActivityInner { redis: redis.clone(), state: Mutex::default() })))
    }

    /// A session was used; `digest` is its hashed id.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub(crate) fn mark(&self, digest: &str) {
        let Some(inner) = &self.0 else { return };
        // The same in every worker of every instance; it protects nothing.
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(digest);
        let starts_task = {
            let mut state = inner.lock();
            let minute = minute(clock::wall_clock());
            if state.minute != minute || state.known.len() >= HASHES_MAX {
                state.minute = minute;
                state.known.clear();
            }
            if !state.known.insert(hash) || state.unsent.len() >= HASHES_MAX {
                return;
            }
            state.unsent.push(hash);
            !std::mem::replace(&mut state.is_sending, true)
        };
        if starts_task {
            tokio::spawn(send_batches(Arc::clone(inner)));
        }
    }

    /// How many there were in the last minutes, on all instances, ± 0.81 % (standard error); `unix` is the time now.
    pub(crate) async fn count(&self, redis: &RedisClient, unix: Duration) -> Option<u64> {
        self.0.as_ref()?;
        redis.count_active_sessions(minute(unix), MINUTES_COUNTED).await.ok()
    }
}

impl ActivityInner {
    fn lock(&self) -> MutexGuard<'_, ActivityBatch> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn minute(unix: Duration) -> u64 {
    unix.as_secs() / 60
}

/// Sends until nothing is unsent. What Redis does not take is not counted: it is a figure, not a promise.
async fn send_batches(inner: Arc<ActivityInner>) {
    loop {
        tokio::time::sleep(SEND_INTERVAL).await;
        let hashes = {
            let mut state = inner.lock();
            if state.unsent.is_empty() {
                state.is_sending = false;
                return;
            }
            let more = state.unsent.len().saturating_sub(HASHES_PER_CALL);
            state.unsent.split_off(more)
        };
        let minute = minute(clock::wall_clock());
        if let Err(error) = inner.redis.record_active_sessions(minute, MINUTES_COUNTED, &hashes).await {
            tracing::debug!(%error, "sessions are not counted: {error}");
        }
    }
}
