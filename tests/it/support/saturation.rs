//! Crowds beyond what a fleet can serve at once, and what is asked of it all the same.

use std::time::Duration;

use crate::support::client_swarm::{ClientSwarm, SwarmPlan as Load, SwarmReport, SwarmRequest};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::{soak, wait};

/// How long a load lasts.
pub(crate) fn lasting() -> Duration {
    Duration::from_secs(soak::length(3, 20))
}

/// The crowd's answers are all right, and the workers are those that were there before it came.
#[track_caller]
pub(crate) fn unharmed(fleet: &TestFleet, scenario: &str, before: &[u32], report: &SwarmReport) {
    soak::log(scenario, &report.to_string());
    assert_eq!(fleet.workers(), before, "{scenario}: workers were replaced\n{}", fleet.log());
    report.is_clean();
}

/// Clients in a closed loop on a fleet of two workers.
#[track_caller]
pub(crate) fn closed(scenario: &str, clients: usize, ask: SwarmRequest) {
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
