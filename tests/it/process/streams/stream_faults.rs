//! What may happen to a fleet under live streams without costing one message, or bringing one twice.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::delivery_scenario::DeliveryScenario;
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::operate::{rollout, settled};
use crate::support::redis::TestRedis;
use crate::support::{process, soak, wait};

/// Clients of each scenario.
fn clients() -> usize {
    soak::length(60, 300)
}

/// So long may requests take to end; who waits for it to let streams end has failed.
const DRAIN: &str = "60s";

/// A Redis that keeps what it has answered.
fn durable() -> TestRedis {
    // Synced each time: with everysec a busy disk holds back what was answered already, and a kill loses it.
    TestRedis::start_with(&["--appendonly", "yes", "--appendfsync", "always"])
}

/// Two workers, replaced quickly.
fn plan(redis: &TestRedis) -> TestFleetBuilder {
    TestFleetBuilder::on(redis)
        .workers(2)
        .set("REGATTA_WORKERS__CANARY_PERIOD", "300ms")
        .set("REGATTA_DRAIN__TIMEOUT", DRAIN)
}

/// Waits until no worker of before is left: streams must not hold them.
#[track_caller]
fn gone(before: &[u32]) {
    wait::until("the old workers are gone", wait::LONG, || !before.iter().any(|pid| process::alive(*pid)));
}

#[test]
fn workers_killed_again_and_again_cost_no_message() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).start();
    let stage = DeliveryScenario::busy(&[fleet.listen], clients());
    for round in 0..soak::length(6, 60) {
        let victim = fleet.workers()[round % 2];
        fleet.crash(victim);
        stage.more(60);
        stage.listens();
    }
    let balance = stage.close("workers killed");
    assert!(balance.cut > 0 && balance.finished == 0, "{balance}");
}

#[test]
fn both_workers_killed_at_once_cost_no_message() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).start();
    let stage = DeliveryScenario::busy(&[fleet.listen], clients());
    for _ in 0..soak::length(2, 20) {
        let before = fleet.ready().len();
        let victims = fleet.workers();
        victims.iter().for_each(|pid| process::signal(*pid, Signal::SIGKILL));
        wait::until("both have successors", wait::LONG, || fleet.ready().len() >= before + 2);
        stage.more(60);
        stage.listens();
    }
    let balance = stage.close("both workers killed");
    assert!(balance.resumed >= clients() as u64, "{balance}");
}

#[test]
fn who_has_heard_nothing_yet_misses_nothing_either() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).start();
    for round in 0..soak::length(2, 10) {
        // Topics of their own, about which no one knows anything.
        let topics = [format!("q{round}"), format!("n{round}")];
        let mut stage = DeliveryScenario::with(&[fleet.listen], &[&topics[0], &topics[1]], clients());
        let before = fleet.workers();
        match round % 2 {
            0 => fleet.signal(Signal::SIGHUP),
            _ => before.iter().for_each(|pid| process::signal(*pid, Signal::SIGKILL)),
        }
        stage.add_publisher(Duration::from_millis(10), 0, None);
        gone(&before);
        stage.listens();
        settled(&fleet, 2);
        stage.more(10);
        let balance = stage.close("nothing heard yet");
        assert!(balance.resumed >= clients() as u64, "{balance}");
    }
}

#[test]
fn reloads_end_streams_politely_and_soon() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).start();
    let stage = DeliveryScenario::busy(&[fleet.listen], clients());
    let mut longest = Duration::ZERO;
    for _ in 0..soak::length(3, 20) {
        let (before, begin) = (fleet.workers(), Instant::now());
        rollout(&fleet, Signal::SIGHUP, "reload");
        gone(&before);
        longest = longest.max(begin.elapsed());
        stage.more(60);
    }
    settled(&fleet, 2);
    let balance = stage.close("reloads");
    soak::log("reloads", &format!("the longest took {longest:.1?} until the old workers were gone"));
    assert_eq!((balance.cut, balance.unanswered), (0, 0), "{balance}");
    assert!(balance.finished >= clients() as u64, "{balance}");
}

#[test]
fn upgrades_end_streams_politely() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).start();
    let stage = DeliveryScenario::busy(&[fleet.listen], clients());
    for _ in 0..soak::length(2, 10) {
        let before = fleet.workers();
        rollout(&fleet, Signal::SIGUSR2, "upgrade");
        gone(&before);
        stage.more(60);
    }
    settled(&fleet, 2);
    let balance = stage.close("upgrades");
    assert_eq!((balance.cut, balance.unanswered), (0, 0), "{balance}");
    assert!(balance.finished >= clients() as u64, "{balance}");
}

#[test]
fn scaling_moves_streams_and_loses_none() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).start();
    let stage = DeliveryScenario::busy(&[fleet.listen], clients());
    for _ in 0..soak::length(2, 10) {
        fleet.signal(Signal::SIGTTIN);
        settled(&fleet, 3);
        stage.more(60);
        // Someone is to sit where the cut comes: new connections are spread over three.
        let extra = DeliveryScenario::with(&[fleet.listen], &["x", "y"], 30);
        fleet.signal(Signal::SIGTTOU);
        settled(&fleet, 2);
        stage.more(60);
        extra.listens();
        let balance = extra.close("extra");
        assert_eq!((balance.cut, balance.unanswered), (0, 0), "{balance}");
    }
    let balance = stage.close("scaling");
    assert_eq!((balance.cut, balance.unanswered), (0, 0), "{balance}");
}

#[test]
fn a_stop_ends_streams_politely_and_soon() {
    let redis = TestRedis::start();
    let mut fleet = plan(&redis).start();
    let stage = DeliveryScenario::busy(&[fleet.listen], clients());
    // Long before `drain.timeout`, or this fails.
    assert_eq!(fleet.stop(), 0);
    let records = stage.subscribers.records();
    let cut: u64 = records.iter().map(|record| record.cut).sum();
    let ended: u64 = records.iter().map(|record| record.finished).sum();
    assert!(cut == 0 && ended >= clients() as u64, "{}", stage.subscribers.summary());
    let again = fleet.plan().clone().set("REGATTA_LISTEN", &fleet.listen.to_string()).start();
    stage.listens();
    stage.more(60);
    stage.close("stop and start");
    drop(again);
}

#[test]
fn redis_killed_and_restarted_costs_no_message_and_no_stream() {
    let mut redis = durable();
    let fleet = plan(&redis).start();
    let stage = DeliveryScenario::busy(&[fleet.listen], clients());
    for round in 0..soak::length(3, 20) {
        redis.kill();
        // Sometimes away for a while, sometimes back at once.
        wait::let_pass(Duration::from_millis(400) * (round % 3));
        redis.restart();
        stage.more(60);
    }
    let balance = stage.close("Redis killed");
    assert_eq!(balance.resumed, 0, "streams outlive Redis: {balance}");
}

#[test]
fn redis_that_stands_still_costs_no_message_and_no_stream() {
    let redis = durable();
    let fleet = plan(&redis).start();
    let stage = DeliveryScenario::busy(&[fleet.listen], clients());
    for _ in 0..soak::length(1, 10) {
        redis.stop();
        wait::let_pass(Duration::from_secs(3));
        redis.cont();
        stage.more(60);
    }
    let balance = stage.close("Redis stood still");
    assert_eq!(balance.resumed, 0, "streams outlive Redis: {balance}");
}

#[test]
fn the_private_redis_killed_costs_no_message() {
    let fleet = TestFleetBuilder::new().workers(2).start();
    let stage = DeliveryScenario::busy(&[fleet.listen], clients());
    for _ in 0..soak::length(2, 10) {
        let server = fleet.others();
        assert_eq!(server.len(), 1, "{}", fleet.log());
        process::signal(server[0], Signal::SIGKILL);
        gone(&server);
        stage.more(60);
    }
    let balance = stage.close("private Redis killed");
    assert_eq!(balance.resumed, 0, "streams outlive Redis: {balance}");
}

#[test]
fn news_that_are_lost_are_read_up() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).start();
    let stage = DeliveryScenario::busy(&[fleet.listen], clients());
    for _ in 0..soak::length(10, 200) {
        redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        stage.more(20);
    }
    let balance = stage.close("news connections killed");
    assert_eq!((balance.resumed, balance.unanswered), (0, 0), "{balance}");
}

/// Everything at once, in turn and at random.
#[test]
fn a_bad_day_costs_no_message() {
    let mut redis = durable();
    let fleet = plan(&redis).start();
    let stage = DeliveryScenario::busy(&[fleet.listen], clients());
    for _ in 0..soak::length(1, 10) {
        rollout(&fleet, Signal::SIGHUP, "reload");
        // One that leaves has no successor to come.
        settled(&fleet, 2);
        crash_any(&fleet);
        redis.restart();
        redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        stage.more(30);
        fleet.signal(Signal::SIGTTIN);
        settled(&fleet, 3);
        crash_any(&fleet);
        rollout(&fleet, Signal::SIGUSR2, "upgrade");
        fleet.signal(Signal::SIGTTOU);
        settled(&fleet, 2);
        stage.more(30);
    }
    stage.close("a bad day");
}

/// Kills one of the workers that serve.
fn crash_any(fleet: &TestFleet) {
    let ready: Vec<_> = fleet.ready().into_iter().map(|(_, pid)| pid).collect();
    let serving = fleet.workers().into_iter().filter(|pid| ready.contains(pid)).collect::<Vec<_>>();
    fleet.crash(serving[rand::random_range(0..serving.len())]);
}
