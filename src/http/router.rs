//! The way of a request through this room, and the operators' routes.
//!
//! Guarantees that every request gets a response with the worker's id, that a panic ends one request and no more, and
//! that the order below is the only one.

use std::any::Any;
use std::error::Error;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::DefaultBodyLimit;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::get;
use bytes::Bytes;
use http::Method;
use http::Request;
use http::StatusCode;
use tower::Service;
use tower_sessions::Session;

use crate::http::body;
use crate::http::dashboard;
use crate::http::dashboard::Peer;
use crate::http::exchange::Exchange;
use crate::http::finish;
use crate::http::finish::Head;
use crate::http::head;
use crate::http::idempotency;
use crate::http::identity;
use crate::http::identity::Client;
use crate::http::own_name::Names;
use crate::http::problem::Problem;
use crate::http::routes;
use crate::http::state::Core;
use crate::http::state::State;
use crate::http::store::Store;
use crate::http::timeout::in_time;

/// What one listener serves; cheap to clone.
#[derive(Clone, Debug)]
pub struct Face {
    core: Arc<Core>,
    router: Router,
    audience: Audience,
}

/// For whom a listener is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    /// Visitors: everything is counted, limited and has state.
    Public,
    /// Operators: nothing of it, so that it answers when all else is overloaded.
    Operators,
}

impl Face {
    pub(super) fn new(core: Arc<Core>, router: Router, audience: Audience) -> Self {
        Self { core, router, audience }
    }

    /// Answers a request; never fails.
    ///
    /// # Cancel safety
    /// Dropping the future abandons the request; what it already did in Redis stays.
    pub fn call<B>(
        &self,
        request: Request<B>,
        peer: SocketAddr,
    ) -> impl Future<Output = Response> + Send + 'static + use<B>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let Self { core, router, audience } = self.clone();
        async move {
            match audience {
                Audience::Public => serve(core, router, request, peer).await,
                Audience::Operators => operate(core, router, request, peer).await,
            }
        }
    }
}

/// The operators' URLs.
pub(super) fn operators(core: &Arc<Core>) -> Router {
    Router::new()
        .route("/livez", get(routes::probes::livez))
        .route("/readyz", get(routes::probes::readyz))
        .route("/metrics", get(routes::metrics::metrics))
        .route("/fleet.json", get(routes::fleet::fleet))
        .merge(dashboard::routes())
        .with_state(State(Arc::clone(core)))
}

/// A visitor's request, in the only order. There are no layers: each would box a future for every request.
///
/// 1. scoreboard, first, so that whatever happens is counted and timed;
///    and whether its head is one at all (some 500 instructions): what is not touches nothing of the state;
/// 2. client identity, because all that follows is per client, and whether an incoming request id is believed;
/// 3. request id, before anything that might be logged with it;
/// 4. state, prepared but not begun: it costs a round trip only once it is used, except that
/// 5. limits which name the path are decided now: a denied request never reaches its handler;
/// 6. `Idempotency-Key`, if it is sent, after the limits and before anything of the application's runs;
/// 7. the handler, with its body and its time bounded and its panics caught;
/// 8. the session's commit, after the handler's last change and before the response's head, which carries the cookie;
/// 9. what a repetition of the request is to get, now that nothing of it can fail any more;
/// 10. the head, last, so that refusals and problems have the same headers as everything else.
async fn serve<B>(core: Arc<Core>, router: Router, request: Request<B>, peer: SocketAddr) -> Response
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let flight = Flight::begin(&core);
    let (mut parts, incoming) = request.into_parts();
    let checked = head::check(&mut parts, !incoming.is_end_stream());
    let client = identity::resolve(peer.ip(), &parts.headers, &core.config.proxy);
    let head = Head::of(&core, &parts, client.proxied);
    let exchange = Arc::new(Exchange::new(Arc::clone(&core), client, &parts));
    let bounds = &core.config.http;
    let announced = incoming.size_hint().lower();
    let refused = if let Err(problem) = checked {
        Some(problem.into_response())
    } else if announced > bounds.body_limit as u64 {
        Some(body::too_large(bounds.body_limit).into_response())
    } else if exchange.is_named {
        exchange.decide().await.err().map(IntoResponse::into_response)
    } else {
        None
    };
    let mut response = match refused {
        Some(response) => complete(&exchange, None, response).await,
        None => {
            let store = Arc::new(Store::new(&exchange));
            let session = Session::new(exchange.visitor.id(), Arc::clone(&store), None);
            parts.extensions.insert(session.clone());
            parts.extensions.insert(Arc::clone(&exchange));
            parts.extensions.insert(Arc::clone(&store));
            let mut request = Request::from_parts(parts, body::bound(incoming, bounds, &exchange));
            DefaultBodyLimit::disable().apply(&mut request);
            let visit = Visit { session, store };
            match idempotency::asks(&core, &request) {
                // Boxed: its size would be every request's.
                true => Box::pin(carry_out_once(&exchange, flight.begun, router, request, visit)).await,
                false => {
                    let response = in_time(&exchange, flight.begun, answer(router, request)).await;
                    complete(&exchange, Some(&visit), response).await
                }
            }
        }
    };
    finish::dress(&mut response, &core, &head);
    flight.land(&head, &response);
    response
}

/// An operator's request: no state, no limits, and not counted among the visitors'.
///
/// Who asks is the socket's peer, whatever a header says: this machine's own programs are trusted proxies, and could
/// be anybody. Whether a proxy had it over TLS is believed, because it only makes a cookie stricter.
async fn operate<B>(core: Arc<Core>, router: Router, request: Request<B>, peer: SocketAddr) -> Response
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let (mut parts, incoming) = request.into_parts();
    let checked = head::check(&mut parts, !incoming.is_end_stream());
    let head = Head::of(&core, &parts, true);
    // Before any route, those that do not exist included: what they answer says what runs here.
    let names = Names { configured: &core.config.admin.hosts, machine: &core.site.host };
    if let Some(refusal) = names.refusal(&parts.headers, &parts.uri) {
        let mut response = finish::explain(refusal, None).await;
        finish::dress(&mut response, &core, &head);
        return response;
    }
    let client = identity::resolve(peer.ip(), &parts.headers, &core.config.proxy);
    parts.extensions.insert(Peer(Client { address: peer.ip().to_canonical(), ..client }));
    // Whoever reads a form bounds it; nobody else reads.
    let body = if parts.method == Method::POST { Body::new(incoming) } else { Body::empty() };
    let response = match checked {
        Ok(()) => answer(router, Request::from_parts(parts, body)).await,
        Err(problem) => problem.into_response(),
    };
    let mut response = finish::explain(response, None).await;
    finish::dress(&mut response, &core, &head);
    response
}

/// What a request that reaches its handler has of its session.
struct Visit {
    session: Session,
    store: Arc<Store>,
}

/// Explains what went wrong and stores what the handler changed.
async fn complete(exchange: &Exchange, visit: Option<&Visit>, response: Response) -> Response {
    let fault = body::fault(&exchange.body_fault, &exchange.core.config.http);
    let response = finish::explain(response, fault).await;
    finish::settle(response, exchange, visit.map(|visit| (&visit.session, &*visit.store))).await
}

/// Runs the handler, unless this is the repetition of a request that is to be carried out once.
///
/// A client that leaves takes its connection's task with it. What is to be carried out once is carried out all the
/// same, in a task of its own: whoever leaves comes again with the same key.
async fn carry_out_once(
    exchange: &Arc<Exchange>,
    begun: Instant,
    router: Router,
    request: Request<Body>,
    visit: Visit,
) -> Response {
    let (request, execution) = match idempotency::admit(exchange, request).await {
        Ok(admitted) => admitted,
        Err(response) => return complete(exchange, Some(&visit), response).await,
    };
    let exchange = Arc::clone(exchange);
    let task = tokio::spawn(async move {
        let work = async {
            let response = in_time(&exchange, begun, answer(router, request)).await;
            complete(&exchange, Some(&visit), response).await
        };
        let response = execution.hold(work).await;
        execution.conclude(response).await
    });
    task.await.unwrap_or_else(|_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "").into_response())
}

/// Runs the handler; one that panics answers 500.
async fn answer(mut router: Router, request: Request<Body>) -> Response {
    let mut handler = pin!(router.call(request));
    // The request's own values are all that a panic can leave half-done, and they are dropped with it.
    let caught = poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| handler.as_mut().poll(context))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(Ok(response))) => Poll::Ready(Ok(response)),
        Err(panic) => Poll::Ready(Err(panic)),
    });
    caught.await.unwrap_or_else(|panic| {
        let message = message(panic.as_ref());
        tracing::error!(panic = %message, "a handler panicked: {message}");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "").into_response()
    })
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

/// A request on the scoreboard; one that is dropped on its way was abandoned by its client.
struct Flight {
    core: Arc<Core>,
    begun: Instant,
    state: FlightState,
}

#[derive(PartialEq, Eq)]
enum FlightState {
    UnderWay,
    Landed,
}

impl Flight {
    fn begin(core: &Arc<Core>) -> Self {
        core.cell().request_started();
        Self { core: Arc::clone(core), begun: Instant::now(), state: FlightState::UnderWay }
    }

    fn land(mut self, head: &Head, response: &Response) {
        self.state = FlightState::Landed;
        let latency_us = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let status = response.status().as_u16();
        let bytes = http_body::Body::size_hint(response.body()).exact().unwrap_or(0);
        self.core.cell().request_done(status, bytes, latency_us);
        tracing::debug!(request_id = ?head.request_id, status, latency_us, "request answered");
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if self.state == FlightState::UnderWay {
            self.core.cell().request_abandoned();
        }
    }
}
