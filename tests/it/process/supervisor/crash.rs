//! A crash costs only what that worker held, and one slot never takes the fleet down.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::client::{Connection, CookieClient, Failure, Request};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::parallel_clients::ParallelClients;
use crate::support::redis::TestRedis;
use crate::support::{process, wait};

/// The fleet's `examples/faulty.rs`, whose slots fail as the file says.
fn faulty(redis: &TestRedis, failing: &str) -> TestFleetBuilder {
    let plan = TestFleetBuilder::on(redis).example("faulty");
    let file = plan.folder().join("failing");
    fs::write(&file, failing).unwrap();
    plan.set("FAULTY_FILE", &file.display().to_string())
}

/// Connections that have sent a request which no one has accepted yet.
fn queue(fleet: &TestFleet, count: usize) -> Vec<Connection> {
    let request = Request::get("/hello").header("Connection", "close").bytes();
    let open = |_| {
        let mut connection = Connection::open(fleet.listen).unwrap();
        connection.send(&request).unwrap();
        connection
    };
    (0..count).map(open).collect()
}

/// Lets a worker go on, unless it is gone.
fn go_on(pid: u32) {
    if process::alive(pid) {
        process::signal(pid, Signal::SIGCONT);
    }
}

#[test]
fn connections_queued_on_a_killed_workers_slot_are_answered() {
    let redis = TestRedis::shared();
    // Workers that stand still are to be no hang.
    let fleet = TestFleetBuilder::on(&redis).workers(4).set("REGATTA_WORKERS__HANG_TIMEOUT", "0").start();
    let workers = fleet.workers();
    workers.iter().for_each(|pid| process::stop(*pid));
    let mut queued = queue(&fleet, 80);
    let successor = fleet.crash(workers[0]);
    workers[1..].iter().for_each(|pid| go_on(*pid));
    let served: BTreeSet<_> = queued
        .iter_mut()
        .map(|connection| {
            let response = connection.receive(false).expect("every queued connection is answered");
            assert_eq!(response.status, 200);
            response.worker()
        })
        .collect();
    let expected: BTreeSet<_> = workers[1..].iter().copied().chain([successor]).collect();
    assert_eq!(served, expected, "the slot's own were answered by its next worker");
}

#[test]
fn all_workers_killed_at_once_refuse_no_connection() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(3).set("REGATTA_WORKERS__HANG_TIMEOUT", "0").start();
    // Workers that have served for a while are replaced at once.
    wait::let_pass(Duration::from_millis(1200));
    let workers = fleet.workers();
    workers.iter().for_each(|pid| process::stop(*pid));
    let mut queued = queue(&fleet, 30);
    workers.iter().for_each(|pid| process::signal(*pid, Signal::SIGKILL));
    queued.extend(queue(&fleet, 30));
    for connection in &mut queued {
        assert_eq!(connection.receive(false).expect("every queued connection is answered").status, 200);
    }
}

#[test]
fn a_crash_fails_no_request_of_another_worker() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(4).start();
    let hello = Request::get("/hello");
    let mut by_worker: BTreeMap<u32, Vec<Connection>> = BTreeMap::new();
    for _ in 0..60 {
        let mut connection = Connection::open(fleet.listen).unwrap();
        let pid = connection.request(&hello).unwrap().worker();
        by_worker.entry(pid).or_default().push(connection);
    }
    assert_eq!(by_worker.len(), 4);
    let victim = fleet.workers()[1];
    let mut lost = by_worker.remove(&victim).unwrap();
    process::signal(victim, Signal::SIGKILL);
    for round in 0..20 {
        for (pid, connections) in &mut by_worker {
            for connection in connections {
                let response =
                    connection.request(&hello).unwrap_or_else(|failure| panic!("round {round}: {failure:?}"));
                assert_eq!((response.status, response.worker()), (200, *pid));
            }
        }
    }
    for connection in &mut lost {
        let failure = connection.request(&hello).unwrap_err();
        assert!(matches!(failure, Failure::Closed | Failure::Reset), "{failure:?}");
    }
}

#[test]
fn the_slot_of_a_killed_worker_serves_again() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(2).start();
    let mut visitor = CookieClient::default();
    visitor.view(fleet.listen);
    let victim = fleet.workers()[0];
    let slot = fleet.slot_of(victim);
    let successor = fleet.crash(victim);
    assert_eq!(fleet.slot_of(successor), slot);
    assert_eq!(fleet.workers().len(), 2);
    wait::until("the successor serves", Duration::from_secs(5), || fleet.get("/hello").worker() == successor);
    let died = fleet.log_lines("worker crashed");
    assert_eq!(died.len(), 1, "one line for one death: {died:?}");
    assert!(
        died[0]["message"].as_str().is_some_and(|text| text.contains("SIGKILL")),
        "it says why: {died:?}"
    );
    let views = visitor.view(fleet.listen).1;
    assert_eq!(views, 2);
}

#[test]
fn every_fatal_signal_is_survived() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(4).start();
    for fatal in [Signal::SIGABRT, Signal::SIGILL, Signal::SIGFPE, Signal::SIGTRAP] {
        let victim = fleet.workers()[0];
        let (slot, before) = (fleet.slot_of(victim), fleet.ready().len());
        process::signal(victim, fatal);
        wait::until("the slot has a new worker", wait::LONG, || {
            fleet.ready()[before..].iter().any(|(seat, _)| *seat == slot)
        });
        assert_eq!(fleet.get("/hello").status, 200, "{fatal}");
    }
    assert_eq!(fleet.workers().len(), 4);
}

#[test]
fn fifty_crashes_leak_no_descriptor() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(8).start();
    let supervisor = process::descriptors(fleet.pid());
    let settled = |pid: u32| {
        // What a worker holds once it has its connection to Redis and no client.
        let mut last = process::descriptors(pid);
        wait::until("the worker's descriptors settle", wait::LONG, || {
            let now = process::descriptors(pid);
            let same = now == last && now.iter().filter(|kind| *kind == "socket").count() > 2;
            last = now;
            same
        });
        last
    };
    let worker = settled(fleet.workers()[0]);
    let mut crashes = 0;
    while crashes < 50 {
        // Workers that have served for a while are replaced at once.
        wait::let_pass(Duration::from_millis(1200));
        let before = fleet.ready().len();
        let workers = fleet.workers();
        workers.iter().for_each(|pid| process::signal(*pid, Signal::SIGKILL));
        crashes += workers.len();
        wait::until("all slots are taken again", wait::LONG, || {
            fleet.ready().len() == before + workers.len()
        });
    }
    assert_eq!(fleet.get("/hello").status, 200);
    assert_eq!(process::descriptors(fleet.pid()), supervisor, "of the supervisor, after {crashes} crashes");
    wait::until("the newest workers hold what the first ones held", wait::LONG, || {
        fleet.workers().into_iter().all(|pid| settled(pid) == worker)
    });
}

#[test]
fn a_worker_holds_the_sockets_of_its_own_slot_only() {
    let redis = TestRedis::shared();
    let sockets = |count: usize| {
        let fleet = TestFleetBuilder::on(&redis).workers(count).start();
        let kinds = process::descriptors(fleet.workers()[0]);
        kinds.iter().filter(|kind| *kind == "socket").count()
    };
    assert_eq!(sockets(1), sockets(6), "more slots, but not more sockets in a worker");
}

#[test]
fn workers_leave_when_the_supervisor_is_killed() {
    let redis = TestRedis::shared();
    let mut fleet = TestFleetBuilder::on(&redis).workers(4).start();
    let workers = fleet.workers();
    let mut busy = Connection::open(fleet.listen).unwrap();
    busy.request(&Request::get("/hello")).unwrap();
    fleet.signal(Signal::SIGKILL);
    wait::until("workers are gone", Duration::from_secs(3), || {
        !workers.iter().any(|pid| process::alive(*pid))
    });
    assert_eq!(fleet.exit_code(wait::LONG), -9);
    TcpListener::bind(fleet.listen).expect("the port is free");
    TcpListener::bind(fleet.admin).expect("the operators' port is free");
}

#[test]
fn a_private_redis_leaves_when_the_supervisor_is_killed() {
    let mut fleet = TestFleetBuilder::new().start();
    let private = fleet.others()[0];
    fleet.signal(Signal::SIGKILL);
    wait::until("the private Redis is gone", wait::LONG, || !process::alive(private));
    assert_eq!(fleet.exit_code(wait::LONG), -9);
}

#[test]
fn the_supervisor_has_one_thread() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).start();
    let mut visitor = CookieClient::default();
    for _ in 0..5 {
        visitor.view(fleet.listen);
    }
    fleet.crash(fleet.workers()[0]);
    assert_eq!(process::threads(fleet.pid()), 1);
}

#[test]
fn a_fleet_of_which_no_worker_boots_ends_with_the_reason() {
    let redis = TestRedis::shared();
    let (code, printed) = faulty(&redis, "all").run();
    assert_eq!(code, 70, "{printed}");
    assert!(printed.contains("the boat has a hole"), "{printed}");
    let last = printed.lines().rev().find(|line| line.contains("no worker could be brought up"));
    assert!(last.is_some_and(|line| line.contains("the boat has a hole")), "{printed}");
}

#[test]
fn one_slot_that_never_boots_does_not_stop_the_others() {
    let redis = TestRedis::shared();
    let plan = faulty(&redis, "1").workers(3);
    let fleet = plan.bind();
    wait::until("two workers are ready", wait::LONG, || fleet.ready().len() == 2);
    wait::until("the third has died some times", wait::LONG, || fleet.log_lines("worker crashed").len() >= 3);
    let hello = Request::get("/hello").header("Connection", "close");
    let served = |patience: Duration| {
        let mut connection = Connection::open(fleet.listen).unwrap();
        connection.set_timeout(patience);
        connection.request(&hello).map(|response| response.worker())
    };
    let answers: Vec<_> = (0..30).map(|_| served(Duration::from_millis(300))).collect();
    let pids: BTreeSet<_> = answers.iter().flatten().collect();
    assert_eq!(pids.len(), 2, "both others serve: {answers:?}");
    let delays: Vec<_> =
        fleet.log_lines("worker crashed").iter().filter_map(|line| line["delay_seconds"].as_f64()).collect();
    assert!(delays.iter().all(|delay| *delay >= 0.4), "it is not retried without a pause: {delays:?}");
    fs::write(plan.folder().join("failing"), "").unwrap();
    wait::until("the slot comes back once its fault is gone", Duration::from_secs(40), || {
        fleet.ready().len() == 3
    });
    assert_eq!(fleet.workers().len(), 3);
    for _ in 0..20 {
        served(Duration::from_secs(5)).expect("all slots serve");
    }
}

#[test]
fn a_panic_in_a_handler_costs_its_request_only() {
    let redis = TestRedis::shared();
    let fleet = faulty(&redis, "").start();
    let before: BTreeSet<_> = fleet.workers().into_iter().collect();
    for _ in 0..10 {
        fleet.get("/panic").assert_problem(500);
    }
    assert_eq!(fleet.workers().into_iter().collect::<BTreeSet<_>>(), before, "no worker died of it");
    assert_eq!(fleet.get("/hello").status, 200);
}

#[test]
fn orphans_of_a_worker_are_reaped_and_taken_for_no_worker() {
    let redis = TestRedis::shared();
    let fleet = faulty(&redis, "").workers(2).start();
    let workers = fleet.workers();
    let orphan: u32 = fleet.get("/orphan").text().trim().parse().unwrap();
    wait::until("the orphan is gone, and not as a zombie", wait::LONG, || process::state(orphan).is_none());
    assert_eq!(fleet.workers(), workers);
    assert!(fleet.log_lines("worker crashed").is_empty());
    assert_eq!(fleet.get("/hello").status, 200);
}

#[test]
fn crashes_under_load_hurt_only_what_the_crashed_worker_held() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(4).start();
    let address = fleet.listen;
    let load = ParallelClients::start(4, |_| {
        let mut visitor = CookieClient::default();
        move || visitor.try_request(address, Request::get("/"))
    });
    let mut crashes = 0;
    for pid in fleet.workers() {
        let seen = load.seen();
        wait::until("visits", wait::LONG, || load.seen() > seen + 40);
        fleet.crash(pid);
        crashes += 1;
    }
    let results: Vec<_> = load.stop().into_iter().flatten().collect();
    let failed: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    assert!(results.iter().flatten().all(|response| response.status == 200));
    assert!(
        failed.iter().all(|failure| matches!(failure, Failure::Reset | Failure::Closed | Failure::Short)),
        "{failed:?}"
    );
    assert!(
        failed.len() <= 4 * crashes,
        "at most what 4 clients had in the hands of {crashes} workers: {failed:?}"
    );
}

#[test]
fn a_suspended_supervisor_stops_no_worker() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).start();
    let workers = fleet.workers();
    process::stop(fleet.pid());
    let mut visitor = CookieClient::default();
    for views in 1..=30 {
        assert_eq!(visitor.view(fleet.listen).1, views);
    }
    wait::let_pass(Duration::from_secs(2));
    fleet.signal(Signal::SIGCONT);
    for views in 31..=60 {
        assert_eq!(visitor.view(fleet.listen).1, views);
    }
    assert_eq!(fleet.workers(), workers);
}
