//! Sessions that were seen in the last minutes: gathered here, counted in Redis, once a second at most.
//!
//! A request costs a look into a set; a worker whose visitors are all known this minute asks Redis nothing.

use std::collections::HashSet;
use std::fmt;
use std::hash::BuildHasher;
use std::hash::BuildHasherDefault;
use std::hash::DefaultHasher;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use crate::redis::Redis;
use crate::sys::time;

/// Sessions are gathered for so long before they are sent on.
const GATHER: Duration = Duration::from_secs(1);

/// Most sessions that a worker remembers within a minute, 8 bytes each; with more it may count one again, which changes
/// nothing.
const KEPT: usize = 65_536;

/// Most sessions of one call; those beyond go with the next.
const SENT: usize = 4096;

/// Slices of a minute that a count covers: the present one and those of the last five minutes.
const SLICES: u64 = 6;

/// A worker's part; clones are the same one.
#[derive(Clone)]
pub(super) struct Seen(Option<Arc<Inner>>);

struct Inner {
    redis: Redis,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    minute: u64,
    known: HashSet<u64>,
    waiting: Vec<u64>,
    /// Whether a task will send on what waits.
    sends: bool,
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seen").field("counts", &self.0.is_some()).finish_non_exhaustive()
    }
}

impl Seen {
    /// `counts`: whether this machine tells Redis of itself at all.
    pub(super) fn new(redis: &Redis, counts: bool) -> Self {
        Self(counts.then(|| Arc::new(Inner { redis: redis.clone(), state: Mutex::default() })))
    }

    /// A session was used; `digest` is its hashed id.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub(super) fn note(&self, digest: &str) {
        let Some(inner) = &self.0 else { return };
        // The same in every worker of every machine; it protects nothing.
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(digest);
        let begins = {
            let mut state = inner.lock();
            let minute = minute(time::unix());
            if state.minute != minute || state.known.len() >= KEPT {
                state.minute = minute;
                state.known.clear();
            }
            if !state.known.insert(hash) || state.waiting.len() >= KEPT {
                return;
            }
            state.waiting.push(hash);
            !std::mem::replace(&mut state.sends, true)
        };
        if begins {
            tokio::spawn(send(Arc::clone(inner)));
        }
    }

    /// How many there were in the last minutes, on all machines, ± 0.81 % (standard error); `unix` is the time now.
    pub(super) async fn count(&self, redis: &Redis, unix: Duration) -> Option<u64> {
        self.0.as_ref()?;
        redis.sessions_seen(minute(unix), SLICES).await.ok()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn minute(unix: Duration) -> u64 {
    unix.as_secs() / 60
}

/// Sends on what waits, until nothing does. What Redis does not take is not counted: it is a figure, not a promise.
async fn send(inner: Arc<Inner>) {
    loop {
        tokio::time::sleep(GATHER).await;
        let hashes = {
            let mut state = inner.lock();
            if state.waiting.is_empty() {
                state.sends = false;
                return;
            }
            let more = state.waiting.len().saturating_sub(SENT);
            state.waiting.split_off(more)
        };
        let minute = minute(time::unix());
        if let Err(error) = inner.redis.see_sessions(minute, SLICES, &hashes).await {
            tracing::debug!(%error, "sessions are not counted: {error}");
        }
    }
}
