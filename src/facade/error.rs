//! One error for handlers that use several parts of the library.

use std::error::Error as StdError;
use std::fmt;

use axum::response::{IntoResponse, Response};
use http::StatusCode;

use crate::facade::broadcast::error::{Error as BroadcastError, InvalidTopic};
use crate::facade::busy::Busy;
use crate::facade::counter::error::Error as CounterError;
use crate::facade::rate_limit::error::Error as RateLimitError;
use crate::facade::redis_error::RedisError;
use crate::facade::session::error::Error as SessionError;
use crate::facade::task::error::Error as TaskError;
use crate::facade::ws::Rejection;
use crate::http::error::RequestError;

/// Any error of this library, for handlers that use several parts of it; each converts into it.
///
/// Extractors reject with it, too. As a response it is a problem document (RFC 9457) with the status of its cause.
///
/// ```
/// use regatta::counter::Counters;
/// use regatta::session::SessionFields;
/// use regatta::{Error, ErrorKind};
///
/// async fn add(fields: SessionFields, counters: Counters) -> Result<String, Error> {
///     let in_cart = fields.incr("items", 1).await?;
///     Ok(format!("{in_cart} of {}", counters.add("sold", 1).await?))
/// }
///
/// fn is_an_outage(error: &Error) -> bool {
///     error.kind() == ErrorKind::Redis && error.status().is_server_error()
/// }
/// # let _: axum::Router = axum::Router::new().route("/", axum::routing::get(add));
/// # let _ = is_an_outage;
/// ```
#[derive(Debug)]
pub struct Error(Cause);

/// Where an [`Error`] comes from.
///
/// ```
/// use regatta::{Error, ErrorKind, session};
///
/// assert_eq!(Error::from(session::Error::NotLoggedIn).kind(), ErrorKind::Session);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Redis did not do it.
    Redis,
    /// A rate limit refused the request.
    Denied,
    /// The session, or who is logged in.
    Session,
    /// A counter.
    Counter,
    /// A broadcast.
    Broadcast,
    /// A task.
    Task,
    /// The opening of a WebSocket.
    WebSocket,
    /// The request's `Idempotency-Key`.
    Idempotency,
    /// This worker has no room for more work, or the work panicked.
    Busy,
    /// The handler runs where there is nothing to extract, such as outside a fleet.
    Missing,
}

#[derive(Debug)]
enum Cause {
    Session(SessionError),
    RateLimit(RateLimitError),
    Counter(CounterError),
    Broadcast(BroadcastError),
    Topic(InvalidTopic),
    Task(TaskError),
    WebSocket(Rejection),
    Redis(RedisError),
    Busy(Busy),
    Request(RequestError),
}

impl Error {
    /// Where it comes from; [`ErrorKind::Redis`] and [`ErrorKind::Denied`] whatever was to be done.
    pub fn kind(&self) -> ErrorKind {
        match &self.0 {
            Cause::Session(SessionError::Redis(_))
            | Cause::RateLimit(RateLimitError::Redis(_))
            | Cause::Counter(CounterError::Redis(_))
            | Cause::Broadcast(BroadcastError::Redis(_))
            | Cause::Task(TaskError::Redis(_))
            | Cause::Redis(_) => ErrorKind::Redis,
            Cause::Session(SessionError::Denied(_))
            | Cause::RateLimit(RateLimitError::Denied(_))
            | Cause::Counter(CounterError::Denied(_)) => ErrorKind::Denied,
            Cause::RateLimit(RateLimitError::Refused(refusal))
            | Cause::Counter(CounterError::Refused(refusal))
            | Cause::Session(SessionError::Refused(refusal)) => request_error_kind(refusal.request_error()),
            Cause::Session(_) => ErrorKind::Session,
            Cause::Counter(_) => ErrorKind::Counter,
            Cause::Broadcast(_) | Cause::Topic(_) => ErrorKind::Broadcast,
            Cause::Task(_) => ErrorKind::Task,
            Cause::WebSocket(_) => ErrorKind::WebSocket,
            Cause::Busy(_) => ErrorKind::Busy,
            Cause::Request(error) => request_error_kind(error),
        }
    }

    /// The status with which it is answered; nothing is logged.
    pub fn status(&self) -> StatusCode {
        match &self.0 {
            Cause::Session(error) => error.status(),
            Cause::RateLimit(error) => error.to_request_error().status(),
            Cause::Counter(error) => error.to_request_error().status(),
            Cause::Broadcast(error) => error.status(),
            Cause::Topic(error) => error.to_request_error().status(),
            Cause::Task(error) => error.status(),
            Cause::WebSocket(rejection) => rejection.status(),
            Cause::Redis(error) => error.to_request_error().status(),
            Cause::Busy(busy) => busy.to_request_error().status(),
            Cause::Request(error) => error.status(),
        }
    }

    fn cause(&self) -> &(dyn StdError + 'static) {
        match &self.0 {
            Cause::Session(error) => error,
            Cause::RateLimit(error) => error,
            Cause::Counter(error) => error,
            Cause::Broadcast(error) => error,
            Cause::Topic(error) => error,
            Cause::Task(error) => error,
            Cause::WebSocket(rejection) => rejection,
            Cause::Redis(error) => error,
            Cause::Busy(busy) => busy,
            Cause::Request(error) => error,
        }
    }
}

/// Which part of the library an error of a request belongs to.
fn request_error_kind(error: &RequestError) -> ErrorKind {
    match error {
        RequestError::Redis(_) | RequestError::StorageFull => ErrorKind::Redis,
        RequestError::Denied(_) => ErrorKind::Denied,
        RequestError::InvalidCounterName
        | RequestError::CounterOverflow
        | RequestError::InvalidCounterAmount
        | RequestError::InvalidCounterToken => ErrorKind::Counter,
        RequestError::InvalidTopicName
        | RequestError::MessageTooLarge { .. }
        | RequestError::TooManySubscribers => ErrorKind::Broadcast,
        RequestError::TooManyTasks | RequestError::UnknownTaskKind(_) | RequestError::InvalidTaskInput(_) => {
            ErrorKind::Task
        }
        RequestError::MissingIdempotencyKey | RequestError::InvalidIdempotencyKey => ErrorKind::Idempotency,
        RequestError::Overloaded | RequestError::Internal => ErrorKind::Busy,
        RequestError::OutsideFleet
        | RequestError::MissingClientAddress
        | RequestError::MissingRedis
        | RequestError::MissingSessionLayer
        | RequestError::TrustedProxiesTooLate => ErrorKind::Missing,
        RequestError::SessionGone
        | RequestError::SessionTooLarge
        | RequestError::TooManySessions { .. }
        | RequestError::TooManyCookies
        | RequestError::SessionConflict
        | RequestError::InvalidSessionField
        | RequestError::NotLoggedIn
        | RequestError::InvalidSessionKey
        | RequestError::InvalidUserId => ErrorKind::Session,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.cause(), f)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause().source()
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        match self.0 {
            Cause::Session(error) => error.into_response(),
            Cause::RateLimit(error) => error.into_response(),
            Cause::Counter(error) => error.into_response(),
            Cause::Broadcast(error) => error.into_response(),
            Cause::Topic(error) => error.into_response(),
            Cause::Task(error) => error.into_response(),
            Cause::WebSocket(rejection) => rejection.into_response(),
            Cause::Redis(error) => error.into_response(),
            Cause::Busy(busy) => busy.into_response(),
            Cause::Request(error) => error.into_response(),
        }
    }
}

/// One conversion a cause.
macro_rules! from_cause {
    ($($cause:ident($error:ty)),* $(,)?) => {
        $(impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self(Cause::$cause(error))
            }
        })*
    };
}

from_cause!(
    Session(SessionError),
    RateLimit(RateLimitError),
    Counter(CounterError),
    Broadcast(BroadcastError),
    Topic(InvalidTopic),
    Task(TaskError),
    WebSocket(Rejection),
    Redis(RedisError),
    Busy(Busy),
);

impl From<tower_sessions::session::Error> for Error {
    fn from(error: tower_sessions::session::Error) -> Self {
        SessionError::from(error).into()
    }
}

#[doc(hidden)]
impl From<RequestError> for Error {
    fn from(error: RequestError) -> Self {
        Self(Cause::Request(error))
    }
}
