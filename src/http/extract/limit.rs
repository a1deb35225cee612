//! The request's rate limits.

use std::time::Duration;

use axum::extract::FromRequestParts;
use http::request::Parts;

use crate::http::error::Error;
use crate::http::extract::exchange;
use crate::redis::begin::LimitReply;

/// What the request's limits decided; naming it decides them, so a denied request never reaches the handler.
///
/// Costs a round trip unless another extractor made it already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit(Vec<LimitReply>);

impl Limit {
    /// Requests that are left now under the tightest policy; `None` if no policy applies.
    pub fn remaining(&self) -> Option<u64> {
        self.0.iter().map(|reply| reply.remaining).min()
    }

    /// Time until every policy is as if never used; zero if none applies.
    pub fn reset(&self) -> Duration {
        Duration::from_micros(self.0.iter().map(|reply| reply.reset_us).max().unwrap_or(0))
    }
}

impl<S: Sync> FromRequestParts<S> for Limit {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        let exchange = exchange(parts)?;
        exchange.decide().await?;
        let decided = exchange.begun().await.limits.clone();
        Ok(Self(decided.unwrap_or_default()))
    }
}
