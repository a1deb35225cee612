//! No processor, no supervisor: slow is not dead, and no one is killed for it.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::soak::zero_loss::Scene;
use crate::support::burners::Burners;
use crate::support::load_generator::ClientKind;
use crate::support::operate::rollout;
use crate::support::{process, soak, wait};

#[test]
fn a_suspended_supervisor_costs_no_worker_and_no_request() {
    let mut scene = Scene::start("supervisor suspended", |plan| plan.workers(3));
    let workers = scene.fleet.workers();
    for _ in 0..soak::length(1, 5) {
        process::stop(scene.fleet.pid());
        wait::let_pass(Duration::from_secs(4));
        scene.fleet.signal(Signal::SIGCONT);
        scene.volley.more(200);
        // Whatever it would do to workers that it has not looked at for so long, it would do now.
        wait::let_pass(Duration::from_secs(1));
        assert_eq!(scene.fleet.workers(), workers, "{}", scene.fleet.log());
    }
    rollout(&scene.fleet, Signal::SIGHUP, "reload");
    scene.look();
    scene.end();
}

#[test]
fn four_times_too_few_processors_kill_nobody() {
    let mix =
        [(ClientKind::KeepAlive, 2), (ClientKind::Close, 1), (ClientKind::Post, 1), (ClientKind::Stream, 1)];
    let mut scene = Scene::with("processors oversubscribed", &mix, |plan| plan.workers(4));
    let workers = scene.fleet.workers();
    let burners = Burners::start(4);
    wait::let_pass(Duration::from_secs(soak::length(6, 60)));
    assert_eq!(scene.fleet.workers(), workers, "{}", scene.fleet.log());
    drop(burners);
    scene.volley.more(100);
    assert_eq!(scene.fleet.workers(), workers, "{}", scene.fleet.log());
    scene.look();
    scene.end();
}
