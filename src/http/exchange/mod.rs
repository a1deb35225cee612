//! One request's dealings with Redis: nothing until state is first used, then everything missing in one call.
//!
//! Guarantees that limits are decided once and before anything else of the request counts, that a view is counted at
//! most once, and that a refusal is remembered: whatever the handler makes of the error, the client gets the refusal.

mod counters;
mod limits;
mod session;
mod stale;

use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use http::request::Parts;
use tokio::sync::Mutex;
use tokio::sync::MutexGuard;
use tower_sessions::session::Id;

use crate::counter;
use crate::counter::Name;
use crate::http::error::Error;
use crate::http::error::Refusal;
use crate::http::identity::Client;
use crate::http::state::Core;
use crate::http::visitor;
use crate::http::visitor::Visitor;
use crate::limiter::Set;
use crate::redis;
use crate::redis::begin;
use crate::redis::begin::CounterArg;
use crate::redis::begin::LimitReply;
use crate::redis::begin::SessionArg;
use crate::redis::begin::SessionMode;
use crate::redis::begin::SessionReply;
use crate::redis::keys;
use crate::session::cookie;
pub(super) use stale::Degraded;

/// Name of the counter of all views; `@` keeps it out of the applications' names.
const TOTAL: &str = "@views";

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
    pub(super) policies: Set,
    /// Whether its method only looks.
    only_looks: bool,
    /// What was wrong with the request's body, see [`crate::http::body`].
    pub(super) body_fault: AtomicU8,
    begun: Mutex<Begun>,
}

/// What this request knows so far.
#[derive(Debug, Default)]
pub(super) struct Begun {
    /// Decisions, once limits were asked.
    pub(super) limits: Option<Vec<LimitReply>>,
    /// What the client will be told instead of the handler's response.
    pub(super) refusal: Option<Refusal>,
    /// The session the visitor has now.
    pub(super) current: Option<Id>,
    /// The session as found, once it was asked for.
    session: Option<SessionReply>,
    /// How the session was come by, if not as usual.
    pub(super) degraded: Option<Degraded>,
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
    /// Made for a view; nobody but this request knows it yet.
    Made,
    /// The visitor's session was deleted by the handler.
    Deleted,
}

/// A counted view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Visited {
    pub(super) views: u64,
    pub(super) total: i64,
    pub(super) new: bool,
    /// It was not counted: Redis is away, and this is the last that is known.
    pub(super) stale: bool,
}

impl Exchange {
    pub(super) fn new(core: Arc<Core>, client: Client, head: &Parts) -> Self {
        let secure = visitor::is_secure(&core, &client);
        let visitor = Visitor::read(&core, &head.headers, secure);
        let begun = Begun { current: visitor.id(), ..Begun::default() };
        let policies = core.policies.select(head.uri.path());
        Self {
            core,
            client,
            secure,
            visitor,
            policies,
            only_looks: stale::only_looks(&head.method),
            body_fault: AtomicU8::new(0),
            begun: Mutex::new(begun),
        }
    }

    /// What is known now; the guard keeps every other use of this request's state waiting.
    pub(super) async fn begun(&self) -> MutexGuard<'_, Begun> {
        self.begun.lock().await
    }

    /// What is known now, unless the request was refused.
    async fn open(&self) -> Result<MutexGuard<'_, Begun>, Error> {
        let mut begun = self.begun.lock().await;
        if begun.refusal.is_none() && self.visitor == Visitor::Unverifiable {
            begun.refusal = Some(Refusal::Unavailable(1));
        }
        match &begun.refusal {
            Some(refusal) => Err(refusal.error()),
            None => Ok(begun),
        }
    }

    /// Decides the limits, if that was not done yet.
    pub(super) async fn decide(&self) -> Result<(), Error> {
        let mut begun = self.open().await?;
        if begun.limits.is_some() || self.policies.is_empty() {
            return Ok(());
        }
        // A named path's handler most likely uses the session it is sent, and the call is made anyway.
        let session = begun.current.map(|id| self.session_arg(id, SessionMode::Read, false));
        let (reply, _) = self.call(&mut begun, session.as_ref(), &[]).await?;
        if session.is_some() {
            begun.found(reply);
        }
        Ok(())
    }

    /// Counts a view in the visitor's session, which is made if there is none, and in the total.
    pub(super) async fn visit(&self) -> Result<Visited, Error> {
        let mut begun = self.open().await?;
        if let Some(visited) = begun.visited {
            return Ok(visited);
        }
        let mut counters =
            vec![CounterArg { key: keys::counter(&self.core.config.redis.prefix, TOTAL), by: 1 }];
        let mut total = None;
        if let Some(id) = begun.current {
            let arg = self.session_arg(id, SessionMode::Visit, false);
            let (reply, sums) = self.call(&mut begun, Some(&arg), &counters).await?;
            total = sums.first().copied();
            begun.found(reply);
            // The total counted this view already; only the session is missing.
            counters.clear();
        }
        let new = begun.current.is_none();
        if new {
            let id = cookie::new_id().map_err(|_| Error::Failed)?;
            let arg = self.session_arg(id, SessionMode::Visit, true);
            let (reply, sums) = self.call(&mut begun, Some(&arg), &counters).await?;
            total = total.or(sums.first().copied());
            begun.current = Some(id);
            begun.found(reply);
            begun.origin = Origin::Made;
        }
        let Some(SessionReply::Live { views, .. }) = begun.session else {
            return Err(Error::Unavailable { retry_after: 1 });
        };
        let stale = begun.degraded.is_some();
        if !stale {
            self.core.cell().viewed();
        }
        let visited = Visited { views, total: total.unwrap_or(0), new, stale };
        begun.visited = Some(visited);
        Ok(visited)
    }

    /// Adds to a counter; 0 only reads.
    pub(super) async fn count(&self, name: &Name, by: i64) -> Result<i64, Error> {
        let mut begun = self.open().await?;
        let prefix = &self.core.config.redis.prefix;
        if begun.limits.is_none() && !self.policies.is_empty() {
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
        if begun.current != Some(id) {
            return Ok(SessionReply::Gone);
        }
        if begun.session.is_none() {
            let arg = self.session_arg(id, SessionMode::Read, false);
            let (reply, _) = self.call(&mut begun, Some(&arg), &[]).await?;
            begun.found(reply);
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
        let undecided = begun.limits.is_none() && !self.policies.is_empty();
        let limits = if undecided { self.limit_args() } else { Vec::new() };
        let asked = session;
        let request = begin::Request { limits: &limits, session, counters, token: "" };
        let reply = self.core.redis.begin(&request).await;
        let refusal = match reply {
            Ok(begin::Reply::Granted { limits, session, counters }) => {
                if undecided {
                    begun.limits = Some(limits);
                }
                if let Some(asked) = asked {
                    self.remember(asked, &session, counters.first().copied());
                }
                return Ok((session, counters));
            }
            Ok(begin::Reply::Denied { limits }) => self.denied(begun, limits),
            // The caller's mistake: nothing was done, so the request may go on.
            Err(redis::Error::Overflow) => return Err(Error::CounterOverflow),
            Err(error) => {
                tracing::debug!(%error, "a request had to do without Redis: {error}");
                if let Some((how, session, counters)) =
                    self.in_place_of_begin(asked, counters.len(), &error).await
                {
                    begun.degraded = Some(how);
                    return Ok((session, counters));
                }
                Refusal::from(&error)
            }
        };
        Err(begun.refusal.insert(refusal).error())
    }
}
