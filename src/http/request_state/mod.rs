//! One request's dealings with Redis: nothing until state is first used, then everything missing in one call.
//!
//! Guarantees that limits are decided once and before anything else of the request counts, that a view is counted at
//! most once, and that a refusal is remembered: whatever the handler makes of the error, the client gets the refusal.

mod counters;
mod fallback;
pub(in crate::http) mod limits;
mod session;
pub(in crate::http) mod session_cookie;
pub(in crate::http) mod session_store;
mod view;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8};
use std::time::Duration;

pub(super) use fallback::SessionFreshness;
use http::request::Parts;
use http::{Extensions, HeaderValue, Method};
use tokio::sync::{Mutex, MutexGuard};
use tower_sessions::session::Id;
pub(super) use view::CountedView;

use crate::counter::CounterName;
use crate::http::error::{RequestError, StateError};
use crate::http::layers::request_timeout::EffectiveTimeout;
use crate::http::real_ip::ClientInfo;
use crate::http::request_state::limits::RequestLimits;
use crate::http::request_state::session_cookie::{CookieIdentity, RequestCookies};
use crate::http::request_state::session_store::RequestSessionStore;
use crate::http::service::context::WorkerContext;
use crate::limiter::pending::PendingDecision;
use crate::redis::begin;
use crate::redis::begin::{CounterIncrement, SessionAccess, SessionLookup, SessionQuery};
use crate::session::cookie::ProvisionalCookie;
use crate::session::user::UserTag;
use crate::{counter, redis};

/// Name of the counter of all views; `@` keeps it out of the applications' names.
pub(in crate::http) const TOTAL_VIEWS: &str = "@views";

/// Integers below this are exact in Lua, whose numbers are doubles.
const EXACT_INTEGER_MAX: u64 = 1 << 53;

/// One request, as extractors and the session's store see it.
#[derive(Debug)]
pub(super) struct RequestState {
    pub(super) core: Arc<WorkerContext>,
    pub(super) client: ClientInfo,
    /// Whether a cookie for this client is a secure one.
    pub(super) secure: bool,
    pub(super) visitor: CookieIdentity,
    /// Whether the visitor has a cookie under the plain name beside the one that counts.
    pub(super) leftover: bool,
    /// Whether its method makes no session and no ticket, whatever its handler does.
    pub(super) creates_no_session: bool,
    /// Whether a policy names the path: limits are decided before the handler.
    pub(super) has_route_policy: bool,
    /// Whether its method only looks.
    is_safe_method: bool,
    /// What was wrong with the request's body, see [`crate::http::body`].
    pub(super) body_fault: AtomicU8,
    /// Whether the handler waits for more of the request's body.
    pub(super) body_waits: AtomicBool,
    /// The time in which its response has to begin.
    pub(super) timeout: EffectiveTimeout,
    inner: Mutex<RequestStateInner>,
}

/// What this request knows so far.
#[derive(Debug)]
pub(super) struct RequestStateInner {
    /// The limits, decided or not.
    pub(super) limits: RequestLimits,
    /// What the client will be told instead of the handler's response.
    pub(super) failure: Option<StateError>,
    /// The session the visitor has now, or is to have.
    pub(super) current_session_id: Option<Id>,
    /// The visitor's cookie is, or is to be, this ticket for it.
    pub(super) provisional: Option<ProvisionalCookie>,
    /// The user who is logged in with it.
    pub(super) user: Option<UserTag>,
    /// The cookie is sent again, to last this long.
    pub(super) cookie_age: Option<Duration>,
    /// Whether a handler asked who the visitor is.
    pub(super) session_accessed: bool,
    /// The session as found, once it was asked for.
    lookup: Option<SessionLookup>,
    /// How the session was come by, if not as usual.
    pub(super) freshness: Option<SessionFreshness>,
    /// What time it is by Redis's clock, as it was last told, ms.
    now_ms: Option<u64>,
    /// The view, once counted.
    counted_view: Option<CountedView>,
    /// Where the session of this request came from.
    pub(super) origin: SessionOrigin,
}

/// Where the session of a request came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum SessionOrigin {
    /// From the visitor's cookie, or there is none.
    #[default]
    Cookie,
    /// There is none: the visitor gets a ticket for one, and nothing is stored.
    Issued,
    /// Made by this request; its id is in no cookie yet.
    Created,
    /// The visitor's session was deleted by the handler.
    Destroyed,
}

/// Why a round trip gave nothing.
#[derive(Debug)]
enum BeginFailure {
    /// The client gets this, whatever becomes of the request.
    Rejected(StateError),
    /// A counter would overflow: nothing was done, so the request may go on.
    Overflow,
    /// Not of Redis, and for the handler alone.
    HandlerOnly(RequestError),
    /// Redis did not do it. The limits allow the request without it.
    RedisUnavailable(redis::RedisError),
}

impl RequestState {
    pub(super) fn new(core: Arc<WorkerContext>, client: ClientInfo, parts: &Parts) -> Self {
        let headers = &parts.headers;
        let RequestCookies { visitor, secure, leftover } =
            RequestCookies::from_headers(&core, headers, &client);
        let header = |name: &str| headers.get(name).map(HeaderValue::as_bytes);
        let set = core.limiter.policies().select(parts.method.as_str(), parts.uri.path(), header);
        let has_route_policy = set.names_path();
        let timeout = EffectiveTimeout::new(core.config.http.request_timeout);
        let inner = RequestStateInner {
            limits: RequestLimits::new(set),
            failure: None,
            current_session_id: visitor.id(),
            provisional: visitor.provisional(),
            user: visitor.user(),
            cookie_age: None,
            session_accessed: false,
            lookup: None,
            freshness: None,
            now_ms: None,
            counted_view: None,
            origin: SessionOrigin::Cookie,
        };
        Self {
            core,
            client,
            secure,
            visitor,
            leftover,
            creates_no_session: matches!(parts.method, Method::HEAD | Method::OPTIONS),
            has_route_policy,
            is_safe_method: fallback::is_safe_method(&parts.method),
            body_fault: AtomicU8::new(0),
            body_waits: AtomicBool::new(false),
            timeout,
            inner: Mutex::new(inner),
        }
    }

    /// What is known now; the guard keeps every other use of this request's state waiting.
    pub(super) async fn lock(&self) -> MutexGuard<'_, RequestStateInner> {
        self.inner.lock().await
    }

    /// What is known now; none while another use of this request's state goes on.
    pub(super) fn try_lock(&self) -> Option<MutexGuard<'_, RequestStateInner>> {
        self.inner.try_lock().ok()
    }

    /// The exchange of the request with these extensions; none outside a fleet.
    pub(super) fn from_extensions(extensions: &Extensions) -> Option<&Arc<Self>> {
        extensions.get::<Arc<RequestSessionStore>>().map(|store| &store.state)
    }

    /// Whether it waits for Redis now: the caller that asks Redis holds the guard until there is an answer.
    pub(super) fn is_waiting_for_redis(&self) -> bool {
        self.inner.try_lock().is_err()
    }

    /// What is known now, unless the request was refused.
    async fn lock_unless_failed(&self) -> Result<MutexGuard<'_, RequestStateInner>, RequestError> {
        let mut inner = self.inner.lock().await;
        if inner.failure.is_none() {
            inner.failure = match self.visitor {
                CookieIdentity::Unverifiable => Some(StateError::Unavailable(1)),
                CookieIdentity::TooManyCookies => Some(StateError::TooManyCookies),
                CookieIdentity::Anonymous | CookieIdentity::Verified { .. } => None,
            };
        }
        match &inner.failure {
            Some(refusal) => Err(refusal.to_request_error()),
            None => Ok(inner),
        }
    }

    /// Decides the limits, if that was not done yet.
    pub(super) async fn decide_limits(&self) -> Result<(), RequestError> {
        let mut inner = self.lock_unless_failed().await?;
        if !inner.limits.are_undecided() {
            return Ok(());
        }
        // A named path's handler most likely uses the session it is sent, and the call is made anyway. That makes none:
        // there may be no such page.
        let unread = inner.stored_session_id().filter(|_| inner.lookup.is_none());
        let session = unread.map(|id| self.session_query(&inner, id, SessionAccess::Read, false));
        match (self.send_begin(&mut inner, session.as_ref(), &[]).await, unread) {
            (Ok((reply, _)), Some(id)) if !reply.is_unconfirmed() => {
                self.record_lookup(&mut inner, id, reply).await
            }
            (Ok(_), _) => {}
            // The limits allow it; whoever needs the session is told what is known, or asks again.
            (Err(BeginFailure::RedisUnavailable(error)), unread) => {
                let known = Box::pin(self.session_without_redis(session.as_ref(), &error)).await;
                if let (Some((how, reply)), Some(id)) = (known, unread) {
                    inner.freshness = Some(how);
                    self.record_lookup(&mut inner, id, reply).await;
                }
            }
            (Err(failure), _) => return Err(inner.record_failure(failure)),
        }
        Ok(())
    }

    /// Adds to a counter; 0 only reads.
    pub(super) async fn add_to_counter(&self, name: &CounterName, by: i64) -> Result<i64, RequestError> {
        let mut inner = self.lock_unless_failed().await?;
        let prefix = &self.core.config.redis.prefix;
        if inner.limits.are_undecided() {
            let (_, sums) = self.begin(&mut inner, None, &[name.increment(prefix, by)]).await?;
            match sums.first() {
                Some(sum) if sum.unsigned_abs() < EXACT_INTEGER_MAX => return Ok(*sum),
                // It was added, but so large a sum lost digits on its way through Lua: read it without.
                Some(_) => return Ok(counter::value(&self.core.redis, prefix, name).await?),
                None => return Err(RequestError::Unavailable { retry_after: 1 }),
            }
        }
        let counted = counter::add(&self.core.redis, prefix, name, by).await;
        if let Err(counter::CounterError::Redis(error)) = &counted {
            inner.failure = Some(error.into());
        }
        Ok(counted?)
    }

    /// The visitor's session for the store; one that is not this request's any more is gone.
    pub(super) async fn lookup_session(&self, id: Id) -> Result<SessionLookup, RequestError> {
        let mut inner = self.lock_unless_failed().await?;
        if inner.stored_session_id() != Some(id) {
            return Ok(if inner.came_with_rotated_id() {
                SessionLookup::Rotated
            } else {
                SessionLookup::Gone
            });
        }
        if inner.lookup.is_none() {
            let arg = self.session_query(&inner, id, SessionAccess::Read, !self.creates_no_session);
            let (reply, _) = self.begin(&mut inner, Some(&arg), &[]).await?;
            self.record_lookup(&mut inner, id, reply).await;
        }
        Ok(inner.lookup.clone().unwrap_or(SessionLookup::Gone))
    }

    /// One round trip; it carries the limits if they are not decided yet.
    async fn begin(
        &self,
        inner: &mut RequestStateInner,
        session: Option<&SessionQuery>,
        counters: &[CounterIncrement],
    ) -> Result<(SessionLookup, Vec<i64>), RequestError> {
        match self.send_begin(inner, session, counters).await {
            Ok(answer) => Ok(answer),
            Err(BeginFailure::RedisUnavailable(error)) => {
                // A counter has no stand-in: a number that is not exact is not shown.
                let session = session.filter(|_| counters.is_empty());
                match Box::pin(self.session_without_redis(session, &error)).await {
                    Some((how, session)) => {
                        inner.freshness = Some(how);
                        Ok((session, Vec::new()))
                    }
                    None => Err(inner.record_failure(BeginFailure::RedisUnavailable(error))),
                }
            }
            Err(failure) => Err(inner.record_failure(failure)),
        }
    }

    async fn send_begin(
        &self,
        inner: &mut RequestStateInner,
        session: Option<&SessionQuery>,
        counters: &[CounterIncrement],
    ) -> Result<(SessionLookup, Vec<i64>), BeginFailure> {
        let mut pending = self.check_limits(inner).await?;
        let limits = pending.as_ref().map_or(&[][..], PendingDecision::checks);
        if limits.is_empty() && session.is_none() && counters.is_empty() {
            // All of it was drawn in advance.
            if let Some(pending) = pending {
                self.grant(&mut inner.limits, pending, &[]);
            }
            return Ok((SessionLookup::NotRequested, Vec::new()));
        }
        let token = pending.as_ref().map_or("", PendingDecision::permit_name);
        let request = begin::BeginRequest { limits, session, counters, token };
        let mut answer = self.core.redis.begin(&request).await;
        // Ends at the latest when the request has waited as long as it may (`limiter/recall.rs`).
        while let (Ok(begin::BeginReply::Denied { limits: replies }), Some(undecided)) =
            (&answer, &mut pending)
            && inner.limits.needs_retry(undecided, replies).await
        {
            let (limits, token) = (undecided.checks(), undecided.permit_name());
            answer = self.core.redis.begin(&begin::BeginRequest { limits, token, session, counters }).await;
        }
        match (answer, pending) {
            (Ok(begin::BeginReply::Granted { limits, session: found, counters, now_ms }), pending) => {
                inner.now_ms = Some(now_ms).filter(|now_ms| *now_ms > 0).or(inner.now_ms);
                if let Some(pending) = pending {
                    self.grant(&mut inner.limits, pending, &limits);
                }
                if let Some(session) = session {
                    self.cache_session(session, &found);
                }
                Ok((found, counters))
            }
            (Ok(begin::BeginReply::Denied { limits }), Some(pending)) => {
                Err(self.deny(&mut inner.limits, pending, &limits))
            }
            // Nothing was asked that could deny.
            (Ok(begin::BeginReply::Denied { .. }), None) => {
                Err(BeginFailure::Rejected(StateError::Unavailable(1)))
            }
            (Err(redis::RedisError::Overflow), _) => Err(BeginFailure::Overflow),
            // It is not away, and will never do it.
            (Err(error @ redis::RedisError::Unsupported { .. }), _) => {
                Err(BeginFailure::Rejected(StateError::from(&error)))
            }
            (Err(error), Some(pending)) => Err(self.fall_back(&mut inner.limits, pending, error)),
            (Err(error), None) => Err(BeginFailure::RedisUnavailable(error)),
        }
    }
}

impl RequestStateInner {
    /// Takes note of a failure for the response.
    fn record_failure(&mut self, failure: BeginFailure) -> RequestError {
        let refusal = match failure {
            BeginFailure::Overflow => return RequestError::CounterOverflow,
            BeginFailure::HandlerOnly(error) => return error,
            BeginFailure::Rejected(refusal) => refusal,
            BeginFailure::RedisUnavailable(error) => {
                tracing::debug!(%error, "a request had to do without Redis: {error}");
                StateError::from(&error)
            }
        };
        self.failure.insert(refusal).to_request_error()
    }
}
