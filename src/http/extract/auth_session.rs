//! The user who is logged in: login, logout, new ids, and the user's other sessions.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use http::header::USER_AGENT;
use http::request::Parts;
use tower_sessions::session::Id;

use crate::http::csrf;
use crate::http::error::RequestError;
use crate::http::request_scope::RequestScope;
use crate::http::request_state::session_store::RequestSessionStore;
use crate::http::request_state::{RequestState, SessionFreshness};
use crate::request_state::auth::{ActiveSession, UserLogin};
use crate::sessions;
use crate::sessions::user::{LoginDetails, USER_NAME_MAX, UserTag};

/// The user of the request's session, and the user's other sessions.
///
/// Naming it costs the request's one round trip if the cookie names a user, and none otherwise.
/// A change is stored when its method returns, whatever the response is.
#[derive(Debug, Clone)]
pub struct AuthSession {
    state: Arc<RequestState>,
    store: Arc<RequestSessionStore>,
    user: Option<String>,
    agent: String,
}

impl AuthSession {
    /// The user who is logged in, by the name that [`AuthSession::login`] was given.
    pub fn user_id(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// Logs a user in. The application has checked the password, or whatever proves who it is.
    ///
    /// The session keeps its fields and gets another id in one step: the old one gives no access any more. A
    /// visitor without a session gets one. Of more sessions than `session.max_per_user` the oldest ends.
    ///
    /// # Errors
    /// [`RequestError::InvalidUserId`] unless it has 1 to 256 bytes; [`RequestError::SessionGone`] if the session was given another id a
    /// moment ago, as by a form that was sent twice; [`RequestError::Denied`], [`RequestError::Unavailable`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether the user is logged in.
    pub async fn login(&mut self, user: &str) -> Result<(), RequestError> {
        if user.is_empty() || user.len() > USER_NAME_MAX {
            return Err(RequestError::InvalidUserId);
        }
        let old = self.state.load_current_session().await?;
        let tag = self
            .state
            .services
            .sessions
            .signing_keys
            .user_tag(user)
            .ok_or(RequestError::Unavailable { retry_after: 1 })?;
        let details = LoginDetails::new(user, &self.state.client.address.to_string(), &self.agent);
        let done = self.store.login(old, &UserLogin { user: tag, details }).await;
        self.apply_new_id(done, Some(tag)).await?;
        self.user = Some(user.to_owned());
        Ok(())
    }

    /// Ends the session; without a session nothing is done.
    ///
    /// # Errors
    /// [`RequestError::SessionGone`] if the session was given another id a moment ago, [`RequestError::Denied`],
    /// [`RequestError::Unavailable`].
    ///
    /// # Cancel safety
    /// As [`AuthSession::login`].
    pub async fn logout(&mut self) -> Result<(), RequestError> {
        if let Some(id) = self.state.load_current_session().await? {
            let user = self.state.lock().await.user;
            if let Err(error) = self.store.session.destroy(id, user).await {
                return Err(self.state.record_session_failure(error).await);
            }
            self.state.set_current_session(None, None).await;
        }
        self.user = None;
        Ok(())
    }

    /// Gives the session another id, as should be done whenever its visitor may do more than before.
    ///
    /// # Errors
    /// As [`AuthSession::logout`].
    ///
    /// # Cancel safety
    /// As [`AuthSession::login`].
    pub async fn cycle_id(&mut self) -> Result<(), RequestError> {
        let Some(id) = self.state.load_current_session().await? else { return Ok(()) };
        let user = self.state.lock().await.user;
        let done = self.store.cycle_id(id).await;
        self.apply_new_id(done, user).await
    }

    /// The sessions in which the user is logged in, this one first; of very many the latest 256.
    ///
    /// # Errors
    /// [`RequestError::NotLoggedIn`], [`RequestError::Unavailable`].
    pub async fn sessions(&self) -> Result<Vec<ActiveSession>, RequestError> {
        let (id, user) = self.logged_in().await?;
        Ok(self.store.session.list_user_sessions(user, Some(id)).await?)
    }

    /// Ends one of the user's sessions, by its handle in [`AuthSession::sessions`]; whether there was one.
    ///
    /// # Errors
    /// As [`AuthSession::sessions`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was ended.
    pub async fn revoke(&mut self, handle: &str) -> Result<bool, RequestError> {
        let (id, user) = self.logged_in().await?;
        if sessions::public_handle(&sessions::digest(id)) == handle {
            self.logout().await?;
            return Ok(true);
        }
        match self.store.session.revoke(user, handle).await {
            Ok(destroyed) => Ok(destroyed),
            Err(error) => Err(self.state.record_session_failure(error).await),
        }
    }

    /// Logs the user out everywhere, here too, in one step however many sessions there are.
    ///
    /// # Errors
    /// As [`AuthSession::sessions`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was done.
    pub async fn logout_everywhere(&mut self) -> Result<(), RequestError> {
        let (_, user) = self.logged_in().await?;
        if let Err(error) = self.store.session.destroy_all(user, None).await {
            return Err(self.state.record_session_failure(error).await);
        }
        self.logout().await
    }

    /// Logs the user out everywhere but here.
    ///
    /// # Errors
    /// As [`AuthSession::sessions`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was done.
    pub async fn logout_others(&self) -> Result<(), RequestError> {
        let (id, user) = self.logged_in().await?;
        match self.store.session.destroy_all(user, Some(id)).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.state.record_session_failure(error).await),
        }
    }

    /// Gives the session lifetimes of its own, as for "remember me": without use, and from now on in all, at most 400
    /// days. They outlive every change of its fields and every new id, but not the next login.
    ///
    /// # Errors
    /// [`RequestError::SessionGone`] if there is no session, [`RequestError::Unavailable`].
    pub async fn remember(&self, idle: Duration, absolute: Duration) -> Result<(), RequestError> {
        let id = self.state.load_current_session().await?.ok_or(RequestError::SessionGone)?;
        let user = self.state.lock().await.user;
        self.store.session.set_lifetimes(id, user, idle, absolute).await?;
        self.state.invalidate_cached(id);
        self.state.lock().await.cookie_age = Some(absolute.min(sessions::LIFETIME_MAX));
        Ok(())
    }

    /// A token for a hidden field of a form: only pages of this session have it, so no other site can send the form.
    ///
    /// Every call makes another one, and all of them are valid as long as the session keeps its id: a constant token could
    /// be guessed from the lengths of compressed pages. A visitor without a session gets the cookie for one, of which
    /// nothing is stored before it comes back.
    ///
    /// # Errors
    /// [`RequestError::SessionGone`] if the session was given another id a moment ago, [`RequestError::Denied`],
    /// [`RequestError::Unavailable`].
    pub async fn csrf_token(&self) -> Result<String, RequestError> {
        let without_redis = {
            let inner = self.state.lock().await;
            inner.freshness.map(|_| inner.current_session_id.filter(|_| inner.failure.is_none()))
        };
        let id = match without_redis {
            // Without Redis no session can be created: the token follows from the id, and is verified when it comes back.
            Some(current) => current.ok_or(RequestError::Unavailable { retry_after: 1 })?,
            None => self.state.load_or_issue_session().await?,
        };
        let keyring = self
            .state
            .services
            .sessions
            .signing_keys
            .keyring()
            .ok_or(RequestError::Unavailable { retry_after: 1 })?;
        csrf::session_token(&keyring, id).ok_or(RequestError::Internal)
    }

    /// Whether this is a token of the session's own forms. Costs no round trip.
    pub async fn verify_csrf_token(&self, text: &str) -> bool {
        let id = self.state.lock().await.current_session_id;
        let keyring = self.state.services.sessions.signing_keys.keyring();
        keyring.zip(id).is_some_and(|(keyring, id)| csrf::is_session_token(&keyring, id, text))
    }

    async fn logged_in(&self) -> Result<(Id, UserTag), RequestError> {
        let id = self.state.load_current_session().await?;
        let user = self.state.lock().await.user;
        id.zip(user).ok_or(RequestError::NotLoggedIn)
    }

    /// Records the session's new id.
    async fn apply_new_id(
        &self,
        done: Result<Id, sessions::SessionError>,
        user: Option<UserTag>,
    ) -> Result<(), RequestError> {
        match done {
            Ok(id) => {
                self.state.set_current_session(Some(id), user).await;
                Ok(())
            }
            Err(error) => Err(self.state.record_session_failure(error).await),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for AuthSession {
    type Rejection = RequestError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, RequestError> {
        let store = Arc::clone(&RequestScope::with_sessions(parts)?.store);
        let state = Arc::clone(&store.state);
        let current = {
            let mut inner = state.lock().await;
            inner.session_accessed = true;
            let current = inner.current_session_id.filter(|_| inner.user.is_some());
            // Nothing is known of the session, and a page that goes on without a view goes on without this, too.
            if current.is_some() && inner.freshness == Some(SessionFreshness::Unknown) {
                return Err(RequestError::Unavailable { retry_after: 1 });
            }
            current
        };
        let user = match current {
            Some(id) => match store.loaded(id).await {
                Ok(session) => session.login_details().map(|details| details.user),
                Err(sessions::SessionError::Gone | sessions::SessionError::Rotated) => None,
                Err(error) => return Err(error.into()),
            },
            None => None,
        };
        let agent = parts.headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
        Ok(Self { state, store, user, agent: agent.to_owned() })
    }
}
