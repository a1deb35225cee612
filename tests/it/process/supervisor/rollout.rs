//! What a real fleet answers to an operator: verdicts that are true, and roll-backs that leave it as it was.

use std::fs;

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::faulty_fleet::{Scene, configuration};
use crate::support::{process, wait};

#[test]
fn a_wrong_configuration_changes_nothing_and_says_why() {
    let scene = Scene::start(2);
    let before = scene.serving();
    fs::write(&scene.file, "[workers]\ncuont = 2\n").unwrap();
    scene.expect(&["reload"], 64, "unknown setting workers.cuont");
    // Who asks needs no right configuration, only the place of the fleet.
    assert_eq!(scene.serving(), before);
    fs::write(&scene.file, configuration(2, "300ms")).unwrap();
    scene.expect(&["reload"], 0, "reload done: 2 workers of generation 2");
    let after = scene.serving();
    assert!(after.iter().all(|(pid, generation)| *generation == 2 && before.iter().all(|old| old.0 != *pid)));
    scene.settled(2);
}

#[test]
fn a_worker_that_does_not_boot_ends_the_rollout_at_the_first_slot() {
    let scene = Scene::start(3);
    let before = scene.serving();
    fs::write(&scene.faults, "all").unwrap();
    scene.expect(&["reload"], 1, "rolled back: the new worker in slot 0 failed");
    assert_eq!(scene.serving(), before, "the old workers serve on");
    let status = scene.status();
    assert_eq!(status["last_rollout"]["outcome"], "rolled_back");
    assert!(status["last_rollout"]["reason"].as_str().unwrap().contains("the boat has a hole"));
    fs::remove_file(&scene.faults).unwrap();
    // Numbers of generations are not used twice.
    scene.expect(&["reload"], 0, "3 workers of generation 3");
    assert_eq!(scene.status()["last_rollout"]["outcome"], "done");
}

#[test]
fn a_worker_that_fails_in_a_later_slot_takes_the_first_one_back_too() {
    let scene = Scene::start(3);
    let before = scene.serving();
    fs::write(&scene.faults, "1").unwrap();
    let reload = scene.command(&["reload", "--no-wait"]);
    assert_eq!(reload.0, 0, "{}", reload.1);
    // Its going back starts workers of the old generation; the fault is that of the new one.
    wait::until("the failure", wait::LONG, || {
        !scene.fleet.log_lines("reload failed, rolling back").is_empty()
    });
    fs::remove_file(&scene.faults).unwrap();
    wait::until("the end", wait::LONG, || !scene.fleet.log_lines("reload rolled back").is_empty());
    let after = scene.serving();
    assert!(after.iter().all(|(_, generation)| *generation == 1), "{after:?}");
    assert_ne!(after[0], before[0], "the first slot was replaced twice");
    assert_eq!(after[1..], before[1..], "the others never");
    scene.settled(3);
}

#[test]
fn a_worker_that_dies_within_its_probation_ends_the_rollout() {
    let scene = Scene::start(2);
    fs::write(&scene.file, configuration(2, "3s")).unwrap();
    let before = scene.serving();
    assert_eq!(scene.command(&["reload", "--no-wait"]).0, 0);
    let new = wait::until_some("a new worker", wait::LONG, || {
        scene
            .fleet
            .ready()
            .into_iter()
            .map(|(_, pid)| pid)
            .find(|pid| before.iter().all(|old| old.0 != u64::from(*pid)))
    });
    process::signal(new, Signal::SIGKILL);
    wait::until("the end", wait::LONG, || !scene.fleet.log_lines("reload rolled back").is_empty());
    assert_eq!(scene.serving(), before);
}

#[test]
fn a_reload_takes_what_it_can_and_names_what_it_cannot() {
    let scene = Scene::start(2);
    let listen = "listen = \"127.0.0.1:1\"\n";
    fs::write(&scene.file, format!("{}[log]\nfilter = \"debug\"\n", configuration(3, "300ms"))).unwrap();
    // The environment says where this fleet listens, so the file's word has no effect and is not named.
    let said = scene.expect(&["reload"], 0, "log.filter was not changed: an upgrade takes it");
    assert!(!said.contains("listen"), "{said}");
    wait::until("three workers", wait::LONG, || scene.serving().len() == 3);
    fs::write(&scene.file, format!("{listen}{}", configuration(3, "300ms"))).unwrap();
    scene.expect(&["reload"], 0, "3 workers");
}

#[test]
fn an_order_is_checked_before_anything_is_done() {
    let scene = Scene::start(2);
    scene.expect(&["restart", "2"], 64, "this fleet has slots 0 to 1");
    scene.expect(&["scale", "1000"], 64, "room for");
    scene.expect(&["scale", "3"], 0, "3 workers serve");
    scene.expect(&["scale", "1"], 0, "1 worker serves");
    assert_eq!(scene.serving().len(), 1);
    scene.settled(1);
}

#[test]
fn a_successor_that_fails_leaves_the_old_worker_where_it_is() {
    let scene = Scene::start(2);
    let before = scene.serving();
    fs::write(&scene.faults, "1").unwrap();
    scene.expect(&["restart", "1"], 1, "stays");
    assert_eq!(scene.serving(), before);
    fs::write(&scene.faults, "2").unwrap();
    scene.expect(&["restart", "1"], 0, "slot 1 has a new worker");
    scene.expect(&["scale", "3"], 1, "does not become ready");
    assert_eq!(scene.serving().len(), 2, "the others serve");
    fs::remove_file(&scene.faults).unwrap();
    wait::until("the third worker, tried on", Duration::from_secs(30), || scene.serving().len() == 3);
}

#[test]
fn who_waits_when_the_fleet_stops_is_told() {
    let scene = Scene::start(2);
    fs::write(&scene.file, configuration(2, "20s")).unwrap();
    let plan = scene.fleet.plan().clone().args(&["reload"]);
    let waiting = std::thread::spawn(move || plan.run());
    wait::until("the reload", wait::LONG, || !scene.fleet.log_lines("reload started").is_empty());
    scene.expect(&["stop"], 0, "the fleet has stopped");
    let (code, said) = waiting.join().unwrap();
    assert!(code == 1 && said.contains("cancelled: the fleet stops"), "{code}: {said}");
    scene.expect(&["status"], 69, "no fleet runs here");
}

#[test]
fn events_are_numbered_without_a_gap_and_say_why() {
    let scene = Scene::start(2);
    scene.expect(&["restart", "0"], 0, "slot 0");
    let read = || -> Vec<Value> {
        let (code, text) = scene.command(&["events", "--json"]);
        assert_eq!(code, 0, "{text}");
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter_map(|line| line.get("event").cloned()).collect()
    };
    let has_left = |events: &[Value]| events.iter().any(|event| event["kind"] == "worker_exited");
    wait::until("the old worker's exit is an event", wait::LONG, || has_left(&read()));
    let events = read();
    let numbers: Vec<u64> = events.iter().map(|event| event["sequence"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    let left = events.iter().find(|event| event["kind"] == "worker_exited").expect("the old worker left");
    assert_eq!((left["reason"].as_str(), left["slot"].as_u64()), (Some("operator"), Some(0)));
}
