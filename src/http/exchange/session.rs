//! The request's session: what is asked about it, and what the answer means for the visitor.

use std::time::Duration;

use tower_sessions::session::Id;

use crate::http::error::Error;
use crate::http::error::Refusal;
use crate::http::exchange::Begun;
use crate::http::exchange::Exchange;
use crate::http::exchange::Origin;
use crate::http::visitor::Visitor;
use crate::redis::begin::SessionArg;
use crate::redis::begin::SessionMode;
use crate::redis::begin::SessionReply;
use crate::redis::keys;
use crate::session;
use crate::session::user::UserTag;

/// How long what lay under a session's key and was none is kept.
const QUARANTINE: Duration = Duration::from_secs(60 * 60);

impl Exchange {
    /// What is asked of this session, whose user is the one that its cookie names.
    pub(super) fn session_arg(
        &self,
        id: Id,
        user: Option<UserTag>,
        mode: SessionMode,
        create: bool,
    ) -> SessionArg {
        let prefix = &self.core.config.redis.prefix;
        let key = match &self.visitor {
            Visitor::Known { id: known, digest, .. } if *known == id => keys::session(prefix, digest),
            _ => session::key(prefix, id),
        };
        let lifetimes = &self.core.lifetimes;
        SessionArg {
            key,
            generation: user.map(|user| keys::generation(prefix, &user.to_string())),
            mode,
            create,
            idle_ms: lifetimes.idle_ms(),
            absolute_ms: lifetimes.absolute_ms(),
        }
    }

    /// Takes note of what was found under the session's key. What is no session is put aside: the visitor gets a new
    /// one, and an operator can look at the old.
    pub(super) async fn found(&self, begun: &mut Begun, id: Id, reply: SessionReply) {
        if reply == SessionReply::Damaged {
            // Boxed: every request would be as large as this, which next to none needs.
            Box::pin(self.put_aside(id)).await;
        }
        if reply == SessionReply::Rotated {
            let (redis, prefix) = (&self.core.redis, &self.core.prefix);
            let grace_ms = u64::try_from(session::GRACE.as_millis()).unwrap_or(u64::MAX);
            let digest = session::digest(id);
            if let Err(error) = Box::pin(redis.bound_mark(prefix, &digest, grace_ms)).await {
                tracing::debug!(%error, "the end of a replaced id's mark was not looked at: {error}");
            }
        }
        if matches!(reply, SessionReply::Live { .. }) {
            match &self.visitor {
                Visitor::Known { id: known, digest, .. } if *known == id => self.core.seen.note(digest),
                _ => self.core.seen.note(&session::digest(id)),
            }
        } else {
            begun.current = None;
            begun.user = None;
        }
        begun.session = Some(reply);
    }

    async fn put_aside(&self, id: Id) {
        let digest = session::digest(id);
        let kept_ms = u64::try_from(QUARANTINE.as_millis()).unwrap_or(u64::MAX);
        match self.core.redis.quarantine_session(&self.core.prefix, &digest, kept_ms).await {
            Ok(true) => {
                self.core.cell().corrupt();
                let key = keys::quarantine(&self.core.prefix, &digest);
                tracing::warn!(%key, "a session was damaged; what lay there is kept for an hour");
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "a damaged session could not be put aside: {error}"),
        }
    }

    /// Decides the limits and reads the visitor's session, if either was not done; the session he has now.
    ///
    /// # Errors
    /// `SessionGone` if he came with an id that was replaced: nothing may be done in its name.
    pub(in crate::http) async fn present(&self) -> Result<Option<Id>, Error> {
        self.decide().await?;
        let current = self.begun().await.current;
        if let Some(id) = current {
            self.session(id).await?;
        }
        let begun = self.begun().await;
        if begun.is_rotated() { Err(Error::SessionGone) } else { Ok(begun.current) }
    }

    /// The visitor's session is another one now, or none, by what this request did.
    pub(in crate::http) async fn became(&self, id: Option<Id>, user: Option<UserTag>) {
        let mut begun = self.begun().await;
        if let Some(before) = begun.current {
            self.forget(before);
        }
        begun.current = id;
        begun.user = user;
        begun.origin = if id.is_some() { Origin::Made } else { Origin::Deleted };
    }

    /// An error of something that the client must not believe to be done, whatever the handler says of it.
    pub(in crate::http) async fn fail(&self, error: session::Error) -> Error {
        if let session::Error::Redis(cause) = &error {
            self.begun().await.refusal = Some(Refusal::from(cause));
        }
        error.into()
    }
}

impl Begun {
    /// Whether the visitor came with an id that was replaced a moment ago.
    pub(in crate::http) fn is_rotated(&self) -> bool {
        self.session == Some(SessionReply::Rotated) && self.current.is_none()
    }

    /// Whether the session has an end of its own.
    pub(in crate::http) fn lives_on_its_own(&self) -> bool {
        match &self.session {
            Some(SessionReply::Live { own: Some(own), .. }) => own.end_ms.is_some(),
            _ => false,
        }
    }

    /// Whether the response depends on who the visitor is.
    pub(in crate::http) fn used_session(&self) -> bool {
        self.session.is_some() || self.looked || self.origin != Origin::Cookie || self.degraded.is_some()
    }
}
