//! Beyond saturation, longer and with more clients than in every run.

use std::time::Duration;

use crate::support::burners::Burners;
use crate::support::client_swarm::{ClientSwarm, SwarmPace, SwarmPlan as Load, SwarmRequest};
use crate::support::fleet::TestFleetBuilder;
use crate::support::redis::TestRedis;
use crate::support::saturation::{closed, lasting, unharmed};
use crate::support::{soak, wait};

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
