//! Workers that have served long enough, or have grown too large, are replaced before they leave.

use std::time::Duration;

use crate::soak::zero_loss::Scene;
use crate::support::client::Request;
use crate::support::fleet::TestFleet;
use crate::support::operate::ROLLOUT;
use crate::support::{client, soak, wait};

/// Workers that have become READY since the fleet began.
fn replaced(fleet: &TestFleet) -> usize {
    fleet.ready().len() - 2
}

#[test]
fn recycling_by_requests_fails_no_request() {
    let mut scene = Scene::start("recycling by requests", |plan| {
        plan.set("REGATTA_WORKERS__MAX_REQUESTS", "300").set("REGATTA_WORKERS__MAX_REQUESTS_JITTER", "100")
    });
    let wanted = soak::length(3, 20);
    wait::until("workers are recycled", ROLLOUT, || replaced(&scene.fleet) >= wanted);
    scene.look();
    scene.end();
}

#[test]
fn recycling_by_age_fails_no_request() {
    let mut scene = Scene::start("recycling by age", |plan| plan.set("REGATTA_WORKERS__MAX_AGE", "1s"));
    let wanted = soak::length(3, 20);
    wait::until("workers are recycled", ROLLOUT, || replaced(&scene.fleet) >= wanted);
    scene.look();
    scene.end();
}

#[test]
fn recycling_by_memory_fails_no_request() {
    let mut scene =
        Scene::start("recycling by memory", |plan| plan.set("REGATTA_WORKERS__MEMORY_SOFT", "48MiB"));
    for wanted in 1..=soak::length(1, 5) {
        let begin = replaced(&scene.fleet);
        wait::until("a worker is recycled", ROLLOUT, || {
            // Whichever worker answers keeps 8 MiB more.
            let answer = client::once(scene.fleet.listen, Request::get("/leak/8")).expect("it is answered");
            assert_eq!(answer.status, 200, "{answer:?}");
            scene.own += 1;
            wait::let_pass(Duration::from_millis(200));
            replaced(&scene.fleet) > begin
        });
        assert!(replaced(&scene.fleet) >= wanted);
        scene.volley.more(50);
    }
    scene.look();
    scene.end();
}
