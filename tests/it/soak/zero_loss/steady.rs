//! Nothing leaks: after many rollouts the supervisor and its workers hold what they held after a few.

use nix::sys::signal::Signal;

use crate::soak::zero_loss::Scene;
use crate::support::fleet::TestFleet;
use crate::support::operate::settled;
use crate::support::{process, soak, wait};

/// What the supervisor may grow by: its allocator keeps a page here and there.
const GROWTH: u64 = 2 * 1024 * 1024;

/// What the newest worker holds once it has its connection to Redis and no client.
fn of_a_worker(fleet: &TestFleet) -> Vec<String> {
    let pid = fleet.workers()[0];
    let mut last = Vec::new();
    wait::until("the worker's descriptors settle", wait::LONG, || {
        let now = process::descriptors(pid);
        let same = now == last && now.iter().filter(|kind| *kind == "socket").count() > 2;
        last = now;
        same
    });
    last
}

#[test]
fn rollouts_leak_neither_descriptors_nor_memory() {
    let mut scene = Scene::start("steady over rollouts", |plan| plan);
    let before = |scene: &mut Scene| {
        scene.settled(2);
        (process::descriptors(scene.fleet.pid()), process::private_memory(scene.fleet.pid()))
    };
    // A few first: logs, events and the allocator reach their size.
    scene.rollout(Signal::SIGHUP, "reload");
    scene.rollout(Signal::SIGUSR2, "upgrade");
    let (descriptors, memory) = before(&mut scene);
    let (reloads, upgrades) = soak::length((4, 1), (50, 10));
    for number in 0..reloads {
        scene.rollout(Signal::SIGHUP, "reload");
        if number % (reloads / upgrades) == 0 {
            scene.rollout(Signal::SIGUSR2, "upgrade");
        }
    }
    let (_, grown) = before(&mut scene);
    // One more may be open for a moment, at either look.
    wait::until("no descriptor more than before", wait::LONG, || {
        process::descriptors(scene.fleet.pid()).len() <= descriptors.len()
    });
    soak::log("steady over rollouts", &format!("supervisor: {memory} bytes, then {grown}"));
    assert!(grown <= memory + GROWTH, "the supervisor grew from {memory} to {grown} bytes");
    let (fleet, _) = scene.end();
    let last = of_a_worker(&fleet);
    fleet.signal(Signal::SIGHUP);
    wait::until("one more reload", wait::LONG, || fleet.workers().len() == 2);
    settled(&fleet, 2);
    assert_eq!(of_a_worker(&fleet), last, "of a worker");
}
