//! The request's session: the query for it, and what its result means for the visitor.

use std::time::Duration;

use tower_sessions::session::Id;

use crate::http::error::{RedisFailure, RequestError, StateError, whole_seconds};
use crate::http::request_state::cookie_identity::CookieIdentity;
use crate::http::request_state::session_store::RequestSessionStore;
use crate::http::request_state::state::{BeginFailure, RequestState, RequestStateInner, SessionOrigin};
use crate::http::services::state::TOTAL_VIEWS;
use crate::redis::begin::{
    CounterIncrement, NewSessionLimit, ProvisionalSessionQuery, SessionAccess, SessionLookup, SessionQuery,
};
use crate::redis::keys;
use crate::redis::session_commands::InitialSession;
use crate::sessions;
use crate::sessions::cookie;
use crate::sessions::cookie_value::ProvisionalCookie;
use crate::sessions::tracked_session::NewSessionSeed;
use crate::sessions::user::UserTag;

/// How long a damaged session is retained under another key.
const QUARANTINE_RETENTION: Duration = Duration::from_secs(60 * 60);

impl RequestState {
    /// The query for this session, whose user is the one that its cookie names. `creates`: if the cookie is provisional,
    /// the session is created.
    pub(super) fn session_query(
        &self,
        inner: &RequestStateInner,
        id: Id,
        mode: SessionAccess,
        creates: bool,
    ) -> SessionQuery {
        let prefix = &self.services.prefix;
        let key = match &self.visitor {
            CookieIdentity::Verified { id: known, digest, .. } if *known == id => {
                keys::session(prefix, digest)
            }
            _ => sessions::session_key(prefix, id),
        };
        let lifetimes = &self.services.sessions.settings.lifetimes;
        let provisional = |ProvisionalCookie { issued_ms, viewed }| ProvisionalSessionQuery {
            issued_ms,
            view_counted: viewed,
            ttl_ms: lifetimes.provisional_ms(),
            creates,
            limit: self.new_session_limit().filter(|_| creates),
        };
        SessionQuery {
            key,
            generation: inner.user.map(|user| keys::user_generation(prefix, &user.to_string())),
            access: mode,
            provisional: inner.provisional.map(provisional),
            idle_ms: lifetimes.idle_ms(),
            absolute_ms: lifetimes.absolute_ms(),
        }
    }

    /// The client's limit on new sessions.
    fn new_session_limit(&self) -> Option<NewSessionLimit> {
        let (interval_us, tolerance_us) = self.services.sessions.new_session_rate?;
        let key = keys::new_session_limit(
            &self.services.prefix,
            &self.client.limit_subject_text(self.services.ipv6_prefix),
        );
        Some(NewSessionLimit { key, interval_us, tolerance_us })
    }

    /// The first values of a session that this request creates: the view that it counted, and the id that a token of its
    /// page may depend on.
    pub(crate) async fn new_session_seed(&self) -> NewSessionSeed {
        let inner = self.lock().await;
        let issued = inner.origin == SessionOrigin::Issued;
        let views = u64::from(inner.counted_view.is_some_and(|view| view.is_new));
        let created_ms = inner.provisional.filter(|_| issued).map_or(0, |provisional| provisional.issued_ms);
        NewSessionSeed {
            id: inner.current_session_id.filter(|_| issued),
            initial: InitialSession { views, created_ms },
            limit: self.new_session_limit(),
        }
    }

    /// Gives a visitor without a session a provisional cookie, of which nothing is stored; the request has its id from now on.
    pub(super) async fn issue_provisional(&self, inner: &mut RequestStateInner) -> Result<Id, BeginFailure> {
        let now_ms = match inner.now_ms {
            Some(now_ms) => now_ms,
            None => {
                let total = keys::counter(&self.services.prefix, TOTAL_VIEWS);
                self.send_begin(inner, None, &[CounterIncrement { key: total, by: 0 }]).await?;
                inner.now_ms.ok_or_else(|| {
                    BeginFailure::HandlerOnly(RedisFailure::unavailable("its clock is not known").into())
                })?
            }
        };
        let id = cookie::new_id().map_err(|_| BeginFailure::HandlerOnly(RequestError::Internal))?;
        inner.current_session_id = Some(id);
        let viewed = inner.counted_view.is_some_and(|view| view.is_new);
        inner.provisional = Some(ProvisionalCookie { issued_ms: now_ms, viewed });
        inner.origin = SessionOrigin::Issued;
        Ok(id)
    }

    /// The id of the visitor's session; without one, the id of a session that is created later.
    ///
    /// # Errors
    /// As [`RequestState::load_current_session`].
    pub(crate) async fn load_or_issue_session(&self) -> Result<Id, RequestError> {
        if let Some(id) = self.load_current_session().await? {
            return Ok(id);
        }
        let mut inner = self.lock_unless_failed().await?;
        if let Some(id) = inner.current_session_id {
            return Ok(id);
        }
        let issued = self.issue_provisional(&mut inner).await;
        issued.map_err(|failure| inner.record_failure(failure))
    }

    /// Records what was found under the session's key. A damaged session is moved to quarantine: the visitor gets a new one,
    /// and an operator can inspect the old.
    pub(super) async fn record_lookup(&self, inner: &mut RequestStateInner, id: Id, reply: SessionLookup) {
        if reply == SessionLookup::Corrupt {
            // Boxed: it is large, and next to no request needs it.
            Box::pin(self.quarantine(id)).await;
        }
        match &reply {
            SessionLookup::Found { .. } => {
                inner.provisional = inner.provisional.filter(|_| reply.is_unconfirmed());
                match &self.visitor {
                    CookieIdentity::Verified { id: known, digest, .. } if *known == id => {
                        self.services.sessions.activity.mark(digest)
                    }
                    _ => self.services.sessions.activity.mark(&sessions::digest(id)),
                }
            }
            // Its session is made when it is used.
            SessionLookup::Provisional => return,
            _ => (inner.current_session_id, inner.user, inner.provisional) = (None, None, None),
        }
        inner.lookup = Some(reply);
    }

    async fn quarantine(&self, id: Id) {
        let digest = sessions::digest(id);
        let kept_ms = u64::try_from(QUARANTINE_RETENTION.as_millis()).unwrap_or(u64::MAX);
        match self.services.redis.quarantine_session(&self.services.prefix, &digest, kept_ms).await {
            Ok(true) => {
                self.services.worker.cell().count_corrupt_session();
                let key = keys::quarantine(&self.services.prefix, &digest);
                tracing::warn!(%key, "a session was damaged; it is retained in quarantine for an hour");
            }
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "a damaged session could not be moved to quarantine: {error}")
            }
        }
    }

    /// Decides the limits and reads the visitor's session, if either was not done; gives the session's present id.
    ///
    /// # Errors
    /// `SessionGone` if the cookie's id was replaced: nothing may be done with it.
    pub(crate) async fn load_current_session(&self) -> Result<Option<Id>, RequestError> {
        self.decide_limits().await?;
        let stored = self.lock().await.stored_session_id();
        if let Some(id) = stored {
            self.lookup_session(id).await?;
        }
        let inner = self.lock().await;
        match inner.came_with_rotated_id() {
            true => Err(RequestError::SessionGone),
            // A provisional cookie whose session was not created, because this request creates none, is no session.
            false => Ok(inner
                .stored_session_id()
                .filter(|_| inner.lookup.is_some() || inner.provisional.is_none())),
        }
    }

    /// This request has replaced or ended the visitor's session.
    pub(crate) async fn set_current_session(&self, id: Option<Id>, user: Option<UserTag>) {
        let mut inner = self.lock().await;
        if let Some(before) = inner.current_session_id {
            self.invalidate_cached(before);
        }
        (inner.current_session_id, inner.user, inner.provisional) = (id, user, None);
        inner.origin = if id.is_some() { SessionOrigin::Created } else { SessionOrigin::Destroyed };
    }

    /// Gives a session that was used another id, because its cookie was sent without encryption.
    pub(crate) async fn rotate_exposed_id(&self, store: &RequestSessionStore) {
        let (id, user) = {
            let inner = self.lock().await;
            let used = matches!(inner.lookup, Some(SessionLookup::Found { .. })) && inner.freshness.is_none();
            match inner.stored_session_id().filter(|id| used && Some(*id) == self.visitor.id()) {
                Some(id) => (id, inner.user),
                None => return,
            }
        };
        match store.cycle_id(id).await {
            Ok(new) => self.set_current_session(Some(new), user).await,
            // Another request did it at the same moment, and its response has the cookie.
            Err(sessions::SessionError::Gone | sessions::SessionError::Rotated) => {
                let mut inner = self.lock().await;
                (inner.current_session_id, inner.user, inner.provisional) = (None, None, None);
            }
            // Its client creates too many sessions: it gets another id when its limit allows one.
            Err(sessions::SessionError::TooManySessions { .. }) => {}
            Err(error) => tracing::warn!(%error, "a session from before TLS keeps its id for now: {error}"),
        }
    }

    /// Records an error after which the client must not get the handler's response, and gives the handler its error.
    pub(crate) async fn record_session_failure(&self, error: sessions::SessionError) -> RequestError {
        let refusal = match &error {
            sessions::SessionError::Redis(cause) => Some(StateError::from(cause)),
            sessions::SessionError::TooManySessions { retry_after } => {
                Some(StateError::TooManySessions(whole_seconds(*retry_after)))
            }
            _ => None,
        };
        if refusal.is_some() {
            self.lock().await.failure = refusal;
        }
        error.into()
    }
}
