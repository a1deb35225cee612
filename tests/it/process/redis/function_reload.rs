//! What Redis forgets is put back by the worker that misses it, and no request fails for it.

use crate::support::client::{CookieClient, Request};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::parallel_clients::ParallelClients;
use crate::support::redis::TestRedis;
use crate::support::wait;

/// Runs visits, lets `harm` happen some times in between, and wants every single one served.
fn harmed(fleet: &TestFleet, times: usize, harm: impl Fn()) {
    let address = fleet.listen;
    let load = ParallelClients::start(4, |_| {
        let mut visitor = CookieClient::default();
        move || visitor.try_request(address, Request::get("/"))
    });
    for _ in 0..times {
        let seen = load.seen();
        wait::until("visits", wait::LONG, || load.seen() > seen + 50);
        harm();
    }
    let seen = load.seen();
    wait::until("visits", wait::LONG, || load.seen() > seen + 50);
    for result in load.stop().into_iter().flatten() {
        let response = result.expect("every request is answered");
        assert_eq!(response.status, 200, "{response:?}");
    }
}

#[test]
fn function_flush_in_traffic_fails_no_request_and_loses_no_view() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    let mut visitor = CookieClient::default();
    visitor.view(fleet.listen);
    harmed(&fleet, 5, || _ = redis.cli(&["FUNCTION", "FLUSH"]));
    assert_eq!(visitor.view(fleet.listen).1, 2);
}

#[test]
fn script_flush_in_traffic_fails_no_request_and_loses_no_view() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).set("REGATTA_REDIS__MODE", "evalsha").start();
    let mut visitor = CookieClient::default();
    visitor.view(fleet.listen);
    harmed(&fleet, 5, || _ = redis.cli(&["SCRIPT", "FLUSH"]));
    assert_eq!(visitor.view(fleet.listen).1, 2);
}

#[test]
fn flushall_in_traffic_fails_no_request() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    harmed(&fleet, 5, || _ = redis.cli(&["FLUSHALL"]));
    let mut visitor = CookieClient::default();
    for views in 1..=10 {
        assert_eq!(visitor.view(fleet.listen).1, views);
    }
}

#[test]
fn after_flushall_old_and_new_workers_agree_on_cookies() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(3).start();
    CookieClient::default().view(fleet.listen);
    redis.cli(&["FLUSHALL"]);
    let new = fleet.crash(fleet.workers()[0]);
    wait::until("the new worker serves visits", wait::LONG, || {
        let response = fleet.get("/");
        response.status == 200 && response.worker() == new
    });
    // The generated signing key is gone from Redis too: the new worker may have put another one there.
    wait::until("a cookie of any worker is good at every other", wait::LONG, || {
        let mut visitor = CookieClient::default();
        (1..=20).all(|views| visitor.view(fleet.listen).1 == views)
    });
}

#[test]
fn a_key_of_the_wrong_type_is_no_error_for_ever() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    let mut visitor = CookieClient::default();
    visitor.view(fleet.listen);
    let key = redis.cli(&["KEYS", "*:s:*"]).trim().to_owned();
    redis.cli(&["DEL", &key]);
    redis.cli(&["SET", &key, "garbage"]);
    let seen: Vec<_> = (0..3).map(|_| visitor.request(fleet.listen, Request::get("/")).status).collect();
    assert!(!seen.contains(&500), "{seen:?}");
    assert_eq!(seen[2], 200, "{seen:?}");
}

#[test]
fn evalsha_mode_counts_as_exactly() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(4).set("REGATTA_REDIS__MODE", "evalsha").start();
    let mut visitor = CookieClient::default();
    let views: Vec<_> = (0..30).map(|_| visitor.view(fleet.listen).1).collect();
    assert_eq!(views, (1..=30).collect::<Vec<_>>());
    let functions = redis.cli(&["FUNCTION", "LIST"]);
    assert!(!functions.contains("regatta"), "scripts need no function: {functions}");
}
