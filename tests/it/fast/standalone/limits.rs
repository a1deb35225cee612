//! Rate limits around a plain axum router, and without one.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::HeaderName;
use axum::response::Response;
use axum::routing::get;
use regatta::Redis;
use regatta::rate_limit::{Denied, Error, Key, OnRedisDown, Quota, RateLimit, RateLimitLayer, RateLimiter};

use crate::fast::standalone::program::{self, Program};
use crate::support::client::Request;
use crate::support::redis::TestRedis;

/// A program with one route, which counts how often it was reached.
fn limited(server: &TestRedis, layer: impl FnOnce(&Redis, Router) -> Router) -> (Program, impl Fn() -> u64) {
    let reached = Arc::new(AtomicU64::new(0));
    let (count, url) = (Arc::clone(&reached), server.url());
    let program = Program::serve(async move || {
        let redis = program::connect(url.expose(), "limits").await.unwrap();
        let handler = get(move || async move { count.fetch_add(1, Relaxed).to_string() });
        layer(&redis, Router::new().route("/", handler))
    });
    (program, move || reached.load(Relaxed))
}

#[test]
fn two_programs_with_one_redis_count_together() {
    let server = TestRedis::start();
    let layer = |redis: &Redis, app: Router| {
        app.layer(RateLimitLayer::new(redis, "site", Quota::per_minute(1).burst(3)))
    };
    let ((one, _), (other, _)) = (limited(&server, layer), limited(&server, layer));
    let statuses = [&one, &other, &one, &other, &one].map(|program| program.get("/").status);
    assert_eq!(statuses, [200, 200, 200, 429, 429]);
}

#[test]
fn a_cost_that_can_never_be_allowed_is_said_to_be_one() {
    let server = TestRedis::start();
    let (program, reached) = limited(&server, |redis, app| {
        app.layer(RateLimitLayer::new(redis, "small", Quota::per_second(1).burst(3)).cost(4))
    });
    for _ in 0..2 {
        let denied = program.get("/");
        let problem = denied.assert_problem(429);
        assert!(
            problem["detail"].as_str().unwrap().contains("more than its limit can ever allow"),
            "{problem}"
        );
        assert_eq!(denied.header("Retry-After"), "");
    }
    assert_eq!(reached(), 0);
}

#[test]
fn several_layers_are_charged_together_or_not_at_all() {
    let server = TestRedis::start();
    let (program, _) = limited(&server, |redis, app| {
        let narrow = RateLimitLayer::new(redis, "narrow", Quota::per_minute(1).burst(2)).key(Key::global());
        let wide = RateLimitLayer::new(redis, "wide", Quota::per_minute(1).burst(9)).key(Key::global());
        app.layer(wide.with_first_use()).layer(narrow)
    });
    assert_eq!([(); 3].map(|()| program.get("/").status), [200, 200, 429]);
}

#[test]
fn keys_are_headers_or_what_the_program_makes_of_a_request() {
    let server = TestRedis::start();
    let (program, _) = limited(&server, |redis, app| {
        let name = HeaderName::from_static("x-api-key");
        let by_header =
            RateLimitLayer::new(redis, "header", Quota::per_minute(1).burst(2)).key(Key::header(name));
        let own = Key::by(|parts| parts.headers.get("x-tenant")?.to_str().ok().map(str::to_owned));
        let by_tenant = RateLimitLayer::new(redis, "tenant", Quota::per_minute(1).burst(4)).key(own);
        app.layer(by_header).layer(by_tenant)
    });
    let of = |key: &str, tenant: &str| {
        program.request(Request::get("/").header("X-Api-Key", key).header("X-Tenant", tenant)).status
    };
    // The outer limit is decided first, and counts what the inner one denies.
    let statuses = [of("a", "x"), of("a", "x"), of("a", "x"), of("b", "x"), of("c", "x")];
    assert_eq!(statuses, [200, 200, 429, 200, 429]);
    assert_eq!(of("c", "y"), 200);
    assert!(!server.keys().iter().any(|key| key.contains("x-api-key") || key.ends_with(":a")));
}

#[test]
fn one_client_cannot_escape_by_inventing_header_values() {
    let server = TestRedis::start();
    let (program, reached) = limited(&server, |redis, app| {
        let name = HeaderName::from_static("x-api-key");
        app.layer(RateLimitLayer::new(redis, "header", Quota::per_minute(1).burst(1)).key(Key::header(name)))
    });
    for invented in 0..30 {
        program.request(Request::get("/").header("X-Api-Key", &invented.to_string()));
    }
    assert_eq!(reached(), 10);
}

#[test]
fn a_program_may_answer_denied_requests_itself() {
    let server = TestRedis::start();
    let (program, reached) = limited(&server, |redis, app| {
        let answer = |denied: &Denied| {
            let text = format!("{:?} {:?}", denied.violated(), denied.retry_after().is_some());
            Response::builder().status(420).body(Body::from(text)).unwrap()
        };
        app.layer(RateLimitLayer::new(redis, "site", Quota::per_minute(1).burst(1)).on_denied(answer))
    });
    assert_eq!(program.get("/").status, 200);
    let denied = program.get("/");
    assert_eq!((denied.status, denied.text()), (420, "[\"site\"] true".to_owned()));
    assert!(denied.header("RateLimit").contains("\"site\""), "{denied:?}");
    assert_eq!(reached(), 1);
}

#[test]
fn a_handler_reads_what_is_left_and_gives_back_what_should_not_count() {
    let server = TestRedis::start();
    let url = server.url();
    let program = Program::serve(async move || {
        let redis = program::connect(url.expose(), "limits").await.unwrap();
        let left = get(|limit: RateLimit| async move { format!("{:?}", limit.remaining()) });
        let free = get(|limit: RateLimit| async move { limit.refund().await });
        let routes = Router::new().route("/", left).route("/free", free);
        routes.layer(RateLimitLayer::new(&redis, "site", Quota::per_minute(1).burst(5)))
    });
    assert_eq!(program.get("/").text(), "Some(4)");
    assert_eq!(program.get("/free").status, 200);
    assert_eq!(program.get("/").text(), "Some(3)");
}

#[test]
fn requests_at_the_same_time_are_counted_until_their_bodies_were_sent() {
    let server = TestRedis::start();
    let runtime = program::runtime();
    runtime.block_on(async {
        let redis = program::connect(server.url().expose(), "limits").await.unwrap();
        let slots = RateLimiter::new(&redis, "slots", Quota::concurrent(2));
        let (one, _two) = (slots.check("x").await.unwrap(), slots.check("x").await.unwrap());
        assert!(matches!(slots.check("x").await, Err(Error::Denied(_))));
        drop(one);
        let mut freed = false;
        for _ in 0..200 {
            freed = slots.check("x").await.is_ok();
            if freed {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(freed, "a place that was given up is free again");
    });
}

#[test]
fn a_limit_without_http_counts_by_any_key_and_can_be_reset() {
    let server = TestRedis::start();
    let runtime = program::runtime();
    runtime.block_on(async {
        let redis = program::connect(server.url().expose(), "limits").await.unwrap();
        let mails = RateLimiter::new(&redis, "mails", Quota::per_minute(1).burst(3));
        assert_eq!(mails.check("ann").await.unwrap().remaining(), Some(2));
        assert_eq!(mails.check_n("ann", 2).await.unwrap().remaining(), Some(0));
        assert!(matches!(mails.check("ann").await, Err(Error::Denied(_))));
        assert_eq!(mails.check_n("ben", 0).await.unwrap().remaining(), Some(3));
        assert!(matches!(mails.check_n("ben", 4).await, Err(Error::Denied(_))));
        mails.reset("ann").await.unwrap();
        assert_eq!(mails.check("ann").await.unwrap().remaining(), Some(2));
    });
    assert!(!server.keys().iter().any(|key| key.contains("ann")), "only a digest is stored");
}

/// A handler that asks a limit.
async fn ask(limiter: RateLimiter, cost: u64) -> Result<&'static str, Error> {
    limiter.check_n("ann", cost).await?;
    Ok("allowed")
}

#[test]
fn what_a_limit_without_http_denies_is_answered_with_its_own_wait() {
    let server = TestRedis::start();
    let url = server.url();
    let program = Program::serve(async move || {
        let redis = program::connect(url.expose(), "limits").await.unwrap();
        let rare = RateLimiter::new(&redis, "rare", Quota::per(1, Duration::from_secs(3600)).burst(2));
        let never = rare.clone();
        Router::new()
            .route("/one", get(move || ask(rare.clone(), 1)))
            .route("/three", get(move || ask(never.clone(), 3)))
    });
    assert_eq!([(); 2].map(|()| program.get("/one").status), [200, 200]);
    let denied = program.get("/one");
    let problem = denied.assert_problem(429);
    assert_eq!(problem["violated-policies"], serde_json::json!(["rare"]));
    assert!(denied.header("Retry-After").parse::<u64>().unwrap() > 60, "{denied:?}");
    let impossible = program.get("/three");
    let problem = impossible.assert_problem(429);
    assert_eq!(problem["violated-policies"], serde_json::json!(["rare"]));
    assert_eq!(impossible.header("Retry-After"), "");
}

#[test]
fn an_answer_of_the_programs_own_keeps_the_status_of_a_failure() {
    let server = TestRedis::start();
    let answer = |denied: &Denied| {
        let text = format!("own {:?}", denied.violated());
        Response::builder().status(420).header("Retry-After", "7").body(Body::from(text)).unwrap()
    };
    let (program, _) = limited(&server, move |redis, app| {
        let closed = RateLimitLayer::new(redis, "closed", Quota::per_minute(1).burst(9))
            .on_redis_down(OnRedisDown::Closed)
            .on_denied(answer);
        // No session layer is outside of it.
        let of_users = RateLimitLayer::new(redis, "users", Quota::per_minute(1).burst(9)).key(Key::user());
        app.layer(closed).route("/users", get(|| async { "" }).layer(of_users.on_denied(answer)))
    });
    let broken = program.get("/users");
    assert_eq!((broken.status, broken.text()), (500, "own []".to_owned()));
    assert_eq!(broken.header("Retry-After"), "");
    assert_eq!(program.get("/").status, 200);
    drop(server);
    let away = program.get("/");
    assert_eq!((away.status, away.text()), (503, "own []".to_owned()));
    assert!(away.header("Retry-After").parse::<u64>().is_ok_and(|seconds| seconds < 7), "{away:?}");
}
