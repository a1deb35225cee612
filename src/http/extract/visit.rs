//! A counted view.

use axum::extract::FromRequestParts;
use http::request::Parts;

use crate::http::error::Error;
use crate::http::exchange::Visited;
use crate::http::extract::exchange;

/// This request as a view of its visitor: naming it counts one, exactly, in the visitor's session and in the total.
///
/// A visitor without a session gets one. Limits, session, view and total are one round trip. While Redis is away, what
/// is known of a visitor is shown for a GET and marked (`is_stale`, and the header `Session-State`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visit(Visited);

impl Visit {
    /// Views of this visitor, this one included.
    pub fn views(&self) -> u64 {
        self.0.views
    }

    /// Views of all visitors of all fleets that share this state, this one included.
    pub fn total(&self) -> i64 {
        self.0.total
    }

    /// Whether Redis is away and this is the last that is known: this view was not counted.
    pub fn is_stale(&self) -> bool {
        self.0.stale
    }

    /// Whether the visitor's session was made for this view.
    pub fn is_new(&self) -> bool {
        self.0.new
    }
}

impl<S: Sync> FromRequestParts<S> for Visit {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        Ok(Self(exchange(parts)?.visit().await?))
    }
}
