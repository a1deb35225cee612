//! Why a request was not decided or charged.

use std::fmt;

use axum::response::{IntoResponse, Response};

use crate::facade::redis_error::RedisError;
use crate::facade::refusal::Refusal;
use crate::http::error::{Denied, RequestError};

/// Why a limit was not decided, charged or given back; answers as a problem document.
///
/// ```
/// use regatta::rate_limit::{Error, RateLimit};
///
/// async fn search(limit: RateLimit) -> Result<&'static str, Error> {
///     limit.charge(9).await?;
///     Ok("found")
/// }
/// # let _: axum::Router = axum::Router::new().route("/", axum::routing::get(search));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A policy denied it: 429.
    #[error("{0}")]
    Denied(#[source] Denied),
    /// Redis did not do it: 503.
    #[error("the rate limits are not reachable")]
    Redis(#[source] RedisError),
    /// The request is refused, whatever was to be done.
    #[error("{0}")]
    Refused(#[source] Refusal),
}

impl Error {
    pub(crate) fn to_request_error(&self) -> RequestError {
        match self {
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
            RequestError::Denied(denied) => Self::Denied(denied),
            RequestError::Redis(failure) => Self::Redis(failure.into()),
            other => Self::Refused(Refusal::new(other)),
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        self.to_request_error().into_response()
    }
}

/// No policy has this name; says which there are.
///
/// ```no_run
/// # fn routes(cx: &regatta::Context) {
/// if let Err(unknown) = cx.rate_limit("log-in") {
///     // no policy is named log-in: add [limits.log-in] to the configuration, or use one of …
///     eprintln!("{unknown}");
///     assert_eq!(unknown.name(), "log-in");
///     assert!(!unknown.known().iter().any(|name| name == "log-in"));
/// }
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownPolicy {
    name: String,
    known: Vec<String>,
}

impl UnknownPolicy {
    pub(crate) fn new(name: &str, known: &[String]) -> Self {
        Self { name: name.to_owned(), known: known.to_vec() }
    }

    /// The name that was asked for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The names there are.
    pub fn known(&self) -> &[String] {
        &self.known
    }
}

impl fmt::Display for UnknownPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, known } = self;
        let known = known.join(", ");
        write!(
            f,
            "no policy is named {name}: add [limits.{name}] to the configuration, or use one of {known}"
        )
    }
}

impl std::error::Error for UnknownPolicy {}
