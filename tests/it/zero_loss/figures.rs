//! How long things take. What is asserted is that they happen; the figures are printed by the long form.

use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::support::client::Connection;
use crate::support::client::Request;
use crate::support::fleet::Fleet;
use crate::support::fleet::Plan;
use crate::support::process;
use crate::support::redis::RedisServer;
use crate::support::soak;
use crate::support::wait;
use crate::zero_loss::Scene;
use crate::zero_loss::settled;

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
fn crash(fleet: &Fleet, victim: u32) -> Option<Duration> {
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
    let redis = RedisServer::start();
    let fleet = Plan::on(&redis).example("faulty").workers(4).start();
    let mut times = Vec::new();
    for _ in 0..soak::length(6, 200) {
        // Each time the oldest, so that it has served for more than a second: it is replaced at once.
        wait::let_pass(Duration::from_millis(400));
        settled(&fleet, 4);
        times.extend(crash(&fleet, fleet.workers()[0]));
    }
    assert!(!times.is_empty(), "no successor was met");
    soak::note("crash to served", &spread(times));
}

#[test]
fn a_reload_of_eight_slots() {
    let mut scene = Scene::start("reload of 8 slots, default probation", |plan| {
        plan.workers(8).unset("REGATTA_WORKERS__PROBATION")
    });
    let mut times = Vec::new();
    for _ in 0..soak::length(1, 5) {
        let begin = Instant::now();
        scene.rollout(Signal::SIGHUP, "reload");
        times.push(begin.elapsed());
    }
    soak::note("reload of 8 slots, default probation", &spread(times));
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
        soak::note("what the supervisor costs", &text);
    };
    cost("under load");
    let (fleet, _) = scene.end();
    cost("at rest");
    assert_eq!(process::threads(fleet.pid()), 1);
}
