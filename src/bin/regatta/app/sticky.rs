//! Hits per session in one worker's memory: they add up only if the same worker gets a client's requests, as with
//! `listen.steering = "client-ip"`.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State as Shared;
use axum::routing::get;
use lru::LruCache;
use regatta::Worker;
use regatta::session::{Error, Session};

/// Sessions in a worker's memory; the least recently used is removed first.
const MAX_SESSIONS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(9_999);

/// Hits by session.
type Hits = Arc<Mutex<LruCache<i128, u64>>>;

/// The route and its memory.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    // It grows with its entries: capacity for all of them at once would cost every worker half a megabyte.
    let mut hits = LruCache::unbounded();
    hits.resize(MAX_SESSIONS);
    Router::new().route("/sticky", get(sticky)).with_state(Arc::new(Mutex::new(hits)))
}

/// Counts a hit. Only a visitor's first one needs Redis: it creates the session, which later requests name by cookie.
async fn sticky(worker: Worker, session: Session, Shared(hits): Shared<Hits>) -> Result<String, Error> {
    if session.id().is_none() {
        session.save().await?;
    }
    let id = session.id().ok_or(Error::Gone)?.0;
    let hits = {
        let mut hits = hits.lock().unwrap_or_else(PoisonError::into_inner);
        let hits = hits.get_or_insert_mut(id, || 0);
        *hits += 1;
        *hits
    };
    Ok(format!("Worker {} session hits: {hits}\n", worker.pid()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_the_least_recently_used_session_goes() {
        let mut hits = LruCache::unbounded();
        hits.resize(MAX_SESSIONS);
        for id in 0..20_000 {
            hits.put(id, 1);
            hits.get(&0);
        }
        assert_eq!((hits.len(), hits.contains(&0), hits.contains(&1)), (10_000, true, false));
    }
}
