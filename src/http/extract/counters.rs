//! Shared counters.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::request::Parts;

use crate::counter::Name;
use crate::http::error::Error;
use crate::http::exchange::Exchange;
use crate::http::extract::exchange;

/// Counters that all workers and machines share, exact under any concurrency.
#[derive(Debug, Clone)]
pub struct Counters(Arc<Exchange>);

impl Counters {
    /// Adds to a counter, which begins at 0, and returns the sum.
    ///
    /// A name has 1 to 64 of `A–Z a–z 0–9 _ - . :`.
    ///
    /// # Errors
    /// [`Error::CounterName`], [`Error::CounterOverflow`] (nothing was changed), [`Error::Denied`],
    /// [`Error::Unavailable`] (after a timeout it is unknown whether it was added).
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was added.
    pub async fn add(&self, name: &str, by: i64) -> Result<i64, Error> {
        self.0.count(&Name::parse(name)?, by).await
    }

    /// Reads a counter; one that nobody added to is 0.
    ///
    /// # Errors
    /// As [`Counters::add`].
    pub async fn value(&self, name: &str) -> Result<i64, Error> {
        self.add(name, 0).await
    }
}

impl<S: Sync> FromRequestParts<S> for Counters {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        Ok(Self(Arc::clone(exchange(parts)?)))
    }
}
