//! The way of a request through this room, and the operators' routes.
//!
//! Guarantees that every request gets a response with the worker's id, that a panic ends one request and no more, and
//! that the order below is the only one.

use std::error::Error;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
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
use http::request::Parts;
use tower_sessions::Session;

use crate::http::answering;
use crate::http::answering::Answering;
use crate::http::answering::InTime;
use crate::http::answering::UnderWay;
use crate::http::answering::Visit;
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
use crate::http::unheard;

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

    /// Answers a request; never fails. What it waits for is polled with the value, which is small: hyper moves it about.
    ///
    /// # Cancel safety
    /// Dropping it abandons the request; what it already did in Redis stays.
    pub fn answer<B>(&self, parts: Parts, body: B, peer: SocketAddr) -> Answering
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        match self.audience {
            Audience::Public => serve(&self.core, &self.router, parts, body, peer),
            Audience::Operators => {
                Answering::apart(operate(Arc::clone(&self.core), self.router.clone(), (parts, body), peer))
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
/// 5. limits which name the path, or hold for every request, are decided now: a denied request never reaches its handler;
/// 6. `Idempotency-Key`, if it is sent, after the limits and before anything of the application's runs;
/// 7. the handler, with its body and its time bounded and its panics caught;
/// 8. the session's commit, after the handler's last change and before the response's head, which carries the cookie;
/// 9. what a repetition of the request is to get, now that nothing of it can fail any more;
/// 10. the head, last, so that refusals and problems have the same headers as everything else.
fn serve<B>(core: &Arc<Core>, router: &Router, mut parts: Parts, incoming: B, peer: SocketAddr) -> Answering
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let begun = Instant::now();
    let checked = head::check(&mut parts, !incoming.is_end_stream());
    let client = identity::resolve(peer.ip(), &parts.headers, &core.config.proxy);
    unheard::note(core, &client, &parts.headers);
    let head = Head::of(core, &parts, client.proxied);
    let exchange = Arc::new(Exchange::new(Arc::clone(core), client, &parts));
    let under_way = UnderWay::new(exchange, begun, head);
    if let Err(problem) = checked {
        return under_way.refuse(problem.into_response());
    }
    let router = router.clone();
    if !under_way.exchange.is_named {
        return handle(under_way, router, parts, incoming);
    }
    Answering::apart(async move {
        match under_way.exchange.decide().await {
            Ok(()) => handle(under_way, router, parts, incoming).await,
            Err(error) => under_way.refuse(error.into_response()).await,
        }
    })
}

/// Gives a request to its handler, unless its body is too large or it is to be carried out once.
fn handle<B>(under_way: UnderWay, router: Router, mut parts: Parts, incoming: B) -> Answering
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let body_limit = under_way.exchange.core.config.http.body_limit;
    if incoming.size_hint().lower() > body_limit as u64 {
        return under_way.refuse(body::too_large(body_limit).into_response());
    }
    let exchange = &under_way.exchange;
    let bounds = &exchange.core.config.http;
    let store = Arc::new(Store::new(exchange));
    let session = Session::new(exchange.visitor.id(), Arc::clone(&store), None);
    parts.extensions.insert(session.clone());
    parts.extensions.insert(Arc::clone(&store));
    let is_empty = incoming.is_end_stream();
    let mut request = Request::from_parts(parts, body::bound(incoming, bounds, exchange));
    if !is_empty {
        // Ours is the bound that holds; of a request without a body axum has nothing to bound.
        DefaultBodyLimit::disable().apply(&mut request);
    }
    let visit = Visit { session, store };
    match idempotency::asks(&exchange.core, &request) {
        true => Answering::apart(carry_out_once(under_way, router, request, visit)),
        false => Answering::handling(under_way, router, request, visit),
    }
}

/// An operator's request: no state, no limits, and not counted among the visitors'.
///
/// Who asks is the socket's peer, whatever a header says: this machine's own programs are trusted proxies, and could
/// be anybody. Whether a proxy had it over TLS is believed, because it only makes a cookie stricter.
async fn operate<B>(
    core: Arc<Core>,
    router: Router,
    (mut parts, incoming): (Parts, B),
    peer: SocketAddr,
) -> Response
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let checked = head::check(&mut parts, !incoming.is_end_stream());
    let head = Head::of(&core, &parts, true);
    // Before any route, those that do not exist included: what they answer says what runs here.
    let names = Names { configured: &core.config.admin.hosts, machine: &core.site.host };
    if let Some(refusal) = names.refusal(&parts.headers, &parts.uri) {
        let mut response = finish::explain(refusal, None).await;
        finish::dress(&mut response, &core, head);
        return response;
    }
    let client = identity::resolve(peer.ip(), &parts.headers, &core.config.proxy);
    parts.extensions.insert(Peer(Client { address: peer.ip().to_canonical(), ..client }));
    // Whoever reads a form bounds it; nobody else reads.
    let body = if parts.method == Method::POST { Body::new(incoming) } else { Body::empty() };
    let response = match checked {
        Ok(()) => answering::answer(router, Request::from_parts(parts, body)).await,
        Err(problem) => problem.into_response(),
    };
    let mut response = finish::explain(response, None).await;
    finish::dress(&mut response, &core, head);
    response
}

/// Runs the handler, unless this is the repetition of a request that is to be carried out once.
///
/// A client that leaves takes its connection's task with it. What is to be carried out once is carried out all the
/// same, in a task of its own: whoever leaves comes again with the same key.
async fn carry_out_once(
    under_way: UnderWay,
    router: Router,
    request: Request<Body>,
    visit: Visit,
) -> Response {
    let exchange = Arc::clone(&under_way.exchange);
    let begun = under_way.begun;
    let (request, execution) = match idempotency::admit(&exchange, request).await {
        Ok(admitted) => admitted,
        Err(response) => {
            let response = answering::complete(&exchange, Some(&visit), response).await;
            return under_way.land(response);
        }
    };
    let task = tokio::spawn(async move {
        let work = async {
            let mut handler = InTime::new(begun, router, request);
            let response = poll_fn(|context| handler.poll(&exchange, context)).await;
            answering::complete(&exchange, Some(&visit), response).await
        };
        let response = execution.hold(work).await;
        execution.conclude(response).await
    });
    let done = task.await;
    let failed = |_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "").into_response();
    under_way.land(done.unwrap_or_else(failed))
}
