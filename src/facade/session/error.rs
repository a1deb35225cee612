//! Why a session was not read or changed.

use std::time::Duration;

use axum::BoxError;
use axum::response::{IntoResponse, Response};
use http::StatusCode;

use crate::facade::redis_error::RedisError;
use crate::facade::refusal::Refusal;
use crate::http::error::{Denied, RedisFailure, RequestError, whole_seconds};
use crate::http::problem::Problem;
use crate::sessions;

/// Why a session was not read or changed; answers as a problem document.
///
/// ```
/// use regatta::session::{Error, SessionFields};
///
/// async fn add(fields: SessionFields) -> Result<String, Error> {
///     match fields.incr("items", 1).await {
///         Ok(items) => Ok(items.to_string()),
///         Err(Error::TooLarge) => Ok("the cart is full".to_owned()),
///         Err(error) => Err(error),
///     }
/// }
/// # let _: axum::Router = axum::Router::new().route("/", axum::routing::post(add));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The session has ended, or has another id that this request does not know: 401.
    #[error("the session ended before this request was finished")]
    Gone,
    /// The session would hold more than is allowed; nothing was stored: 507.
    #[error("the session would hold more than is allowed")]
    TooLarge,
    /// Other requests changed the same field each time; nothing was stored: 409.
    #[error("another request changed the same field of the session; try again")]
    Conflict {
        /// The field, if a single one was to be changed.
        field: String,
    },
    /// A field does not hold what is expected of it, such as a number to add to: 409.
    #[error("a field of the session does not hold what is expected of it")]
    Field {
        /// The field.
        name: String,
        /// What is wrong with it.
        source: BoxError,
    },
    /// No user is logged in: 401.
    #[error("no user is logged in")]
    NotLoggedIn,
    /// A user's id is not allowed: 400.
    #[error("a user's name has 1 to 256 bytes")]
    InvalidUserId,
    /// The client has made more new sessions than `session.create_rate` allows; nothing was stored: 429.
    #[error("more new sessions were made from this client than is allowed; try again later")]
    TooManySessions {
        /// When the client may try again.
        retry_after: Duration,
    },
    /// A signing or encryption key is too short: 500.
    #[error("a key of a session layer has at least 32 bytes")]
    InvalidKey,
    /// A form came without a token of this session: 403.
    #[error("this form is not from a page of this session; load the page again")]
    Csrf,
    /// A rate limit refused the request: 429.
    #[error("{0}")]
    Denied(#[source] Denied),
    /// Redis did not do it: 503.
    #[error("the session is not reachable")]
    Redis(#[source] RedisError),
    /// The request is refused, whatever was to be done.
    #[error("{0}")]
    Refused(#[source] Refusal),
}

impl Error {
    /// The operating system has no random bytes.
    pub(crate) fn random_source() -> Self {
        Self::Refused(Refusal::new(RequestError::Internal))
    }

    /// What went wrong with one field.
    pub(crate) fn for_field(name: &str, error: sessions::SessionError) -> Self {
        match error {
            sessions::SessionError::Conflict => Self::Conflict { field: name.to_owned() },
            sessions::SessionError::NotANumber | sessions::SessionError::InvalidField => {
                Self::Field { name: name.to_owned(), source: error.into() }
            }
            other => RequestError::from(other).into(),
        }
    }

    fn to_request_error(&self) -> Option<RequestError> {
        Some(match self {
            Self::Gone => RequestError::SessionGone,
            Self::TooLarge => RequestError::SessionTooLarge,
            Self::Conflict { .. } => RequestError::SessionConflict,
            Self::Field { .. } => RequestError::InvalidSessionField,
            Self::NotLoggedIn => RequestError::NotLoggedIn,
            Self::InvalidUserId => RequestError::InvalidUserId,
            Self::TooManySessions { retry_after } => {
                RequestError::TooManySessions { retry_after: whole_seconds(*retry_after) }
            }
            Self::Denied(denied) => RequestError::Denied(denied.clone()),
            Self::Redis(error) => error.to_request_error(),
            Self::Refused(refusal) => refusal.to_request_error(),
            Self::InvalidKey => RequestError::InvalidSessionKey,
            Self::Csrf => return None,
        })
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.to_request_error().map_or(StatusCode::FORBIDDEN, |error| error.status())
    }

    fn to_problem(&self) -> Problem {
        match self.to_request_error() {
            Some(error) => error.to_problem(),
            None => Problem::new(StatusCode::FORBIDDEN, self.to_string()),
        }
    }
}

#[doc(hidden)]
impl From<RequestError> for Error {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::SessionGone => Self::Gone,
            RequestError::SessionTooLarge => Self::TooLarge,
            RequestError::SessionConflict => Self::Conflict { field: String::new() },
            RequestError::NotLoggedIn => Self::NotLoggedIn,
            RequestError::InvalidUserId => Self::InvalidUserId,
            RequestError::TooManySessions { retry_after } => {
                Self::TooManySessions { retry_after: Duration::from_secs(retry_after) }
            }
            RequestError::Denied(denied) => Self::Denied(denied),
            RequestError::Redis(failure) => Self::Redis(failure.into()),
            other => Self::Refused(Refusal::new(other)),
        }
    }
}

/// What [`Session`](tower_sessions::Session) reports. Where Redis refused, the client gets the reason whatever the handler
/// makes of this.
impl From<tower_sessions::session::Error> for Error {
    fn from(error: tower_sessions::session::Error) -> Self {
        match error {
            tower_sessions::session::Error::Store(error) => {
                Self::Redis(RedisFailure::unavailable(&error.to_string()).into())
            }
            other => Self::Field { name: String::new(), source: other.into() },
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        self.to_problem().into_response()
    }
}
