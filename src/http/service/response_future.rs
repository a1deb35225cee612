//! A request from its head to its response, as one small value: hyper moves it before it polls it, and what
//! only few requests wait for is boxed.

use std::convert::Infallible;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use axum::routing::future::RouteFuture;
use http::{Request, StatusCode};
use tower::Service;
use tower_sessions::Session;

use crate::http::header_names::X_REQUEST_ID;
use crate::http::problem::Problem;
use crate::http::request_state::RequestState;
use crate::http::request_state::session_store::RequestSessionStore;
use crate::http::request_timeout::RequestTimer;
use crate::http::response::RequestMeta;
use crate::http::streams::event_stream;
use crate::http::{body, response};
use crate::panics::panic_message;

/// A request until there is its response.
pub struct ResponseFuture(ResponseStage);

#[expect(
    clippy::large_enum_variant,
    reason = "the large one is the usual one: a box would cost each request an allocation"
)]
enum ResponseStage {
    /// Its handler runs.
    Running(RunningHandler),
    /// It needs more than most requests do.
    Boxed(Pin<Box<dyn Future<Output = Response> + Send>>),
    /// There is its response.
    Done,
}

/// A request whose handler runs.
struct RunningHandler {
    guard: RequestGuard,
    handler: TimedHandler,
    handles: SessionHandles,
}

impl std::fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl ResponseFuture {
    pub(in crate::http) fn boxed(future: impl Future<Output = Response> + Send + 'static) -> Self {
        Self(ResponseStage::Boxed(Box::pin(future)))
    }

    pub(in crate::http) fn from_handler(
        guard: RequestGuard,
        router: Router,
        request: Request<Body>,
        handles: SessionHandles,
    ) -> Self {
        let handler = TimedHandler::new(guard.started, router, request);
        Self(ResponseStage::Running(RunningHandler { guard, handler, handles }))
    }
}

impl Future for ResponseFuture {
    type Output = Response;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Response> {
        let response = match &mut self.0 {
            ResponseStage::Running(RunningHandler { guard, handler, .. }) => {
                ready!(handler.poll(&guard.state, context))
            }
            ResponseStage::Boxed(future) => {
                let response = ready!(future.as_mut().poll(context));
                self.0 = ResponseStage::Done;
                return Poll::Ready(response);
            }
            ResponseStage::Done => return Poll::Pending,
        };
        let ResponseStage::Running(handling) = std::mem::replace(&mut self.0, ResponseStage::Done) else {
            return Poll::Pending;
        };
        let RunningHandler { guard, handles, handler } = handling;
        // Before its session is stored: what a handler that ran out of time changes when it is dropped is stored too.
        drop(handler);
        match response::try_finalize(response, &guard.state, &handles.session, &handles.store) {
            Ok(response) => Poll::Ready(guard.complete(response)),
            Err(response) => {
                let mut apart = Self::boxed(async move {
                    let response = finish(&guard.state, Some(&handles), response).await;
                    guard.complete(response)
                });
                let polled = Pin::new(&mut apart).poll(context);
                *self = apart;
                polled
            }
        }
    }
}

/// A request that is counted on the scoreboard, with its state; one that is dropped was abandoned by its client.
pub(in crate::http) struct RequestGuard {
    pub(in crate::http) state: Arc<RequestState>,
    /// When it came.
    pub(in crate::http) started: Instant,
    /// What its response's head needs; none: that is made.
    head: Option<RequestMeta>,
}

impl RequestGuard {
    pub(in crate::http) fn new(state: Arc<RequestState>, started: Instant, head: RequestMeta) -> Self {
        state.services.worker.cell().count_request_started();
        Self { state, started, head: Some(head) }
    }

    /// Answers it without its handler.
    pub(in crate::http) fn reject(self, response: Response) -> ResponseFuture {
        ResponseFuture::boxed(async move {
            let response = finish(&self.state, None, response).await;
            self.complete(response)
        })
    }

    /// Its response is whole but for the head.
    pub(in crate::http) fn complete(mut self, mut response: Response) -> Response {
        let worker = &self.state.services.worker;
        if let Some(head) = self.head.take() {
            response::apply_common_headers(&mut response, worker, head);
        }
        let latency = self.started.elapsed();
        let latency_us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let status = response.status().as_u16();
        let bytes = http_body::Body::size_hint(response.body()).exact().unwrap_or(0);
        worker.cell().count_request_finished(status, bytes, latency_us);
        // Looked up by the macro, where a line is written: otherwise each request pays for it.
        tracing::debug!(
            request_id = ?response.headers().get(X_REQUEST_ID),
            status,
            latency_seconds = latency.as_secs_f64(),
            "request answered"
        );
        response
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        if self.head.is_some() {
            self.state.services.worker.cell().count_request_abandoned();
        }
    }
}

/// What a request that reaches its handler has of its session.
pub(in crate::http) struct SessionHandles {
    pub(in crate::http) session: Session,
    pub(in crate::http) store: Arc<RequestSessionStore>,
}

/// Explains what went wrong and stores what the handler changed.
pub(in crate::http) async fn finish(
    state: &RequestState,
    handles: Option<&SessionHandles>,
    response: Response,
) -> Response {
    let fault = body::body_error(&state.body_fault, &state.services.worker.http);
    let response = response::into_problem(response, fault).await;
    response::finalize(response, state, handles.map(|handles| (&handles.session, &*handles.store))).await
}

/// A handler, and how long it may take.
pub(in crate::http) struct TimedHandler {
    handler: RouteFuture<Infallible>,
    timer: RequestTimer,
}

impl TimedHandler {
    pub(in crate::http) fn new(started: Instant, mut router: Router, request: Request<Body>) -> Self {
        Self { handler: router.call(request), timer: RequestTimer::new(started) }
    }

    /// The handler's response, or what the client gets when that is not there in time.
    pub(in crate::http) fn poll(
        &mut self,
        state: &RequestState,
        context: &mut Context<'_>,
    ) -> Poll<Response> {
        match poll_catching_panics(&mut self.handler, context) {
            Poll::Ready(response) => Poll::Ready(event_stream::adopt(response, &state.services.worker)),
            Poll::Pending => self.timer.poll_timeout(state, context),
        }
    }
}

/// Runs the handler; one that panics answers 500.
pub(in crate::http) async fn call_handler(mut router: Router, request: Request<Body>) -> Response {
    let mut handler = router.call(request);
    poll_fn(|context| poll_catching_panics(&mut handler, context)).await
}

fn poll_catching_panics(handler: &mut RouteFuture<Infallible>, context: &mut Context<'_>) -> Poll<Response> {
    // The request's own values are all that a panic can leave half-done, and they are dropped with it.
    match catch_unwind(AssertUnwindSafe(|| Pin::new(handler).poll(context))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(Ok(response))) => Poll::Ready(response),
        Err(panic) => {
            let message = panic_message(panic.as_ref());
            tracing::error!(panic = %message, "a handler panicked: {message}");
            Poll::Ready(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "").into_response())
        }
    }
}
