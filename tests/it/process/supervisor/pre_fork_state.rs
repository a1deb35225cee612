//! What a program made before its fleet began, as its workers find it: descriptors, and generators of random numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::UdpSocket;

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::client::{Connection, Request};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::operate::operate;
use crate::support::process::signals;
use crate::support::redis::TestRedis;
use crate::support::{process, wait};

/// `examples/heirs.rs` with its log.
fn heirs(redis: &TestRedis) -> TestFleetBuilder {
    let plan = TestFleetBuilder::on(redis).example("heirs");
    let log = plan.folder().join("heirs.log").display().to_string();
    plan.set("HEIRS_LOG", &log)
}

/// Waits until every slot has a worker that is READY, and each of these processes is gone.
#[track_caller]
fn settle(fleet: &TestFleet, gone: &[u32]) {
    wait::until("other workers serve", wait::LONG, || {
        let now = fleet.workers();
        now.len() == 2
            && !now.iter().any(|pid| gone.contains(pid))
            && fleet.ready().iter().filter(|(_, pid)| now.contains(pid)).count() == 2
    });
}

/// Has every worker that serves now asked once; answers by worker.
fn of_each(fleet: &TestFleet, target: &str) -> BTreeMap<u32, String> {
    let mut answers = BTreeMap::new();
    let wanted: BTreeSet<u32> = fleet.workers().into_iter().collect();
    wait::until("each worker answers", wait::LONG, || {
        let mut connection = Connection::open(fleet.listen).unwrap();
        let request = Request::get(target).header("Connection", "close");
        if let Ok(response) = connection.request(&request) {
            answers.entry(response.worker()).or_insert_with(|| response.text());
        }
        answers.keys().copied().collect::<BTreeSet<_>>().is_superset(&wanted)
    });
    answers.retain(|pid, _| wanted.contains(pid));
    answers
}

/// Uses everything that `main` opened in every worker, and looks that nothing of the supervisor's is there.
#[track_caller]
fn works(fleet: &TestFleet, round: &str) {
    let log = fleet.plan().setting("HEIRS_LOG").to_owned();
    let before = fs::read_to_string(&log).unwrap().lines().count();
    let written = of_each(fleet, &format!("/log/{round}"));
    let lines = fs::read_to_string(&log).unwrap();
    assert!(lines.lines().count() >= before + written.len(), "{round}: {lines}");
    assert!(lines.lines().all(|line| line.chars().all(char::is_alphanumeric)), "{round}: {lines}");
    let ear = UdpSocket::bind("127.0.0.1:0").unwrap();
    ear.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let port = ear.local_addr().unwrap().port();
    for _ in of_each(fleet, &format!("/send/{port}/{round}")) {
        let mut word = [0; 64];
        let (len, _) = ear.recv_from(&mut word).unwrap();
        assert_eq!(&word[..len], round.as_bytes());
    }
    let numbers = fleet.get("/numbers").json();
    for (pid, list) in of_each(fleet, "/self/fd") {
        for number in numbers["open"].as_array().unwrap() {
            assert!(
                list.lines().any(|line| line.starts_with(&format!("{number} "))),
                "{round}, {pid}: {list}"
            );
        }
        let foreign = ["regatta.pid", "control.sock", "signalfd", "memfd", "inotify", "pidfd", "/proc/"];
        // Its own listing is open while it is read; what the tests' own parent left open is the application's as well.
        let own = |line: &&str| !line.contains(&format!("/proc/{pid}/fd")) && !left_to_tests(line);
        let lines: Vec<_> = list.lines().filter(own).collect();
        assert!(!lines.iter().any(|line| foreign.iter().any(|kind| line.contains(kind))), "{round}: {list}");
        let seat: BTreeSet<_> =
            lines.iter().filter_map(|line| line.split_once(" pipe:")).map(|pipe| pipe.1).collect();
        assert_eq!(seat.len(), 2, "{round}, the report and the life-line: {list}");
    }
}

/// Whether a descriptor, as `number target`, is standard or was left to this test's process by its parent.
fn left_to_tests(line: &str) -> bool {
    let Some((number, target)) = line.split_once(' ') else { return false };
    let same =
        fs::read_link(format!("/proc/self/fd/{number}")).is_ok_and(|found| found.to_str() == Some(target));
    same || ["0", "1", "2"].contains(&number)
}

#[test]
fn what_was_open_before_the_fleet_is_open_in_every_worker_whatever_happens() {
    let redis = TestRedis::start();
    let fleet = heirs(&redis).set("REGATTA_WORKERS__CANARY_PERIOD", "100ms").start();
    works(&fleet, "first");
    let before = fleet.workers();
    for pid in &before {
        fleet.crash(*pid);
    }
    settle(&fleet, &before);
    works(&fleet, "crashed");
    let before = fleet.workers();
    operate(&fleet, &["reload"]);
    settle(&fleet, &before);
    works(&fleet, "reloaded");
    operate(&fleet, &["scale", "3"]);
    works(&fleet, "scaled");
    operate(&fleet, &["scale", "2"]);
    let before = fleet.workers();
    // The new program opens them itself: what the old one had is closed by the exec.
    operate(&fleet, &["upgrade"]);
    settle(&fleet, &before);
    works(&fleet, "upgraded");
    let held = process::descriptors(fleet.pid());
    let logs = held.iter().filter(|name| name.ends_with("heirs.log")).count();
    assert_eq!(logs, 1, "of the supervisor: {held:?}");
}

#[test]
fn a_program_that_a_handler_starts_finds_standard_descriptors_and_clean_signals() {
    let redis = TestRedis::start();
    let fleet = heirs(&redis).start();
    let told = fleet.get("/program").text();
    assert_eq!((signals(&told, "SigBlk:"), signals(&told, "SigIgn:")), (0, 0), "{told}");
    let numbers = told.lines().filter_map(|line| line.strip_prefix("fd /proc/self/fd/")?.parse::<u32>().ok());
    let left = |number: &u32| fs::exists(format!("/proc/self/fd/{number}")).unwrap();
    // Beside what the tests' own parent left there is the shell's listing.
    assert!(numbers.filter(|number| *number > 2 && !left(number)).count() <= 1, "{told}");
    for pid in fleet.workers() {
        for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP, Signal::SIGUSR2, Signal::SIGPIPE] {
            process::signal(pid, signal);
        }
    }
    assert_eq!(of_each(&fleet, "/hello").len(), 2, "and a worker outlives what its supervisor is told");
    assert!(fleet.log_lines("worker crashed").is_empty() && fleet.log_lines("reload").is_empty());
}

#[test]
fn no_two_workers_draw_the_same_numbers_from_generators_used_before_the_fork() {
    let redis = TestRedis::start();
    let fleet = heirs(&redis).set("REGATTA_WORKERS__CANARY_PERIOD", "100ms").start();
    let mut seen: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut asked = 0;
    let mut look = |fleet: &TestFleet| {
        for (pid, text) in of_each(fleet, "/drawn") {
            asked += 1;
            let drawn: BTreeMap<String, String> = serde_json::from_str(&text).unwrap();
            for (generator, number) in drawn {
                assert!(
                    seen.entry(generator.clone()).or_default().insert(number),
                    "{generator} in worker {pid}"
                );
            }
        }
    };
    look(&fleet);
    for _ in 0..2 {
        let before = fleet.workers();
        for pid in &before {
            fleet.crash(*pid);
        }
        settle(&fleet, &before);
        look(&fleet);
    }
    for verb in ["reload", "upgrade"] {
        let before = fleet.workers();
        operate(&fleet, &[verb]);
        settle(&fleet, &before);
        look(&fleet);
    }
    assert!(asked >= 10, "{asked}");
}
