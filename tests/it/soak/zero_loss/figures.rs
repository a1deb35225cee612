//! How long things take. What is asserted is that they happen; the figures are printed by the long form.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use regatta::__internals::control::client::ControlClient;
use regatta::__internals::control::protocol as control;
use regatta::__internals::control::protocol::ControlReply;
use regatta::__internals::sys::clock;

use crate::soak::zero_loss::Scene;
use crate::support::client::{Connection, Request};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::load_generator::{ClientKind, MIX};
use crate::support::operate::settled;
use crate::support::redis::TestRedis;
use crate::support::{process, soak, wait};

/// Smallest, median, 99th percentile and largest of some times.
fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    format!(
        "{} times, min {:?}, median {:?}, p99 {:?}, max {:?}",
        times.len(),
        at(0),
        at(50),
        at(99),
        at(100)
    )
}

/// Time from a worker's death to the first answer of its successor, whose slot had requests waiting.
fn crash(fleet: &TestFleet, victim: u32) -> Option<Duration> {
    let workers = fleet.workers();
    let request = Request::get("/hello").header("Connection", "close").bytes();
    process::signal(victim, Signal::SIGKILL);
    let begin = Instant::now();
    let asked: Vec<_> = (0..24)
        .filter_map(|_| {
            let mut connection = Connection::open(fleet.listen).ok()?;
            connection.send(&request).ok()?;
            Some(connection)
        })
        .collect();
    let answers = asked.into_iter().map(|mut connection| {
        let response = connection.receive(false).expect("whoever connects after a crash is answered");
        (response.worker(), begin.elapsed())
    });
    let by_successor: Vec<_> = answers.filter(|(pid, _)| !workers.contains(pid)).collect();
    by_successor.into_iter().map(|(_, took)| took).min()
}

#[test]
fn from_a_crash_to_the_next_answer() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).example("faulty").workers(4).start();
    let mut times = Vec::new();
    for _ in 0..soak::length(6, 200) {
        // Each time the oldest, so that it has served for more than a second: it is replaced at once.
        wait::let_pass(Duration::from_millis(400));
        settled(&fleet, 4);
        times.extend(crash(&fleet, fleet.workers()[0]));
    }
    assert!(!times.is_empty(), "no successor was met");
    soak::log("crash to served", &spread(times));
}

#[test]
fn a_reload_of_eight_slots() {
    let mut scene = Scene::start("reload of 8 slots, default probation", |plan| {
        plan.workers(8).unset("REGATTA_WORKERS__CANARY_PERIOD")
    });
    let mut times = Vec::new();
    for _ in 0..soak::length(1, 5) {
        let begin = Instant::now();
        scene.rollout(Signal::SIGHUP, "reload");
        times.push(begin.elapsed());
    }
    soak::log("reload of 8 slots, default probation", &spread(times));
    scene.settled(8);
    scene.end();
}

#[test]
fn what_the_supervisor_costs() {
    let scene = Scene::start("what the supervisor costs", |plan| plan.workers(4));
    let supervisor = scene.fleet.pid();
    let span = Duration::from_secs(soak::length(1, 20));
    let cost = |what: &str| {
        let before = process::cpu_time(supervisor);
        wait::let_pass(span);
        let used = process::cpu_time(supervisor) - before;
        let memory = process::private_memory(supervisor) / 1024;
        let text = format!("{what}: {used:?} of processor time in {span:?}, {memory} KiB private");
        soak::log("what the supervisor costs", &text);
    };
    cost("under load");
    let (fleet, _) = scene.end();
    cost("at rest");
    assert_eq!(process::threads(fleet.pid()), 1);
}

#[test]
fn status_is_told_under_load() {
    let mut mix = MIX.to_vec();
    mix.push((ClientKind::KeepAlive, soak::length(2, 16)));
    let scene = Scene::with("status under load", &mix, |plan| plan.workers(4));
    let run_dir = scene.fleet.plan().folder().join("run");
    let mut client = ControlClient::connect(&run_dir).unwrap();
    let (mut over_one, mut by_command) = (Vec::new(), Vec::new());
    for _ in 0..soak::length(10, 500) {
        let begin = Instant::now();
        client.send(&control::ControlRequest::Status).unwrap();
        let ControlReply::Status(status) = client.receive(Some(clock::monotonic() + wait::LONG)).unwrap()
        else {
            panic!("no status")
        };
        over_one.push(begin.elapsed());
        assert_eq!(status["slots"].as_array().map(Vec::len), Some(4), "{status}");
    }
    for _ in 0..soak::length(2, 50) {
        let begin = Instant::now();
        let (code, said) = scene.fleet.plan().clone().args(&["status", "--json"]).run();
        by_command.push(begin.elapsed());
        assert_eq!(code, 0, "{said}");
    }
    soak::log("status under load", &format!("over one connection: {}", spread(over_one)));
    soak::log("status under load", &format!("by a command of its own: {}", spread(by_command)));
    scene.end();
}

#[test]
fn from_a_hang_to_a_new_worker() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).example("faulty").workers(4).start();
    let mut times = Vec::new();
    for _ in 0..soak::length(1, 20) {
        settled(&fleet, 4);
        let (victim, before) = (fleet.workers()[0], fleet.ready().len());
        let slot = fleet.slot_of(victim);
        process::stop(victim);
        let begin = Instant::now();
        wait::until("a new worker is ready in its slot", wait::LONG, || {
            fleet.ready()[before..].iter().any(|(seat, _)| *seat == slot)
        });
        times.push(begin.elapsed());
        // It goes on, and finds its spare in its place.
        process::signal(victim, Signal::SIGCONT);
        wait::until("the hung one is gone", wait::LONG, || !process::alive(victim));
    }
    soak::log("hang to replaced", &spread(times));
}
