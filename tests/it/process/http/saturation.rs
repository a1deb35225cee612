//! Beyond saturation the fleet still serves: no refusal of its own making, no stale answer, no count that is wrong.

use std::time::Duration;

use crate::support::client_swarm::{ClientSwarm, SwarmPace, SwarmPlan as Load, SwarmRequest};
use crate::support::fleet::TestFleetBuilder;
use crate::support::redis::TestRedis;
use crate::support::saturation::{closed, unharmed};
use crate::support::wait;

#[test]
fn five_hundred_kept_connections_are_all_served() {
    closed("512 kept connections", 512, SwarmRequest::View);
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
