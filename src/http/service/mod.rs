//! What is done around every handler, in one order, and the operators' routes.
//!
//! Guarantees that every request gets a response with the worker's id, that a panic ends one request and no more, and
//! that the order below is the only one.

pub(in crate::http) mod idempotent;
pub mod response_future;

use std::error::Error;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::DefaultBodyLimit;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, StatusCode};
use tower_sessions::Session;

use crate::http::admin::peer::AdminPeer;
use crate::http::admin_hosts::AdminHostNames;
use crate::http::fleet_handle::FleetHandle;
use crate::http::outer_layers::OuterLayers;
use crate::http::problem::Problem;
use crate::http::real_ip::{ClientInfo, ConnectionPeer};
use crate::http::request_scope::RequestScope;
use crate::http::request_state::RequestState;
use crate::http::request_state::session_store::RequestSessionStore;
use crate::http::response::RequestMeta;
use crate::http::service::response_future::{RequestGuard, ResponseFuture, SessionHandles, TimedHandler};
use crate::http::services::WorkerServices;
use crate::http::services::admin::AdminServices;
use crate::http::services::worker::WorkerContext;
use crate::http::streams::event_stream;
use crate::http::{admin, body, outer_layers, real_ip, request_head, response};

/// What one listener serves; cheap to clone.
#[derive(Clone, Debug)]
pub struct HttpService {
    listener: Listener,
    router: Router,
    /// The application's layers around all of it, if it has any.
    outer: Option<Router>,
}

/// What a listener needs beside its routes.
#[derive(Clone, Debug)]
enum Listener {
    /// Visitors' requests are counted, limited and have state.
    Public(Arc<WorkerServices>),
    /// Operators' requests have none of it, so that they are answered when all else is overloaded.
    Admin(Arc<WorkerContext>, Arc<AdminServices>),
}

impl HttpService {
    pub(super) fn public(services: Arc<WorkerServices>, router: Router, layers: OuterLayers) -> Self {
        let (inner_services, inner) = (Arc::clone(&services), router.clone());
        let outer = layers.around(move |request, peer| {
            let (parts, body) = request.into_parts();
            serve_public(&inner_services, &inner, parts, body, peer)
        });
        Self { listener: Listener::Public(services), router, outer }
    }

    /// Other routes with the state of this worker.
    pub fn with_routes(fleet: &FleetHandle, router: Router) -> Self {
        Self::public(Arc::clone(fleet.services()), router, OuterLayers::default())
    }

    pub(super) fn admin(worker: Arc<WorkerContext>, admin: Arc<AdminServices>, router: Router) -> Self {
        Self { listener: Listener::Admin(worker, admin), router, outer: None }
    }

    /// Answers a request; never fails. What it waits for is polled with the value, which is small: hyper moves it.
    ///
    /// # Cancel safety
    /// Dropping it abandons the request; what it already did in Redis stays.
    pub fn call<B>(&self, parts: Parts, body: B, peer: impl Into<ConnectionPeer>) -> ResponseFuture
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let peer = peer.into();
        if let Some(outer) = &self.outer {
            let request = Request::from_parts(parts, Body::new(body));
            return ResponseFuture::boxed(outer_layers::call(outer.clone(), request, peer));
        }
        match &self.listener {
            Listener::Public(services) => serve_public(services, &self.router, parts, body, peer),
            Listener::Admin(worker, admin) => ResponseFuture::boxed(serve_admin(
                (Arc::clone(worker), Arc::clone(admin)),
                self.router.clone(),
                (parts, body),
                peer,
            )),
        }
    }
}

/// The operators' routes but the dashboard's.
pub(super) fn admin_routes(admin: &Arc<AdminServices>) -> Router {
    Router::new()
        .route("/livez", get(admin::probes::livez))
        .route("/readyz", get(admin::probes::readyz))
        .route("/metrics", get(admin::metrics::metrics))
        .route("/fleet.json", get(admin::fleet_json::fleet_json))
        .with_state(Arc::clone(admin))
}

/// A visitor's request, in the only order. There are no layers: each would box a future for every request.
///
/// 1. scoreboard, first, so that whatever happens is counted and timed;
///    and whether its head is one at all (some 500 instructions): what is not touches nothing of the state;
/// 2. client identity, because all that follows is per client, and whether an incoming request id is accepted;
/// 3. request id, before anything that might be logged with it;
/// 4. state, prepared but not begun: it costs a round trip only once it is used, except that
/// 5. limits which name the path, or hold for every request, are decided now: a denied request never reaches its handler;
/// 6. `Idempotency-Key`, if it is sent, after the limits and before anything of the application's runs;
/// 7. the handler, with its body and its time bounded and its panics caught;
/// 8. the session's commit, after the handler's last change and before the response's head, which carries the cookie;
/// 9. what a repetition of the request is to get, now that nothing of it can fail any more;
/// 10. the head, last, so that refusals and problems have the same headers as everything else.
fn serve_public<B>(
    services: &Arc<WorkerServices>,
    router: &Router,
    mut parts: Parts,
    incoming: B,
    peer: ConnectionPeer,
) -> ResponseFuture
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let started = Instant::now();
    let checked = request_head::check_head(&mut parts, !incoming.is_end_stream());
    let worker = &services.worker;
    let client = real_ip::client_from_headers(peer, &parts.headers, &worker.proxy);
    worker.untrusted_proxies.record_request(&client, &parts.headers, &worker.proxy, &worker.cell.scoreboard);
    let head = RequestMeta::from_parts(worker, &parts, client.proxied);
    let state = Arc::new(RequestState::new(Arc::clone(&services.state), client, &parts));
    let guard = RequestGuard::new(state, started, head);
    if let Err(problem) = checked {
        return guard.reject(problem.into_response());
    }
    let (services, router) = (Arc::clone(services), router.clone());
    if !guard.state.has_route_policy {
        return dispatch(guard, services, router, parts, incoming);
    }
    ResponseFuture::boxed(async move {
        match guard.state.decide_limits().await {
            Ok(()) => dispatch(guard, services, router, parts, incoming).await,
            Err(error) => guard.reject(error.into_response()).await,
        }
    })
}

/// Gives a request to its handler, unless its body is too large or it is to be carried out once.
fn dispatch<B>(
    guard: RequestGuard,
    services: Arc<WorkerServices>,
    router: Router,
    mut parts: Parts,
    incoming: B,
) -> ResponseFuture
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let state = &guard.state;
    let bounds = &state.services.worker.http;
    let body_limit = bounds.max_body_size;
    if incoming.size_hint().lower() > body_limit as u64 {
        return guard.reject(body::too_large(body_limit).into_response());
    }
    let store = Arc::new(RequestSessionStore::new(state));
    let session = Session::new(state.visitor.id(), Arc::clone(&store), None);
    parts.extensions.insert(session.clone());
    parts.extensions.insert(RequestScope { services, store: Arc::clone(&store) });
    let is_empty = incoming.is_end_stream();
    let mut request = Request::from_parts(parts, body::limit_body(incoming, bounds, state));
    if !is_empty {
        // Ours is the bound that holds; of a request without a body axum has nothing to bound.
        DefaultBodyLimit::disable().apply(&mut request);
    }
    let handles = SessionHandles { session, store };
    match idempotent::is_requested(&state.services, &request) {
        true => ResponseFuture::boxed(run_once(guard, router, request, handles)),
        false => ResponseFuture::from_handler(guard, router, request, handles),
    }
}

/// An operator's request: it has no state and no limits, and is not counted.
///
/// The client is the socket's peer, whatever a header says: programs of this host are trusted proxies, and any of them
/// could send one. A proxy's word for TLS counts, because it only makes a cookie stricter.
async fn serve_admin<B>(
    (worker, admin): (Arc<WorkerContext>, Arc<AdminServices>),
    router: Router,
    (mut parts, incoming): (Parts, B),
    peer: ConnectionPeer,
) -> Response
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let checked = request_head::check_head(&mut parts, !incoming.is_end_stream());
    let head = RequestMeta::from_parts(&worker, &parts, true);
    // Before any route, those that do not exist included: any answer reveals what runs here.
    let names = AdminHostNames { configured: &admin.hosts, instance: &admin.instance.host };
    if let Some(refusal) = names.reject_unknown_host(&parts.headers, &parts.uri) {
        let mut response = response::into_problem(refusal, None).await;
        response::apply_common_headers(&mut response, &worker, head);
        return response;
    }
    let client = real_ip::client_from_headers(peer, &parts.headers, &worker.proxy);
    parts.extensions.insert(AdminPeer(ClientInfo { address: peer.canonical_ip(), ..client }));
    // The dashboard bounds the forms it reads; no other route reads a body.
    let body = if parts.method == Method::POST { Body::new(incoming) } else { Body::empty() };
    let response = match checked {
        Ok(()) => response_future::call_handler(router, Request::from_parts(parts, body)).await,
        Err(problem) => problem.into_response(),
    };
    let response = event_stream::adopt_for_operators(response, &worker);
    let mut response = response::into_problem(response, None).await;
    response::apply_common_headers(&mut response, &worker, head);
    response
}

/// Runs the handler, unless this is the repetition of a request that is to be carried out once.
///
/// A client that disconnects ends its connection's task. What is to be carried out once is carried out all the
/// same, in a task of its own: the client repeats it with the same key.
async fn run_once(
    guard: RequestGuard,
    router: Router,
    request: Request<Body>,
    handles: SessionHandles,
) -> Response {
    let state = Arc::clone(&guard.state);
    let started = guard.started;
    let (request, execution) = match idempotent::claim_execution(&state, request).await {
        Ok(admitted) => admitted,
        Err(response) => {
            let response = response_future::finish(&state, Some(&handles), response).await;
            return guard.complete(response);
        }
    };
    let task = tokio::spawn(async move {
        let work = async {
            let mut handler = TimedHandler::new(started, router, request);
            let response = poll_fn(|context| handler.poll(&state, context)).await;
            response_future::finish(&state, Some(&handles), response).await
        };
        let response = execution.while_renewing(work).await;
        execution.store_response(response).await
    });
    let done = task.await;
    let failed = |_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "").into_response();
    guard.complete(done.unwrap_or_else(failed))
}
