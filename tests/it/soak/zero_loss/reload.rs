//! Reloads: new workers on the same sockets, old ones leave when they are done.

use nix::sys::signal::Signal;

use crate::soak::zero_loss::Scene;
use crate::support::client::{CookieClient, Request};
use crate::support::fleet::TestFleetBuilder;
use crate::support::operate::{rollout, settled};
use crate::support::parallel_clients::ParallelClients;
use crate::support::redis::TestRedis;
use crate::support::{soak, wait};

#[test]
fn reloads_fail_no_request() {
    let mut scene = Scene::start("reload by signal", |plan| plan);
    for _ in 0..soak::length(3, 20) {
        let before = scene.fleet.workers();
        scene.rollout(Signal::SIGHUP, "reload");
        let now = scene.fleet.workers();
        assert!(scene.fleet.ready().len() >= 4 && now != before, "others serve: {before:?}, {now:?}");
    }
    scene.settled(2);
    scene.end();
}

#[test]
fn reloads_by_command_fail_no_request() {
    let mut scene = Scene::start("reload by command", |plan| plan.workers(3));
    for _ in 0..soak::length(2, 20) {
        scene.command(&["reload"]);
    }
    scene.settled(3);
    scene.end();
}

#[test]
fn restarting_every_slot_fails_no_request() {
    let mut scene = Scene::start("restart of each slot", |plan| plan.workers(3));
    for _ in 0..soak::length(1, 7) {
        for slot in ["0", "1", "2"] {
            scene.command(&["restart", slot]);
        }
    }
    scene.settled(3);
    scene.end();
}

#[test]
fn visits_are_counted_exactly_over_reloads() {
    let redis = TestRedis::start();
    let fleet =
        TestFleetBuilder::on(&redis).workers(2).set("REGATTA_WORKERS__CANARY_PERIOD", "300ms").start();
    let address = fleet.listen;
    let load = ParallelClients::start(4, |_| {
        let mut visitor = CookieClient::default();
        move || visitor.try_request(address, Request::get("/")).map(|response| response.view().1)
    });
    for _ in 0..soak::length(2, 20) {
        let seen = load.seen();
        wait::until("visits", wait::LONG, || load.seen() > seen + 40);
        rollout(&fleet, Signal::SIGHUP, "reload");
    }
    for visitor in load.stop() {
        let views: Vec<_> = visitor.into_iter().map(|visit| visit.expect("every visit is served")).collect();
        assert_eq!(views, (1..=views.len() as u64).collect::<Vec<_>>());
    }
    settled(&fleet, 2);
}
