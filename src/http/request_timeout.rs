//! How long a response may take to begin: for all requests by `http.request_timeout`, for a route by a layer.
//!
//! It ends with the response's head, so that streams, WebSockets and long downloads are never cut by it. It costs a timer
//! only where it is set, and only for requests whose handler has to wait.

use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::response::{IntoResponse, Response};
use http::{Request, StatusCode};
use tokio::time::{Sleep, sleep_until};
use tower::{Layer, Service};

use crate::http::problem::Problem;
use crate::http::request_scope::RequestScope;
use crate::http::request_state::RequestState;

/// Seconds after which a request that waited for the shared state is to come again.
const RETRY_AFTER: u64 = 1;

/// Bounds the time in which the responses of a route have to begin, instead of `http.request_timeout`.
///
/// The time runs from the request's header. When it is over the handler is dropped, as it is when its client leaves, and
/// the client is answered 504; 503 with `Retry-After` if the request was waiting for the shared state, and 408 if it was
/// waiting for its own body. Whatever the response's body takes afterwards is not bounded.
///
/// ```
/// use std::time::Duration;
///
/// use axum::Router;
/// use axum::routing::get;
/// use regatta::RequestTimeout;
///
/// let router: Router = Router::new()
///     .route("/report", get(|| async { "long" }).layer(RequestTimeout::new(Duration::from_secs(120))))
///     .route("/poll", get(|| async { "whenever" }).layer(RequestTimeout::never()));
/// # let _ = router;
/// ```
///
/// Outside a fleet, as in a test of the router alone, it does nothing.
#[derive(Debug, Clone, Copy)]
pub struct RequestTimeout(Duration);

impl RequestTimeout {
    /// A response must have begun after this long; zero: whenever it does.
    #[must_use]
    pub fn new(time: Duration) -> Self {
        Self(time)
    }

    /// Responses begin whenever they do.
    #[must_use]
    pub fn never() -> Self {
        Self(Duration::ZERO)
    }
}

impl<S> Layer<S> for RequestTimeout {
    type Service = RequestTimeoutService<S>;

    fn layer(&self, inner: S) -> RequestTimeoutService<S> {
        RequestTimeoutService { inner, time: self.0 }
    }
}

/// A service whose responses have to begin in time, see [`RequestTimeout`].
#[derive(Debug, Clone)]
pub struct RequestTimeoutService<S> {
    inner: S,
    time: Duration,
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for RequestTimeoutService<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> S::Future {
        // The request's one timer looks here whenever the handler has been polled.
        if let Some(scope) = RequestScope::find(request.extensions()) {
            scope.state().timeout.set(self.time);
        }
        self.inner.call(request)
    }
}

/// The request's one timer, armed when its handler has to wait.
pub(in crate::http) struct RequestTimer {
    started: Instant,
    armed: Option<(Duration, Pin<Box<Sleep>>)>,
}

impl RequestTimer {
    /// `begun`: from when on the time runs.
    pub(in crate::http) fn new(started: Instant) -> Self {
        Self { started, armed: None }
    }

    /// The handler waits: what the client gets when its time is over.
    pub(in crate::http) fn poll_timeout(
        &mut self,
        state: &RequestState,
        context: &mut Context<'_>,
    ) -> Poll<Response> {
        let Some(time) = state.timeout.get() else { return Poll::Pending };
        // A layer may have changed it meanwhile.
        if self.armed.as_ref().is_none_or(|(set, _)| *set != time) {
            // A time without an end in this century is none.
            let Some(until) = self.started.checked_add(time) else { return Poll::Pending };
            self.armed = Some((time, Box::pin(sleep_until(until.into()))));
        }
        if let Some((_, sleep)) = &mut self.armed {
            ready!(sleep.as_mut().poll(context));
        }
        Poll::Ready(timeout_response(state))
    }
}

/// The status depends on what the handler waited for.
fn timeout_response(state: &RequestState) -> Response {
    let problem = if state.body_waits.load(Relaxed) {
        Problem::new(StatusCode::REQUEST_TIMEOUT, "the request body did not come in time")
    } else if state.is_waiting_for_redis() {
        Problem::reduced_capacity("the shared state did not answer in time", RETRY_AFTER)
    } else {
        Problem::new(StatusCode::GATEWAY_TIMEOUT, "the request was not answered in time")
    };
    problem.into_response()
}
