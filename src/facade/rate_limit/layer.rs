//! Limits as a tower layer, for any route of an axum router that a fleet serves.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::Request;
use tower::{Layer, Service};

use crate::facade::rate_limit::error::UnknownPolicy;
use crate::http::error::RequestError;
use crate::http::request_scope::RequestScope;
use crate::http::services::state::StateServices;

/// Puts requests under a policy before they reach their handler; made by [`Context::rate_limit`](crate::Context::rate_limit).
///
/// The policy is decided in the request's one call to Redis, together with every other policy it falls under, and is
/// charged only if all of them allow. A policy that has been decided already because it names the path costs a second
/// one, and only if the layer raises its cost.
///
/// ```no_run
/// # use axum::{Router, routing::post};
/// # async fn login() {}
/// # fn routes(cx: &regatta::Context) -> Result<Router, regatta::rate_limit::UnknownPolicy> {
/// Ok(Router::new().route("/login", post(login).layer(cx.rate_limit("login")?.cost(5))))
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct RateLimitLayer {
    /// The policy's number; `None`: it is switched off.
    policy: Option<usize>,
    cost: Option<u64>,
    name: Arc<str>,
    services: Arc<StateServices>,
}

impl RateLimitLayer {
    /// # Errors
    /// No policy has this name.
    pub(crate) fn of_policy(services: &Arc<StateServices>, name: &str) -> Result<Self, UnknownPolicy> {
        let policy = services.limiter.policies().find(name).map(|(number, _)| number);
        if policy.is_none() && !services.policy_names.iter().any(|known| known == name) {
            return Err(UnknownPolicy::new(name, &services.policy_names));
        }
        Ok(Self { policy, cost: None, name: name.into(), services: Arc::clone(services) })
    }

    /// What a request counts for here, instead of the policy's own cost; 0 is never denied and still gets the policy's headers.
    ///
    /// # Panics
    /// When it is more than the policy can ever allow: the worker then reports it and the fleet does not start.
    #[must_use]
    pub fn cost(mut self, requests: u64) -> Self {
        let policy = self.services.limiter.policies().find(&self.name);
        let possible = policy.is_none_or(|(_, policy)| policy.allows_cost(requests));
        assert!(possible, "the policy {} can never allow a request that counts for {requests}", self.name);
        self.cost = Some(requests);
        self
    }
}

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimitService<S>;

    fn layer(&self, inner: S) -> RateLimitService<S> {
        RateLimitService { inner, policy: self.policy, cost: self.cost }
    }
}

/// A service whose requests fall under a policy, see [`RateLimitLayer`].
#[derive(Debug, Clone)]
pub struct RateLimitService<S> {
    inner: S,
    policy: Option<usize>,
    cost: Option<u64>,
}

impl<S> Service<Request<Body>> for RateLimitService<S>
where
    S: Service<Request<Body>> + Clone + Send + 'static,
    S::Response: IntoResponse,
    S::Future: Send,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The one that is ready goes along; its clone waits for the next request.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let (policy, cost) = (self.policy, self.cost);
        let state = RequestScope::find(request.extensions()).map(|scope| Arc::clone(scope.state()));
        Box::pin(async move {
            if let Some(policy) = policy {
                let decided = match state {
                    Some(state) => state.apply_policy(policy, cost).await,
                    None => Err(RequestError::OutsideFleet),
                };
                if let Err(error) = decided {
                    return Ok(error.into_response());
                }
            }
            inner.call(request).await.map(IntoResponse::into_response)
        })
    }
}
