//! Upgrades: a new binary, the same sockets, the same process.

use nix::sys::signal::Signal;

use crate::support::process;
use crate::support::soak;
use crate::zero_loss::Scene;

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
