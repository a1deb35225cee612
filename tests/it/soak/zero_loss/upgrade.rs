//! Upgrades: a new binary, the same sockets, the same process.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::soak::zero_loss::Scene;
use crate::support::fleet::TestFleetBuilder;
use crate::support::operate::{quiet, settled};
use crate::support::redis::TestRedis;
use crate::support::{process, soak, wait};

#[test]
fn upgrades_fail_no_request() {
    let mut scene = Scene::start("upgrade", |plan| plan);
    let supervisor = scene.fleet.pid();
    for _ in 0..soak::length(2, 10) {
        let before = scene.fleet.workers();
        scene.rollout(Signal::SIGUSR2, "upgrade");
        assert!(process::alive(supervisor), "the same process");
        assert!(scene.fleet.workers() != before, "and other workers");
    }
    scene.settled(2);
    let (fleet, _) = scene.end();
    assert_eq!(process::threads(fleet.pid()), 1);
}

#[test]
fn reloads_scaling_and_upgrades_in_turn_fail_no_request() {
    let mut scene = Scene::start("reload, scale and upgrade in turn", |plan| plan);
    for _ in 0..soak::length(1, 10) {
        scene.rollout(Signal::SIGHUP, "reload");
        scene.fleet.signal(Signal::SIGTTIN);
        scene.settled(3);
        scene.rollout(Signal::SIGUSR2, "upgrade");
        scene.settled(3);
        scene.fleet.signal(Signal::SIGTTOU);
        scene.settled(2);
    }
    scene.end();
}

/// An upgrade takes about this long here: the proof of the new program, the exec, two probations.
const UPGRADE: Duration = Duration::from_secs(2);

#[test]
fn a_signal_at_any_phase_of_an_upgrade_does_no_harm() {
    let mut scene = Scene::start("signals during upgrades", |plan| plan);
    let signals = [Signal::SIGHUP, Signal::SIGUSR2, Signal::SIGUSR1, Signal::SIGTTIN, Signal::SIGTTOU];
    let moments = soak::length(1, 12);
    for number in 0..moments {
        for (nth, signal) in (0..).zip(signals) {
            scene.fleet.signal(Signal::SIGUSR2);
            wait::let_pass(UPGRADE * (number * 5 + nth) / (moments * 5));
            scene.fleet.signal(signal);
        }
        scene.volley.more(50);
    }
    quiet(&scene.fleet);
    scene.rollout(Signal::SIGHUP, "reload");
    scene.rollout(Signal::SIGUSR2, "upgrade");
    let workers = scene.fleet.workers().len();
    settled(&scene.fleet, workers);
    scene.end();
}

#[test]
fn a_stop_at_any_phase_of_an_upgrade_is_a_stop() {
    let redis = TestRedis::start();
    let moments = soak::length(4, 40);
    for number in 0..moments {
        let plan =
            TestFleetBuilder::on(&redis).example("faulty").set("REGATTA_WORKERS__CANARY_PERIOD", "300ms");
        let mut fleet = plan.start();
        fleet.signal(Signal::SIGUSR2);
        wait::let_pass(UPGRADE * number / moments);
        assert_eq!(fleet.stop(), 0, "{}", fleet.log());
    }
}
