//! The request's session: what is asked about it, and what the answer means for the visitor.

use std::time::Duration;

use tower_sessions::session::Id;

use crate::http::error::Error;
use crate::http::error::Refusal;
use crate::http::error::whole_seconds;
use crate::http::exchange::Begun;
use crate::http::exchange::Exchange;
use crate::http::exchange::Failure;
use crate::http::exchange::Origin;
use crate::http::exchange::TOTAL;
use crate::http::store::Store;
use crate::http::visitor::Visitor;
use crate::redis::begin::CounterArg;
use crate::redis::begin::NewSessions;
use crate::redis::begin::SessionArg;
use crate::redis::begin::SessionMode;
use crate::redis::begin::SessionReply;
use crate::redis::begin::TicketArg;
use crate::redis::keys;
use crate::redis::sessions::Made;
use crate::session;
use crate::session::cookie;
use crate::session::cookie::Ticket;
use crate::session::store::Newcomer;
use crate::session::user::UserTag;

/// How long what lay under a session's key and was none is kept.
const QUARANTINE: Duration = Duration::from_secs(60 * 60);

impl Exchange {
    /// What is asked of this session, whose user is the one that its cookie names. `makes`: if that is a ticket, the
    /// session is made.
    pub(super) fn session_arg(&self, begun: &Begun, id: Id, mode: SessionMode, makes: bool) -> SessionArg {
        let prefix = &self.core.config.redis.prefix;
        let key = match &self.visitor {
            Visitor::Known { id: known, digest, .. } if *known == id => keys::session(prefix, digest),
            _ => session::key(prefix, id),
        };
        let lifetimes = &self.core.lifetimes;
        let ticket = |Ticket { issued_ms, viewed }| TicketArg {
            issued_ms,
            viewed,
            term_ms: lifetimes.ticket_ms(),
            makes,
            limit: self.new_sessions().filter(|_| makes),
        };
        SessionArg {
            key,
            generation: begun.user.map(|user| keys::generation(prefix, &user.to_string())),
            mode,
            ticket: begun.ticket.map(ticket),
            idle_ms: lifetimes.idle_ms(),
            absolute_ms: lifetimes.absolute_ms(),
        }
    }

    /// The client's limit on new sessions.
    fn new_sessions(&self) -> Option<NewSessions> {
        let (interval_us, tolerance_us) = self.core.new_sessions?;
        let key =
            keys::new_sessions(&self.core.prefix, &self.client.subject_text(self.core.config.ipv6_prefix));
        Some(NewSessions { key, interval_us, tolerance_us })
    }

    /// What a session begins with that this request makes: the view that it counted, and the id that a text of its page
    /// may depend on.
    pub(in crate::http) async fn newcomer(&self) -> Newcomer {
        let begun = self.begun().await;
        let issued = begun.origin == Origin::Issued;
        let views = u64::from(begun.visited.is_some_and(|visited| visited.new));
        let created_ms = begun.ticket.filter(|_| issued).map_or(0, |ticket| ticket.issued_ms);
        Newcomer {
            id: begun.current.filter(|_| issued),
            made: Made { views, created_ms },
            limit: self.new_sessions(),
        }
    }

    /// Gives a visitor without a session the ticket for one, of which nothing is stored; it has the id from now on.
    pub(super) async fn issue(&self, begun: &mut Begun) -> Result<Id, Failure> {
        let now_ms = match begun.now_ms {
            Some(now_ms) => now_ms,
            None => {
                let total = keys::counter(&self.core.config.redis.prefix, TOTAL);
                self.round_trip(begun, None, &[CounterArg { key: total, by: 0 }]).await?;
                begun.now_ms.ok_or(Failure::Own(Error::Unavailable { retry_after: 1 }))?
            }
        };
        let id = cookie::new_id().map_err(|_| Failure::Own(Error::Failed))?;
        begun.current = Some(id);
        let viewed = begun.visited.is_some_and(|visited| visited.new);
        begun.ticket = Some(Ticket { issued_ms: now_ms, viewed });
        begun.origin = Origin::Issued;
        Ok(id)
    }

    /// The id of the visitor's session, which is made later if there is none.
    ///
    /// # Errors
    /// As [`Exchange::present`].
    pub(in crate::http) async fn present_or_issued(&self) -> Result<Id, Error> {
        if let Some(id) = self.present().await? {
            return Ok(id);
        }
        let mut begun = self.open().await?;
        if let Some(id) = begun.current {
            return Ok(id);
        }
        let issued = self.issue(&mut begun).await;
        issued.map_err(|failure| begun.fail(failure))
    }

    /// Takes note of what was found under the session's key. What is no session is put aside: the visitor gets a new
    /// one, and an operator can look at the old.
    pub(super) async fn found(&self, begun: &mut Begun, id: Id, reply: SessionReply) {
        if reply == SessionReply::Damaged {
            // Boxed: every request would be as large as this, which next to none needs.
            Box::pin(self.put_aside(id)).await;
        }
        match &reply {
            SessionReply::Live { .. } => {
                begun.ticket = begun.ticket.filter(|_| reply.is_unconfirmed());
                match &self.visitor {
                    Visitor::Known { id: known, digest, .. } if *known == id => self.core.seen.note(digest),
                    _ => self.core.seen.note(&session::digest(id)),
                }
            }
            // Its session is made when it is used.
            SessionReply::Ticket => return,
            _ => (begun.current, begun.user, begun.ticket) = (None, None, None),
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
        let stored = self.begun().await.stored();
        if let Some(id) = stored {
            self.session(id).await?;
        }
        let begun = self.begun().await;
        match begun.is_rotated() {
            true => Err(Error::SessionGone),
            // A ticket of which nothing was made, because this request makes nothing, is no session.
            false => Ok(begun.stored().filter(|_| begun.session.is_some() || begun.ticket.is_none())),
        }
    }

    /// The visitor's session is another one now, or none, by what this request did.
    pub(in crate::http) async fn became(&self, id: Option<Id>, user: Option<UserTag>) {
        let mut begun = self.begun().await;
        if let Some(before) = begun.current {
            self.forget(before);
        }
        (begun.current, begun.user, begun.ticket) = (id, user, None);
        begun.origin = if id.is_some() { Origin::Made } else { Origin::Deleted };
    }

    /// Gives a session that was used another id, because its cookie went where others could listen.
    pub(in crate::http) async fn leave_exposed_id(&self, store: &Store) {
        let (id, user) = {
            let begun = self.begun().await;
            let used = matches!(begun.session, Some(SessionReply::Live { .. })) && begun.degraded.is_none();
            match begun.stored().filter(|id| used && Some(*id) == self.visitor.id()) {
                Some(id) => (id, begun.user),
                None => return,
            }
        };
        match store.inner.regenerate(id).await {
            Ok(new) => self.became(Some(new), user).await,
            // Another request did it at the same moment, and has the cookie.
            Err(session::Error::Gone | session::Error::Rotated) => {
                let mut begun = self.begun().await;
                (begun.current, begun.user, begun.ticket) = (None, None, None);
            }
            // Its client makes too many sessions: it gets another id when there is room.
            Err(session::Error::TooMany { .. }) => {}
            Err(error) => tracing::warn!(%error, "a session from before TLS keeps its id for now: {error}"),
        }
    }

    /// An error of something that the client must not believe to be done, whatever the handler says of it.
    pub(in crate::http) async fn fail(&self, error: session::Error) -> Error {
        let refusal = match &error {
            session::Error::Redis(cause) => Some(Refusal::from(cause)),
            session::Error::TooMany { retry_after } => {
                Some(Refusal::SessionLimit(whole_seconds(*retry_after)))
            }
            _ => None,
        };
        if refusal.is_some() {
            self.begun().await.refusal = refusal;
        }
        error.into()
    }
}

impl Begun {
    /// The session the visitor has now, as far as one may be stored.
    pub(in crate::http) fn stored(&self) -> Option<Id> {
        self.current.filter(|_| self.origin != Origin::Issued)
    }

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
