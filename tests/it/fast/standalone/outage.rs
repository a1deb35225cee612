//! A plain axum program whose Redis is not there, at its start and later.

use std::time::Duration;

use axum::routing::{get, post};
use axum::{Extension, Router};
use regatta::counter::Counters;
use regatta::rate_limit::{OnRedisDown, Quota, RateLimitLayer};
use regatta::session::{SessionFields, SessionLayer};
use regatta::{Error, Redis, RedisErrorKind, RedisStatus};

use crate::fast::standalone::program::{self, Program};
use crate::support::client::{CookieClient, Request};
use crate::support::redis::TestRedis;
use crate::support::wait;

async fn hit(counters: Counters) -> Result<String, Error> {
    Ok(counters.add("hits", 1).await?.to_string())
}

async fn add(fields: SessionFields) -> Result<String, Error> {
    Ok(fields.incr("items", 1).await?.to_string())
}

fn impatient(server: &TestRedis) -> Redis {
    let builder = Redis::builder().url(server.url().expose()).prefix("outage");
    builder.reconnect_wait(Duration::from_millis(200)).connect_lazy().unwrap()
}

fn serve(server: &TestRedis) -> Program {
    // Inside the runtime, where it begins to connect.
    Program::serve(async || {
        let redis = impatient(server);
        let limit =
            |name, what| RateLimitLayer::new(&redis, name, Quota::per_minute(1).burst(3)).on_redis_down(what);
        let sessions = Router::new().route("/add", post(add)).layer(SessionLayer::new(&redis));
        sessions
            .route("/local", get(|| async { "local" }).layer(limit("local", OnRedisDown::Local)))
            .route("/open", get(|| async { "open" }).layer(limit("open", OnRedisDown::Open)))
            .route("/closed", get(|| async { "closed" }).layer(limit("closed", OnRedisDown::Closed)))
            .route("/hit", get(hit))
            .layer(Extension(redis))
    })
}

#[test]
fn connecting_to_nothing_fails_and_says_where() {
    let runtime = program::runtime();
    let failed = runtime.block_on(Redis::connect("redis://127.0.0.1:1")).unwrap_err();
    assert_eq!((failed.kind(), failed.outcome_is_unknown()), (RedisErrorKind::Unavailable, false));
    assert!(failed.retry_after() > Duration::ZERO);
    let source = std::error::Error::source(&failed).unwrap().to_string();
    assert!(source.contains("Connection refused"), "{source}");
    let wrong = runtime.block_on(Redis::connect("http://ann:hunter2@127.0.0.1")).unwrap_err();
    assert_eq!((wrong.kind(), wrong.outcome_is_unknown()), (RedisErrorKind::InvalidSetting, false));
    let shown = format!("{wrong} {wrong:?}");
    assert!(shown.contains("the URL") && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn a_program_starts_without_redis_and_works_once_it_is_there() {
    let mut server = TestRedis::absent(&[]);
    let program = serve(&server);
    for request in [Request::get("/hit"), Request::post("/add"), Request::get("/closed")] {
        let answer = program.request(request);
        answer.assert_problem(503);
        assert!(answer.header("Retry-After").parse::<u64>().unwrap() > 0, "{answer:?}");
    }
    let allowed = [(); 4].map(|()| program.get("/local").status);
    assert_eq!(allowed, [200, 200, 200, 429], "without Redis this process counts alone");
    assert_eq!([(); 5].map(|()| program.get("/open").status), [200; 5]);
    server.restart();
    wait::until("the program is connected", wait::LONG, || program.get("/hit").status == 200);
    assert_eq!(program.request(Request::post("/add")).text(), "1");
    assert_eq!(program.get("/closed").status, 200);
}

#[test]
fn an_outage_passes_without_a_restart_of_the_program() {
    let mut server = TestRedis::start();
    let program = serve(&server);
    let mut visitor = CookieClient::default();
    wait::until("the program is connected", wait::LONG, || program.get("/hit").status == 200);
    assert_eq!(visitor.request(program.address, Request::post("/add")).text(), "1");
    server.kill();
    wait::until("Redis is missed", wait::LONG, || program.get("/hit").status == 503);
    visitor.request(program.address, Request::post("/add")).assert_problem(503);
    assert_eq!(program.get("/local").status, 200);
    assert_eq!(program.get("/open").status, 200);
    server.restart();
    wait::until("it is connected again", wait::LONG, || program.get("/hit").status == 200);
    assert_eq!(visitor.request(program.address, Request::post("/add")).status, 200);
}

#[test]
fn a_handle_outlives_failures_and_tells_its_status() {
    let mut server = TestRedis::absent(&[]);
    let runtime = program::runtime();
    let redis = runtime.block_on(async { impatient(&server) });
    let counters = Counters::new(&redis);
    assert!(runtime.block_on(counters.add("hits", 1)).is_err());
    wait::until("the failure is known", wait::LONG, || matches!(redis.status(), RedisStatus::Down { .. }));
    server.restart();
    wait::until("it is connected", wait::LONG, || redis.status() == RedisStatus::Up);
    assert_eq!(runtime.block_on(counters.add("hits", 1)).unwrap(), 1);
}

#[test]
fn the_last_handle_ends_the_connection() {
    let server = TestRedis::start();
    let runtime = program::runtime();
    let clients = || server.cli(&["CLIENT", "LIST"]).matches("name=regatta-client").count();
    let redis = runtime.block_on(program::connect(server.url().expose(), "outage")).unwrap();
    assert!(clients() > 0);
    let counters = Counters::new(&redis);
    drop(redis);
    assert_eq!(runtime.block_on(counters.add("hits", 1)).unwrap(), 1);
    drop(counters);
    wait::until("the connection is closed", wait::LONG, || clients() == 0);
}
