//! What a request gets of its session when Redis does not serve it in full.
//!
//! Guarantees that nothing is made, counted or taken away meanwhile, and that no number stands in for one that was not
//! counted: a visitor sees the session's data as last known, marked as such, or a 503.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tower_sessions::session::Id;

use crate::http::request_state::state::{RequestState, RequestStateInner, SessionFreshness};
use crate::redis::RedisClient;
use crate::redis::begin::{SessionAccess, SessionLookup, SessionQuery};
use crate::redis::notifications::NotificationHandler;
use crate::redis::session_commands::{SESSION_DESTROYED, USER_SESSIONS_REVOKED};
use crate::sessions::stale_cache::{CacheClock, StaleSessionCache};
use crate::sys::clock;
use crate::{redis, sessions};

impl RequestState {
    /// Stores what was read from Redis, for when Redis is away.
    pub(super) fn cache_session(&self, session: &SessionQuery, reply: &SessionLookup) {
        let Some(digest) = self.cookie_digest(session) else { return };
        if reply.user().is_some() && !self.services.sessions.follows_session_ends.swap(true, Relaxed) {
            subscribe_to_session_ends(&self.services.redis, &self.services.sessions.stale_cache);
        }
        let unix_ms = u64::try_from(clock::wall_clock().as_millis()).unwrap_or(u64::MAX);
        self.stale_cache().insert(digest, reply, self.services.worker.uptime(), unix_ms);
    }

    /// A view could not be counted: records what is known of its session, without a number.
    pub(super) async fn record_uncounted_view(
        &self,
        inner: &mut RequestStateInner,
        error: &redis::RedisError,
    ) {
        if inner.freshness.is_some() {
            return;
        }
        let unread = inner.stored_session_id().filter(|_| inner.lookup.is_none());
        let session = unread.map(|id| self.session_query(inner, id, SessionAccess::Read, false));
        match (self.session_without_redis(session.as_ref(), error).await, unread) {
            (Some((how, reply)), Some(id)) => {
                inner.freshness = Some(how);
                self.record_lookup(inner, id, reply).await;
            }
            _ => inner.freshness = Some(SessionFreshness::Unknown),
        }
    }

    /// The session is changed, or may be: its cached copy is not true any more.
    pub(crate) fn invalidate_cached(&self, id: Id) {
        self.stale_cache().remove(&sessions::digest(id));
    }

    /// The session of the visitor's cookie; none if nothing is known.
    ///
    /// A server that only refuses writes is read, whatever the method: what writes fails by itself, and logging out
    /// need not. The stale session is for safe methods.
    pub(super) async fn session_without_redis(
        &self,
        session: Option<&SessionQuery>,
        error: &redis::RedisError,
    ) -> Option<(SessionFreshness, SessionLookup)> {
        let session = session?;
        let digest = self.cookie_digest(session)?;
        // A server that just did not reply is not tried again; without a connection, or behind an open breaker, the call fails
        // at once.
        let lookup = match error {
            redis::RedisError::Timeout | redis::RedisError::ConnectionLost { .. } => None,
            _ => self.services.redis.read_session_without_functions(session).await.ok(),
        };
        match lookup {
            // A provisional cookie can still create its session later.
            Some(SessionLookup::Gone) if session.provisional.is_some() => {
                Some((SessionFreshness::ReadOnly, SessionLookup::Provisional))
            }
            Some(reply) => Some((SessionFreshness::ReadOnly, reply)),
            None if self.is_safe_method => Some((SessionFreshness::Stale, self.cached_session(digest)?)),
            None => None,
        }
    }

    fn cached_session(&self, digest: &str) -> Option<SessionLookup> {
        let now = self.services.worker.uptime();
        let last_contact = now.saturating_sub(self.services.redis.time_since_response()?);
        self.stale_cache().get(
            digest,
            &self.services.sessions.settings.lifetimes,
            CacheClock { now, last_contact },
        )
    }

    /// The hashed id of the visitor's cookie, if this is about its session.
    fn cookie_digest(&self, session: &SessionQuery) -> Option<&str> {
        self.visitor.digest().filter(|digest| session.key.ends_with(digest))
    }

    fn stale_cache(&self) -> MutexGuard<'_, StaleSessionCache> {
        self.services.sessions.stale_cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// From now on copies are dropped when their sessions end on other workers. Not before a user is logged in on this
/// worker: the subscription takes a connection, and without logins there are no logouts.
fn subscribe_to_session_ends(redis: &RedisClient, cache: &Arc<Mutex<StaleSessionCache>>) {
    let handler = |act: fn(&mut StaleSessionCache, &str)| -> NotificationHandler {
        let cache = Arc::clone(cache);
        Arc::new(move |key: &str| act(&mut cache.lock().unwrap_or_else(PoisonError::into_inner), key))
    };
    redis.on_notification(SESSION_DESTROYED, handler(StaleSessionCache::remove));
    redis.on_notification(USER_SESSIONS_REVOKED, handler(StaleSessionCache::remove_user));
}
