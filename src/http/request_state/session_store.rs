//! The store behind a request's `Session`, bound to the request's other uses of state.
//!
//! Guarantees that a visitor never gets two sessions from one request, in whichever order a handler counts the view,
//! logs somebody in and writes to the session; and that a session which a handler ended ends, even if the client does
//! not wait for the response.

use std::sync::Arc;

use async_trait::async_trait;
use tower_sessions::session::{Id, Record};
use tower_sessions::session_store;
use tower_sessions::session_store::SessionStore;

use crate::http::error::RequestError;
use crate::http::request_state::state::{RequestState, SessionOrigin};
use crate::redis::begin::SessionLookup;
use crate::session::tracked_store::{CommitStatus, NewSessionSeed, SessionSource, TrackedSessionStore};
use crate::{redis, session};

/// One request's store.
#[derive(Debug)]
pub(in crate::http) struct RequestSessionStore {
    pub(in crate::http) state: Arc<RequestState>,
    pub(in crate::http) inner: TrackedSessionStore<BeginSource>,
}

/// Reads a session through the request's one call.
#[derive(Debug)]
pub(in crate::http) struct BeginSource(Arc<RequestState>);

impl SessionSource for BeginSource {
    async fn lookup_session(&self, id: &Id) -> Result<SessionLookup, session::SessionError> {
        self.0.lookup_session(*id).await.map_err(|error| match error {
            RequestError::Denied => session::SessionError::Denied,
            other => {
                session::SessionError::Redis(redis::RedisError::Unavailable { reason: other.to_string() })
            }
        })
    }

    async fn new_session_seed(&self) -> NewSessionSeed {
        self.0.new_session_seed().await
    }
}

impl RequestSessionStore {
    pub(in crate::http) fn new(state: &Arc<RequestState>) -> Self {
        let core = &state.services;
        let inner = TrackedSessionStore::new(
            BeginSource(Arc::clone(state)),
            core.redis.clone(),
            Arc::clone(&core.sessions.settings),
        );
        Self { state: Arc::clone(state), inner }
    }

    /// What became of the handler's changes.
    pub(in crate::http) fn commit_status(&self) -> CommitStatus {
        self.inner.commit_status()
    }

    /// Whether nothing is left to be done, and nothing of what was done failed.
    pub(in crate::http) fn is_complete(&self) -> bool {
        self.inner.is_complete()
    }

    /// Whether `Session` let its id go and nothing was done about it yet.
    pub(in crate::http) fn has_released_id(&self) -> bool {
        self.inner.released_id().is_some()
    }
}

#[async_trait]
impl SessionStore for RequestSessionStore {
    async fn create(&self, record: &mut Record) -> session_store::Result<()> {
        let created = {
            let inner = self.state.lock().await;
            if inner.came_with_rotated_id() {
                return Err(self.inner.reject_rotated_id());
            }
            // A new session's data of such a request are not kept, as if its client had no cookies.
            if self.state.creates_no_session && inner.stored_session_id().is_none() && !self.has_released_id()
            {
                return Ok(());
            }
            inner.current_session_id.filter(|_| inner.origin == SessionOrigin::Created)
        };
        // This request made a session that nobody else knows: the handler's data go there.
        if let Some(id) = created {
            self.inner.destroy_released().await?;
            return self.inner.adopt(record, id).await;
        }
        // Creating is a use of state like any other: the limits are asked first.
        if self.state.decide_limits().await.is_err() {
            return Err(session_store::Error::Backend("the request was refused".to_owned()));
        }
        self.inner.create(record).await?;
        // A new id keeps its user, a new session has none.
        self.state.set_current_session(Some(record.id), self.inner.user()).await;
        Ok(())
    }

    async fn save(&self, record: &Record) -> session_store::Result<()> {
        let saved = self.inner.save(record).await;
        // Whatever became of it, what was read before is not known to be true any more.
        self.state.invalidate_cached(record.id);
        saved
    }

    async fn load(&self, id: &Id) -> session_store::Result<Option<Record>> {
        self.inner.load(id).await
    }

    async fn delete(&self, id: &Id) -> session_store::Result<()> {
        let Some(present) = self.inner.current_id(*id) else { return Ok(()) };
        // `cycle_id` of a visitor without a session deletes an id that never was.
        if self.state.lock().await.current_session_id != Some(present) {
            return Ok(());
        }
        if self.state.decide_limits().await.is_err() {
            return Err(session_store::Error::Backend("the request was refused".to_owned()));
        }
        // Read now, because afterwards the request has no session that could be read.
        self.inner.ensure_loaded(present).await?;
        let deleted = self.inner.delete(id).await;
        self.state.invalidate_cached(*id);
        deleted?;
        self.state.set_current_session(None, None).await;
        Ok(())
    }
}

/// A client that leaves takes its request with it. A session that was to be ended ends all the same.
impl Drop for RequestSessionStore {
    fn drop(&mut self) {
        let (Some(left), Ok(runtime)) = (self.inner.released_id(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let (redis, prefix) = (self.state.services.redis.clone(), Arc::clone(&self.state.services.prefix));
        runtime.spawn(async move {
            if let Err(error) = redis.destroy_session(&prefix, &session::digest(left), None, false).await {
                tracing::warn!(%error, "a session of a request that was abandoned was not ended: {error}");
            }
        });
    }
}
