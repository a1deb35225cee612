//! Redis killed, frozen or unreachable.

use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::redis::RedisStatus;

use crate::process::redis::outages::{Watch, assert_defined, assert_shown, impatient, page};
use crate::support::client::{CookieClient, Request};
use crate::support::fault_proxy::{FaultProxy, LinkState};
use crate::support::fleet::TestFleetBuilder;
use crate::support::redis::{TestRedis, eventually};
use crate::support::{client, process, wait};

/// What a worker may hold on to in an outage, bytes.
const MEMORY: u64 = 20 * 1024 * 1024;

#[test]
fn redis_is_killed_and_started_again() {
    let mut redis = TestRedis::start();
    let fleet = impatient(TestFleetBuilder::on(&redis)).start();
    let mut watch = Watch::start(&fleet);
    let memory = || fleet.workers().into_iter().map(process::private_memory).max().unwrap();
    let before = memory();
    redis.kill();
    watch.fault_begins();
    watch.last(1000);
    let grown = memory().saturating_sub(before);
    assert!(grown < MEMORY, "{grown} bytes more");
    watch.fault_is_over();
    redis.restart();
    assert_shown(&watch.end("F2 killed", &fleet), "stale");
}

#[test]
fn redis_is_frozen_and_goes_on() {
    let redis = TestRedis::start();
    let fleet = impatient(TestFleetBuilder::on(&redis)).start();
    let mut watch = Watch::start(&fleet);
    redis.stop();
    watch.fault_begins();
    watch.last(500);
    watch.fault_is_over();
    redis.cont();
    let during = watch.end("F3 frozen", &fleet);
    assert_shown(&during, "stale");
}

#[test]
fn redis_becomes_a_black_hole() {
    let redis = TestRedis::start();
    let proxy = FaultProxy::before(&redis);
    let fleet = impatient(TestFleetBuilder::through(&proxy)).start();
    let mut watch = Watch::start(&fleet);
    let connections = proxy.accepted().len();
    proxy.set_link(LinkState::BlackHole);
    watch.fault_begins();
    let since = std::time::Instant::now();
    wait::until("every worker tries another connection", wait::LONG, || {
        proxy.accepted().len() >= connections + fleet.workers().len()
    });
    println!("F4 black hole: connections replaced after {:?}", since.elapsed());
    watch.last(500);
    watch.fault_is_over();
    proxy.set_link(LinkState::Open);
    assert_shown(&watch.end("F4 black hole", &fleet), "stale");
}

#[test]
fn a_stale_page_takes_and_gives_nothing() {
    let mut redis = TestRedis::start();
    let fleet = impatient(TestFleetBuilder::on(&redis)).workers(1).start();
    let mut visitor = CookieClient::default();
    for _ in 0..3 {
        visitor.view(fleet.listen);
    }
    let cookies = visitor.cookies.clone();
    redis.kill();
    wait::until("Redis is away", wait::LONG, || fleet.get("/").status == 503);
    for method in ["GET", "HEAD"] {
        let response = visitor.request(fleet.listen, Request::new(method, "/").header("Accept", "text/html"));
        assert_eq!((response.status, response.header("Session-State")), (200, "stale"), "{response:?}");
        assert_eq!(response.header("Cache-Control"), "no-store");
        assert!(response.all("Set-Cookie").is_empty(), "{response:?}");
    }
    let response = visitor.request(fleet.listen, page());
    assert_defined(&response);
    let text = response.text();
    assert!(!text.contains("id=\"views\"") && text.contains("<dd id=\"total\">–</dd>"), "{text}");
    // A stranger's page has everything else, too.
    let response = client::once(fleet.listen, page()).unwrap();
    assert_eq!((response.status, response.header("Session-State")), (200, "unknown"), "{response:?}");
    assert_defined(&response);
    for request in [Request::get("/"), Request::post("/counters/x"), Request::get("/counters/x")] {
        assert_eq!(visitor.request(fleet.listen, request).status, 503);
    }
    assert_eq!(visitor.cookies, cookies);
    let metrics = fleet.operator("/metrics").text();
    let stale =
        metrics.lines().find_map(|line| line.strip_prefix("regatta_requests_stale_total{slot=\"0\"} "));
    assert!(stale.is_some_and(|count| count.parse::<u64>().unwrap() >= 3), "{metrics}");
    redis.restart();
    // The server was empty when it came back: that session is gone, which now is known.
    wait::until("a session is made", wait::LONG, || {
        let response = visitor.request(fleet.listen, Request::get("/"));
        response.status == 200 && response.header("Session-State").is_empty()
    });
    assert_ne!(visitor.cookies, cookies);
}

#[test]
fn whoever_wants_no_stale_pages_has_none() {
    let mut redis = TestRedis::start();
    let fleet = impatient(TestFleetBuilder::on(&redis)).set("REGATTA_SESSION__STALE_IF_ERROR", "0s").start();
    let mut visitor = CookieClient::default();
    let login = Request::post("/login").body("application/json", b"{\"name\":\"ann\"}");
    assert_eq!(visitor.request(fleet.listen, login).status, 200);
    assert_eq!(visitor.request(fleet.listen, Request::get("/me")).status, 200);
    redis.kill();
    wait::until("Redis is away", wait::LONG, || fleet.get("/").status == 503);
    for _ in 0..10 {
        assert_eq!(visitor.request(fleet.listen, Request::get("/me")).status, 503);
        let response = visitor.request(fleet.listen, page());
        assert_eq!((response.status, response.header("Session-State")), (200, "unknown"), "{response:?}");
        assert_defined(&response);
    }
}

#[test]
fn session_data_is_shown_as_last_known_and_no_number_is() {
    let mut redis = TestRedis::start();
    let fleet = impatient(TestFleetBuilder::on(&redis)).workers(1).start();
    let mut visitor = CookieClient::default();
    let login = Request::post("/login").body("application/json", b"{\"name\":\"ann\"}");
    assert_eq!(visitor.request(fleet.listen, login).status, 200);
    assert_eq!(visitor.view(fleet.listen).1, 1);
    let cookies = visitor.cookies.clone();
    redis.kill();
    wait::until("Redis is away", wait::LONG, || fleet.get("/").status == 503);
    let response = visitor.request(fleet.listen, Request::get("/me"));
    assert_eq!((response.status, response.header("Session-State")), (200, "stale"), "{response:?}");
    assert_eq!(response.json()["user"], "ann");
    let response = visitor.request(fleet.listen, Request::get("/"));
    response.assert_problem(503);
    assert!(!response.header("Retry-After").is_empty() && response.header("Session-State").is_empty());
    assert_eq!(visitor.cookies, cookies);
}

#[tokio::test]
async fn a_crowd_of_workers_does_not_come_back_as_one() {
    let redis = TestRedis::start();
    let proxy = FaultProxy::before(&redis);
    let mut workers = Vec::new();
    for _ in 0..64 {
        workers.push(proxy.connect(&redis, "p", ScriptingMode::Auto).await);
    }
    proxy.set_link(LinkState::Down);
    eventually("all have noticed", async || workers.iter().all(|worker| !worker.status().is_up())).await;
    // Long enough that the pauses have grown.
    wait::pass(std::time::Duration::from_secs(3)).await;
    let (known, since) = (proxy.accepted().len(), std::time::Instant::now());
    proxy.set_link(LinkState::Open);
    eventually("all are back", async || workers.iter().all(|worker| worker.status() == RedisStatus::Up))
        .await;
    let mut tenths = std::collections::BTreeMap::new();
    for at in &proxy.accepted()[known..] {
        *tenths.entry(at.duration_since(since).as_millis() / 100).or_insert(0) += 1;
    }
    println!("F13 reconnects of 64 by tenths of a second: {tenths:?}");
    assert!(tenths.len() > 3, "{tenths:?}");
}
