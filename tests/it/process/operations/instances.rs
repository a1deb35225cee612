//! Several supervisors on one Redis: every one of them, and one command, shows them all.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::{client, process, wait};

/// A fleet that says every 200 ms that it lives, and is dead a second after the last time.
fn plan(redis: &TestRedis) -> TestFleetBuilder {
    TestFleetBuilder::on(redis)
        .set("REGATTA_REDIS__PREFIX", "shared")
        .set("REGATTA_FLEET__HEARTBEAT_INTERVAL", "200ms")
}

/// What `status --all --json` says with this plan's settings, and its exit code.
fn status(plan: &TestFleetBuilder) -> (i32, Value) {
    let (code, said) = plan.clone().args(&["status", "--all", "--json"]).run();
    (code, serde_json::from_str(&said).unwrap_or_else(|_| panic!("{code}: {said}")))
}

fn machines(document: &Value) -> Vec<Value> {
    let listed = document.get("instances");
    listed.and_then(Value::as_array).unwrap().clone()
}

/// Supervisors that are shown, sorted.
fn pids(document: &Value) -> Vec<u64> {
    let mut pids: Vec<_> = machines(document).iter().map(|one| one["pid"].as_u64().unwrap()).collect();
    pids.sort_unstable();
    pids
}

fn sorted(fleets: &[&TestFleet]) -> Vec<u64> {
    let mut pids: Vec<_> = fleets.iter().map(|fleet| u64::from(fleet.pid())).collect();
    pids.sort_unstable();
    pids
}

#[track_caller]
fn until_shown(plan: &TestFleetBuilder, fleets: &[&TestFleet]) -> Value {
    let expected = sorted(fleets);
    wait::until_some("exactly these machines are shown", wait::LONG, || {
        let (_, document) = status(plan);
        (pids(&document) == expected).then_some(document)
    })
}

#[test]
fn every_machine_and_all_its_workers_are_seen_from_everywhere() {
    let redis = TestRedis::start();
    let (first, second) = (plan(&redis).workers(2).start(), plan(&redis).workers(1).start());
    let ready = |document: &Value| {
        machines(document).iter().all(|machine| {
            let slots = machine["slots"].as_array().unwrap();
            slots.iter().all(|slot| slot["state"] == "ready")
        })
    };
    wait::until("all are shown as ready", wait::LONG, || {
        let (_, document) = status(first.plan());
        pids(&document) == sorted(&[&first, &second]) && ready(&document)
    });
    let (code, document) = status(second.plan());
    assert_eq!((code, &document["version"]), (0, &Value::from(2)));
    for fleet in [&first, &second] {
        let machines = machines(&document);
        let own = machines.iter().find(|machine| machine["pid"] == fleet.pid()).unwrap();
        let mut shown: Vec<_> =
            own["slots"].as_array().unwrap().iter().map(|slot| slot["pid"].as_u64().unwrap()).collect();
        let mut workers: Vec<_> = fleet.workers().iter().map(|pid| u64::from(*pid)).collect();
        shown.sort_unstable();
        workers.sort_unstable();
        assert_eq!(shown, workers);
        assert_eq!(own["addresses"][0], fleet.listen.to_string());
        assert_eq!(own["weight"], fleet.workers().len());
        assert!(own["libraries"].as_array().unwrap().contains(&"regatta_fleet_v1".into()), "{own}");
        assert!(own["build"].as_str().unwrap().starts_with(env!("CARGO_PKG_VERSION")), "{own}");
    }
    let page = wait::until_some("the operators' page shows both", wait::LONG, || {
        let page = second.operator("/fleet.json").json();
        (machines(&page).len() == 2).then_some(page)
    });
    assert_eq!(machines(&page)[0]["pid"], second.pid(), "its own first");
    assert_eq!((&page["instances_error"], &page["supervisor_pid"]), (&Value::Null, &second.pid().into()));
    let (code, said) = first.plan().clone().args(&["status", "--all"]).run();
    assert!(code == 0 && said.starts_with("2 instances · 3 of 3 workers ready"), "{code}: {said}");
    assert!(said.contains(&first.listen.to_string()), "{said}");
}

#[test]
fn a_fleet_that_stops_is_gone_when_it_has() {
    let redis = TestRedis::start();
    // No one would miss its heartbeat for minutes.
    let slow = || plan(&redis).set("REGATTA_FLEET__HEARTBEAT_INTERVAL", "1m");
    let (mut first, second) = (slow().start(), slow().start());
    until_shown(second.plan(), &[&first, &second]);
    assert_eq!(first.stop(), 0);
    assert_eq!(pids(&status(second.plan()).1), sorted(&[&second]));
}

#[test]
fn workers_whose_supervisor_was_killed_take_their_machine_out() {
    let redis = TestRedis::start();
    let mut fleet = plan(&redis).set("REGATTA_FLEET__HEARTBEAT_INTERVAL", "1m").start();
    let plan = fleet.plan().clone();
    until_shown(&plan, &[&fleet]);
    let workers = fleet.workers();
    fleet.signal(Signal::SIGKILL);
    assert_eq!(fleet.exit_code(wait::LONG), -9);
    wait::until("its workers are gone", wait::LONG, || !workers.iter().any(|pid| process::alive(*pid)));
    let (code, document) = status(&plan);
    assert_eq!((code, pids(&document)), (69, vec![]), "{document}");
}

#[test]
fn a_machine_that_dies_without_a_word_expires() {
    let redis = TestRedis::start();
    let (mut first, second) = (plan(&redis).start(), plan(&redis).start());
    until_shown(second.plan(), &[&first, &second]);
    let workers = first.workers();
    // Standing still, they cannot say goodbye when their supervisor is gone.
    workers.iter().for_each(|pid| process::stop(*pid));
    first.signal(Signal::SIGKILL);
    workers.iter().for_each(|pid| process::signal(*pid, Signal::SIGKILL));
    assert_eq!(first.exit_code(wait::LONG), -9);
    until_shown(second.plan(), &[&second]);
}

#[test]
fn a_machine_keeps_its_identity_over_crashes_reloads_and_upgrades() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).set("REGATTA_WORKERS__CANARY_PERIOD", "100ms").start();
    let own = |generation: u64| {
        wait::until_some("the machine shows its generation", wait::LONG, || {
            let (_, document) = status(fleet.plan());
            let own = machines(&document).pop()?;
            let all = own["slots"].as_array()?.iter().all(|slot| slot["generation"] == generation);
            (own["generation"] == generation && all).then_some(own)
        })
    };
    let before = own(1);
    let speaker = u32::try_from(before["slots"][0]["pid"].as_u64().unwrap()).unwrap();
    let next = fleet.crash(speaker);
    wait::until("its successor speaks", wait::LONG, || own(1)["slots"][0]["pid"] == next);
    for (generation, verb) in [(2, "reload"), (3, "upgrade")] {
        let (code, said) = fleet.plan().clone().args(&[verb]).run();
        assert_eq!(code, 0, "{said}");
        let after = own(generation);
        assert_eq!((&after["id"], &after["started_at"]), (&before["id"], &before["started_at"]), "{verb}");
    }
    assert_eq!(pids(&status(fleet.plan()).1), sorted(&[&fleet]), "there was never another one");
}

#[test]
fn what_is_advertised_is_told() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).set("REGATTA_ADVERTISE", "web-1.example.com, 192.0.2.7:8080").start();
    let document = until_shown(fleet.plan(), &[&fleet]);
    let expected = format!("web-1.example.com:{}", fleet.listen.port());
    assert_eq!(machines(&document)[0]["addresses"], serde_json::json!([expected, "192.0.2.7:8080"]));
    let wrong = plan(&redis).set("REGATTA_ADVERTISE", "0.0.0.0:80").args(&["check"]);
    let (code, said) = wrong.run();
    assert!(code == 64 && said.contains("advertise") && said.contains("0.0.0.0:80"), "{code}: {said}");
}

#[test]
fn without_redis_a_machine_shows_itself_and_says_why() {
    let mut redis = TestRedis::start();
    let (first, second) = (plan(&redis).start(), plan(&redis).start());
    until_shown(first.plan(), &[&first, &second]);
    redis.kill();
    let page = wait::until_some("it says that Redis is away", wait::LONG, || {
        let page = client::get(first.admin, "/fleet.json").json();
        page["instances_error"].is_string().then_some(page)
    });
    assert_eq!(pids(&page), sorted(&[&first]));
    assert_eq!(page["instances_complete"], false);
    let (code, said) = first.plan().clone().args(&["status", "--all"]).run();
    assert!(code == 69 && said.contains("redis.url"), "{code}: {said}");
    redis.restart();
    wait::until("both are back", wait::LONG, || {
        pids(&client::get(first.admin, "/fleet.json").json()) == sorted(&[&first, &second])
    });
}

#[test]
fn a_fleet_on_its_private_redis_is_found_there() {
    let fleet = TestFleetBuilder::new().set("REGATTA_FLEET__HEARTBEAT_INTERVAL", "200ms").start();
    until_shown(fleet.plan(), &[&fleet]);
    let (code, said) = TestFleetBuilder::new().args(&["status", "--all"]).run();
    assert!(code == 69 && said.contains("data_dir"), "{code}: {said}");
}

#[test]
fn a_fleet_that_is_to_have_no_heartbeat_has_none() {
    let redis = TestRedis::start();
    let silent = plan(&redis).set("REGATTA_FLEET__HEARTBEAT_INTERVAL", "0").start();
    let loud = plan(&redis).start();
    until_shown(loud.plan(), &[&loud]);
    // The silent one would have spoken several times by now.
    wait::let_pass(Duration::from_millis(1200));
    assert_eq!(pids(&status(loud.plan()).1), sorted(&[&loud]));
    let page = silent.operator("/fleet.json").json();
    assert_eq!(machines(&page).len(), 2, "it knows itself and sees the other: {page}");
}
