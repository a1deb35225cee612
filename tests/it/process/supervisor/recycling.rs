//! Workers are renewed by requests, age and memory, and no request is lost for it.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::client::{Failure, Request, Response};
use crate::support::fleet::{TestFleet, TestFleetBuilder, field};
use crate::support::parallel_clients::ParallelClients;
use crate::support::redis::TestRedis;
use crate::support::{client, process, wait};

fn faulty(redis: &TestRedis) -> TestFleetBuilder {
    TestFleetBuilder::on(redis).example("faulty")
}

/// Clients that open a connection for each request. Kept ones are `zero_loss`'s.
fn visitors(fleet: &TestFleet) -> ParallelClients<Result<Response, Failure>> {
    let address = fleet.listen;
    ParallelClients::start(4, |_| move || client::once(address, Request::get("/hello")))
}

/// Ends the load: every single request was answered; by whom.
fn all_served(load: ParallelClients<Result<Response, Failure>>) -> BTreeSet<u32> {
    let results = load.stop().into_iter().flatten();
    results
        .map(|result| {
            let response = result.expect("no request is lost");
            assert_eq!(response.status, 200, "{response:?}");
            response.worker()
        })
        .collect()
}

/// Workers that were renewed for this reason so far.
fn renewed(fleet: &TestFleet, reason: &str) -> usize {
    let lines = fleet.log_lines("worker exited");
    lines.iter().filter(|line| field(line, "reason").as_str() == Some(reason)).count()
}

#[test]
fn workers_that_served_their_requests_are_renewed_without_a_loss() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).set("REGATTA_WORKERS__MAX_REQUESTS", "150").start();
    let load = visitors(&fleet);
    wait::until("four workers were renewed", wait::LONG, || renewed(&fleet, "requests") >= 4);
    // The last successors have been asked, too.
    let enough = load.seen() + 100;
    wait::until("requests are answered", wait::LONG, || load.seen() >= enough);
    let workers = all_served(load);
    assert!(workers.len() >= 6, "{workers:?}");
    assert!(fleet.log_lines("worker crashed").is_empty());
}

#[test]
fn workers_of_age_are_renewed_one_at_a_time_without_a_loss() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(3).set("REGATTA_WORKERS__MAX_AGE", "2s").start();
    let load = visitors(&fleet);
    wait::until("every worker was renewed", wait::LONG, || renewed(&fleet, "age") >= 3);
    all_served(load);
    assert!(fleet.log_lines("worker crashed").is_empty());
    assert!(!fleet.log_lines("recycling worker: it is ").is_empty());
}

#[test]
fn a_worker_that_grows_is_renewed_and_loses_nothing() {
    let redis = TestRedis::shared();
    let fleet = faulty(&redis).set("REGATTA_WORKERS__MEMORY_SOFT", "96MiB").start();
    // Seen once below the limit, a worker that is above it later has grown.
    wait::let_pass(Duration::from_millis(500));
    let load = visitors(&fleet);
    assert_eq!(fleet.get("/leak/128").status, 200);
    wait::until("the heavy one was renewed", wait::LONG, || renewed(&fleet, "memory") == 1);
    all_served(load);
    assert!(fleet.log_lines("worker crashed").is_empty() && fleet.log_lines("worker killed").is_empty());
}

#[test]
fn a_worker_beyond_the_hard_limit_is_killed_and_replaced() {
    let redis = TestRedis::shared();
    let fleet = faulty(&redis).set("REGATTA_WORKERS__MEMORY_HARD", "96MiB").start();
    let before = fleet.workers();
    // It may be found before it has answered.
    drop(client::once(fleet.listen, Request::get("/leak/128")));
    let line =
        wait::until_some("the heavy one is killed", wait::LONG, || fleet.log_lines("killing worker").pop());
    assert_eq!(field(&line, "reason").as_str(), Some("memory"), "{line}");
    let killed = u32::try_from(field(&line, "pid").as_u64().unwrap()).unwrap();
    assert!(before.contains(&killed));
    wait::until("its slot serves again", wait::LONG, || fleet.ready().len() == 3 && !process::alive(killed));
    assert_eq!(fleet.get("/hello").status, 200);
}

#[test]
fn a_limit_below_what_a_new_worker_holds_is_said_and_renews_nobody() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).set("REGATTA_WORKERS__MEMORY_SOFT", "64KiB").start();
    wait::until("it is said", wait::LONG, || fleet.log_lines("workers.memory_soft is too low").len() == 2);
    let before = fleet.workers();
    wait::let_pass(Duration::from_secs(3));
    assert_eq!(fleet.workers(), before);
}
