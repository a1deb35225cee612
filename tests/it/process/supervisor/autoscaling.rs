//! The load decides how many workers there are, within bounds, with a reason, and without a loss.

use std::time::Duration;

use crate::support::client::Request;
use crate::support::fleet::{TestFleet, TestFleetBuilder, field};
use crate::support::parallel_clients::ParallelClients;
use crate::support::redis::TestRedis;
use crate::support::{client, wait};

fn plan(redis: &TestRedis) -> TestFleetBuilder {
    let bounds = TestFleetBuilder::on(redis).example("faulty").workers(1).set("REGATTA_WORKERS__MAX", "3");
    bounds.set("REGATTA_WORKERS__MIN", "1").set("REGATTA_AUTOSCALE__WINDOW", "1s")
}

/// Clients that keep a loop busy most of the time; every one of their requests has to be answered.
fn busy(fleet: &TestFleet) -> impl FnOnce() {
    let address = fleet.listen;
    let load = ParallelClients::start(3, |_| {
        move || client::once(address, Request::get("/spin/20")).map(|response| response.status)
    });
    move || {
        for result in load.stop().into_iter().flatten() {
            assert_eq!(result, Ok(200), "no request is lost");
        }
    }
}

#[test]
fn load_starts_workers_and_silence_stops_them() {
    let redis = TestRedis::shared();
    let fleet = plan(&redis).start();
    assert_eq!(fleet.workers().len(), 1);
    let stop = busy(&fleet);
    wait::until("the load has its workers", wait::LONG, || fleet.workers().len() == 3);
    let up = fleet.log_lines("autoscaling goes from 1 to 2 workers").pop().expect("the reason is logged");
    assert!(field(&up, "reason").as_str().unwrap().contains("more than 50 %"), "{up}");
    // New connections reach the new ones too.
    wait::let_pass(Duration::from_millis(500));
    stop();
    wait::until("silence stops them", wait::LONG, || fleet.workers().len() == 1);
    let down = fleet.log_lines("autoscaling goes from 3 to 2 workers").pop().expect("the reason is logged");
    assert!(field(&down, "reason").as_str().unwrap().contains("windows in a row"), "{down}");
    assert_eq!(fleet.get("/hello").status, 200);
}

#[test]
fn workers_that_are_stopped_by_the_load_lose_nothing() {
    let redis = TestRedis::shared();
    let fleet = plan(&redis).set("REGATTA_WORKERS__COUNT", "3").unset("WEB_CONCURRENCY").start();
    // So little that workers are stopped under it.
    let address = fleet.listen;
    let load = ParallelClients::start(2, |_| {
        move || client::once(address, Request::get("/hello")).map(|response| response.status)
    });
    wait::until("two of three are stopped", wait::LONG, || fleet.workers().len() == 1);
    for result in load.stop().into_iter().flatten() {
        assert_eq!(result, Ok(200), "no request is lost");
    }
}

#[test]
fn a_dry_run_only_says_what_it_would_do() {
    let redis = TestRedis::shared();
    let fleet = plan(&redis).set("REGATTA_AUTOSCALE__MODE", "dry-run").start();
    let stop = busy(&fleet);
    wait::until("it is said", wait::LONG, || {
        !fleet.log_lines("autoscaling would go from 1 to 2 workers").is_empty()
    });
    wait::let_pass(Duration::from_secs(1));
    stop();
    assert_eq!(fleet.workers().len(), 1);
}
