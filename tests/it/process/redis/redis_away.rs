//! Redis away is a defined state: no hang, no 500, no lost cookie, and normal again soon after.

use std::time::{Duration, Instant};

use crate::support::client::{CookieClient, Failure, Request, Response};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::parallel_clients::ParallelClients;
use crate::support::redis::TestRedis;
use crate::support::{client, wait};

/// How soon the fleet serves state again once Redis answers, as promised.
const BACK: Duration = Duration::from_secs(2);

/// No answer takes as long as this, whatever Redis does: far above the patience, far below a hang.
const HANG: Duration = Duration::from_secs(3);

fn fleet(redis: &TestRedis) -> TestFleetBuilder {
    // Short, so that what comes after it is seen soon.
    TestFleetBuilder::on(redis).set("REGATTA_REDIS__PATIENCE", "400ms")
}

/// That this is how a stateful route answers while Redis is away.
#[track_caller]
fn assert_away(response: &Response) {
    response.assert_problem(503);
    let retry_after: u64 = response.header("Retry-After").parse().expect("Retry-After in seconds");
    assert!((1..=60).contains(&retry_after), "{response:?}");
    assert!(response.all("Set-Cookie").is_empty(), "{response:?}");
}

/// What needs no Redis is served without it.
#[track_caller]
fn assert_stateless_routes_serve(fleet: &TestFleet) {
    assert_eq!(fleet.get("/hello").status, 200);
    assert_eq!(fleet.get("/health").status, 200);
    assert_eq!(fleet.operator("/livez").status, 200);
    assert_eq!(fleet.operator("/metrics").status, 200);
}

#[test]
fn boots_without_redis_and_serves_state_once_it_is_there() {
    let mut redis = TestRedis::absent(&[]);
    let fleet = fleet(&redis).start();
    assert_stateless_routes_serve(&fleet);
    for _ in 0..10 {
        assert_away(&fleet.get("/"));
        assert_away(&fleet.get("/counters/x"));
    }
    let unready = fleet.operator("/readyz");
    assert_eq!(unready.status, 503);
    assert_eq!(unready.json()["status"], "unready");
    assert!(unready.json()["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{unready:?}");
    redis.restart();
    wait::until("visits are served", BACK, || fleet.get("/").status == 200);
    wait::until("every worker is ready", BACK, || {
        (0..20).all(|_| fleet.operator("/readyz").json()["status"] == "ready")
    });
}

#[test]
fn a_wrong_redis_keeps_a_fleet_unready_and_says_why() {
    let redis = TestRedis::start();
    redis.cli(&["CONFIG", "SET", "requirepass", "a password nobody gave us"]);
    let fleet = fleet(&redis).start();
    assert_away(&fleet.get("/"));
    let unready = fleet.operator("/readyz");
    assert_eq!(unready.status, 503);
    assert!(unready.json()["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{unready:?}");
    assert!(!fleet.log().contains("a password nobody gave us"));
}

/// Visits of several clients, each with its cookie, each answer timed.
fn visits(fleet: &TestFleet) -> ParallelClients<(Result<Response, Failure>, Duration)> {
    let address = fleet.listen;
    ParallelClients::start(4, |_| {
        let mut visitor = CookieClient::default();
        move || {
            let begin = Instant::now();
            let had = visitor.cookies.clone();
            let result = visitor.try_request(address, Request::get("/"));
            if result.as_ref().is_ok_and(|response| response.status == 503) {
                assert_eq!(visitor.cookies, had, "a 503 touches no cookie");
            }
            (result, begin.elapsed())
        }
    })
}

/// That every answer was a counted visit or a defined refusal, came in time, and that no client saw its views go back,
/// unless the server began anew; how many were refused.
#[track_caller]
fn assert_defined(results: Vec<Vec<(Result<Response, Failure>, Duration)>>) -> usize {
    let mut refused = 0;
    for client in results {
        let mut counted = 0;
        for (result, took) in client {
            let response = result.expect("every request is answered");
            assert!(took < HANG, "an answer took {took:?}");
            if response.status == 200 {
                let views = response.view().1;
                assert!(views > counted || views == 1, "{views} after {counted}");
                assert!(response.header("Session-State").is_empty(), "{response:?}");
                counted = views;
            } else {
                assert_away(&response);
                refused += 1;
            }
        }
    }
    refused
}

#[test]
fn redis_killed_and_restarted_under_load() {
    let mut redis = TestRedis::start();
    let fleet = fleet(&redis).start();
    let load = visits(&fleet);
    wait::until("visits", wait::LONG, || load.seen() > 100);
    redis.kill();
    wait::until("a visit without a session is refused", HANG, || fleet.get("/").status == 503);
    assert_stateless_routes_serve(&fleet);
    let degraded = fleet.operator("/readyz");
    assert_eq!((degraded.status, &degraded.json()["status"]), (200, &"degraded".into()));
    let seen = load.seen();
    wait::until("refusals go on", wait::LONG, || load.seen() > seen + 100);
    redis.restart();
    wait::until("visits are served again", BACK, || fleet.get("/").status == 200);
    wait::until("every worker is back", BACK, || (0..20).all(|_| fleet.get("/").status == 200));
    let seen = load.seen();
    wait::until("visits go on", wait::LONG, || load.seen() > seen + 100);
    assert!(assert_defined(load.stop()) > 0, "nobody was refused");
    wait::until("no worker is degraded", BACK, || {
        (0..20).all(|_| fleet.operator("/readyz").json()["status"] == "ready")
    });
}

#[test]
fn redis_stopped_and_continued_under_load_loses_no_session() {
    let redis = TestRedis::start();
    let fleet = fleet(&redis).start();
    let mut visitor = CookieClient::default();
    for views in 1..=3 {
        assert_eq!(visitor.view(fleet.listen).1, views);
    }
    let load = visits(&fleet);
    wait::until("visits", wait::LONG, || load.seen() > 100);
    redis.stop();
    let begin = Instant::now();
    wait::until("a visit is refused", HANG, || fleet.get("/").status == 503);
    for _ in 0..5 {
        assert_away(&visitor.request(fleet.listen, Request::get("/")));
    }
    assert_stateless_routes_serve(&fleet);
    // Longer than the promise, so that whatever notices a frozen server has noticed it.
    wait::until("the stop lasts", wait::LONG, || begin.elapsed() > BACK);
    redis.cont();
    wait::until("every worker is back", BACK, || (0..20).all(|_| fleet.get("/").status == 200));
    let views = visitor.view(fleet.listen).1;
    assert!((4..=9).contains(&views), "{views}: the session lives, and no view came out of nowhere");
    assert!(assert_defined(load.stop()) > 0);
}

#[test]
fn killed_connections_heal_at_once() {
    let redis = TestRedis::start();
    let fleet = fleet(&redis).start();
    let load = visits(&fleet);
    for _ in 0..10 {
        let seen = load.seen();
        wait::until("visits", wait::LONG, || load.seen() > seen + 50);
        redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    }
    wait::until("every worker is back", BACK, || (0..20).all(|_| fleet.get("/").status == 200));
    assert_defined(load.stop());
}

#[test]
fn a_full_redis_is_a_refusal_and_not_an_error() {
    let redis = TestRedis::start();
    let fleet = fleet(&redis).start();
    let mut visitor = CookieClient::default();
    visitor.view(fleet.listen);
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let response = client::once(fleet.listen, Request::post("/counters/x")).unwrap();
    assert_away(&response);
    assert_eq!(fleet.get("/hello").status, 200);
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    wait::until("visits are served again", BACK, || {
        visitor.request(fleet.listen, Request::get("/")).status == 200
    });
}

#[test]
fn a_fleet_that_waits_for_redis_stops_all_the_same() {
    let redis = TestRedis::absent(&[]);
    let mut fleet = fleet(&redis).start();
    assert_eq!(fleet.stop(), 0);
}

#[test]
fn a_read_only_replica_is_a_refusal_until_it_is_promoted() {
    let redis = TestRedis::start();
    let fleet = fleet(&redis).start();
    let mut visitor = CookieClient::default();
    visitor.view(fleet.listen);
    // Of a primary that is not there.
    redis.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    wait::until("visits are refused", HANG, || fleet.get("/").status == 503);
    for _ in 0..10 {
        assert_away(&fleet.get("/"));
    }
    redis.cli(&["REPLICAOF", "NO", "ONE"]);
    wait::until("every worker is back", BACK, || (0..20).all(|_| fleet.get("/").status == 200));
    // Until the next probe a visit may still be refused, which counts nothing.
    let again = wait::until_some("visits count again", BACK, || {
        Some(visitor.request(fleet.listen, Request::get("/"))).filter(|response| response.status == 200)
    });
    assert_eq!(again.view().1, 2);
}

#[test]
fn a_redis_busy_with_a_script_is_a_refusal_and_no_storm() {
    let redis = TestRedis::start();
    redis.cli(&["CONFIG", "SET", "busy-reply-threshold", "10"]);
    let fleet = fleet(&redis).start();
    let mut visitor = CookieClient::default();
    visitor.view(fleet.listen);
    let connections = || {
        redis
            .cli(&["INFO", "stats"])
            .lines()
            .find_map(|line| line.trim().strip_prefix("total_connections_received:")?.parse::<u64>().ok())
    };
    let before = connections().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| redis.cli(&["EVAL", "while true do end", "0"]));
        wait::until("visits are refused", HANG, || fleet.get("/").status == 503);
        for _ in 0..20 {
            assert_away(&fleet.get("/"));
        }
        assert_stateless_routes_serve(&fleet);
        wait::until("the script is killed", HANG, || redis.cli(&["SCRIPT", "KILL"]).contains("OK"));
    });
    wait::until("every worker is back", BACK, || (0..20).all(|_| fleet.get("/").status == 200));
    // Until the next probe a visit may still be refused, which counts nothing.
    let again = wait::until_some("visits count again", BACK, || {
        Some(visitor.request(fleet.listen, Request::get("/"))).filter(|response| response.status == 200)
    });
    assert_eq!(again.view().1, 2);
    let since = connections().unwrap() - before;
    assert!(since < 30, "{since} connections: nobody reconnects to a server that is only busy");
}
