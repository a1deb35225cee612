//! Connections on their way from one worker to another, when the workers stand still, leave, or can take no more.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::client::{Connection, Request};
use crate::support::exposition::sum;
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::kept_connections::{ACCEPTED, KEPT, PASSED, answered, open, queued, total, use_all};
use crate::support::operate::{rollout, settled};
use crate::support::redis::TestRedis;
use crate::support::{process, wait};

/// Opens a connection and sends a request at once, before anything can have accepted it.
fn ask(fleet: &TestFleet) -> Connection {
    let mut connection = Connection::open(fleet.listen).expect("no connection is refused");
    connection.send(&Request::get("/hello").bytes()).unwrap();
    connection
}

/// The answer to what was asked before.
#[track_caller]
fn answer(connection: &mut Connection) {
    // A look whether it was there already may have made it impatient.
    connection.set_timeout(wait::LONG);
    let response = connection.receive(false).expect("every request is answered");
    assert_eq!(response.status, 200, "{}", response.text());
}

/// Numbers of a process's descriptors.
fn numbers(pid: u32) -> BTreeSet<u64> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// The process may have so many descriptors.
#[track_caller]
fn limit_descriptors(pid: u32, soft: u64) {
    let limit = [format!("--pid={pid}"), format!("--nofile={soft}:")];
    assert!(Command::new("prlimit").args(limit).status().unwrap().success());
}

/// The process has no descriptor left; how many it might have before.
fn exhaust(pid: u32) -> u64 {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let before = files.split_whitespace().next().unwrap().parse().unwrap();
    let used = numbers(pid);
    // The lowest one that is free: every one below it is in use.
    limit_descriptors(pid, (0..).find(|number| !used.contains(number)).unwrap());
    before
}

/// Takes those out that have been answered, until no more than what no worker has accepted is left.
#[track_caller]
fn serve(fleet: &TestFleet, waiting: &mut Vec<Connection>) {
    wait::until("all are served but those that no worker has accepted", wait::LONG, || {
        waiting.retain_mut(|connection| answered(std::slice::from_mut(connection)) == 0);
        waiting.len() <= queued(fleet)
    });
}

#[test]
fn first_bytes_may_come_before_the_pass_or_long_after() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(3).set("REGATTA_WORKERS__HANG_TIMEOUT", "0s").start();
    let before = total(&fleet, ACCEPTED);
    let [(_, first), (_, second), _] = fleet.ready()[..] else { panic!("three workers") };
    [first, second].into_iter().for_each(process::stop);
    let mut silent = open(&fleet, KEPT / 2);
    let mut asked: Vec<_> = (0..KEPT / 2).map(|_| ask(&fleet)).collect();
    // What the third one has beyond its share is in the queue of the fleet, and both that stood still have room.
    [first, second].into_iter().for_each(|pid| process::signal(pid, Signal::SIGCONT));
    asked.iter_mut().for_each(answer);
    let _ = use_all(&mut silent);
    let _ = use_all(&mut asked);
    let accepted = total(&fleet, ACCEPTED) - before - 1.0;
    assert!((accepted - KEPT as f64).abs() < 0.5, "{accepted}");
    assert!(total(&fleet, PASSED) > 0.5, "none was passed");
}

#[test]
fn what_a_worker_has_taken_waits_for_it_when_it_stands_still() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(2).set("REGATTA_WORKERS__HANG_TIMEOUT", "0s").start();
    for _ in 0..5 {
        let [(_, frozen), _] = fleet.ready()[..] else { panic!("two workers") };
        let mut asked: Vec<_> = (0..KEPT / 2).map(|_| ask(&fleet)).collect();
        process::stop(frozen);
        asked.extend((0..KEPT / 2).map(|_| ask(&fleet)));
        process::signal(frozen, Signal::SIGCONT);
        asked.iter_mut().for_each(answer);
    }
}

#[test]
fn a_worker_without_descriptors_strands_nothing_and_does_not_look_for_ever() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(2).set("REGATTA_WORKERS__HANG_TIMEOUT", "0s").start();
    let _ = use_all(&mut open(&fleet, 4));
    let [(_, full), _] = fleet.ready()[..] else { panic!("two workers") };
    let before = exhaust(full);
    let mut waiting: Vec<_> = (0..KEPT).map(|_| ask(&fleet)).collect();
    serve(&fleet, &mut waiting);
    assert!(waiting.len() < KEPT, "the other worker has taken none");
    let looks = || fleet.log_lines("cannot take what another worker passes on").len();
    let looked = looks();
    // As long as six looks would take.
    wait::let_pass(Duration::from_millis(300));
    assert_eq!(looks(), looked, "it looks into an empty queue");
    limit_descriptors(full, before);
    waiting.iter_mut().for_each(answer);
}

#[test]
fn idle_connections_make_room_for_one_that_is_passed() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(2).set("REGATTA_WORKERS__HANG_TIMEOUT", "0s").start();
    let [(_, full), _] = fleet.ready()[..] else { panic!("two workers") };
    // The kernel gives it some itself, which it makes room for as ever: until it was one that was passed to it.
    wait::until("it makes room for one that is passed", wait::LONG, || {
        let mut idle = open(&fleet, KEPT);
        let _ = use_all(&mut idle);
        let before = exhaust(full);
        let mut asked: Vec<_> = (0..KEPT / 4).map(|_| ask(&fleet)).collect();
        asked.iter_mut().for_each(answer);
        limit_descriptors(full, before);
        !fleet.log_lines("cannot take what another worker passes on").is_empty()
    });
    let evicted = [r#"reason="evicted""#];
    let closed = || sum(&fleet.operator("/metrics").text(), "regatta_connections_closed_total", &evicted);
    wait::until("idle connections were closed", wait::LONG, || closed() > 0.5);
}

/// Connections are opened in waves as long as this takes, and 16 waves at least; every one of them is answered.
#[track_caller]
fn under_waves(fleet: &TestFleet, change: impl FnOnce()) {
    let changed = AtomicBool::new(false);
    thread::scope(|scope| {
        let waves = scope.spawn(|| {
            let mut count = 0;
            while count < 16 || !changed.load(Ordering::Relaxed) {
                let mut asked: Vec<_> = (0..KEPT).map(|_| ask(fleet)).collect();
                asked.iter_mut().for_each(answer);
                count += 1;
            }
        });
        change();
        changed.store(true, Ordering::Relaxed);
        waves.join().expect("no connection is lost");
    });
}

#[test]
fn none_on_its_way_is_lost_while_slots_come_and_go_and_workers_are_replaced() {
    let redis = TestRedis::start();
    let fleet =
        TestFleetBuilder::on(&redis).workers(4).set("REGATTA_WORKERS__CANARY_PERIOD", "100ms").start();
    let before = total(&fleet, PASSED);
    under_waves(&fleet, || {
        for (signal, workers) in [(Signal::SIGTTOU, 3), (Signal::SIGTTOU, 2), (Signal::SIGTTIN, 3)] {
            fleet.signal(signal);
            settled(&fleet, workers);
        }
        rollout(&fleet, Signal::SIGHUP, "reload");
        rollout(&fleet, Signal::SIGUSR2, "upgrade");
    });
    assert!(total(&fleet, PASSED) > before, "none was passed");
}

#[test]
fn numbers_are_even_again_after_workers_were_killed_in_the_middle_of_it() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(4).start();
    for _ in 0..3 {
        let crowd: Vec<_> = (0..KEPT).map(|_| ask(&fleet)).collect();
        let killed = fleet.workers()[0];
        fleet.crash(killed);
        drop(crowd);
    }
    // A successor is given none before it has served for a second, and what the killed ones had is no one's.
    wait::until("all four have as many", wait::LONG, || {
        let answers = use_all(&mut open(&fleet, KEPT));
        let share = |pid: &u32| answers.iter().filter(|worker| *worker == pid).count();
        fleet.workers().iter().all(|pid| share(pid) == KEPT / 4)
    });
}
