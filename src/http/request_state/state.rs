//! What one request knows of its state, and the lock that makes its uses of state follow each other.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8};
use std::time::Duration;

use http::request::Parts;
use http::{HeaderValue, Method};
use tokio::sync::{Mutex, MutexGuard};
use tower_sessions::session::Id;

use crate::http::error::{RedisFailure, RequestError, StateError};
use crate::http::real_ip::ClientInfo;
use crate::http::request_state::cookie_identity::{CookieIdentity, RequestCookies};
use crate::http::request_state::request_limits::RequestLimits;
use crate::http::request_state::response_timeout::ResponseTimeout;
use crate::http::services::state::StateServices;
use crate::limiter::AppliedLimits;
use crate::redis;
use crate::sessions::cookie_value::ProvisionalCookie;
use crate::sessions::query::SessionLookup;
use crate::sessions::user::UserTag;

/// One request, as extractors and the session's store see it.
pub(crate) struct RequestState {
    pub(crate) services: Arc<StateServices>,
    pub(crate) client: ClientInfo,
    /// Whether the server told the address; outside a fleet it may not.
    pub(crate) client_is_known: bool,
    /// Whether a cookie for this client is a secure one.
    pub(crate) secure: bool,
    pub(crate) visitor: CookieIdentity,
    /// Whether the visitor has a cookie under the plain name beside the one that counts.
    pub(crate) leftover: bool,
    /// Whether its method creates no session and no provisional cookie, whatever its handler does.
    pub(crate) creates_no_session: bool,
    /// Whether a policy names the path: limits are decided before the handler.
    pub(crate) has_route_policy: bool,
    /// Whether its method is safe (RFC 9110 §9.2.1).
    pub(crate) is_safe_method: bool,
    /// Which bound the request's body exceeded, see [`crate::http::body`].
    pub(crate) body_fault: AtomicU8,
    /// Whether the handler waits for more of the request's body.
    pub(crate) body_waits: AtomicBool,
    /// The time in which its response has to begin.
    pub(crate) timeout: ResponseTimeout,
    pub(crate) inner: Mutex<RequestStateInner>,
}

/// What this request knows so far.
pub(crate) struct RequestStateInner {
    /// The limits, decided or not.
    pub(crate) limits: RequestLimits,
    /// What the client gets instead of the handler's response.
    pub(crate) failure: Option<StateError>,
    /// The session the visitor has now, or is to have.
    pub(crate) current_session_id: Option<Id>,
    /// Set if the visitor's cookie is, or is to be, provisional.
    pub(crate) provisional: Option<ProvisionalCookie>,
    /// The user who is logged in with it.
    pub(crate) user: Option<UserTag>,
    /// The cookie is sent again, to last this long.
    pub(crate) cookie_age: Option<Duration>,
    /// Whether an extractor read who the visitor is.
    pub(crate) session_accessed: bool,
    /// The session as found, once it was read.
    pub(crate) lookup: Option<SessionLookup>,
    /// How fresh the session is, if it was not read as usual.
    pub(crate) freshness: Option<SessionFreshness>,
    /// Redis's clock at its last reply, ms since 1970.
    pub(crate) now_ms: Option<u64>,
    /// The view, once counted.
    pub(crate) counted_view: Option<CountedView>,
    /// Where the session of this request came from.
    pub(crate) origin: SessionOrigin,
}

/// Where the session of a request came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum SessionOrigin {
    /// From the visitor's cookie, or there is none.
    #[default]
    Cookie,
    /// There is none: the visitor gets a provisional cookie, and nothing is stored.
    Issued,
    /// Made by this request; its id is in no cookie yet.
    Created,
    /// The visitor's session was deleted by the handler.
    Destroyed,
}

/// Why a round trip gave nothing.
#[derive(Debug)]
pub(crate) enum BeginFailure {
    /// The client gets this, whatever the handler answers.
    Rejected(StateError),
    /// A counter would overflow: nothing was done, so the request may go on.
    Overflow,
    /// Not of Redis, and for the handler alone.
    HandlerOnly(RequestError),
    /// Redis did not do it. The limits allow the request without it.
    RedisUnavailable(redis::RedisError),
}

/// How fresh a session is that could not be read as usual; the response's `Session-State`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionFreshness {
    /// Redis takes no writes: what is shown is true, and nothing was counted.
    ReadOnly,
    /// Redis is away: what is shown is what this worker last read.
    Stale,
    /// Redis is away, and this worker knows nothing of the session: the page shows none of it.
    Unknown,
}

impl SessionFreshness {
    pub(crate) fn header(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::ReadOnly => "read-only",
            Self::Stale => "stale",
            Self::Unknown => "unknown",
        })
    }
}

/// A counted view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CountedView {
    pub(crate) views: u64,
    pub(crate) total: i64,
    pub(crate) is_new: bool,
}

impl RequestState {
    pub(crate) fn new(services: Arc<StateServices>, client: ClientInfo, parts: &Parts) -> Self {
        let headers = &parts.headers;
        let header = |name: &str| headers.get(name).map(HeaderValue::as_bytes);
        let set = services.limiter.policies().select(parts.method.as_str(), parts.uri.path(), header);
        Self::with_limits(services, client, parts, set)
    }

    /// A request outside a fleet, which no policy names; none: the server did not tell its client's address.
    pub(crate) fn standalone(
        services: Arc<StateServices>,
        client: Option<ClientInfo>,
        parts: &Parts,
    ) -> Self {
        let set = services.limiter.policies().none();
        let known = client.unwrap_or(ClientInfo::UNKNOWN);
        Self { client_is_known: client.is_some(), ..Self::with_limits(services, known, parts, set) }
    }

    fn with_limits(
        services: Arc<StateServices>,
        client: ClientInfo,
        parts: &Parts,
        set: AppliedLimits,
    ) -> Self {
        let RequestCookies { visitor, secure, leftover } = match services.has_sessions {
            true => RequestCookies::from_headers(&services.sessions, &parts.headers, &client),
            false => RequestCookies { visitor: CookieIdentity::Anonymous, secure: false, leftover: false },
        };
        let has_route_policy = set.names_path();
        let timeout = ResponseTimeout::new(services.worker.http.request_timeout);
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
            services,
            client,
            client_is_known: true,
            secure,
            visitor,
            leftover,
            creates_no_session: matches!(parts.method, Method::HEAD | Method::OPTIONS),
            has_route_policy,
            is_safe_method: parts.method.is_safe(),
            body_fault: AtomicU8::new(0),
            body_waits: AtomicBool::new(false),
            timeout,
            inner: Mutex::new(inner),
        }
    }

    /// Goes on with the limits of a state that an outer layer began, decided or not.
    pub(crate) async fn take_over_limits(&self, outer: &Self) {
        let mut theirs = outer.inner.lock().await;
        std::mem::swap(&mut self.inner.lock().await.limits, &mut theirs.limits);
    }

    /// What is known now; the guard makes every other use of this request's state wait.
    pub(crate) async fn lock(&self) -> MutexGuard<'_, RequestStateInner> {
        self.inner.lock().await
    }

    /// What is known now; none while another use of this request's state goes on.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, RequestStateInner>> {
        self.inner.try_lock().ok()
    }

    /// Counts a request that is refused for want of Redis.
    pub(crate) fn count_refusal(&self, refusal: &StateError) {
        if let StateError::Unavailable(_) | StateError::StorageFull = refusal {
            self.services.worker.cell().count_unavailable();
        }
    }

    /// Whether it waits for Redis now: a call to Redis holds the guard until there is a reply.
    pub(crate) fn is_waiting_for_redis(&self) -> bool {
        self.inner.try_lock().is_err()
    }

    /// What is known now, unless the request was rejected.
    pub(crate) async fn lock_unless_failed(&self) -> Result<MutexGuard<'_, RequestStateInner>, RequestError> {
        let mut inner = self.inner.lock().await;
        if inner.failure.is_none() {
            inner.failure = match self.visitor {
                CookieIdentity::Unverifiable => Some(StateError::Unavailable(RedisFailure::unavailable(
                    "the keys of cookies are not known",
                ))),
                CookieIdentity::TooManyCookies => Some(StateError::TooManyCookies),
                CookieIdentity::Anonymous | CookieIdentity::Verified { .. } => None,
            };
        }
        match &inner.failure {
            Some(refusal) => Err(refusal.to_request_error()),
            None => Ok(inner),
        }
    }
}

/// Every handle of a request shows it, so neither the visitor nor the session is in it.
impl fmt::Debug for RequestState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestState").field("client", &self.client).finish_non_exhaustive()
    }
}

impl RequestStateInner {
    /// Records a failure for the response.
    pub(crate) fn record_failure(&mut self, failure: BeginFailure) -> RequestError {
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

    /// The session the visitor has now, as far as one may be stored.
    pub(crate) fn stored_session_id(&self) -> Option<Id> {
        self.current_session_id.filter(|_| self.origin != SessionOrigin::Issued)
    }

    /// Whether the visitor came with an id that was replaced a moment ago.
    pub(crate) fn came_with_rotated_id(&self) -> bool {
        self.lookup == Some(SessionLookup::Rotated) && self.current_session_id.is_none()
    }

    /// Whether the session has an end of its own.
    pub(crate) fn has_own_lifetime(&self) -> bool {
        match &self.lookup {
            Some(SessionLookup::Found { attributes: Some(own), .. }) => own.end_ms.is_some(),
            _ => false,
        }
    }

    /// Whether the response depends on who the visitor is.
    pub(crate) fn depends_on_visitor(&self) -> bool {
        self.lookup.is_some()
            || self.session_accessed
            || self.origin != SessionOrigin::Cookie
            || self.freshness.is_some()
    }
}
