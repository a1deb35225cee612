//! Two things at once, each of which goes well alone: what a review found, and what must not come back.

use std::net::SocketAddr;
use std::time::{Duration, Instant};
use std::{fs, thread};

use nix::sys::signal::Signal;

use crate::support::client::{Connection, Failure, Request};
use crate::support::faulty_fleet::{Scene, configuration};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::parallel_clients::ParallelClients;
use crate::support::redis::TestRedis;
use crate::support::service_manager::Manager;
use crate::support::{client, process, wait};

/// How long the fleets of this file accept after they were told to stop.
const GRACE: Duration = Duration::from_secs(3);

fn graceful(redis: &TestRedis) -> TestFleetBuilder {
    TestFleetBuilder::on(redis).set("REGATTA_DRAIN__GRACE", "3s")
}

/// One visit over a connection of its own; longer silence than this is a hang.
fn visit(address: SocketAddr, patience: Duration) -> Result<u16, Failure> {
    let mut connection = Connection::open(address)?;
    connection.set_timeout(patience);
    let request = Request::get("/hello").header("Connection", "close");
    connection.request(&request).map(|response| response.status)
}

fn visitors(fleet: &TestFleet) -> ParallelClients<Result<u16, Failure>> {
    let address = fleet.listen;
    ParallelClients::start(4, |_| move || visit(address, client::TIMEOUT))
}

/// That each client saw answers, then refusals, and nothing else.
#[track_caller]
fn answered_then_refused(load: ParallelClients<Result<u16, Failure>>) {
    for client in load.stop() {
        let answered = client.iter().take_while(|result| **result == Ok(200)).count();
        let wrong: Vec<_> =
            client[answered..].iter().filter(|result| **result != Err(Failure::Refused)).collect();
        assert!(answered > 0 && wrong.is_empty(), "after {answered} answers: {wrong:?}");
    }
}

/// Sends a request and leaves its answer alone.
fn begun(fleet: &TestFleet, target: &str) -> Connection {
    let mut connection = Connection::open(fleet.listen).unwrap();
    connection.send(&Request::get(target).bytes()).unwrap();
    connection
}

#[test]
fn a_signal_to_every_process_at_once_is_a_stop_with_its_grace() {
    let redis = TestRedis::start();
    let mut fleet = graceful(&redis).start();
    let load = visitors(&fleet);
    wait::until("load", wait::LONG, || load.seen() > 100);
    let begin = Instant::now();
    for pid in fleet.workers().into_iter().chain([fleet.pid()]) {
        process::signal(pid, Signal::SIGTERM);
    }
    wait::until("readiness fails", wait::LONG, || {
        client::once(fleet.admin, Request::get("/readyz")).is_ok_and(|response| response.status == 503)
    });
    assert_eq!(fleet.exit_code(wait::LONG), 0);
    assert!(begin.elapsed() >= GRACE, "it ended after {:?}", begin.elapsed());
    let seen = load.seen();
    wait::until("clients have noticed", wait::LONG, || load.seen() > seen + 20);
    answered_then_refused(load);
}

#[test]
fn a_stop_that_meets_the_death_of_a_new_programs_first_worker_is_a_stop() {
    let redis = TestRedis::start();
    for suspended in [true, false] {
        let mut fleet = TestFleetBuilder::on(&redis).set("REGATTA_WORKERS__CANARY_PERIOD", "30s").start();
        fleet.signal(Signal::SIGUSR2);
        wait::until("the first new worker serves", wait::LONG, || fleet.ready().len() == 3);
        let (workers, (_, candidate)) = (fleet.workers(), fleet.ready()[2]);
        if suspended {
            // It wakes up to find both.
            process::stop(fleet.pid());
        }
        process::signal(candidate, Signal::SIGKILL);
        fleet.signal(Signal::SIGTERM);
        wait::until("the candidate is dead", wait::LONG, || !process::alive(candidate));
        fleet.signal(Signal::SIGCONT);
        assert_eq!(fleet.exit_code(wait::LONG), 0, "{}", fleet.log());
        assert!(!workers.into_iter().any(process::alive));
    }
}

#[test]
fn a_first_worker_that_has_served_its_requests_does_not_hold_a_reload_up() {
    let redis = TestRedis::start();
    let plan = TestFleetBuilder::on(&redis).set("REGATTA_WORKERS__MAX_REQUESTS", "30");
    let fleet = plan.set("REGATTA_WORKERS__CANARY_PERIOD", "3s").start();
    let load = visitors(&fleet);
    wait::until("load", wait::LONG, || load.seen() > 100);
    fleet.signal(Signal::SIGHUP);
    let mut most = 0;
    wait::until("the reload is done", Duration::from_secs(40), || {
        most = most.max(fleet.workers().len());
        !fleet.log_lines("reload done: 2 workers of generation 2").is_empty()
    });
    // A worker and three that leave in each slot, and one successor.
    assert!(most <= 9, "{most} workers");
    let wrong: Vec<_> = load.stop().into_iter().flatten().filter(|result| *result != Ok(200)).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// A rollout whose second slot fails, when the old generation does not boot any more either.
fn cannot_be_gone_back(verb: &str) {
    let mut manager = None;
    let scene = Scene::start_as(2, |plan| {
        let (heard, plan) = Manager::of(plan);
        manager = Some(heard);
        plan
    });
    fs::write(&scene.faults, "1").unwrap();
    let plan = scene.fleet.plan().clone().args(&[verb]);
    let waiting = thread::spawn(move || plan.run());
    wait::until("slot 0 has a new worker", wait::LONG, || scene.fleet.ready().len() == 3);
    fs::write(&scene.faults, "all").unwrap();
    let (code, said) = waiting.join().unwrap();
    assert!(code == 1 && said.contains("rolling back fails too, in slot 0"), "{code}: {said}");
    let mut manager = manager.unwrap();
    manager.hears("RELOADING=1");
    assert!(manager.hears("READY=1").contains("rolling back fails too"));
    // Another one that is no repair is told so too.
    scene.expect(&[verb], 1, "rolling back fails too, in slot 0");
    for _ in 0..10 {
        assert_eq!(scene.fleet.get("/hello").status, 200, "both slots serve all the while");
    }
    fs::remove_file(&scene.faults).unwrap();
    scene.expect(&["reload"], 0, "reload done: 2 workers of generation 4");
    scene.settled(2);
    assert_eq!(scene.status()["last_rollout"]["outcome"], "done");
    scene.expect(&["upgrade"], 0, "upgrade done: 2 workers of generation 5");
}

#[test]
fn a_reload_that_cannot_be_gone_back_is_said_and_can_be_repaired() {
    cannot_be_gone_back("reload");
}

#[test]
fn an_upgrade_that_cannot_be_gone_back_is_said_and_can_be_repaired() {
    cannot_be_gone_back("upgrade");
}

#[test]
fn a_whole_fleet_that_is_suspended_longer_than_a_short_hang_timeout_goes_on_as_it_was() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).set("REGATTA_WORKERS__HANG_TIMEOUT", "1s").start();
    let before = fleet.workers();
    let all: Vec<_> = [fleet.pid()].into_iter().chain(before.iter().copied()).collect();
    for _ in 0..3 {
        all.iter().for_each(|pid| process::stop(*pid));
        wait::let_pass(Duration::from_secs(4));
        all.iter().for_each(|pid| process::signal(*pid, Signal::SIGCONT));
        // Long enough for a mistaken verdict to have fallen.
        wait::let_pass(Duration::from_millis(1500));
        assert_eq!(fleet.workers(), before);
    }
    assert!(fleet.log_lines("worker hung").is_empty());
}

#[test]
fn a_worker_that_dies_in_the_grace_leaves_nobody_waiting_in_its_queue() {
    let redis = TestRedis::start();
    let mut fleet = graceful(&redis).start();
    fleet.signal(Signal::SIGTERM);
    wait::until("workers drain", wait::LONG, || fleet.log_lines("worker draining").len() == 2);
    let begin = Instant::now();
    process::signal(fleet.workers()[0], Signal::SIGKILL);
    // Who was queued there before the seat is closed may be reset.
    wait::until("it is reaped", Duration::from_secs(2), || !fleet.log_lines("worker crashed").is_empty());
    let mut served = 0;
    loop {
        // A connection in the queue of the dead worker would get no answer before the grace is over.
        match visit(fleet.listen, Duration::from_secs(1)) {
            Ok(status) => served += usize::from(status == 200),
            Err(Failure::Refused) if begin.elapsed() >= GRACE / 2 => break,
            other => panic!("{other:?} after {:?} and {served} answers", begin.elapsed()),
        }
    }
    assert!(served > 10, "the other worker serves: {served}");
    assert_eq!(fleet.exit_code(wait::LONG), 0);
}

#[test]
fn a_touched_file_does_not_keep_a_stopping_supervisor_busy() {
    let redis = TestRedis::start();
    let plan = TestFleetBuilder::on(&redis).example("faulty").args(&["serve", "--watch"]);
    let mut fleet = plan.start();
    let mut request = begun(&fleet, "/slow/4000");
    wait::until("it is under way", wait::LONG, || (0..10).any(|_| fleet.get("/held").text().trim() == "1"));
    fleet.signal(Signal::SIGTERM);
    wait::until("workers drain", wait::LONG, || fleet.log_lines("worker draining").len() == 2);
    fs::write(fleet.plan().folder().join("regatta.toml"), "[http]\n").unwrap();
    let before = process::cpu_time(fleet.pid());
    wait::let_pass(Duration::from_secs(1));
    let used = process::cpu_time(fleet.pid()).saturating_sub(before);
    assert!(process::alive(fleet.pid()) && used < Duration::from_millis(200), "{used:?} of one second");
    assert_eq!(request.receive(false).unwrap().status, 200);
    assert_eq!(fleet.exit_code(wait::LONG), 0);
    assert!(fleet.log_lines("reload").is_empty());
}

#[test]
fn a_change_that_comes_while_the_fleet_boots_is_followed_once_it_serves() {
    let redis = TestRedis::start();
    let plan = TestFleetBuilder::on(&redis).example("faulty").args(&["serve", "--watch"]);
    let (faults, file) = (plan.folder().join("faults"), plan.folder().join("regatta.toml"));
    fs::write(&faults, "0 1").unwrap();
    let plan =
        plan.set("FAULTY_FILE", faults.to_str().unwrap()).set("REGATTA_WORKERS__CANARY_PERIOD", "200ms");
    let fleet = plan.spawn();
    wait::until("it boots", wait::LONG, || !fleet.log_lines("worker crashed").is_empty());
    fs::write(&file, "[http]\nkeep_alive_timeout = \"20s\"\n").unwrap();
    fs::remove_file(&faults).unwrap();
    wait::until("it is followed", wait::LONG, || !fleet.log_lines("reload done").is_empty());
}

#[test]
fn a_worker_killed_at_the_drains_deadline_costs_its_slot_nothing() {
    let scene = Scene::start_as(1, |plan| {
        plan.set("REGATTA_WORKERS__HANG_TIMEOUT", "0").set("REGATTA_DRAIN__TIMEOUT", "1s")
    });
    // It cannot cut what it has, as it does nothing else.
    let _unanswered = begun(&scene.fleet, "/block/60000");
    scene.expect(&["reload"], 0, "reload done: 1 worker");
    wait::until("it is killed", wait::LONG, || !scene.fleet.log_lines("worker killed").is_empty());
    scene.settled(1);
    let slot = scene.status()["slots"][0].clone();
    assert_eq!((slot["state"].as_str(), slot["exits"]["drain_timeout"].as_u64()), (Some("ready"), Some(1)));
    assert_eq!(scene.fleet.get("/hello").status, 200);
    assert!(scene.fleet.log_lines("worker crashed:").is_empty(), "nobody waits for a delay");
    scene.expect(&["restart", "0"], 0, "slot 0 has a new worker");
}

#[test]
fn scaling_beside_a_slot_that_does_not_come_up_any_more_is_told_so() {
    let scene = Scene::start(2);
    fs::write(&scene.faults, "1").unwrap();
    let (_, worker) = scene.fleet.ready().into_iter().find(|(slot, _)| *slot == 1).unwrap();
    process::signal(worker, Signal::SIGKILL);
    wait::until("it loops", wait::LONG, || scene.fleet.log_lines("worker crashed").len() >= 3);
    scene.expect(&["scale", "3"], 1, "does not become ready, and is retried");
    fs::remove_file(&scene.faults).unwrap();
    wait::until("all three serve", wait::LONG, || scene.status()["workers"]["ready"] == 3);
}

#[test]
fn a_reload_to_more_workers_than_there_is_room_for_says_so() {
    let scene = Scene::start(2);
    fs::write(&scene.file, configuration(1000, "300ms")).unwrap();
    let said = scene.expect(&["reload"], 0, "workers.count was not changed");
    assert!(said.contains("room for"), "{said}");
    let workers = scene.status()["workers"].clone();
    assert_eq!((&workers["configured"], &workers["ready"]), (&2.into(), &2.into()));
    fs::write(&scene.file, configuration(3, "300ms")).unwrap();
    scene.expect(&["reload"], 0, "reload done");
    wait::until("three serve", wait::LONG, || scene.status()["workers"]["ready"] == 3);
}
