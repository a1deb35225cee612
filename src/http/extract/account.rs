//! Who is logged in, and everything that begins, changes or ends that.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use http::header::USER_AGENT;
use http::request::Parts;
use tower_sessions::session::Id;

use crate::http::error::Error;
use crate::http::exchange::Degraded;
use crate::http::exchange::Exchange;
use crate::http::extract::exchange;
use crate::http::store::Store;
use crate::session;
use crate::session::account::Listed;
use crate::session::account::Login;
use crate::session::user::Details;
use crate::session::user::NAME_MAX;
use crate::session::user::UserTag;

/// The visitor's account: who is logged in with this session, and where else.
///
/// Naming it costs the request's one round trip if the cookie says that somebody is logged in, and none otherwise.
/// Whatever it changes is done when its method returns, whatever becomes of the response.
#[derive(Debug, Clone)]
pub struct Account {
    exchange: Arc<Exchange>,
    store: Arc<Store>,
    user: Option<String>,
    agent: String,
}

impl Account {
    /// The user who is logged in, by the name that [`Account::login`] was given.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// Logs a user in, whoever he proved to be.
    ///
    /// The session keeps its fields and gets another id in one step: nobody who knew the old one gets in with it. A
    /// visitor without a session gets one. Of more sessions than `session.max_per_user` the oldest ends.
    ///
    /// # Errors
    /// [`Error::UserName`] unless it has 1 to 256 bytes; [`Error::SessionGone`] if the session was given another id a
    /// moment ago, as by a form that was sent twice; [`Error::Denied`], [`Error::Unavailable`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether he is logged in.
    pub async fn login(&mut self, user: &str) -> Result<(), Error> {
        if user.is_empty() || user.len() > NAME_MAX {
            return Err(Error::UserName);
        }
        let old = self.exchange.present().await?;
        let tag = self.exchange.core.user_tag(user).ok_or(Error::Unavailable { retry_after: 1 })?;
        let details = Details::new(user, &self.exchange.client.address.to_string(), &self.agent);
        let done = self.store.inner.login(old, &Login { user: tag, details }).await;
        self.is_now(done, Some(tag)).await?;
        self.user = Some(user.to_owned());
        Ok(())
    }

    /// Ends the session; a visitor who has none is logged out already.
    ///
    /// # Errors
    /// [`Error::SessionGone`] if the session was given another id a moment ago, [`Error::Denied`],
    /// [`Error::Unavailable`].
    ///
    /// # Cancel safety
    /// As [`Account::login`].
    pub async fn logout(&mut self) -> Result<(), Error> {
        if let Some(id) = self.exchange.present().await? {
            let user = self.exchange.begun().await.user;
            if let Err(error) = self.store.inner.end(id, user).await {
                return Err(self.exchange.fail(error).await);
            }
            self.exchange.became(None, None).await;
        }
        self.user = None;
        Ok(())
    }

    /// Gives the session another id, as should be done whenever its visitor may do more than before.
    ///
    /// # Errors
    /// As [`Account::logout`].
    ///
    /// # Cancel safety
    /// As [`Account::login`].
    pub async fn regenerate(&mut self) -> Result<(), Error> {
        let Some(id) = self.exchange.present().await? else { return Ok(()) };
        let user = self.exchange.begun().await.user;
        let done = self.store.inner.regenerate(id).await;
        self.is_now(done, user).await
    }

    /// The sessions in which the user is logged in, this one first; of very many the latest 256.
    ///
    /// # Errors
    /// [`Error::LoggedOut`], [`Error::Unavailable`].
    pub async fn sessions(&self) -> Result<Vec<Listed>, Error> {
        let (id, user) = self.logged_in().await?;
        Ok(self.store.inner.sessions_of(user, Some(id)).await?)
    }

    /// Ends one of the user's sessions, by its handle in [`Account::sessions`]; whether there was one.
    ///
    /// # Errors
    /// As [`Account::sessions`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was ended.
    pub async fn revoke(&mut self, handle: &str) -> Result<bool, Error> {
        let (id, user) = self.logged_in().await?;
        if session::handle(&session::digest(id)) == handle {
            self.logout().await?;
            return Ok(true);
        }
        match self.store.inner.revoke(user, handle).await {
            Ok(ended) => Ok(ended),
            Err(error) => Err(self.exchange.fail(error).await),
        }
    }

    /// Logs the user out everywhere, here too, in one step however many sessions he has.
    ///
    /// # Errors
    /// As [`Account::sessions`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was done.
    pub async fn logout_everywhere(&mut self) -> Result<(), Error> {
        let (_, user) = self.logged_in().await?;
        if let Err(error) = self.store.inner.end_all(user, None).await {
            return Err(self.exchange.fail(error).await);
        }
        self.logout().await
    }

    /// Logs the user out everywhere but here.
    ///
    /// # Errors
    /// As [`Account::sessions`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was done.
    pub async fn logout_others(&self) -> Result<(), Error> {
        let (id, user) = self.logged_in().await?;
        match self.store.inner.end_all(user, Some(id)).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.exchange.fail(error).await),
        }
    }

    /// Gives the session lifetimes of its own, as for "remember me": without use, and from now on in all, at most 400
    /// days. They outlive every change of its fields and every new id, but not the next login.
    ///
    /// # Errors
    /// [`Error::SessionGone`] if there is no session, [`Error::Unavailable`].
    pub async fn remember(&self, idle: Duration, absolute: Duration) -> Result<(), Error> {
        let id = self.exchange.present().await?.ok_or(Error::SessionGone)?;
        let user = self.exchange.begun().await.user;
        self.store.inner.remember(id, user, idle, absolute).await?;
        self.exchange.forget(id);
        self.exchange.begun().await.cookie_age = Some(absolute.min(session::LIFETIME_MAX));
        Ok(())
    }

    /// A text for a hidden field of a form: only pages of this session have it, so no other site can send the form.
    ///
    /// Every call makes another one, and all of them are good as long as the session keeps its id: a constant text could
    /// be guessed from the lengths of compressed pages. A visitor without a session gets
    /// the cookie for one, of which nothing is stored before it comes back.
    ///
    /// # Errors
    /// [`Error::SessionGone`] if the session was given another id a moment ago, [`Error::Denied`],
    /// [`Error::Unavailable`].
    pub async fn form_token(&self) -> Result<String, Error> {
        let away = {
            let begun = self.exchange.begun().await;
            begun.degraded.map(|_| begun.current.filter(|_| begun.refusal.is_none()))
        };
        let id = match away {
            // Redis cannot be asked, or make a session: the text follows from the id, and is checked when it comes back.
            Some(current) => current.ok_or(Error::Unavailable { retry_after: 1 })?,
            None => self.exchange.present_or_issued().await?,
        };
        let keyring = self.exchange.core.keyring().ok_or(Error::Unavailable { retry_after: 1 })?;
        keyring.form_token(id).map_err(|_| Error::Failed)
    }

    /// Whether this is the text that the session's own forms have. Costs no round trip.
    pub async fn is_form_token(&self, text: &str) -> bool {
        let id = self.exchange.begun().await.current;
        let keyring = self.exchange.core.keyring();
        keyring.zip(id).is_some_and(|(keyring, id)| keyring.is_form_token(id, text))
    }

    async fn logged_in(&self) -> Result<(Id, UserTag), Error> {
        let id = self.exchange.present().await?;
        let user = self.exchange.begun().await.user;
        id.zip(user).ok_or(Error::LoggedOut)
    }

    /// Takes note of the session's new id.
    async fn is_now(&self, done: Result<Id, session::Error>, user: Option<UserTag>) -> Result<(), Error> {
        match done {
            Ok(id) => {
                self.exchange.became(Some(id), user).await;
                Ok(())
            }
            Err(error) => Err(self.exchange.fail(error).await),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Account {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        let exchange = Arc::clone(exchange(parts)?);
        let store = Arc::clone(parts.extensions.get::<Arc<Store>>().ok_or(Error::NoFleet)?);
        let current = {
            let mut begun = exchange.begun().await;
            begun.looked = true;
            let current = begun.current.filter(|_| begun.user.is_some());
            // Nothing is known of the session, and a page that goes on without a view goes on without this, too.
            if current.is_some() && begun.degraded == Some(Degraded::Unknown) {
                return Err(Error::Unavailable { retry_after: 1 });
            }
            current
        };
        let user = match current {
            Some(id) => match store.inner.details(id).await {
                Ok(details) => details.map(|details| details.user),
                Err(session::Error::Gone | session::Error::Rotated) => None,
                Err(error) => return Err(error.into()),
            },
            None => None,
        };
        let agent = parts.headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
        Ok(Self { exchange, store, user, agent: agent.to_owned() })
    }
}
