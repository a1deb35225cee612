//! A request from its head to its response, as one small value: hyper moves it about before it polls it, and whatever
//! only few requests wait for is boxed.

use std::any::Any;
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::future::RouteFuture;
use http::Request;
use http::StatusCode;
use std::convert::Infallible;
use tower::Service;
use tower_sessions::Session;

use crate::http::body;
use crate::http::exchange::Exchange;
use crate::http::finish;
use crate::http::finish::Head;
use crate::http::problem::Problem;
use crate::http::store::Store;
use crate::http::timeout::Timer;

/// A request until there is its response.
pub struct Answering(Stage);

#[expect(
    clippy::large_enum_variant,
    reason = "the large one is the usual one: a box would cost each request an allocation"
)]
enum Stage {
    /// Its handler runs.
    Handling(Handling),
    /// It needs more than most requests do.
    Apart(Pin<Box<dyn Future<Output = Response> + Send>>),
    /// There is its response.
    Done,
}

/// A request whose handler runs.
struct Handling {
    under_way: UnderWay,
    handler: InTime,
    visit: Visit,
}

impl std::fmt::Debug for Answering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answering").finish_non_exhaustive()
    }
}

impl Answering {
    pub(super) fn apart(answered: impl Future<Output = Response> + Send + 'static) -> Self {
        Self(Stage::Apart(Box::pin(answered)))
    }

    pub(super) fn handling(
        under_way: UnderWay,
        router: Router,
        request: Request<Body>,
        visit: Visit,
    ) -> Self {
        let handler = InTime::new(under_way.begun, router, request);
        Self(Stage::Handling(Handling { under_way, handler, visit }))
    }
}

impl Future for Answering {
    type Output = Response;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Response> {
        let response = match &mut self.0 {
            Stage::Handling(Handling { under_way, handler, .. }) => {
                ready!(handler.poll(&under_way.exchange, context))
            }
            Stage::Apart(answered) => {
                let response = ready!(answered.as_mut().poll(context));
                self.0 = Stage::Done;
                return Poll::Ready(response);
            }
            Stage::Done => return Poll::Pending,
        };
        let Stage::Handling(handling) = std::mem::replace(&mut self.0, Stage::Done) else {
            return Poll::Pending;
        };
        let Handling { under_way, visit, handler } = handling;
        // Before its session is stored: what a handler that ran out of time changes when it is dropped is stored too.
        drop(handler);
        match finish::at_once(response, &under_way.exchange, &visit.session, &visit.store) {
            Ok(response) => Poll::Ready(under_way.land(response)),
            Err(response) => {
                let mut apart = Self::apart(async move {
                    let response = complete(&under_way.exchange, Some(&visit), response).await;
                    under_way.land(response)
                });
                let polled = Pin::new(&mut apart).poll(context);
                *self = apart;
                polled
            }
        }
    }
}

/// A request on the scoreboard, with its exchange; one that is dropped on its way was abandoned by its client.
pub(super) struct UnderWay {
    pub(super) exchange: Arc<Exchange>,
    /// When it came.
    pub(super) begun: Instant,
    /// What its response's head needs; none: that is made.
    head: Option<Head>,
}

impl UnderWay {
    pub(super) fn new(exchange: Arc<Exchange>, begun: Instant, head: Head) -> Self {
        exchange.core.cell().request_started();
        Self { exchange, begun, head: Some(head) }
    }

    /// Answers it without its handler.
    pub(super) fn refuse(self, response: Response) -> Answering {
        Answering::apart(async move {
            let response = complete(&self.exchange, None, response).await;
            self.land(response)
        })
    }

    /// Its response is whole but for the head.
    pub(super) fn land(mut self, mut response: Response) -> Response {
        let core = &self.exchange.core;
        if let Some(head) = self.head.take() {
            finish::dress(&mut response, core, head);
        }
        let latency_us = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let status = response.status().as_u16();
        let bytes = http_body::Body::size_hint(response.body()).exact().unwrap_or(0);
        core.cell().request_done(status, bytes, latency_us);
        tracing::debug!(request_id = ?response.headers().get(finish::REQUEST_ID), status, latency_us, "request answered");
        response
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.head.is_some() {
            self.exchange.core.cell().request_abandoned();
        }
    }
}

/// What a request that reaches its handler has of its session.
pub(super) struct Visit {
    pub(super) session: Session,
    pub(super) store: Arc<Store>,
}

/// Explains what went wrong and stores what the handler changed.
pub(super) async fn complete(exchange: &Exchange, visit: Option<&Visit>, response: Response) -> Response {
    let fault = body::fault(&exchange.body_fault, &exchange.core.config.http);
    let response = finish::explain(response, fault).await;
    finish::settle(response, exchange, visit.map(|visit| (&visit.session, &*visit.store))).await
}

/// A handler, and how long it may take.
pub(super) struct InTime {
    handler: RouteFuture<Infallible>,
    timer: Timer,
}

impl InTime {
    pub(super) fn new(begun: Instant, mut router: Router, request: Request<Body>) -> Self {
        Self { handler: router.call(request), timer: Timer::new(begun) }
    }

    /// The handler's response, or what the client gets when that is not there in time.
    pub(super) fn poll(&mut self, exchange: &Exchange, context: &mut Context<'_>) -> Poll<Response> {
        match poll_caught(&mut self.handler, context) {
            Poll::Ready(response) => Poll::Ready(response),
            Poll::Pending => self.timer.poll_late(exchange, context),
        }
    }
}

/// Runs the handler; one that panics answers 500.
pub(super) async fn answer(mut router: Router, request: Request<Body>) -> Response {
    let mut handler = router.call(request);
    poll_fn(|context| poll_caught(&mut handler, context)).await
}

fn poll_caught(handler: &mut RouteFuture<Infallible>, context: &mut Context<'_>) -> Poll<Response> {
    // The request's own values are all that a panic can leave half-done, and they are dropped with it.
    match catch_unwind(AssertUnwindSafe(|| Pin::new(handler).poll(context))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(Ok(response))) => Poll::Ready(response),
        Err(panic) => {
            let message = message(panic.as_ref());
            tracing::error!(panic = %message, "a handler panicked: {message}");
            Poll::Ready(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "").into_response())
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
