//! A request that was refused as a whole.

use std::error::Error as StdError;
use std::fmt;

use axum::response::{IntoResponse, Response};
use http::StatusCode;

use crate::http::error::RequestError;

/// Why a request is refused whatever its handler does: its cookies cannot be checked, its session ended on the way, or
/// Redis is nearly full.
///
/// It is found when state is first used, so any operation may report it; the client gets this answer even if the handler
/// gives another one.
///
/// ```
/// use regatta::counter::{Counters, Error};
///
/// async fn hit(counters: Counters) -> Result<String, Error> {
///     match counters.add("hits", 1).await {
///         Err(Error::Refused(refusal)) => {
///             tracing::debug!(status = %refusal.status(), "not counted: {refusal}");
///             Err(Error::Refused(refusal))
///         }
///         other => other.map(|hits| hits.to_string()),
///     }
/// }
/// # let _: axum::Router = axum::Router::new().route("/", axum::routing::get(hit));
/// ```
#[derive(Debug, Clone)]
pub struct Refusal(RequestError);

impl Refusal {
    pub(crate) fn new(error: RequestError) -> Self {
        Self(error)
    }

    /// What the client is answered.
    pub fn status(&self) -> StatusCode {
        self.0.status()
    }

    pub(crate) fn request_error(&self) -> &RequestError {
        &self.0
    }

    pub(crate) fn to_request_error(&self) -> RequestError {
        self.0.clone()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for Refusal {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}
