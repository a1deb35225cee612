//! More slots and fewer slots: what is queued on a slot that closes is answered all the same.

use nix::sys::signal::Signal;

use crate::support::soak;
use crate::support::traffic::Scene;

/// From 2 to 8 slots and back.
const ROUND: [usize; 2] = [8, 2];

#[test]
fn scaling_by_command_fails_no_request() {
    let mut scene = Scene::start("scale 2, 8, 2 by command", |plan| plan);
    for _ in 0..soak::length(2, 10) {
        for workers in ROUND {
            scene.command(&["scale", &workers.to_string()]);
            scene.settled(workers);
        }
    }
    let (fleet, tally) = scene.end();
    assert!(tally.workers() > 4, "new slots had their share: {}", tally.summary());
    assert_eq!(fleet.workers().len(), 2);
}

#[test]
fn scaling_by_signal_fails_no_request() {
    let mut scene = Scene::start("scale 2, 8, 2 by signal", |plan| plan);
    let mut workers: usize = 2;
    for wanted in soak::length([5, 2], ROUND).repeat(soak::length(1, 10)) {
        while workers != wanted {
            let (signal, next) = match workers < wanted {
                true => (Signal::SIGTTIN, workers + 1),
                false => (Signal::SIGTTOU, workers - 1),
            };
            scene.fleet.signal(signal);
            workers = next;
            scene.settled(workers);
        }
        scene.volley.more(50);
    }
    scene.end();
}
