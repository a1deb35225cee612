//! One request's dealings with Redis: nothing until state is first used, then everything missing in one call.
//!
//! Guarantees that limits are decided once and before anything else of the request counts, that a view is counted at
//! most once, and that a refusal is remembered: whatever the handler makes of the error, the client gets the refusal.

mod counters;
pub(in crate::http) mod limits;
mod session;
mod stale;
mod view;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU8;
use std::time::Duration;

use http::Extensions;
use http::HeaderValue;
use http::Method;
use http::request::Parts;
use tokio::sync::Mutex;
use tokio::sync::MutexGuard;
use tower_sessions::session::Id;

use crate::counter;
use crate::counter::Name;
use crate::http::error::Error;
use crate::http::error::Refusal;
use crate::http::exchange::limits::Limits;
use crate::http::identity::Client;
use crate::http::state::Core;
use crate::http::store::Store;
use crate::http::timeout::Time;
use crate::http::visitor::Cookies;
use crate::http::visitor::Visitor;
use crate::limiter::asked::Asked;
use crate::redis;
use crate::redis::begin;
use crate::redis::begin::CounterArg;
use crate::redis::begin::SessionArg;
use crate::redis::begin::SessionMode;
use crate::redis::begin::SessionReply;
use crate::session::cookie::Ticket;
use crate::session::user::UserTag;
pub(super) use stale::Degraded;
pub(super) use view::Visited;

/// Name of the counter of all views; `@` keeps it out of the applications' names.
pub(in crate::http) const TOTAL: &str = "@views";

/// Integers below this are exact in Lua, whose numbers are doubles.
const EXACT: u64 = 1 << 53;

/// One request, as extractors and the session's store see it.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) core: Arc<Core>,
    pub(super) client: Client,
    /// Whether a cookie for this client is a secure one.
    pub(super) secure: bool,
    pub(super) visitor: Visitor,
    /// Whether the visitor has a cookie under the plain name beside the one that counts.
    pub(super) leftover: bool,
    /// Whether its method makes no session and no ticket, whatever its handler does.
    pub(super) makes_nothing: bool,
    /// Whether a policy names the path: limits are decided before the handler.
    pub(super) is_named: bool,
    /// Whether its method only looks.
    only_looks: bool,
    /// What was wrong with the request's body, see [`crate::http::body`].
    pub(super) body_fault: AtomicU8,
    /// Whether the handler waits for more of the request's body.
    pub(super) body_waits: AtomicBool,
    /// The time in which its response has to begin.
    pub(super) time: Time,
    begun: Mutex<Begun>,
}

/// What this request knows so far.
#[derive(Debug)]
pub(super) struct Begun {
    /// The limits, decided or not.
    pub(super) limits: Limits,
    /// What the client will be told instead of the handler's response.
    pub(super) refusal: Option<Refusal>,
    /// The session the visitor has now, or is to have.
    pub(super) current: Option<Id>,
    /// The visitor's cookie is, or is to be, this ticket for it.
    pub(super) ticket: Option<Ticket>,
    /// The user who is logged in with it.
    pub(super) user: Option<UserTag>,
    /// The cookie is sent again, to last this long.
    pub(super) cookie_age: Option<Duration>,
    /// Whether a handler asked who the visitor is.
    pub(super) looked: bool,
    /// The session as found, once it was asked for.
    session: Option<SessionReply>,
    /// How the session was come by, if not as usual.
    pub(super) degraded: Option<Degraded>,
    /// What time it is by Redis's clock, as it was last told, ms.
    now_ms: Option<u64>,
    /// The view, once counted.
    visited: Option<Visited>,
    /// Where the session of this request came from.
    pub(super) origin: Origin,
}

/// Where the session of a request came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Origin {
    /// From the visitor's cookie, or there is none.
    #[default]
    Cookie,
    /// There is none: the visitor gets a ticket for one, and nothing is stored.
    Issued,
    /// Made by this request; its id is in no cookie yet.
    Made,
    /// The visitor's session was deleted by the handler.
    Deleted,
}

/// Why a round trip gave nothing.
#[derive(Debug)]
enum Failure {
    /// The client gets this, whatever becomes of the request.
    Refused(Refusal),
    /// A counter would overflow: nothing was done, so the request may go on.
    Overflow,
    /// Not of Redis, and for the handler alone.
    Own(Error),
    /// Redis did not do it. The limits allow the request without it.
    Away(redis::Error),
}

impl Exchange {
    pub(super) fn new(core: Arc<Core>, client: Client, parts: &Parts) -> Self {
        let headers = &parts.headers;
        let Cookies { visitor, secure, leftover } = Cookies::read(&core, headers, &client);
        let header = |name: &str| headers.get(name).map(HeaderValue::as_bytes);
        let set = core.limits.policies().select(parts.method.as_str(), parts.uri.path(), header);
        let is_named = set.names_path();
        let time = Time::new(core.config.http.request_timeout);
        let begun = Begun {
            limits: Limits::new(set),
            refusal: None,
            current: visitor.id(),
            ticket: visitor.ticket(),
            user: visitor.user(),
            cookie_age: None,
            looked: false,
            session: None,
            degraded: None,
            now_ms: None,
            visited: None,
            origin: Origin::Cookie,
        };
        Self {
            core,
            client,
            secure,
            visitor,
            leftover,
            makes_nothing: matches!(parts.method, Method::HEAD | Method::OPTIONS),
            is_named,
            only_looks: stale::only_looks(&parts.method),
            body_fault: AtomicU8::new(0),
            body_waits: AtomicBool::new(false),
            time,
            begun: Mutex::new(begun),
        }
    }

    /// What is known now; the guard keeps every other use of this request's state waiting.
    pub(super) async fn begun(&self) -> MutexGuard<'_, Begun> {
        self.begun.lock().await
    }

    /// What is known now; none while another use of this request's state goes on.
    pub(super) fn begun_now(&self) -> Option<MutexGuard<'_, Begun>> {
        self.begun.try_lock().ok()
    }

    /// The exchange of the request with these extensions; none outside a fleet.
    pub(super) fn of(extensions: &Extensions) -> Option<&Arc<Self>> {
        extensions.get::<Arc<Store>>().map(|store| &store.exchange)
    }

    /// Whether it waits for Redis now: the caller that asks Redis holds the guard until there is an answer.
    pub(super) fn waits_for_state(&self) -> bool {
        self.begun.try_lock().is_err()
    }

    /// What is known now, unless the request was refused.
    async fn open(&self) -> Result<MutexGuard<'_, Begun>, Error> {
        let mut begun = self.begun.lock().await;
        if begun.refusal.is_none() {
            begun.refusal = match self.visitor {
                Visitor::Unverifiable => Some(Refusal::Unavailable(1)),
                Visitor::TooManyCookies => Some(Refusal::TooManyCookies),
                Visitor::Anonymous | Visitor::Known { .. } => None,
            };
        }
        match &begun.refusal {
            Some(refusal) => Err(refusal.error()),
            None => Ok(begun),
        }
    }

    /// Decides the limits, if that was not done yet.
    pub(super) async fn decide(&self) -> Result<(), Error> {
        let mut begun = self.open().await?;
        if !begun.limits.are_open() {
            return Ok(());
        }
        // A named path's handler most likely uses the session it is sent, and the call is made anyway. That makes none:
        // there may be no such page.
        let unread = begun.stored().filter(|_| begun.session.is_none());
        let session = unread.map(|id| self.session_arg(&begun, id, SessionMode::Read, false));
        match (self.round_trip(&mut begun, session.as_ref(), &[]).await, unread) {
            (Ok((reply, _)), Some(id)) if !reply.is_unconfirmed() => self.found(&mut begun, id, reply).await,
            (Ok(_), _) => {}
            // The limits allow it; whoever needs the session is told what is known, or asks again.
            (Err(Failure::Away(error)), unread) => {
                let known = Box::pin(self.in_place_of_begin(session.as_ref(), &error)).await;
                if let (Some((how, reply)), Some(id)) = (known, unread) {
                    begun.degraded = Some(how);
                    self.found(&mut begun, id, reply).await;
                }
            }
            (Err(failure), _) => return Err(begun.fail(failure)),
        }
        Ok(())
    }

    /// Adds to a counter; 0 only reads.
    pub(super) async fn count(&self, name: &Name, by: i64) -> Result<i64, Error> {
        let mut begun = self.open().await?;
        let prefix = &self.core.config.redis.prefix;
        if begun.limits.are_open() {
            let (_, sums) = self.call(&mut begun, None, &[name.arg(prefix, by)]).await?;
            match sums.first() {
                Some(sum) if sum.unsigned_abs() < EXACT => return Ok(*sum),
                // It was added, but so large a sum lost digits on its way through Lua: read it without.
                Some(_) => return Ok(counter::value(&self.core.redis, prefix, name).await?),
                None => return Err(Error::Unavailable { retry_after: 1 }),
            }
        }
        let counted = counter::add(&self.core.redis, prefix, name, by).await;
        if let Err(counter::Error::Redis(error)) = &counted {
            begun.refusal = Some(error.into());
        }
        Ok(counted?)
    }

    /// The visitor's session for the store; one that is not this request's any more is gone.
    pub(super) async fn session(&self, id: Id) -> Result<SessionReply, Error> {
        let mut begun = self.open().await?;
        if begun.stored() != Some(id) {
            return Ok(if begun.is_rotated() { SessionReply::Rotated } else { SessionReply::Gone });
        }
        if begun.session.is_none() {
            let arg = self.session_arg(&begun, id, SessionMode::Read, !self.makes_nothing);
            let (reply, _) = self.call(&mut begun, Some(&arg), &[]).await?;
            self.found(&mut begun, id, reply).await;
        }
        Ok(begun.session.clone().unwrap_or(SessionReply::Gone))
    }

    /// One round trip; it carries the limits if they are not decided yet.
    async fn call(
        &self,
        begun: &mut Begun,
        session: Option<&SessionArg>,
        counters: &[CounterArg],
    ) -> Result<(SessionReply, Vec<i64>), Error> {
        match self.round_trip(begun, session, counters).await {
            Ok(answer) => Ok(answer),
            Err(Failure::Away(error)) => {
                // A counter has no stand-in: a number that is not exact is not shown.
                let session = session.filter(|_| counters.is_empty());
                match Box::pin(self.in_place_of_begin(session, &error)).await {
                    Some((how, session)) => {
                        begun.degraded = Some(how);
                        Ok((session, Vec::new()))
                    }
                    None => Err(begun.fail(Failure::Away(error))),
                }
            }
            Err(failure) => Err(begun.fail(failure)),
        }
    }

    async fn round_trip(
        &self,
        begun: &mut Begun,
        session: Option<&SessionArg>,
        counters: &[CounterArg],
    ) -> Result<(SessionReply, Vec<i64>), Failure> {
        let mut asked = self.admit(begun).await?;
        let limits = asked.as_ref().map_or(&[][..], Asked::limits);
        if limits.is_empty() && session.is_none() && counters.is_empty() {
            // All of it was drawn in advance.
            if let Some(asked) = asked {
                self.granted(&mut begun.limits, asked, &[]);
            }
            return Ok((SessionReply::None, Vec::new()));
        }
        let token = asked.as_ref().map_or("", Asked::token);
        let request = begin::Request { limits, session, counters, token };
        let mut answer = self.core.redis.begin(&request).await;
        // Ends at the latest when the request has waited as long as it may (`limiter/recall.rs`).
        while let (Ok(begin::Reply::Denied { limits: replies }), Some(open)) = (&answer, &mut asked)
            && begun.limits.recalled(open, replies).await
        {
            let (limits, token) = (open.limits(), open.token());
            answer = self.core.redis.begin(&begin::Request { limits, token, session, counters }).await;
        }
        match (answer, asked) {
            (Ok(begin::Reply::Granted { limits, session: found, counters, now_ms }), asked) => {
                begun.now_ms = Some(now_ms).filter(|now_ms| *now_ms > 0).or(begun.now_ms);
                if let Some(asked) = asked {
                    self.granted(&mut begun.limits, asked, &limits);
                }
                if let Some(session) = session {
                    self.remember(session, &found);
                }
                Ok((found, counters))
            }
            (Ok(begin::Reply::Denied { limits }), Some(asked)) => {
                Err(self.refused(&mut begun.limits, asked, &limits))
            }
            // Nothing was asked that could deny.
            (Ok(begin::Reply::Denied { .. }), None) => Err(Failure::Refused(Refusal::Unavailable(1))),
            (Err(redis::Error::Overflow), _) => Err(Failure::Overflow),
            // It is not away, and will never do it.
            (Err(error @ redis::Error::Unsupported { .. }), _) => {
                Err(Failure::Refused(Refusal::from(&error)))
            }
            (Err(error), Some(asked)) => Err(self.without(&mut begun.limits, asked, error)),
            (Err(error), None) => Err(Failure::Away(error)),
        }
    }
}

impl Begun {
    /// Takes note of a failure for the response.
    fn fail(&mut self, failure: Failure) -> Error {
        let refusal = match failure {
            Failure::Overflow => return Error::CounterOverflow,
            Failure::Own(error) => return error,
            Failure::Refused(refusal) => refusal,
            Failure::Away(error) => {
                tracing::debug!(%error, "a request had to do without Redis: {error}");
                Refusal::from(&error)
            }
        };
        self.refusal.insert(refusal).error()
    }
}
