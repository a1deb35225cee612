//! The whole way of a request with Redis away: what must work, works, and what cannot is a defined answer.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use axum::body::{Bytes, to_bytes};
use axum::extract::Path;
use axum::routing::get;
use http::{Request, Response, header};

use crate::broadcasts::BroadcastHub;
use crate::config;
use crate::config::ConfigInputs;
use crate::config::limits::OnRedisDown;
use crate::config::settings::{Config, RedisUrl, Secret};
use crate::counters::batched::BatchedCounters;
use crate::facade::counter::Counters;
use crate::facade::error::Error;
use crate::facade::rate_limit::layer::RateLimitLayer;
use crate::facade::session::PageView;
use crate::http::checks::{AppCheck, AppChecks};
use crate::http::standalone::quota::LimitQuota;
use crate::http::*;
use crate::redis::RedisClient;
use crate::request_state::StateClient;
use crate::scoreboard::Scoreboard;
use crate::tasks::TaskQueue;

/// Builds the routes of a test.
type AppFactory = Arc<dyn Fn(FleetHandle) -> Router + Send + Sync>;

fn public_service(parts: &AppServices, app: &AppFactory) -> HttpService {
    let fleet = fleet_handle(parts);
    let router = app(fleet.clone());
    let dashboard = Dashboard::new(&parts.config.dashboard);
    crate::http::public_service(parts, &fleet, (router, OuterLayers::default()), &dashboard)
}

fn admin_service(parts: &AppServices) -> HttpService {
    let dashboard = Dashboard::new(&parts.config.dashboard);
    crate::http::admin_service(parts, &dashboard, Router::new(), Arc::default())
}

fn parts() -> AppServices {
    let config = config::load(&ConfigInputs::default()).unwrap();
    let url = RedisUrl::from_socket_path(std::path::Path::new("/nonexistent/redis.sock"));
    let scoreboard = Scoreboard::create(NonZeroUsize::MIN, 1, 0).unwrap();
    scoreboard.cell(0, 0).reset(1, 0);
    let scoreboard = Arc::new(scoreboard);
    let redis = RedisClient::new(&config.redis, &url, "test").unwrap();
    AppServices {
        broadcast_hub: BroadcastHub::new(redis.clone(), &config.broadcast),
        tasks: TaskQueue::with_client(redis.clone(), &config.tasks, "host:4711"),
        batched_counters: Some(Arc::new(BatchedCounters::new(
            Arc::clone(&scoreboard),
            redis.clone(),
            "test",
            0,
            0,
        ))),
        redis: StateClient::new(redis),
        config: Arc::new(config),
        scoreboard,
        worker: Worker::new(4711, 0, 1, "host"),
        cell: 0,
        drain: DrainState::default(),
        instance: Arc::default(),
    }
}

async fn explode() -> &'static str {
    panic!("on purpose")
}

fn app() -> AppFactory {
    Arc::new(|state| {
        Router::new()
            .route("/hello", get(|worker: Worker| async move { worker.pid().to_string() }))
            .route("/visit", get(|view: PageView| async move { view.count().to_string() }))
            .route("/deaf", get(|view: Result<PageView, Error>| async move { format!("{}", view.is_ok()) }))
            .route(
                "/count/{name}",
                get(|counters: Counters, Path(name): Path<String>| async move {
                    counters.get(&name).await.map(|value| value.to_string())
                }),
            )
            .route(
                "/write",
                get(|session: tower_sessions::Session| async move {
                    session
                        .insert("a", 1)
                        .await
                        .map_err(|error| (http::StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
                }),
            )
            .route("/panic", get(explode).post(|body: Bytes| async move { body.len().to_string() }))
            .with_state(state)
    })
}

fn call(service: &HttpService, request: Request<Body>, peer: [u8; 4]) -> ResponseFuture {
    let (head, body) = request.into_parts();
    service.call(head, body, SocketAddr::from((peer, 9)))
}

async fn send(service: &HttpService, request: Request<Body>) -> (Response<()>, String) {
    let response = call(service, request, [127, 0, 0, 1]).await;
    let (head, body) = response.into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    (Response::from_parts(head, ()), String::from_utf8(body.to_vec()).unwrap())
}

async fn get_path(service: &HttpService, path: &str) -> (Response<()>, String) {
    send(service, Request::get(path).header(header::HOST, "localhost").body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn without_redis_stateless_routes_work_and_stateful_ones_are_503_without_a_cookie() {
    let service = public_service(&parts(), &app());
    let (head, body) = get_path(&service, "/hello").await;
    assert_eq!((head.status().as_u16(), body.as_str()), (200, "4711"));
    for path in ["/visit", "/deaf", "/count/a", "/write"] {
        let (head, body) = get_path(&service, path).await;
        assert_eq!(head.status(), 503, "{path} {body}");
        assert_eq!(head.headers()[header::RETRY_AFTER], "1", "{path}");
        assert!(body.contains("#temporary-reduced-capacity"), "{path} {body}");
        assert!(!head.headers().contains_key(header::SET_COOKIE), "{path}");
    }
}

#[tokio::test]
async fn every_response_names_its_worker_and_request() {
    let parts = parts();
    let (visitors, operators) = (public_service(&parts, &app()), admin_service(&parts));
    for path in ["/hello", "/nothing", "/panic", "/visit", "/count/a%20b"] {
        let (head, _) = get_path(&visitors, path).await;
        assert_eq!(head.headers()["x-worker-id"], "4711", "{path}");
        assert!(head.headers().contains_key("x-request-id"), "{path}");
    }
    for path in ["/livez", "/readyz", "/metrics", "/fleet.json", "/nothing"] {
        assert_eq!(get_path(&operators, path).await.0.headers()["x-worker-id"], "4711", "{path}");
    }
}

#[tokio::test]
async fn mistakes_of_the_client_are_problem_documents() {
    let service = public_service(&parts(), &app());
    let limit = parts().config.http.max_body_size;
    let post = |path: &str, body: Vec<u8>| {
        Request::post(path).header(header::HOST, "localhost").body(Body::from(body)).unwrap()
    };
    let cases = [
        (Request::get("/nothing").header(header::HOST, "localhost").body(Body::empty()).unwrap(), 404),
        (post("/hello", vec![]), 405),
        (post("/panic", vec![0; limit + 1]), 413),
        (Request::get("/count/a%20b").header(header::HOST, "localhost").body(Body::empty()).unwrap(), 400),
    ];
    for (request, status) in cases {
        let shown = format!("{} {}", request.method(), request.uri());
        let (head, body) = send(&service, request).await;
        assert_eq!(head.status(), status, "{shown}");
        assert_eq!(head.headers()[header::CONTENT_TYPE], problem::PROBLEM_CONTENT_TYPE, "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&body).unwrap()["status"], status, "{shown}");
    }
    let (head, body) = send(&service, post("/panic", vec![0; limit])).await;
    assert_eq!((head.status().as_u16(), body), (200, limit.to_string()));
}

#[tokio::test]
async fn a_body_of_unknown_length_is_bounded_too() {
    let service = public_service(&parts(), &app());
    let limit = parts().config.http.max_body_size;
    let endless = http_body_util::BodyExt::map_err(
        http_body_util::Full::new(Bytes::from(vec![0; limit + 1])),
        |never| match never {},
    );
    // A boxed stream hides its length.
    let request =
        Request::post("/panic").header(header::HOST, "localhost").body(Body::new(Unsized(endless))).unwrap();
    assert_eq!(send(&service, request).await.0.status(), 413);
}

/// A body that does not tell its length.
struct Unsized<B>(B);

impl<B: http_body::Body<Data = Bytes, Error = axum::Error> + Unpin> http_body::Body for Unsized<B> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
        std::pin::Pin::new(&mut self.0).poll_frame(context)
    }
}

#[tokio::test]
async fn a_panic_costs_one_request() {
    let parts = parts();
    let service = public_service(&parts, &app());
    let (head, body) = get_path(&service, "/panic").await;
    assert_eq!(head.status(), 500);
    assert!(!body.contains("purpose"), "{body}");
    assert_eq!(get_path(&service, "/hello").await.0.status(), 200);
    let slot = parts.scoreboard.row(0).snapshot(0);
    assert_eq!((slot.sum(|worker| worker.in_flight), slot.responses[5], slot.responses[2]), (0, 1, 1));
}

#[tokio::test]
async fn a_request_that_is_dropped_is_not_in_flight_any_more() {
    let parts = parts();
    let service = public_service(&parts, &app());
    let request = |path| Request::get(path).header(header::HOST, "localhost").body(Body::empty()).unwrap();
    drop(call(&service, request("/hello"), [127, 0, 0, 1]));
    let waiting = public_service(
        &parts,
        &(Arc::new(|_| Router::new().route("/", get(std::future::pending::<()>))) as AppFactory),
    );
    let mut call = Box::pin(call(&waiting, request("/"), [127, 0, 0, 1]));
    assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(call.as_mut().poll(cx))).await.is_pending());
    assert_eq!(parts.scoreboard.row(0).snapshot(0).sum(|worker| worker.in_flight), 1);
    drop(call);
    assert_eq!(parts.scoreboard.row(0).snapshot(0).sum(|worker| worker.in_flight), 0);
}

#[tokio::test]
async fn readiness_waits_for_the_first_redis_survives_its_loss_and_ends_with_the_drain() {
    let parts = parts();
    let operators = admin_service(&parts);
    let visitors = public_service(&parts, &app());
    let (head, body) = get_path(&operators, "/readyz").await;
    assert_eq!(head.status(), 503);
    assert!(body.contains("\"unready\"") && body.contains("reason"), "{body}");
    parts.scoreboard.set_redis_ever_connected();
    let (head, body) = get_path(&operators, "/readyz").await;
    assert!(head.status() == 200 && body.contains("\"degraded\""), "{body}");
    parts.drain.start_drain();
    assert_eq!(get_path(&operators, "/readyz").await.0.status(), 200);
    parts.drain.start_stop();
    let (head, body) = get_path(&operators, "/readyz").await;
    assert!(head.status() == 503 && body.contains("draining"), "{body}");
    assert_eq!(get_path(&operators, "/livez").await.0.status(), 200);
    assert_eq!(get_path(&visitors, "/hello").await.0.headers()[header::CONNECTION], "close");
}

#[tokio::test]
async fn health_checks_are_not_run_for_what_is_not_ready() {
    let parts = parts();
    parts.scoreboard.set_redis_ever_connected();
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let health = AppCheck::new("mail", move || {
        counted.fetch_add(1, Relaxed);
        std::future::pending::<Result<(), axum::BoxError>>()
    });
    let readiness = AppCheck::new("database", || async { Err::<(), _>("no route to it") });
    let checks = AppChecks { readiness: vec![readiness], health: vec![health] };
    let dashboard = Dashboard::new(&parts.config.dashboard);
    let operators = crate::http::admin_service(&parts, &dashboard, Router::new(), Arc::new(checks));
    let (head, body) = get_path(&operators, "/readyz").await;
    assert!(head.status() == 503 && body.contains("no route to it"), "{body}");
    assert_eq!(runs.load(Relaxed), 0);
}

#[tokio::test]
async fn a_trusted_proxys_request_id_is_kept_and_another_ones_is_not() {
    let service = public_service(&parts(), &app());
    for (peer, expected) in [([127, 0, 0, 1], true), ([203, 0, 113, 1], false)] {
        let request = Request::get("/hello")
            .header(header::HOST, "localhost")
            .header("x-request-id", "abc-1")
            .body(Body::empty())
            .unwrap();
        let response = call(&service, request, peer).await;
        assert_eq!(response.headers()["x-request-id"] == "abc-1", expected);
    }
}

#[tokio::test]
async fn a_request_that_a_layer_refuses_for_want_of_redis_is_counted_once() {
    let mut parts = parts();
    let mut config = Config::clone(&parts.config);
    // Without keys every request that uses state is refused for that.
    config.session.secrets = vec![Secret::from_bytes(&[7; 32]).unwrap()];
    parts.config = Arc::new(config);
    let limited: AppFactory = Arc::new(|fleet| {
        let limit = RateLimitLayer::new(fleet.redis(), "site", LimitQuota::per_second(1));
        Router::new()
            .route("/closed", get(explode).layer(limit.clone().on_redis_down(OnRedisDown::Closed)))
            .route("/open", get(|| async { "open" }).layer(limit.on_redis_down(OnRedisDown::Open)))
    });
    let service = public_service(&parts, &limited);
    assert_eq!(get_path(&service, "/open").await.0.status(), 200);
    assert_eq!(parts.scoreboard.row(0).snapshot(0).unavailable, 0);
    assert_eq!(get_path(&service, "/closed").await.0.status(), 503);
    assert_eq!(parts.scoreboard.row(0).snapshot(0).unavailable, 1);
}

#[tokio::test]
async fn metrics_are_openmetrics_and_count_every_answer() {
    let parts = parts();
    parts.scoreboard.set_slots(1);
    let service = public_service(&parts, &app());
    get_path(&service, "/hello").await;
    get_path(&service, "/visit").await;
    let request = Request::get("/metrics")
        .header(header::HOST, "localhost")
        .header(header::ACCEPT, "application/openmetrics-text; version=1.0.0");
    let (_, text) = send(&admin_service(&parts), request.body(Body::empty()).unwrap()).await;
    for line in [
        "regatta_requests_total{slot=\"0\",status_class=\"2xx\"} 1",
        "regatta_requests_total{slot=\"0\",status_class=\"5xx\"} 1",
        "regatta_requests_unavailable_total{slot=\"0\"} 1",
        "regatta_request_duration_seconds_count 2",
        "regatta_request_duration_seconds_bucket{le=\"+Inf\"} 2",
        "# EOF",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}
