//! A layer that puts routes under a limit.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::request::Parts;
use http::{HeaderValue, Request, Response};
use tower::{Layer, Service};

use crate::config::limits::OnRedisDown;
use crate::facade::rate_limit::error::UnknownPolicy;
use crate::http::error::{Denied, RequestError, StateError};
use crate::http::problem::Problem;
use crate::http::request_scope::RequestScope;
use crate::http::request_state::RequestState;
use crate::http::services::WorkerServices;
use crate::http::services::state::ConfiguredLimit;
use crate::http::standalone::in_code_limit::{InCodeLimit, Key};
use crate::http::standalone::quota::LimitQuota;
use crate::http::standalone::redis::Redis;
use crate::http::{body, response};
use crate::limiter::permit::ConcurrencyPermit;

/// Puts requests under a limit before they reach their handler.
///
/// It is for any `Service<Request<B>, Response = Response<R>>` with `R: From<Bytes>`, or with any `R` where
/// [`RateLimitLayer::on_denied`] makes the response. The limit is decided together with every other limit that is
/// undecided and with the request's session, in one call to Redis, and is charged only if all of them allow. A request that is
/// denied never reaches its handler and is answered 429 with the headers `RateLimit`, `RateLimit-Policy` and
/// `Retry-After`; while it stays denied it costs no call at all.
///
/// *Inside a fleet* it joins the request's state, and a policy `[limits.NAME]` of the configuration stands for the one in
/// the program, whole; `enabled = false` there switches it off. *Outside a fleet* layers that are added later are outside: a
/// [`SessionLayer`](crate::session::SessionLayer), whose session then travels in the same call, and last
/// [`TrustedProxies`](crate::TrustedProxies). Outside of the session layer the limit is a call of its own, unless it is
/// decided [with the first use of state](RateLimitLayer::with_first_use).
///
/// ```no_run
/// use axum::{Router, routing::get};
/// use regatta::rate_limit::{Key, Quota, RateLimitLayer};
/// use regatta::{Redis, TrustedProxies};
///
/// # fn app(redis: Redis) -> Router {
/// let limit = RateLimitLayer::new(&redis, "site", Quota::per_second(10).burst(20)).key(Key::client_ip());
/// Router::new().route("/", get(|| async { "ahoy\n" })).layer(limit).layer(TrustedProxies::loopback())
/// # }
/// ```
///
/// What is dear costs more, what must not be tried while Redis is away is refused then, and the answer is the program's:
///
/// ```no_run
/// use axum::body::Body;
/// use axum::http::Response;
/// use axum::routing::{MethodRouter, post};
/// use regatta::Redis;
/// use regatta::rate_limit::{Denied, OnRedisDown, Quota, RateLimitLayer};
///
/// # async fn export() {}
/// fn exports(redis: &Redis) -> MethodRouter {
///     let limit = RateLimitLayer::new(redis, "exports", Quota::per_minute(100))
///         .cost(25)
///         .on_redis_down(OnRedisDown::Closed)
///         .with_first_use()
///         .on_denied(|denied: &Denied| Response::new(Body::from(format!("wait {:?}\n", denied.retry_after()))));
///     post(export).layer(limit)
/// }
/// # let _ = exports;
/// ```
#[derive(Clone)]
pub struct RateLimitLayer<D = ProblemOnDenied> {
    services: Arc<WorkerServices>,
    source: LimitSource,
    cost: Option<u64>,
    is_deferred: bool,
    on_denied: D,
}

/// Where a layer's limit comes from.
#[derive(Debug, Clone)]
enum LimitSource {
    /// The configuration: the policy's name and its number; without one it is switched off.
    Configured(Arc<str>, Option<usize>),
    InCode(InCodeSource),
}

#[derive(Debug, Clone)]
struct InCodeSource {
    name: Arc<str>,
    quota: LimitQuota,
    key: Key,
    on_redis_down: OnRedisDown,
    limit: Arc<InCodeLimit>,
}

impl InCodeSource {
    fn build(self, services: &WorkerServices) -> LimitSource {
        let Self { name, quota, key, on_redis_down, .. } = self;
        let limit = InCodeLimit::new(&name, quota, key.clone(), on_redis_down, &services.state.prefix);
        LimitSource::InCode(Self { name, quota, key, on_redis_down, limit: Arc::new(limit) })
    }
}

impl<D> fmt::Debug for RateLimitLayer<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitLayer")
            .field("source", &self.source)
            .field("cost", &self.cost)
            .finish_non_exhaustive()
    }
}

/// Answers denied requests by a problem document (RFC 9457).
///
/// ```
/// use regatta::rate_limit::{ProblemOnDenied, RateLimitLayer};
///
/// /// Layers are of this kind unless [`RateLimitLayer::on_denied`] makes the answer.
/// struct Limits {
///     login: RateLimitLayer<ProblemOnDenied>,
/// }
/// # let _ = |limits: Limits| limits.login;
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct ProblemOnDenied;

impl RateLimitLayer {
    /// A limit by this name: all processes with the same Redis, prefix, name, quota and key count together. It counts by
    /// client address unless [`RateLimitLayer::key`] says otherwise.
    ///
    /// Letters, digits, `-` and `_` are a name; others are taken for `-`.
    pub fn new(redis: &Redis, name: &str, quota: LimitQuota) -> Self {
        let services = Arc::clone(redis.services());
        let (key, on_redis_down) = (Key::client_ip(), OnRedisDown::default());
        let limit = InCodeLimit::new(name, quota, key.clone(), on_redis_down, redis.prefix());
        let source = InCodeSource { name: name.into(), quota, key, on_redis_down, limit: Arc::new(limit) };
        let source = LimitSource::InCode(source);
        Self { services, source, cost: None, is_deferred: false, on_denied: ProblemOnDenied }
    }

    /// # Errors
    /// No policy has this name.
    pub(crate) fn configured(services: &Arc<WorkerServices>, name: &str) -> Result<Self, UnknownPolicy> {
        let state = &services.state;
        let policy = match state.configured_limit(name) {
            ConfiguredLimit::Policy(number, _) => Some(number),
            ConfiguredLimit::Disabled => None,
            ConfiguredLimit::Absent => return Err(UnknownPolicy::new(name, &state.policy_names)),
        };
        let source = LimitSource::Configured(name.into(), policy);
        let services = Arc::clone(services);
        Ok(Self { services, source, cost: None, is_deferred: false, on_denied: ProblemOnDenied })
    }
}

impl<D> RateLimitLayer<D> {
    /// Whose requests are counted together; a policy of the configuration has its own.
    #[must_use]
    pub fn key(self, key: Key) -> Self {
        self.with_source(|source| source.key = key)
    }

    /// What becomes of its requests while Redis is away; a policy of the configuration has its own.
    #[must_use]
    pub fn on_redis_down(self, what: OnRedisDown) -> Self {
        self.with_source(|source| source.on_redis_down = what)
    }

    fn with_source(self, change: impl FnOnce(&mut InCodeSource)) -> Self {
        match self.source {
            LimitSource::InCode(mut source) => {
                change(&mut source);
                let source = source.build(&self.services);
                Self { source, ..self }
            }
            LimitSource::Configured(..) => self,
        }
    }

    /// What a request counts for here, 1 unless it is said; 0 is never denied and still gets the limit's headers.
    ///
    /// More than the limit can ever allow is a mistake: a worker that says it while it builds its application does not
    /// start, and reports why. Outside a fleet, and in layers that are made later, such a request is answered 429 without
    /// `Retry-After`, and the log says why.
    #[must_use]
    pub fn cost(self, requests: u64) -> Self {
        let (name, is_possible) = self.judge_cost(requests);
        if !is_possible && self.services.standalone.is_none() {
            let mistake = format!("the policy {name} can never allow a request that counts for {requests}");
            self.services.state.build_mistakes.note(mistake);
        }
        Self { cost: Some(requests), ..self }
    }

    /// The limit's name, and whether it can ever allow a request of this cost.
    fn judge_cost(&self, requests: u64) -> (&str, bool) {
        let (name, in_code) = match &self.source {
            LimitSource::Configured(name, _) => (&**name, None),
            LimitSource::InCode(source) => (source.limit.name(), Some(&source.limit)),
        };
        let is_possible = match self.services.state.configured_limit(name) {
            ConfiguredLimit::Policy(_, policy) => policy.allows_cost(requests),
            ConfiguredLimit::Disabled => true,
            ConfiguredLimit::Absent => in_code.is_none_or(|limit| limit.allows_cost(requests)),
        };
        (name, is_possible)
    }

    /// Decides the limit with the request's first use of state, in the same call to Redis, and not before the handler: so
    /// limit, session and counter of a request are one round trip.
    ///
    /// Only for routes whose handlers begin with a use of state, such as an extractor: what a handler does before is done
    /// for denied requests too, and requests that use none are not counted.
    #[must_use]
    pub fn with_first_use(self) -> Self {
        Self { is_deferred: true, ..self }
    }

    /// Makes the response to a denied request. It gets the headers of the limits, in place of any of these that it has.
    ///
    /// It makes the body, too, for a request that could not be decided, such as one without Redis under
    /// [`OnRedisDown::Closed`]: of a [`Denied`] without policies. The status, 503 or 500, and `Retry-After` are then those
    /// of the failure.
    #[must_use]
    pub fn on_denied<F, R>(self, respond: F) -> RateLimitLayer<F>
    where
        F: Fn(&Denied) -> Response<R> + Clone,
    {
        let Self { services, source, cost, is_deferred, .. } = self;
        RateLimitLayer { services, source, cost, is_deferred, on_denied: respond }
    }

    /// Applies the limit to a request, and decides it unless that comes later.
    async fn apply(&self, state: &RequestState, parts: &Parts) -> Result<(), RequestError> {
        match &self.source {
            LimitSource::Configured(_, None) => return Ok(()),
            LimitSource::Configured(_, Some(policy)) => state.add_policy(*policy, self.cost).await?,
            LimitSource::InCode(source) => source.limit.apply(state, parts, self.cost).await?,
        }
        if self.is_deferred { Ok(()) } else { state.decide_limits().await }
    }
}

/// Makes responses to requests that a limit refuses.
pub trait OnDenied<R> {
    /// To one that was denied.
    fn denied(&self, denied: &Denied) -> Response<R>;

    /// To one that could not be decided.
    fn failed(&self, problem: Problem) -> Response<R>;
}

impl<R: From<Bytes>> OnDenied<R> for ProblemOnDenied {
    fn denied(&self, denied: &Denied) -> Response<R> {
        let seconds = denied.retry_after().map(|time| time.as_secs());
        Problem::quota_exceeded(denied.violated().to_vec(), seconds).into_response_of()
    }

    fn failed(&self, problem: Problem) -> Response<R> {
        problem.into_response_of()
    }
}

impl<R, F: Fn(&Denied) -> Response<R>> OnDenied<R> for F {
    fn denied(&self, denied: &Denied) -> Response<R> {
        self(denied)
    }

    /// The program's body under the failure's own status: it is no denial, and a client must not take it for one.
    fn failed(&self, problem: Problem) -> Response<R> {
        let retry_after = problem.retry_after();
        let mut response = self(&Denied::new(Vec::new(), retry_after));
        *response.status_mut() = problem.status();
        match retry_after {
            Some(seconds) => _ = response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds)),
            None => _ = response.headers_mut().remove(RETRY_AFTER),
        }
        response
    }
}

impl<S, D: Clone> Layer<S> for RateLimitLayer<D> {
    type Service = RateLimitService<S, D>;

    fn layer(&self, inner: S) -> RateLimitService<S, D> {
        RateLimitService { inner, layer: Arc::new(self.clone()) }
    }
}

/// A service whose requests fall under a limit, see [`RateLimitLayer`].
#[derive(Debug, Clone)]
pub struct RateLimitService<S, D = ProblemOnDenied> {
    inner: S,
    layer: Arc<RateLimitLayer<D>>,
}

impl<S, D, B, R> Service<Request<B>> for RateLimitService<S, D>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    D: OnDenied<R> + Clone + Send + Sync + 'static,
    B: Send + 'static,
    R: Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let next = self.inner.clone();
        // The clone may not be ready yet; the one that was polled is.
        let mut inner = std::mem::replace(&mut self.inner, next);
        let layer = Arc::clone(&self.layer);
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            let joined = RequestScope::find(&parts.extensions).map(|scope| Arc::clone(scope.state()));
            let has_begun = joined.is_none();
            let state = joined.unwrap_or_else(|| {
                let scope = RequestScope::begin(&layer.services, &parts);
                let state = Arc::clone(scope.state());
                scope.insert_into(&mut parts);
                state
            });
            let response = match layer.apply(&state, &parts).await {
                Ok(()) => inner.call(Request::from_parts(parts, body)).await?,
                Err(error) => refuse(&state, &error, &layer.on_denied).await,
            };
            // Whichever layer began the state is the outermost, and adds what belongs to the whole response.
            Ok(if has_begun { finish(response, &state, &layer.on_denied).await } else { response })
        })
    }
}

/// The response to a request that does not reach its handler.
async fn refuse<R>(state: &RequestState, error: &RequestError, on_denied: &impl OnDenied<R>) -> Response<R> {
    let failure = state.lock().await.failure.take();
    match failure {
        Some(failure) => respond(state, failure, on_denied),
        None => on_denied.failed(error.to_problem()),
    }
}

fn respond<R>(state: &RequestState, failure: StateError, on_denied: &impl OnDenied<R>) -> Response<R> {
    state.count_refusal(&failure);
    match failure {
        StateError::Denied(headers) => on_denied.denied(&Denied::new(headers.violated, headers.retry_after)),
        other => on_denied.failed(other.into_problem()),
    }
}

/// Replaces the response of a request that was refused while its handler ran, and adds the limits' headers.
async fn finish<R: 'static>(
    response: Response<R>,
    state: &RequestState,
    on_denied: &impl OnDenied<R>,
) -> Response<R> {
    let mut inner = state.lock().await;
    let mut response = match inner.failure.take() {
        Some(failure) => respond(state, failure, on_denied),
        None => response,
    };
    if let Some(headers) = state.rate_limit_headers(&inner.limits) {
        response::set_rate_limit_headers(response.headers_mut(), headers);
    }
    hold_permits(&mut response, inner.limits.take_permits());
    response
}

/// Keeps the places of requests at the same time until the response was sent; of a body that is not axum's, until its head
/// was.
fn hold_permits<R: 'static>(response: &mut Response<R>, permits: Vec<ConcurrencyPermit>) {
    if permits.is_empty() {
        return;
    }
    match (response.body_mut() as &mut dyn Any).downcast_mut::<Body>() {
        Some(body) => body::hold_permits_in_body(body, permits),
        None => _ = response.extensions_mut().insert(Arc::new(Mutex::new(permits))),
    }
}
