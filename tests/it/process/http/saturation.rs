//! Beyond saturation the fleet still serves: no refusal of its own making, no stale answer, no count that is wrong.

use std::time::Duration;

use crate::support::burners::Burners;
use crate::support::client_swarm::{ClientSwarm, SwarmPace, SwarmPlan as Load, SwarmReport, SwarmRequest};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::{soak, wait};

/// How long a load lasts.
fn lasting() -> Duration {
    Duration::from_secs(soak::length(3, 20))
}

/// The crowd's answers are all right, and the workers are those that were there before it came.
#[track_caller]
fn unharmed(fleet: &TestFleet, scenario: &str, before: &[u32], report: &SwarmReport) {
    soak::log(scenario, &report.to_string());
    assert_eq!(fleet.workers(), before, "{scenario}: workers were replaced\n{}", fleet.log());
    report.is_clean();
}

/// Clients in a closed loop on a fleet of two workers.
#[track_caller]
fn closed(scenario: &str, clients: usize, ask: SwarmRequest) {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    let before = fleet.workers();
    let crowd = ClientSwarm::start(Load::closed(fleet.listen, clients, ask));
    wait::until("every client was answered once", wait::LONG, || {
        assert_eq!(crowd.failed(), 0, "{scenario}: requests failed\n{}", fleet.log());
        crowd.answered() >= clients as u64
    });
    let report = crowd.last(lasting());
    unharmed(&fleet, scenario, &before, &report);
    report.is_exact();
}

#[test]
fn five_hundred_kept_connections_are_all_served() {
    closed("512 kept connections", 512, SwarmRequest::View);
}

#[test]
fn a_thousand_kept_connections_are_all_served() {
    closed("kept connections by the thousand", soak::length(1000, 6000), SwarmRequest::View);
}

#[test]
fn pages_for_two_hundred_and_fifty_six_browsers_are_all_served() {
    closed("pages", soak::length(256, 4000), SwarmRequest::Page);
}

#[test]
fn handlers_that_compute_for_thousands_of_connections_cost_no_worker() {
    let clients = soak::length(1000, 6000);
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).example("faulty").start();
    let before = fleet.workers();
    let crowd = ClientSwarm::start(Load::closed(fleet.listen, clients, SwarmRequest::Path("/spin/1")));
    wait::until("every client was answered once", 3 * wait::LONG, || crowd.answered() >= clients as u64);
    let report = crowd.last(lasting());
    unharmed(&fleet, "handlers of 1 ms", &before, &report);
}

#[test]
fn four_times_too_few_processors_cost_no_view() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    let before = fleet.workers();
    let burners = Burners::start(4);
    let load = Load::closed(fleet.listen, 32, SwarmRequest::View);
    let crowd = ClientSwarm::start(Load { pace: SwarmPace::Paused(Duration::from_millis(20)), ..load });
    let report = crowd.last(Duration::from_secs(soak::length(6, 600)));
    drop(burners);
    unharmed(&fleet, "busy loops beside the fleet", &before, &report);
    report.is_exact();
}

#[test]
fn a_redis_that_restarts_within_a_moment_is_not_noticed() {
    for away in [300, 1000, 1900].map(Duration::from_millis) {
        // Not `everysec`: while the disk is busy with an fsync Redis answers before it has written, for up to two seconds
        // (redis.conf, `appendfsync`), and a kill loses what it answered.
        let mut redis = TestRedis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
        let fleet = TestFleetBuilder::on(&redis).start();
        let before = fleet.workers();
        let load = Load::closed(fleet.listen, 32, SwarmRequest::View);
        let crowd = ClientSwarm::start(Load { pace: SwarmPace::Paused(Duration::from_millis(5)), ..load });
        wait::until("the clients are served", wait::LONG, || crowd.answered() >= 500);
        redis.kill();
        wait::let_pass(away);
        redis.restart();
        let enough = crowd.answered() + 1000;
        wait::until("they are served again", wait::LONG, || crowd.answered() >= enough);
        let report = crowd.finish();
        unharmed(&fleet, &format!("Redis away for {away:?}"), &before, &report);
        report.is_exact();
    }
}
