//! Connections that are kept are spread evenly over the workers, and none is lost on its way from one to another.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::client::Connection;
use crate::support::client::Request;
use crate::support::exposition::sum;
use crate::support::fleet::Fleet;
use crate::support::fleet::Plan;
use crate::support::process;
use crate::support::redis::RedisServer;
use crate::support::wait;

/// Connections of these tests, as many as the promise is about.
const KEPT: usize = 64;

/// Opens so many connections, all of them before the first is used.
fn open(fleet: &Fleet, count: usize) -> Vec<Connection> {
    (0..count).map(|_| Connection::open(fleet.listen).expect("no connection is refused")).collect()
}

/// One request on each; the worker that answered it.
#[track_caller]
fn use_all(connections: &mut [Connection]) -> Vec<u32> {
    let ask = |connection: &mut Connection| {
        let response = connection.ask(&Request::get("/hello")).expect("every request is answered");
        assert_eq!(response.status, 200, "{}", response.text());
        response.worker()
    };
    connections.iter_mut().map(ask).collect()
}

/// How many of these answers each worker gave, those that gave none included.
fn shares(fleet: &Fleet, answers: &[u32]) -> Vec<usize> {
    let ready = fleet.ready();
    ready.iter().map(|(_, pid)| answers.iter().filter(|worker| *worker == pid).count()).collect()
}

#[track_caller]
fn assert_even(shares: &[usize]) {
    let (total, workers) = (shares.iter().sum::<usize>(), shares.len());
    let most = shares.iter().max().copied().unwrap_or(0);
    assert!(most * workers * 10 <= total * 11, "one of {workers} workers has {most} of {total}: {shares:?}");
}

fn total(fleet: &Fleet, name: &str) -> f64 {
    sum(&fleet.operator("/metrics").text(), name, &[])
}

#[test]
fn kept_connections_are_even_over_2_4_8_and_16_workers() {
    let redis = RedisServer::start();
    for workers in [2, 4, 8, 16] {
        let fleet = Plan::on(&redis).workers(workers).start();
        let answers = use_all(&mut open(&fleet, KEPT));
        assert_even(&shares(&fleet, &answers));
    }
}

#[test]
fn a_connection_is_counted_once_however_it_came() {
    let redis = RedisServer::start();
    let fleet = Plan::on(&redis).workers(4).start();
    let mut kept = open(&fleet, KEPT);
    let _ = use_all(&mut kept);
    let slots = || fleet.operator("/fleet.json").json()["slots"].as_array().unwrap().clone();
    let sum_of = |name: &str| slots().iter().map(|slot: &Value| slot[name].as_u64().unwrap()).sum::<u64>();
    // The operator's own are counted as well, one for each look.
    wait::until("all are open", wait::LONG, || {
        (KEPT as u64..KEPT as u64 + 3).contains(&sum_of("connections"))
    });
    let before = total(&fleet, "regatta_connections_accepted_total");
    let passed = total(&fleet, "regatta_connections_passed_total");
    assert!(passed > 0.0 && passed <= KEPT as f64, "{passed} of {KEPT}");
    let mut more = open(&fleet, KEPT);
    let _ = use_all(&mut more);
    let after = total(&fleet, "regatta_connections_accepted_total");
    // Two looks at the metrics between.
    let accepted = after - before - KEPT as f64;
    assert!((1.0..=3.0).contains(&accepted), "{before} and {after}");
    drop((kept, more));
    wait::until("none is left in the books", wait::LONG, || sum_of("connections") <= 2);
}

#[test]
fn who_comes_late_gets_what_is_missing() {
    let redis = RedisServer::start();
    let fleet = Plan::on(&redis).workers(2).start();
    let mut kept = open(&fleet, 32);
    let _ = use_all(&mut kept);
    fleet.signal(Signal::SIGTTIN);
    fleet.signal(Signal::SIGTTIN);
    wait::until("four workers serve", wait::LONG, || fleet.ready().len() == 4);
    let mut more = open(&fleet, 32);
    let answers = use_all(&mut more);
    let shares = shares(&fleet, &answers);
    assert!(shares.iter().filter(|share| **share > 8).count() == 2, "the new ones had none: {shares:?}");
    kept.append(&mut more);
    let answers = use_all(&mut kept);
    assert_even(&self::shares(&fleet, &answers));
}

#[test]
fn without_it_and_with_clients_steered_by_their_address_none_is_passed() {
    let redis = RedisServer::start();
    for (name, value) in [("REGATTA_LISTEN__BALANCE", "false"), ("REGATTA_LISTEN__STEERING", "client-ip")] {
        let fleet = Plan::on(&redis).workers(4).set(name, value).start();
        let _ = use_all(&mut open(&fleet, KEPT));
        assert!(total(&fleet, "regatta_connections_passed_total").abs() < 0.5, "{name}");
    }
}

#[test]
fn a_worker_that_stands_still_is_given_none_and_holds_up_none() {
    let redis = RedisServer::start();
    let fleet = Plan::on(&redis).workers(2).set("REGATTA_WORKERS__HANG_TIMEOUT", "0s").start();
    let (_, frozen) = fleet.ready()[0];
    process::signal(frozen, Signal::SIGSTOP);
    // Nothing steers past it, so that about half of these wait in its listener's queue; none waits elsewhere.
    let mut kept = open(&fleet, KEPT);
    let mut answered = 0;
    for connection in &mut kept {
        connection.patience(Duration::from_millis(300));
        let answer = connection.ask(&Request::get("/hello"));
        answered += usize::from(answer.is_ok_and(|answer| answer.worker() != frozen));
    }
    let accepted = total(&fleet, "regatta_connections_accepted_total");
    process::signal(frozen, Signal::SIGCONT);
    assert!(answered >= KEPT / 8, "the kernel sends it some");
    assert!(accepted >= answered as f64, "{accepted} accepted, {answered} answered");
    let mut more = open(&fleet, KEPT);
    let _ = use_all(&mut more);
}
