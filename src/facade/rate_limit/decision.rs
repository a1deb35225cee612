//! The request's rate limits.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use http::request::Parts;

use crate::facade::error::Error as AnyError;
use crate::facade::rate_limit::error::Error;
use crate::http::error::RequestError;
use crate::http::request_scope::RequestScope;
use crate::http::request_state::RequestState;
use crate::limiter::commands::RateLimitDecision;

/// What the request's limits decided; naming it decides them, so a denied request never reaches the handler.
///
/// Costs a round trip unless another extractor made it already.
///
/// ```
/// use regatta::rate_limit::{Error, RateLimit};
///
/// /// Every row beyond the first costs as much as a request.
/// async fn rows(limit: RateLimit) -> Result<String, Error> {
///     limit.charge(99).await?;
///     let left = format!("{:?} requests left, all of them in {:?}", limit.remaining(), limit.reset());
///     Ok(format!("100 rows, {left}\n"))
/// }
/// # let _: axum::Router = axum::Router::new().route("/rows", axum::routing::get(rows));
/// ```
#[derive(Debug, Clone)]
pub struct RateLimit {
    state: Arc<RequestState>,
    decisions: Vec<RateLimitDecision>,
}

impl RateLimit {
    /// Decides what is undecided.
    pub(crate) async fn decide(state: &Arc<RequestState>) -> Result<Self, RequestError> {
        state.decide_limits().await?;
        let decisions = state.lock().await.limits.decisions();
        Ok(Self { state: Arc::clone(state), decisions })
    }

    /// Requests that are left now under the tightest policy; `None` if no policy applies, or none is known because
    /// Redis is away.
    pub fn remaining(&self) -> Option<u64> {
        self.decisions.iter().map(|reply| reply.remaining).min()
    }

    /// Time until every policy is as if never used; zero if none applies.
    pub fn reset(&self) -> Duration {
        Duration::from_micros(self.decisions.iter().map(|reply| reply.reset_us).max().unwrap_or(0))
    }

    /// Charges the request for more than it was: so many requests more under every policy that it falls under.
    ///
    /// For work whose price shows only when it is under way. Every policy is charged, or none.
    ///
    /// # Errors
    /// [`Error::Denied`]: it is more than a policy has left; the client gets 429, whatever the handler answers.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was charged.
    pub async fn charge(&self, requests: u64) -> Result<(), Error> {
        Ok(self.state.charge(requests).await?)
    }

    /// Gives back what this request was charged, as if it had not been made: for one that should not count, such as a
    /// login that succeeded. A second time it gives back nothing,
    /// nor does one that was decided without Redis.
    ///
    /// Costs a round trip a policy. Clients that were denied meanwhile are allowed again at once, on every worker.
    ///
    /// # Errors
    /// [`Error::Redis`]: some of it may not have been given back.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown what was given back.
    pub async fn refund(&self) -> Result<(), Error> {
        Ok(self.state.refund().await?)
    }
}

impl<S: Sync> FromRequestParts<S> for RateLimit {
    type Rejection = AnyError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, AnyError> {
        Self::decide(RequestScope::from_parts(parts)?.state()).await.map_err(AnyError::from)
    }
}
