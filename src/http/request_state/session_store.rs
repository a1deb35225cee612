//! The store behind a request's `Session`, bound to the request's other uses of state.
//!
//! Guarantees that a visitor never gets two sessions from one request, in whichever order a handler counts the view,
//! logs a user in and writes to the session; and that a session which a handler ended ends, even if the client does
//! not wait for the response.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tower_sessions::session::{Id, Record};
use tower_sessions::session_store;
use tower_sessions::session_store::SessionStore;

use crate::http::error::RequestError;
use crate::http::request_state::state::{RequestState, SessionOrigin};
use crate::request_state::auth::UserLogin;
use crate::request_state::tracked_session::{LoadedSession, TrackedSession};
use crate::sessions::SessionError;
use crate::{redis, sessions};

/// One request's store.
pub(crate) struct RequestSessionStore {
    pub(crate) state: Arc<RequestState>,
    pub(crate) session: TrackedSession,
}

/// Without the session.
impl fmt::Debug for RequestSessionStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestSessionStore").field("state", &self.state).finish_non_exhaustive()
    }
}

impl RequestSessionStore {
    pub(crate) fn new(state: &Arc<RequestState>) -> Self {
        let services = &state.services;
        let session = TrackedSession::new(services.redis.clone(), Arc::clone(&services.sessions.settings));
        Self { state: Arc::clone(state), session }
    }

    /// The session with this id, read with the request's round trip unless it is known already.
    ///
    /// # Errors
    /// `Gone`, `Rotated`, and what kept it from being read.
    pub(crate) async fn loaded(&self, id: Id) -> Result<LoadedSession, SessionError> {
        if let Some(known) = self.session.known(id) {
            return Ok(known);
        }
        let lookup = self.state.lookup_session(id).await.map_err(|error| match error {
            RequestError::Denied(_) => SessionError::Denied,
            other => SessionError::Redis(redis::RedisError::Unavailable { reason: other.to_string() }),
        })?;
        self.session.record_lookup(id, lookup)
    }

    /// Logs a user in, see [`TrackedSession::login`].
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn login(&self, old: Option<Id>, login: &UserLogin) -> Result<Id, SessionError> {
        let known = match old {
            None => None,
            Some(old) => match self.loaded(old).await {
                Ok(known) => Some(known),
                Err(SessionError::Gone) => None,
                Err(error) => return Err(error),
            },
        };
        self.session.login(known, login, self.state.new_session_seed().await).await
    }

    /// Gives the session another id, see [`TrackedSession::cycle_id`].
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn cycle_id(&self, id: Id) -> Result<Id, SessionError> {
        let known = self.loaded(id).await?;
        self.session.cycle_id(known, self.state.new_session_seed().await).await
    }

    /// Makes a session without fields.
    ///
    /// # Errors
    /// As [`TrackedSession::create_with_fields`].
    pub(crate) async fn create_empty(&self) -> Result<Id, SessionError> {
        let seed = self.state.new_session_seed().await;
        self.session.create_with_fields(Vec::<(String, Bytes)>::new(), seed).await
    }

    /// The session whose id `Session` released, or why it is not known.
    async fn released(&self) -> Option<Result<LoadedSession, SessionError>> {
        match self.session.released_id() {
            Some(id) => Some(self.loaded(id).await),
            None => None,
        }
    }

    async fn save_changes(&self, record: &Record) -> session_store::Result<()> {
        match self.session.current_id(record.id) {
            Some(id) => self.session.save(record, self.loaded(id).await).await,
            // A session that this request ended takes no more changes.
            None => Ok(()),
        }
    }

    /// Making and ending a session are uses of state like any other: the limits are decided first.
    async fn decide_limits(&self) -> session_store::Result<()> {
        let decided = self.state.decide_limits().await;
        decided.map_err(|_| session_store::Error::Backend("the request was refused".to_owned()))
    }
}

#[async_trait]
impl SessionStore for RequestSessionStore {
    async fn create(&self, record: &mut Record) -> session_store::Result<()> {
        let created = {
            let inner = self.state.lock().await;
            if inner.came_with_rotated_id() {
                return Err(self.session.reject_rotated_id());
            }
            // A new session's data of such a request are not stored, as if its client had no cookies.
            if self.state.creates_no_session
                && inner.stored_session_id().is_none()
                && self.session.released_id().is_none()
            {
                return Ok(());
            }
            inner.current_session_id.filter(|_| inner.origin == SessionOrigin::Created)
        };
        // This request made a session that is in no cookie yet: the handler's data go there.
        if let Some(id) = created {
            self.session.destroy_released(self.released().await.as_ref()).await?;
            self.session.adopt(record, id);
            return self.save_changes(record).await;
        }
        self.decide_limits().await?;
        let released = self.released().await;
        self.session.create(record, released, self.state.new_session_seed().await).await?;
        // A new id keeps its user, a new session has none.
        self.state.set_current_session(Some(record.id), self.session.user()).await;
        Ok(())
    }

    async fn save(&self, record: &Record) -> session_store::Result<()> {
        let saved = self.save_changes(record).await;
        // Also if it failed: what was read before may be untrue by now.
        self.state.invalidate_cached(record.id);
        saved
    }

    async fn load(&self, id: &Id) -> session_store::Result<Option<Record>> {
        match self.session.current_id(*id) {
            Some(present) => self.session.load(*id, self.loaded(present).await),
            None => Ok(None),
        }
    }

    async fn delete(&self, id: &Id) -> session_store::Result<()> {
        let Some(present) = self.session.current_id(*id) else { return Ok(()) };
        // `cycle_id` of a visitor without a session deletes an id that never was.
        if self.state.lock().await.current_session_id != Some(present) {
            return Ok(());
        }
        self.decide_limits().await?;
        // Read now, because afterwards the request has no session that could be read.
        match self.loaded(present).await {
            Ok(_) | Err(SessionError::Gone | SessionError::Rotated) => {}
            Err(error) => return Err(session_store::Error::Backend(error.to_string())),
        }
        self.session.release(*id);
        self.state.invalidate_cached(*id);
        self.state.set_current_session(None, None).await;
        Ok(())
    }
}

/// A client that disconnects takes its request with it. A session that was to be ended ends all the same.
impl Drop for RequestSessionStore {
    fn drop(&mut self) {
        let (Some(released), Ok(runtime)) =
            (self.session.released_id(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let services = &self.state.services;
        let (redis, prefix) = (services.redis.clone(), Arc::clone(&services.prefix));
        runtime.spawn(async move {
            if let Err(error) = redis.destroy_session(&prefix, &sessions::digest(released), None, false).await
            {
                tracing::warn!(%error, "the session of an abandoned request was not ended: {error}");
            }
        });
    }
}
