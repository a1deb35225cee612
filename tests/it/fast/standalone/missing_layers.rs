//! What a program is told whose layers are missing, or in the wrong order.

use axum::routing::get;
use axum::{Extension, Router};
use regatta::counter::Counters;
use regatta::rate_limit::{Key, Quota, RateLimitLayer};
use regatta::session::{AuthSession, PageView, SessionFields, SessionLayer};
use regatta::ws::WebSocketUpgrade;
use regatta::{ClientIp, FleetHandle, Redis, TrustedProxies, Worker};

use crate::fast::standalone::program::Program;

async fn counters(_: Counters) {}
async fn fields(_: SessionFields) {}
async fn view(_: PageView) {}
async fn auth(_: AuthSession) {}
async fn worker(_: Worker, _: FleetHandle) {}
async fn socket(_: WebSocketUpgrade) {}
async fn client(ClientIp(address): ClientIp) -> String {
    address.to_string()
}

fn routes() -> Router {
    Router::new()
        .route("/counters", get(counters))
        .route("/fields", get(fields))
        .route("/view", get(view))
        .route("/auth", get(auth))
        .route("/worker", get(worker))
        .route("/socket", get(socket))
        .route("/client", get(client))
}

/// Nothing here asks Redis anything.
fn nowhere() -> Redis {
    Redis::connect_lazy("redis://127.0.0.1:1").unwrap()
}

#[track_caller]
fn is_told(program: &Program, target: &str, layer: &str) {
    let problem = program.get(target).assert_problem(500);
    let detail = problem["detail"].as_str().unwrap_or_default();
    assert!(detail.contains(layer), "{target}: {problem}");
}

#[test]
fn without_any_layer_the_answer_names_those_that_help() {
    let program = Program::serve(async || routes());
    for target in ["/counters", "/fields", "/view", "/auth"] {
        is_told(&program, target, "axum::Extension(redis)");
    }
    assert_eq!(program.get("/client").text(), "127.0.0.1");
    assert_eq!(program.get("/worker").status, 500);
    assert_eq!(program.get("/socket").status, 426, "a socket needs no layer");
}

#[test]
fn without_a_session_layer_the_answer_names_it() {
    let program = Program::serve(async || routes().layer(Extension(nowhere())));
    for target in ["/fields", "/view", "/auth"] {
        is_told(&program, target, "SessionLayer::new(&redis)");
    }
    assert_eq!(program.get("/counters").status, 200);
    assert_eq!(program.get("/worker").status, 500);
}

#[test]
fn a_limit_by_session_outside_of_its_layer_is_told_to_go_inside() {
    for key in [Key::session(), Key::user()] {
        let program = Program::serve(async move || {
            let redis = nowhere();
            let limit = RateLimitLayer::new(&redis, "site", Quota::per_second(1)).key(key);
            routes().layer(SessionLayer::new(&redis)).layer(limit)
        });
        is_told(&program, "/client", "SessionLayer::new(&redis)");
    }
}

#[test]
fn a_server_that_tells_no_address_is_told_how() {
    let program = Program::serve_without_addresses(async || {
        let limit = RateLimitLayer::new(&nowhere(), "site", Quota::per_second(1));
        Router::new().route("/limited", get(|| async {}).layer(limit)).merge(routes())
    });
    for target in ["/limited", "/client"] {
        is_told(&program, target, "into_make_service_with_connect_info");
    }
}

#[test]
fn trusted_proxies_that_come_too_late_are_told_so() {
    let program = Program::serve(async || {
        let limit = RateLimitLayer::new(&nowhere(), "site", Quota::per_second(1)).with_first_use();
        routes().layer(TrustedProxies::loopback()).layer(limit)
    });
    is_told(&program, "/client", "TrustedProxies");
}
