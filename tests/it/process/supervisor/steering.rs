//! Which worker a client meets, and that no one is lost while slots come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::client::{Connection, Request, Response};
use crate::support::fleet::{TestFleet, TestFleetBuilder, field};
use crate::support::redis::TestRedis;
use crate::support::{process, wait};

/// Clients of these tests: 127.0.0.2 and so on.
const CLIENTS: std::ops::Range<u8> = 2..62;

/// Without the look-out for hangs: on a machine that starves a worker it steers clients past it, as it should.
fn sticky(redis: &TestRedis) -> TestFleetBuilder {
    TestFleetBuilder::on(redis)
        .set("REGATTA_LISTEN__STEERING", "client-ip")
        .set("REGATTA_WORKERS__HANG_TIMEOUT", "0s")
}

/// One request over a new connection of the client at 127.0.0.`last`.
#[track_caller]
fn ask(fleet: &TestFleet, last: u8, request: Request) -> Response {
    let from = IpAddr::from([127, 0, 0, last]);
    let mut connection = Connection::open_from(from, fleet.listen).expect("no connection is refused");
    let response =
        connection.request(&request.header("Connection", "close")).expect("every request is answered");
    assert_eq!(response.status, 200, "{}", response.text());
    response
}

/// The worker each client meets.
#[track_caller]
fn meet(fleet: &TestFleet) -> BTreeMap<u8, u32> {
    CLIENTS.map(|last| (last, ask(fleet, last, Request::get("/hello")).worker())).collect()
}

/// Waits until a scaling is done and its leaving workers are gone.
#[track_caller]
fn scale(fleet: &TestFleet, signal: Signal, workers: usize) {
    fleet.signal(signal);
    wait::until(&format!("{workers} workers serve"), wait::LONG, || {
        let states = fleet.operator("/fleet.json").json()["slots"].clone();
        let ready = |slot: &&serde_json::Value| slot["state"] == "ready";
        states.as_array().unwrap().iter().filter(ready).count() == workers && fleet.workers().len() == workers
    });
}

#[test]
fn a_client_meets_one_worker_whose_memory_counts_its_hits() {
    let redis = TestRedis::start();
    let fleet = sticky(&redis).workers(4).start();
    let mut cookie = String::new();
    let mut met = BTreeSet::new();
    for hit in 1..=20 {
        let response = ask(&fleet, 2, Request::get("/sticky").header("Cookie", &cookie));
        met.insert(response.worker());
        assert_eq!(response.text(), format!("Worker {} session hits: {hit}\n", response.worker()));
        match response.header("Set-Cookie").split(';').next() {
            Some(given) if hit == 1 => cookie = given.to_owned(),
            other => assert_eq!(other, Some(""), "a cookie is given once"),
        }
    }
    assert_eq!(met.len(), 1);
    let other = ask(&fleet, 2, Request::get("/sticky"));
    assert!(other.text().ends_with("hits: 1\n"), "another session of the same client: {}", other.text());
    assert_eq!(meet(&fleet).into_values().collect::<BTreeSet<_>>().len(), 4, "all workers get some clients");
}

#[test]
fn a_slot_that_is_away_gives_only_its_own_clients_away_and_gets_them_back() {
    let redis = TestRedis::start();
    let plan = sticky(&redis).workers(3).example("faulty");
    let file = plan.folder().join("failing");
    let fleet = plan.set("FAULTY_FILE", &file.display().to_string()).start();
    let before = meet(&fleet);
    let victim = fleet.ready().iter().find(|(slot, _)| *slot == 1).unwrap().1;
    fs::write(&file, "1").unwrap();
    process::signal(victim, Signal::SIGKILL);
    wait::until("its slot has failed to boot", wait::LONG, || fleet.log_lines("worker crashed").len() >= 2);
    let meanwhile = meet(&fleet);
    for (client, worker) in &before {
        assert_eq!(*worker == meanwhile[client], *worker != victim, "client {client}");
    }
    fs::write(&file, "").unwrap();
    wait::until("the slot is mended", Duration::from_secs(30), || fleet.ready().len() > 3);
    let healed = fleet.ready().last().unwrap().1;
    wait::until("its clients have come back", wait::LONG, || {
        let after = meet(&fleet);
        before
            .iter()
            .all(|(client, worker)| after[client] == if *worker == victim { healed } else { *worker })
    });
}

#[test]
fn one_slot_more_or_less_moves_only_its_share_of_the_clients() {
    let redis = TestRedis::start();
    let fleet = sticky(&redis).workers(3).start();
    let three = meet(&fleet);
    scale(&fleet, Signal::SIGTTIN, 4);
    let four = meet(&fleet);
    let newcomer = fleet.ready().last().unwrap().1;
    let moved: Vec<_> = CLIENTS.filter(|client| three[client] != four[client]).collect();
    assert!(moved.iter().all(|client| four[client] == newcomer));
    assert!((5..30).contains(&moved.len()), "{} of {} clients moved", moved.len(), three.len());
    scale(&fleet, Signal::SIGTTOU, 3);
    // Its worker is gone a moment before the slot is.
    wait::until("everybody is where they were", wait::LONG, || meet(&fleet) == three);
}

#[test]
fn what_is_queued_on_a_retiring_slot_is_answered() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(2).start();
    let request = Request::get("/hello").header("Connection", "close").bytes();
    for killed in [false, true] {
        // The second time its slot was opened again a moment ago, and the log still ends with the former one.
        let last = wait::until_some("slot 1 has a worker", wait::LONG, || {
            let last = fleet.ready().iter().rev().find(|(slot, _)| *slot == 1)?.1;
            fleet.workers().contains(&last).then_some(last)
        });
        process::stop(last);
        let queued = (0..40).map(|_| {
            let mut connection = Connection::open(fleet.listen).unwrap();
            connection.send(&request).unwrap();
            connection
        });
        let mut queued: Vec<_> = queued.collect();
        let told = fleet.log_lines("worker draining").len();
        fleet.signal(Signal::SIGTTOU);
        wait::until("its worker is told", wait::LONG, || fleet.log_lines("worker draining").len() > told);
        process::signal(last, if killed { Signal::SIGKILL } else { Signal::SIGCONT });
        let answered = queued.iter_mut().map(|one| one.receive(false).expect("it is answered").worker());
        let slots: BTreeSet<_> = answered.map(|pid| fleet.slot_of(pid)).collect();
        assert_eq!(slots.len(), 2, "both slots had a share in the queue");
        wait::until("the slot is closed", wait::LONG, || fleet.workers().len() == 1);
        for _ in 0..20 {
            assert_eq!(ask(&fleet, 1, Request::get("/hello")).status, 200);
        }
        scale(&fleet, Signal::SIGTTIN, 2);
    }
}

#[test]
fn a_worker_that_is_told_again_cuts_what_it_still_has() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(1).example("faulty").start();
    let worker = fleet.workers()[0];
    let mut held = Connection::open(fleet.listen).unwrap();
    held.send(&Request::get("/slow/60000").bytes()).unwrap();
    wait::until("it is under way", wait::LONG, || fleet.get("/held").text() == "1");
    for _ in 0..5 {
        process::signal(worker, Signal::SIGTERM);
    }
    wait::until("a successor serves", wait::LONG, || fleet.ready().len() == 2);
    // Five at once are one: a service manager may signal every process of its unit.
    wait::let_pass(Duration::from_millis(1200));
    assert!(process::alive(worker) && !held.is_closed());
    process::signal(worker, Signal::SIGTERM);
    wait::until("it has left", wait::LONG, || !process::alive(worker));
    assert!(held.receive(false).is_err());
    let aborted = fleet.log_lines("connections aborted");
    let counts: Vec<_> = aborted.iter().map(|line| field(line, "count").as_u64()).collect();
    assert_eq!(counts, [Some(1)], "{}", fleet.log());
}
