//! The user who is logged in: login, logout, new ids, and the user's other sessions.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::FromRequestParts;
use http::header::USER_AGENT;
use http::request::Parts;
use tower_sessions::session::Id;

use crate::facade::error::Error as AnyError;
use crate::facade::session::error::Error;
use crate::http::csrf;
use crate::http::error::{RedisFailure, RequestError};
use crate::http::request_scope::RequestScope;
use crate::http::request_state::session_store::RequestSessionStore;
use crate::http::request_state::{RequestState, SessionFreshness};
use crate::request_state::auth::{ActiveSession as SessionRecord, UserLogin};
use crate::sessions;
use crate::sessions::cookie::CookieKeyring;
use crate::sessions::user::{LoginDetails, USER_NAME_MAX, UserTag};
use crate::units::since_1970;

/// The user of the request's session, and the user's other sessions.
///
/// Naming it costs the request's one round trip if the cookie names a user, and none otherwise.
/// A change is stored when its method returns, whatever the response is.
///
/// ```
/// use axum::response::Redirect;
/// use regatta::session::{AuthSession, Error};
///
/// async fn login(mut session: AuthSession, name: String) -> Result<Redirect, Error> {
///     // … the password is right
///     session.login(&name).await?;
///     Ok(Redirect::to("/me"))
/// }
///
/// async fn logout(mut session: AuthSession) -> Result<Redirect, Error> {
///     session.logout().await?;
///     Ok(Redirect::to("/"))
/// }
///
/// /// A page that sends a form by a script of its own; `CsrfToken` is the extractor for all others.
/// async fn buy(session: AuthSession, token: String) -> Result<String, Error> {
///     match session.verify_csrf_token(&token).await {
///         true => Ok("bought\n".to_owned()),
///         false => session.csrf_token().await,
///     }
/// }
/// # let _ = buy;
/// # let _: axum::Router = axum::Router::new()
/// #     .route("/login", axum::routing::post(login)).route("/logout", axum::routing::post(logout));
/// ```
#[derive(Clone)]
pub struct AuthSession {
    state: Arc<RequestState>,
    store: Arc<RequestSessionStore>,
    user: Option<String>,
    agent: String,
}

/// Without the user's name and the session.
impl fmt::Debug for AuthSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthSession").field("is_logged_in", &self.user.is_some()).finish_non_exhaustive()
    }
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
    /// [`Error::InvalidUserId`] unless it has 1 to 256 bytes; [`Error::Gone`] if the session was given another id a
    /// moment ago, as by a form that was sent twice; [`Error::Denied`], [`Error::Redis`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether the user is logged in.
    pub async fn login(&mut self, user: &str) -> Result<(), Error> {
        if user.is_empty() || user.len() > USER_NAME_MAX {
            return Err(Error::InvalidUserId);
        }
        let old = self.state.load_current_session().await?;
        let tag = self.state.services.sessions.signing_keys.user_tag(user).ok_or_else(keys_unknown)?;
        let details = LoginDetails::new(user, &self.state.client.address.to_string(), &self.agent);
        let done = self.store.login(old, &UserLogin { user: tag, details }).await;
        self.apply_new_id(done, Some(tag)).await?;
        self.user = Some(user.to_owned());
        Ok(())
    }

    /// Ends the session; without a session nothing is done.
    ///
    /// # Errors
    /// [`Error::Gone`] if the session was given another id a moment ago, [`Error::Denied`],
    /// [`Error::Redis`].
    ///
    /// # Cancel safety
    /// As [`AuthSession::login`].
    pub async fn logout(&mut self) -> Result<(), Error> {
        if let Some(id) = self.state.load_current_session().await? {
            let user = self.state.lock().await.user;
            if let Err(error) = self.store.session.destroy(id, user).await {
                return Err(self.state.record_session_failure(error).await.into());
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
    pub async fn cycle_id(&mut self) -> Result<(), Error> {
        let Some(id) = self.state.load_current_session().await? else { return Ok(()) };
        let user = self.state.lock().await.user;
        let done = self.store.cycle_id(id).await;
        self.apply_new_id(done, user).await
    }

    /// The sessions in which the user is logged in, this one first; of very many the latest 256.
    ///
    /// # Errors
    /// [`Error::NotLoggedIn`], [`Error::Redis`].
    pub async fn sessions(&self) -> Result<Vec<ActiveSession>, Error> {
        let (id, user) = self.logged_in().await?;
        let listed =
            self.store.session.list_user_sessions(user, Some(id)).await.map_err(RequestError::from)?;
        Ok(listed.into_iter().map(ActiveSession).collect())
    }

    /// Ends one of the user's sessions, by its handle in [`AuthSession::sessions`]; whether there was one.
    ///
    /// # Errors
    /// As [`AuthSession::sessions`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was ended.
    pub async fn revoke(&mut self, handle: &str) -> Result<bool, Error> {
        let (id, user) = self.logged_in().await?;
        if sessions::public_handle(&sessions::digest(id)) == handle {
            self.logout().await?;
            return Ok(true);
        }
        match self.store.session.revoke(user, handle).await {
            Ok(destroyed) => Ok(destroyed),
            Err(error) => Err(self.state.record_session_failure(error).await.into()),
        }
    }

    /// Logs the user out everywhere, here too, in one step however many sessions there are.
    ///
    /// # Errors
    /// As [`AuthSession::sessions`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was done.
    pub async fn logout_everywhere(&mut self) -> Result<(), Error> {
        let (_, user) = self.logged_in().await?;
        if let Err(error) = self.store.session.destroy_all(user, None).await {
            return Err(self.state.record_session_failure(error).await.into());
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
    pub async fn logout_others(&self) -> Result<(), Error> {
        let (id, user) = self.logged_in().await?;
        match self.store.session.destroy_all(user, Some(id)).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.state.record_session_failure(error).await.into()),
        }
    }

    /// Gives the session lifetimes of its own, as for "remember me": without use, and from now on in all, at most 400
    /// days. They outlive every change of its fields and every new id, but not the next login.
    ///
    /// # Errors
    /// [`Error::Gone`] if there is no session, [`Error::Redis`].
    pub async fn remember(&self, idle: Duration, absolute: Duration) -> Result<(), Error> {
        let id = self.state.load_current_session().await?.ok_or(Error::Gone)?;
        let user = self.state.lock().await.user;
        self.store.session.set_lifetimes(id, user, idle, absolute).await.map_err(RequestError::from)?;
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
    /// [`Error::Gone`] if the session was given another id a moment ago, [`Error::Denied`],
    /// [`Error::Redis`].
    pub async fn csrf_token(&self) -> Result<String, Error> {
        let (keyring, id) = self.form_signer().await?;
        csrf::session_token(&keyring, id).ok_or_else(Error::random_source)
    }

    /// What tokens of this session's forms are made with.
    pub(super) async fn form_signer(&self) -> Result<(Arc<CookieKeyring>, Id), Error> {
        let without_redis = {
            let inner = self.state.lock().await;
            inner.freshness.map(|_| inner.current_session_id.filter(|_| inner.failure.is_none()))
        };
        let id = match without_redis {
            // Without Redis no session can be created: the token follows from the id, and is verified when it comes back.
            Some(current) => current.ok_or_else(session_unknown)?,
            None => self.state.load_or_issue_session().await?,
        };
        let keyring = self.state.services.sessions.signing_keys.keyring().ok_or_else(keys_unknown)?;
        Ok((keyring, id))
    }

    /// Whether this is a token of the session's own forms. Costs no round trip.
    pub async fn verify_csrf_token(&self, text: &str) -> bool {
        let id = self.state.lock().await.current_session_id;
        let keyring = self.state.services.sessions.signing_keys.keyring();
        keyring.zip(id).is_some_and(|(keyring, id)| csrf::is_session_token(&keyring, id, text))
    }

    async fn logged_in(&self) -> Result<(Id, UserTag), Error> {
        let id = self.state.load_current_session().await?;
        let user = self.state.lock().await.user;
        id.zip(user).ok_or(Error::NotLoggedIn)
    }

    /// Records the session's new id.
    async fn apply_new_id(
        &self,
        done: Result<Id, sessions::SessionError>,
        user: Option<UserTag>,
    ) -> Result<(), Error> {
        match done {
            Ok(id) => {
                self.state.set_current_session(Some(id), user).await;
                Ok(())
            }
            Err(error) => Err(self.state.record_session_failure(error).await.into()),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for AuthSession {
    type Rejection = AnyError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, AnyError> {
        let store = Arc::clone(&RequestScope::with_sessions(parts)?.store);
        let state = Arc::clone(&store.state);
        let current = {
            let mut inner = state.lock().await;
            inner.session_accessed = true;
            let current = inner.current_session_id.filter(|_| inner.user.is_some());
            // Nothing is known of the session, and a page that goes on without a view goes on without this, too.
            if current.is_some() && inner.freshness == Some(SessionFreshness::Unknown) {
                return Err(session_unknown().into());
            }
            current
        };
        let user = match current {
            Some(id) => match store.loaded(id).await {
                Ok(session) => session.login_details().map(|details| details.user),
                Err(sessions::SessionError::Gone | sessions::SessionError::Rotated) => None,
                Err(error) => return Err(RequestError::from(error).into()),
            },
            None => None,
        };
        let agent = parts.headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
        Ok(Self { state, store, user, agent: agent.to_owned() })
    }
}

/// A cookie can be neither signed nor verified before Redis was reached once.
fn keys_unknown() -> Error {
    RequestError::Redis(RedisFailure::unavailable("the keys of cookies are not known")).into()
}

/// Nothing is known of the session while Redis is away.
fn session_unknown() -> Error {
    RequestError::Redis(RedisFailure::unavailable("nothing is known of the session")).into()
}

/// One of a user's sessions, as shown to its user.
///
/// ```
/// use regatta::session::{AuthSession, Error};
///
/// async fn devices(session: AuthSession) -> Result<String, Error> {
///     let lines = session.sessions().await?.into_iter().map(|one| {
///         let here = if one.is_current() { " (this one)" } else { "" };
///         let (since, seen, from) = (one.created_at(), one.last_seen_at(), one.client_ip());
///         format!("{}: {}{here} {since:?} {seen:?} {from:?}\n", one.handle(), one.user_agent())
///     });
///     Ok(lines.collect())
/// }
///
/// /// Ends one of them, by the handle that the page showed.
/// async fn end(mut session: AuthSession, handle: String) -> Result<String, Error> {
///     let was_there = session.revoke(&handle).await?;
///     Ok(if was_there { "it is logged out\n" } else { "it had ended\n" }.to_owned())
/// }
/// # let _: axum::Router = axum::Router::new().route("/me/sessions", axum::routing::get(devices).post(end));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActiveSession(SessionRecord);

impl ActiveSession {
    /// Names it for [`AuthSession::revoke`]; does not give access to it.
    pub fn handle(&self) -> &str {
        &self.0.handle
    }

    /// When the user logged in, by Redis's clock.
    pub fn created_at(&self) -> SystemTime {
        since_1970(self.0.created_ms)
    }

    /// When it was last used; exact to a tenth of its idle lifetime.
    pub fn last_seen_at(&self) -> SystemTime {
        since_1970(self.0.last_seen_ms)
    }

    /// The address from which the user logged in; `None` if it was not kept.
    pub fn client_ip(&self) -> Option<IpAddr> {
        self.0.address.parse().ok()
    }

    /// The browser's `User-Agent`; empty if it was not kept.
    pub fn user_agent(&self) -> &str {
        &self.0.agent
    }

    /// Whether it is this request's.
    pub fn is_current(&self) -> bool {
        self.0.current
    }
}
