//! Counts are exact: nothing is counted twice, nothing that was answered is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nix::sys::signal::Signal;

use crate::support::client::{CookieClient, Request};
use crate::support::fleet::TestFleetBuilder;
use crate::support::parallel_clients::ParallelClients;
use crate::support::redis::TestRedis;
use crate::support::{client, parallel_clients, process, wait};

#[test]
fn two_hundred_parallel_visits_of_one_session_count_two_hundred() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(4).start();
    let mut visitor = CookieClient::default();
    assert_eq!(visitor.view(fleet.listen).1, 1);
    let visits = parallel_clients::parallel(20, 10, |_| visitor.clone().view(fleet.listen));
    let views: BTreeSet<_> = visits.iter().map(|(_, views)| *views).collect();
    assert_eq!(views, (2..=201).collect(), "every visit has its own number");
    let pids: BTreeSet<_> = visits.iter().map(|(pid, _)| *pid).collect();
    assert!(pids.len() > 1, "several workers took part");
    assert_eq!(visitor.view(fleet.listen).1, 202);
}

#[test]
fn a_counter_hammered_from_all_workers_is_exact() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(4).start();
    let added = parallel_clients::parallel(8, 50, |_| {
        let response = client::once(fleet.listen, Request::post("/counters/hits")).unwrap();
        (response.worker(), response.json()["value"].as_u64().unwrap())
    });
    let values: BTreeSet<_> = added.iter().map(|(_, value)| *value).collect();
    assert_eq!(values, (1..=400).collect(), "every increment has its own value");
    assert_eq!(added.iter().map(|(pid, _)| pid).collect::<BTreeSet<_>>().len(), 4, "all workers took part");
    let read = fleet.get("/counters/hits").json();
    assert_eq!((&read["name"], &read["value"]), (&"hits".into(), &400.into()));
}

#[test]
fn a_counter_takes_any_step_and_refuses_to_overflow() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).start();
    let add =
        |by: &str| client::once(fleet.listen, Request::post(&format!("/counters/steps?by={by}"))).unwrap();
    assert_eq!(add("40").json()["value"], 40);
    assert_eq!(add("-50").json()["value"], -10);
    assert_eq!(add("9223372036854775807").json()["value"], i64::MAX - 10);
    let refused = add("11");
    assert!((400..500).contains(&refused.status), "{refused:?}");
    refused.assert_problem(refused.status);
    assert_eq!(fleet.get("/counters/steps").json()["value"], i64::MAX - 10, "a refused step changes nothing");
    for nonsense in ["", "x", "1.5", "9223372036854775808", "1;2"] {
        let refused = add(nonsense);
        assert!((400..500).contains(&refused.status), "{nonsense}: {refused:?}");
    }
}

#[test]
fn killed_workers_lose_nothing_that_was_answered() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(4).start();
    let mut visitor = CookieClient::default();
    visitor.view(fleet.listen);
    let shared = Arc::new(visitor.clone());
    let address = fleet.listen;
    let load = ParallelClients::start(6, |_| {
        let visitor = Arc::clone(&shared);
        move || (*visitor).clone().try_request(address, Request::get("/"))
    });
    for pid in fleet.workers() {
        let seen = load.seen();
        wait::until("visits go on", wait::LONG, || load.seen() > seen + 30);
        process::signal(pid, Signal::SIGKILL);
    }
    let results: Vec<_> = load.stop().into_iter().flatten().collect();
    let answered: Vec<_> = results.iter().flatten().map(|response| response.view().1).collect();
    let failed = results.len() - answered.len();
    let distinct: BTreeSet<_> = answered.iter().copied().collect();
    assert_eq!(distinct.len(), answered.len(), "no view was given twice");
    let views = visitor.view(address).1;
    let least = answered.len() as u64 + 2;
    assert!(
        (least..=least + failed as u64).contains(&views),
        "{views} views, {least} answered, {failed} failed"
    );
}

/// What Redis was asked during `act`, without the fleet's own watching and this test's asking.
fn asked(redis: &TestRedis, act: impl FnOnce()) -> BTreeMap<String, u64> {
    let before = redis.commands();
    act();
    let after = redis.commands().into_iter();
    let since = after.map(|(name, calls)| (name.clone(), calls - before.get(&name).unwrap_or(&0)));
    since.filter(|(name, calls)| *calls > 0 && !matches!(name.as_str(), "info" | "ping")).collect()
}

#[test]
fn a_visit_is_one_round_trip_and_few_commands() {
    let redis = TestRedis::start();
    // Its own signing key, so that no one looks after the one in Redis meanwhile.
    let secret = "a signing key of this test's own choice";
    let fleet = TestFleetBuilder::on(&redis).workers(3).set("REGATTA_SESSION__SECRETS", secret).start();
    let mut visitor = CookieClient::default();
    visitor.view(fleet.listen);
    let calls = asked(&redis, || (0..100).for_each(|_| _ = visitor.view(fleet.listen)));
    assert_eq!(calls["fcall"], 100, "{calls:?}");
    let within: u64 = calls.iter().filter(|(name, _)| *name != "fcall").map(|(_, calls)| calls).sum();
    assert!(within <= 810, "8 small commands a visit, all within the call: {calls:?}");
    let calls = asked(&redis, || (0..50).for_each(|_| _ = fleet.get("/counters/x")));
    assert_eq!(calls["fcall"], 50, "{calls:?}");
    let calls = asked(&redis, || {
        for target in ["/hello", "/health", "/heavy?n=100", "/nothing/here"].iter().cycle().take(40) {
            fleet.get(target);
        }
    });
    assert_eq!(calls.get("fcall"), None, "what needs no state asks for none: {calls:?}");
}
