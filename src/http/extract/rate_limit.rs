//! The request's rate limits.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use http::request::Parts;

use crate::http::error::RequestError;
use crate::http::request_scope::RequestScope;
use crate::http::request_state::RequestState;
use crate::limiter::commands::RateLimitDecision;

/// What the request's limits decided; naming it decides them, so a denied request never reaches the handler.
///
/// Costs a round trip unless another extractor made it already.
#[derive(Debug, Clone)]
pub struct RateLimit {
    state: Arc<RequestState>,
    decisions: Vec<RateLimitDecision>,
}

impl RateLimit {
    /// Decides what is undecided.
    pub(in crate::http) async fn decide(state: &Arc<RequestState>) -> Result<Self, RequestError> {
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
    /// [`RequestError::Denied`]: it is more than a policy has left; the client gets 429, whatever the handler answers.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was charged.
    pub async fn charge(&self, requests: u64) -> Result<(), RequestError> {
        self.state.charge(requests).await
    }

    /// Gives back what this request was charged, as if it had not been made: for one that should not count, such as a
    /// login that succeeded. A second time it gives back nothing,
    /// nor does one that was decided without Redis.
    ///
    /// Costs a round trip a policy. Clients that were denied meanwhile are allowed again at once, on every worker.
    ///
    /// # Errors
    /// [`RequestError::Unavailable`]: some of it may not have been given back.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown what was given back.
    pub async fn refund(&self) -> Result<(), RequestError> {
        self.state.refund().await
    }
}

impl<S: Sync> FromRequestParts<S> for RateLimit {
    type Rejection = RequestError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, RequestError> {
        Self::decide(RequestScope::from_parts(parts)?.state()).await
    }
}
