//! What Redis did not do.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use axum::response::{IntoResponse, Response};

use crate::http::error::{RedisFailure, RequestError};
use crate::redis;

/// What Redis did not do; answers 503, or 501 where it allows no server-side code.
///
/// ```
/// use regatta::{RedisError, RedisErrorKind};
///
/// /// Whether it makes sense to do it once more at once.
/// fn is_worth_a_repetition(error: &RedisError) -> bool {
///     error.kind() == RedisErrorKind::Timeout && !error.outcome_is_unknown()
/// }
/// fn wait(error: &RedisError) -> String {
///     format!("come again in {} s", error.retry_after().as_secs())
/// }
/// # let _ = (is_worth_a_repetition, wait);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisError(RedisFailure);

/// What kind of failure it was.
///
/// ```
/// use regatta::RedisErrorKind;
///
/// let is_temporary = |kind| !matches!(kind, RedisErrorKind::InvalidSetting | RedisErrorKind::Unsupported);
/// assert!(is_temporary(RedisErrorKind::Unavailable));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RedisErrorKind {
    /// There is no connection that can be used.
    Unavailable,
    /// The URL, or another setting of the connection, cannot be used: no repetition helps.
    InvalidSetting,
    /// There was no reply, or the connection broke before it.
    Timeout,
    /// The server rejected the call.
    Rejected,
    /// The call needs server-side code, which this server or user does not allow.
    Unsupported,
}

impl RedisError {
    pub(crate) fn new(error: &redis::RedisError) -> Self {
        Self(error.into())
    }

    /// What kind of failure it was.
    pub fn kind(&self) -> RedisErrorKind {
        match self.0.error() {
            redis::RedisError::Timeout | redis::RedisError::ConnectionLost { .. } => RedisErrorKind::Timeout,
            redis::RedisError::Unavailable { .. } => RedisErrorKind::Unavailable,
            redis::RedisError::InvalidSetting { .. } => RedisErrorKind::InvalidSetting,
            redis::RedisError::Unsupported { .. } => RedisErrorKind::Unsupported,
            _ => RedisErrorKind::Rejected,
        }
    }

    /// Whether it may have been done all the same.
    pub fn outcome_is_unknown(&self) -> bool {
        self.kind() == RedisErrorKind::Timeout
    }

    /// How long a client should wait before it tries again.
    pub fn retry_after(&self) -> Duration {
        Duration::from_secs(self.0.retry_after())
    }

    pub(crate) fn to_request_error(&self) -> RequestError {
        RequestError::Redis(self.0.clone())
    }
}

#[doc(hidden)]
impl From<RedisFailure> for RedisError {
    fn from(failure: RedisFailure) -> Self {
        Self(failure)
    }
}

impl fmt::Display for RedisError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for RedisError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

impl IntoResponse for RedisError {
    fn into_response(self) -> Response {
        self.to_request_error().into_response()
    }
}
