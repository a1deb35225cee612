//! Why a counter was not read or changed.

use axum::response::{IntoResponse, Response};

use crate::counters;
use crate::facade::redis_error::RedisError;
use crate::facade::refusal::Refusal;
use crate::http::error::{Denied, RequestError};

/// Why a counter was not read or changed; answers as a problem document.
///
/// ```
/// use regatta::counter::{Counters, Error};
///
/// async fn order(counters: Counters) -> Result<String, Error> {
///     let stock = counters.bounded("boats", 12);
///     Ok(match stock.try_take(1).await {
///         Ok(taken) => format!("granted: {}", taken.is_granted()),
///         Err(Error::Redis(error)) if error.outcome_is_unknown() => "look at your orders".to_owned(),
///         Err(error) => return Err(error),
///     })
/// }
/// # let _: axum::Router = axum::Router::new().route("/", axum::routing::post(order));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A counter's name is not allowed: 400.
    #[error("a counter's name has 1 to 64 of A-Z a-z 0-9 _ - . :")]
    InvalidName,
    /// The counter would leave the range of 64-bit integers; nothing was changed: 409.
    #[error("the counter would leave the range of 64-bit integers")]
    Overflow,
    /// How much is to be taken or given back, or a window, is out of bounds: 400.
    #[error("how much must be from 1 to 2^53, and a window a second at least")]
    InvalidAmount,
    /// A token is none: 400.
    #[error("a token has 1 to 128 printable ASCII characters")]
    InvalidToken,
    /// A rate limit refused the request: 429.
    #[error("{0}")]
    Denied(#[source] Denied),
    /// Redis did not do it: 503.
    #[error("the counter is not reachable")]
    Redis(#[source] RedisError),
    /// The request is refused, whatever was to be done.
    #[error("{0}")]
    Refused(#[source] Refusal),
}

impl Error {
    pub(crate) fn to_request_error(&self) -> RequestError {
        match self {
            Self::InvalidName => RequestError::InvalidCounterName,
            Self::Overflow => RequestError::CounterOverflow,
            Self::InvalidAmount => RequestError::InvalidCounterAmount,
            Self::InvalidToken => RequestError::InvalidCounterToken,
            Self::Denied(denied) => RequestError::Denied(denied.clone()),
            Self::Redis(error) => error.to_request_error(),
            Self::Refused(refusal) => refusal.to_request_error(),
        }
    }
}

#[doc(hidden)]
impl From<RequestError> for Error {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::InvalidCounterName => Self::InvalidName,
            RequestError::CounterOverflow => Self::Overflow,
            RequestError::InvalidCounterAmount => Self::InvalidAmount,
            RequestError::InvalidCounterToken => Self::InvalidToken,
            RequestError::Denied(denied) => Self::Denied(denied),
            RequestError::Redis(failure) => Self::Redis(failure.into()),
            other => Self::Refused(Refusal::new(other)),
        }
    }
}

#[doc(hidden)]
impl From<counters::CounterError> for Error {
    fn from(error: counters::CounterError) -> Self {
        RequestError::from(error).into()
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        self.to_request_error().into_response()
    }
}
