//! What a request's walk or a handler's operation can fail with, and the only map from it to a status.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::StatusCode;

use crate::http::idempotency_key::KEY_MAX;
use crate::http::offload::OffloadError;
use crate::http::problem::Problem;
use crate::limiter::headers::RateLimitHeaders;
use crate::{counters, redis, sessions};

/// Why an extractor or an operation of this library failed; answers as a problem document.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// A rate limit refused the request: 429.
    #[error("a rate limit refused the request")]
    Denied(Denied),
    /// The shared state is away: 503; or it allows no server-side code: 501.
    #[error("{0}")]
    Redis(#[source] RedisFailure),
    /// The shared state is nearly full, and only users who are logged in may add to it: 503.
    #[error("the shared state is nearly full: only users who are logged in may add to it")]
    StorageFull,
    /// All permits for CPU work are taken: 503.
    #[error("as much CPU work is under way as this worker takes")]
    Overloaded,
    /// The work failed on its thread: 500.
    #[error("the work failed")]
    Internal,
    /// A counter's name is not allowed: 400.
    #[error("a counter's name has 1 to 64 of A-Z a-z 0-9 _ - . :")]
    InvalidCounterName,
    /// A counter would leave the range of 64-bit integers: 409, nothing was changed.
    #[error("the counter would leave the range of 64-bit integers")]
    CounterOverflow,
    /// How much is to be taken or given back, or a window, is out of bounds: 400.
    #[error("how much must be from 1 to 2^53, and a window a second at least")]
    InvalidCounterAmount,
    /// A token is not one: 400.
    #[error("a token has 1 to 128 printable ASCII characters")]
    InvalidCounterToken,
    /// The session has ended, or has another id that this request does not know: 401.
    #[error("the session ended before this request was finished")]
    SessionGone,
    /// The session would hold more than is allowed: 507, nothing was stored.
    #[error("the session would hold more than is allowed")]
    SessionTooLarge,
    /// The client has made more new sessions than `session.create_rate` allows: 429, nothing was stored.
    #[error("more new sessions were made from this client than is allowed; try again later")]
    TooManySessions {
        /// Seconds after which the client may try again.
        retry_after: u64,
    },
    /// More cookies have the session's name and form than can be checked: 431.
    #[error(
        "too many cookies have the name of the session's, and none of those that were checked is genuine"
    )]
    TooManyCookies,
    /// Another request changed the same field of the session: 409, nothing was stored.
    #[error("another request changed the same field of the session; try again")]
    SessionConflict,
    /// A field of the session does not hold what is expected of it, such as a number to add to: 409.
    #[error("a field of the session does not hold what is expected of it")]
    InvalidSessionField,
    /// A topic's name is not allowed: 400.
    #[error("a topic's name has 1 to 64 of A-Z a-z 0-9 - _ . : /")]
    InvalidTopicName,
    /// A message is longer than `broadcast.max_message_size`: 413.
    #[error("a message has at most {limit} bytes")]
    MessageTooLarge {
        /// The longest that is allowed.
        limit: usize,
    },
    /// As many clients or topics are subscribed as this worker takes: 503.
    #[error("as many are subscribed as this worker takes")]
    TooManySubscribers,
    /// No user is logged in: 401.
    #[error("no user is logged in")]
    NotLoggedIn,
    /// A user's name is not allowed: 400.
    #[error("a user's name has 1 to 256 bytes")]
    InvalidUserId,
    /// As many tasks wait as `tasks.max_queued` allows: 503.
    #[error("as many tasks wait as are allowed")]
    TooManyTasks,
    /// No job was registered for this kind of task: 400.
    #[error("there is no task of the kind {0:?}")]
    UnknownTaskKind(String),
    /// A task's input is too large, or cannot be written as JSON: 400.
    #[error("the task's input cannot be taken: {0}")]
    InvalidTaskInput(String),
    /// The request needs an `Idempotency-Key` and has none: 400.
    #[error("this request needs an Idempotency-Key, such as a UUID of its own")]
    MissingIdempotencyKey,
    /// The request's `Idempotency-Key` is none: 400.
    #[error("Idempotency-Key is one string of 1 to {KEY_MAX} visible characters")]
    InvalidIdempotencyKey,
    /// The request has no client address, because the server does not tell one: 500.
    #[error(
        "the client's address is not known: serve the router by \
         `into_make_service_with_connect_info::<SocketAddr>()`"
    )]
    MissingClientAddress,
    /// No layer of this library, and no connection to Redis, is around the handler: 500.
    #[error(
        "this handler has no Redis: run it in a fleet, or add `.layer(axum::Extension(redis))`, a `SessionLayer` or a \
         `RateLimitLayer` around it"
    )]
    MissingRedis,
    /// No session layer is around the handler, or around the layer that needs the session: 500.
    #[error(
        "this request has no session: add `.layer(SessionLayer::new(&redis))` around the handler, after every layer \
         that needs the session"
    )]
    MissingSessionLayer,
    /// The layer of trusted proxies comes after one that has read the client's address already: 500.
    #[error("add `TrustedProxies` last, outside of every layer that reads the client's address")]
    TrustedProxiesTooLate,
    /// A signing or encryption key is too short: 500.
    #[error("a key of a session layer has at least 32 bytes")]
    InvalidSessionKey,
    /// The handler runs outside a fleet, so there is nothing to extract: 500.
    #[error("this handler runs outside a fleet")]
    OutsideFleet,
}

/// When a client without a login may try again where Redis is nearly full, s: sessions have to expire first.
const STORAGE_FULL_RETRY_AFTER: u64 = 30;

impl RequestError {
    /// The error as the client sees it; a mistake of the program is logged.
    pub(crate) fn to_problem(&self) -> Problem {
        self.log_if_internal();
        self.as_problem()
    }

    /// The status with which it is answered.
    pub(crate) fn status(&self) -> StatusCode {
        self.as_problem().status()
    }

    /// What the author of the program has to read.
    fn log_if_internal(&self) {
        if matches!(
            self,
            Self::MissingClientAddress
                | Self::MissingRedis
                | Self::MissingSessionLayer
                | Self::TrustedProxiesTooLate
                | Self::Internal
                | Self::InvalidSessionKey
                | Self::OutsideFleet
        ) {
            tracing::error!(error = %self, "a handler could not do its work: {self}");
        }
    }

    fn as_problem(&self) -> Problem {
        match self {
            // In a request its recorded refusal replaces it, with the headers; outside of one this is all there is.
            Self::Denied(denied) => Problem::quota_exceeded(denied.violated.clone(), denied.retry_after),
            Self::Redis(failure) if failure.is_unsupported() => {
                Problem::new(StatusCode::NOT_IMPLEMENTED, self.to_string())
            }
            Self::Redis(failure) => Problem::reduced_capacity(
                "the shared state is unavailable for the moment",
                failure.retry_after,
            ),
            Self::StorageFull => Problem::reduced_capacity(self.to_string(), STORAGE_FULL_RETRY_AFTER),
            Self::Overloaded => {
                Problem::reduced_capacity("as much work is under way as this worker takes", 1)
            }
            Self::TooManyTasks | Self::TooManySubscribers => Problem::reduced_capacity(self.to_string(), 1),
            Self::MessageTooLarge { .. } => Problem::new(StatusCode::PAYLOAD_TOO_LARGE, self.to_string()),
            Self::InvalidTopicName
            | Self::UnknownTaskKind(_)
            | Self::InvalidTaskInput(_)
            | Self::InvalidCounterName
            | Self::InvalidCounterAmount
            | Self::InvalidCounterToken
            | Self::InvalidIdempotencyKey
            | Self::InvalidUserId => Problem::new(StatusCode::BAD_REQUEST, self.to_string()),
            Self::CounterOverflow | Self::InvalidSessionField => {
                Problem::new(StatusCode::CONFLICT, self.to_string())
            }
            Self::MissingIdempotencyKey => Problem::idempotency_key_missing(self.to_string()),
            Self::NotLoggedIn => Problem::new(StatusCode::UNAUTHORIZED, self.to_string()),
            Self::SessionGone => Problem::session_gone(),
            Self::SessionTooLarge => Problem::session_too_large(),
            Self::SessionConflict => Problem::session_conflict(),
            Self::TooManySessions { retry_after } => {
                Problem::too_many_sessions(self.to_string(), *retry_after)
            }
            Self::TooManyCookies => {
                Problem::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, self.to_string())
            }
            // Written for the author of the program, who reads it in the response: it tells no client anything.
            Self::MissingClientAddress
            | Self::MissingRedis
            | Self::MissingSessionLayer
            | Self::TrustedProxiesTooLate => {
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, self.to_string())
            }
            Self::Internal | Self::InvalidSessionKey | Self::OutsideFleet => {
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "")
            }
        }
    }
}

impl IntoResponse for RequestError {
    fn into_response(self) -> Response {
        match self {
            Self::Denied(denied) => denied.into_response(),
            other => other.to_problem().into_response(),
        }
    }
}

/// Which policies denied a request, and for how long: 429 with the `RateLimit` headers.
///
/// ```
/// use axum::response::{IntoResponse, Response};
/// use regatta::rate_limit::{Error, RateLimit};
///
/// async fn export(limit: RateLimit) -> Result<&'static str, Error> {
///     match limit.charge(50).await {
///         Err(Error::Denied(denied)) => {
///             tracing::info!(policies = ?denied.violated(), wait = ?denied.retry_after(), "an export has to wait");
///             Err(Error::Denied(denied))
///         }
///         other => other.map(|()| "exported"),
///     }
/// }
/// # let _: axum::Router = axum::Router::new().route("/export", axum::routing::get(export));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Denied {
    violated: Vec<String>,
    retry_after: Option<u64>,
}

impl Denied {
    /// `retry_after` in seconds.
    pub(crate) fn new(violated: Vec<String>, retry_after: Option<u64>) -> Self {
        Self { violated, retry_after }
    }

    /// Names of the policies that denied the request; none if a worker knew without deciding them anew.
    pub fn violated(&self) -> &[String] {
        &self.violated
    }

    /// How long the client has to wait; `None`: the request costs more than a policy can ever allow.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after.map(Duration::from_secs)
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a rate limit refused the request")
    }
}

impl std::error::Error for Denied {}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        Problem::quota_exceeded(self.violated, self.retry_after).into_response()
    }
}

/// What Redis did not do, and when its client may try again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisFailure {
    error: redis::RedisError,
    /// Seconds.
    retry_after: u64,
}

impl RedisFailure {
    /// There is nothing to be read or written with at this moment.
    pub(crate) fn unavailable(reason: &str) -> Self {
        Self { error: redis::RedisError::Unavailable { reason: reason.to_owned() }, retry_after: 1 }
    }

    /// What the client of Redis reported.
    pub(crate) fn error(&self) -> &redis::RedisError {
        &self.error
    }

    /// When a client may try again, seconds.
    pub(crate) fn retry_after(&self) -> u64 {
        self.retry_after
    }

    fn is_unsupported(&self) -> bool {
        matches!(self.error, redis::RedisError::Unsupported { .. })
    }
}

impl From<&redis::RedisError> for RedisFailure {
    fn from(error: &redis::RedisError) -> Self {
        Self { retry_after: retry_after(error), error: error.clone() }
    }
}

impl fmt::Display for RedisFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.error {
            redis::RedisError::Unsupported { what } => {
                write!(f, "{what} needs server-side code, and this fleet's Redis allows none")
            }
            // For the author or operator of the program: no response to a client has it.
            redis::RedisError::InvalidSetting { reason } => f.write_str(reason),
            _ => f.write_str("the shared state is not reachable"),
        }
    }
}

impl std::error::Error for RedisFailure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

impl From<RedisFailure> for RequestError {
    fn from(failure: RedisFailure) -> Self {
        Self::Redis(failure)
    }
}

impl From<OffloadError> for RequestError {
    fn from(error: OffloadError) -> Self {
        match error {
            OffloadError::Full => Self::Overloaded,
            OffloadError::Panicked => Self::Internal,
        }
    }
}

/// A rejection of the whole request, whatever its handler makes of the error.
#[derive(Debug, Clone)]
pub(crate) enum StateError {
    /// A limit denied the request.
    Denied(RateLimitHeaders),
    /// Redis is away.
    Unavailable(RedisFailure),
    /// Redis is nearly full, and the rest is reserved for users who are logged in.
    StorageFull,
    /// It needs what this Redis does not allow.
    Unsupported(RedisFailure),
    /// The session ended meanwhile and the changes are lost.
    SessionGone,
    /// The session would be too large.
    SessionTooLarge,
    /// Another request changed the same strict field.
    SessionConflict,
    /// The client has made too many sessions, seconds until it may make one more.
    TooManySessions(u64),
    /// More cookies of the session's name than are checked.
    TooManyCookies,
}

impl StateError {
    pub(crate) fn to_request_error(&self) -> RequestError {
        match self {
            Self::Denied(headers) => RequestError::Denied(Denied {
                violated: headers.violated.clone(),
                retry_after: headers.retry_after,
            }),
            Self::Unavailable(failure) | Self::Unsupported(failure) => RequestError::Redis(failure.clone()),
            Self::StorageFull => RequestError::StorageFull,
            Self::SessionGone => RequestError::SessionGone,
            Self::SessionTooLarge => RequestError::SessionTooLarge,
            Self::SessionConflict => RequestError::SessionConflict,
            Self::TooManySessions(retry_after) => RequestError::TooManySessions { retry_after: *retry_after },
            Self::TooManyCookies => RequestError::TooManyCookies,
        }
    }

    pub(crate) fn into_problem(self) -> Problem {
        match self {
            Self::Denied(headers) => Problem::quota_exceeded(headers.violated, headers.retry_after),
            other => other.to_request_error().to_problem(),
        }
    }
}

impl From<&redis::RedisError> for StateError {
    fn from(error: &redis::RedisError) -> Self {
        match error {
            redis::RedisError::Unsupported { .. } => Self::Unsupported(error.into()),
            error => Self::Unavailable(error.into()),
        }
    }
}

/// Whole seconds that are not too few.
pub(crate) fn whole_seconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis().div_ceil(1000)).unwrap_or(u64::MAX).max(1)
}

/// When to retry: spread over some seconds, so that clients that were rejected together do not return together.
fn retry_after(error: &redis::RedisError) -> u64 {
    const SPREAD: u64 = 3;
    static TURN: AtomicU64 = AtomicU64::new(0);
    error.retry_after().as_secs().max(1) + TURN.fetch_add(1, Relaxed) % SPREAD
}

impl From<sessions::SessionError> for RequestError {
    fn from(error: sessions::SessionError) -> Self {
        match error {
            // The request's recorded refusal knows more, and is what the client gets.
            sessions::SessionError::Denied => Self::Denied(Denied::new(Vec::new(), Some(1))),
            sessions::SessionError::Gone | sessions::SessionError::Rotated => Self::SessionGone,
            sessions::SessionError::TooLarge => Self::SessionTooLarge,
            sessions::SessionError::Conflict => Self::SessionConflict,
            sessions::SessionError::TooManySessions { retry_after } => {
                Self::TooManySessions { retry_after: whole_seconds(retry_after) }
            }
            sessions::SessionError::NotANumber | sessions::SessionError::InvalidField => {
                Self::InvalidSessionField
            }
            sessions::SessionError::RandomSource => Self::Internal,
            sessions::SessionError::Redis(error) => Self::Redis((&error).into()),
        }
    }
}

impl From<counters::CounterError> for RequestError {
    fn from(error: counters::CounterError) -> Self {
        match error {
            counters::CounterError::InvalidName => Self::InvalidCounterName,
            counters::CounterError::Overflow => Self::CounterOverflow,
            counters::CounterError::InvalidAmount => Self::InvalidCounterAmount,
            counters::CounterError::InvalidToken => Self::InvalidCounterToken,
            counters::CounterError::Redis(error) => Self::Redis((&error).into()),
        }
    }
}
