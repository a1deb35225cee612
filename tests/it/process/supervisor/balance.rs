//! Connections that are kept are spread evenly over the workers, and none is lost on its way from one to another.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::client::{Connection, Failure, Request};
use crate::support::exposition::sum;
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::kept_connections::{
    ACCEPTED, KEPT, PASSED, answered, assert_even, open, queued, shares, total, use_all,
};
use crate::support::operate::rollout;
use crate::support::redis::TestRedis;
use crate::support::{process, wait};

#[test]
fn kept_connections_are_even_over_2_4_8_and_16_workers() {
    let redis = TestRedis::start();
    for workers in [2, 4, 8, 16] {
        let fleet = TestFleetBuilder::on(&redis).workers(workers).start();
        let answers = use_all(&mut open(&fleet, KEPT));
        assert_even(&shares(&fleet, &answers));
    }
}

#[test]
fn a_connection_is_counted_once_however_it_came() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(4).start();
    let mut kept = open(&fleet, KEPT);
    let _ = use_all(&mut kept);
    let slots = || fleet.operator("/fleet.json").json()["slots"].as_array().unwrap().clone();
    let sum_of = |name: &str| slots().iter().map(|slot: &Value| slot[name].as_u64().unwrap()).sum::<u64>();
    // The operator's own are counted as well, one for each look.
    wait::until("all are open", wait::LONG, || {
        (KEPT as u64..KEPT as u64 + 3).contains(&sum_of("connections"))
    });
    let before = total(&fleet, ACCEPTED);
    let passed = total(&fleet, PASSED);
    assert!(passed > 0.0 && passed <= KEPT as f64, "{passed} of {KEPT}");
    let mut more = open(&fleet, KEPT);
    let _ = use_all(&mut more);
    // Two looks at the metrics since the first one, each over a connection of its own.
    let after = total(&fleet, ACCEPTED);
    assert!((after - before - 2.0 - KEPT as f64).abs() < 0.5, "{before} and {after}");
    drop((kept, more));
    wait::until("none is left in the books", wait::LONG, || sum_of("connections") <= 2);
}

#[test]
fn who_comes_late_gets_what_is_missing() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(2).start();
    let mut kept = open(&fleet, 32);
    let _ = use_all(&mut kept);
    for workers in [3, 4] {
        fleet.signal(Signal::SIGTTIN);
        wait::until("the new slot serves", wait::LONG, || fleet.ready().len() == workers);
    }
    let mut more = open(&fleet, 32);
    let answers = use_all(&mut more);
    let had = shares(&fleet, &answers);
    assert!(had.iter().filter(|share| **share > 8).count() == 2, "the new ones had none: {had:?}");
    kept.append(&mut more);
    let answers = use_all(&mut kept);
    assert_even(&shares(&fleet, &answers));
}

/// One request on each of these, as clients do that keep connections: one that is told that its connection ends, or
/// finds that it has ended, opens another one. The workers that answered.
#[track_caller]
fn ask_all(fleet: &TestFleet, kept: &mut [Connection]) -> Vec<u32> {
    let ask = |connection: &mut Connection| {
        let response = match connection.request(&Request::get("/hello")) {
            Ok(response) => response,
            // A rollout ends idle ones, a death all.
            Err(Failure::Reset | Failure::Closed) => {
                *connection = Connection::open(fleet.listen).expect("no connection is refused");
                connection.request(&Request::get("/hello")).expect("a new connection is answered")
            }
            Err(other) => panic!("{other:?}"),
        };
        assert_eq!(response.status, 200, "{}", response.text());
        if !response.keeps_alive() {
            *connection = Connection::open(fleet.listen).expect("no connection is refused");
        }
        response.worker()
    };
    kept.iter_mut().map(ask).collect()
}

/// Asks again and again until no worker has more than a tenth above the mean.
#[track_caller]
fn ask_until_even(fleet: &TestFleet, kept: &mut [Connection], workers: usize) {
    wait::until("the workers have as many connections each", wait::LONG, || {
        let mut shares = std::collections::BTreeMap::<u32, usize>::new();
        for worker in ask_all(fleet, kept) {
            *shares.entry(worker).or_default() += 1;
        }
        let most = shares.values().max().copied().unwrap_or(0);
        shares.len() == workers && most * workers * 10 <= kept.len() * 11
    });
}

#[test]
fn kept_connections_become_even_again_after_reloads_and_deaths() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(4).start();
    let mut kept = open(&fleet, KEPT);
    ask_until_even(&fleet, &mut kept, 4);
    for round in 1..=2 {
        fleet.signal(Signal::SIGHUP);
        // They ask all the time, so that they come back while two generations serve.
        wait::until("the reload is done", wait::LONG, || {
            let _ = ask_all(&fleet, &mut kept);
            fleet.log_lines("reload done").len() == round
        });
        ask_until_even(&fleet, &mut kept, 4);
    }
    fleet.crash(fleet.ready().last().unwrap().1);
    ask_until_even(&fleet, &mut kept, 4);
}

#[test]
fn a_new_slot_gets_its_share_of_those_that_are_kept() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(3).start();
    let mut kept = open(&fleet, KEPT);
    ask_until_even(&fleet, &mut kept, 3);
    fleet.signal(Signal::SIGTTIN);
    wait::until("the new slot serves", wait::LONG, || fleet.ready().len() == 4);
    ask_until_even(&fleet, &mut kept, 4);
    let ended =
        sum(&fleet.operator("/metrics").text(), "regatta_connections_closed_total", &["reason=\"surplus\""]);
    assert!(ended > 0.0 && ended <= KEPT as f64, "{ended} of {KEPT}");
}

#[test]
fn without_it_and_with_clients_steered_by_their_address_none_is_passed() {
    let redis = TestRedis::start();
    for (name, value) in [("REGATTA_LISTEN__BALANCE", "false"), ("REGATTA_LISTEN__STEERING", "client-ip")] {
        let fleet = TestFleetBuilder::on(&redis).workers(4).set(name, value).start();
        let _ = use_all(&mut open(&fleet, KEPT));
        assert!(total(&fleet, PASSED).abs() < 0.5, "{name}");
    }
}

#[test]
fn a_worker_that_stands_still_holds_up_none_that_another_has_accepted() {
    let redis = TestRedis::start();
    // Nothing steers past it.
    let fleet = TestFleetBuilder::on(&redis).workers(2).set("REGATTA_WORKERS__HANG_TIMEOUT", "0s").start();
    let frozen = fleet.ready()[0].1;
    process::signal(frozen, Signal::SIGSTOP);
    let mut kept = open(&fleet, KEPT);
    let request = Request::get("/hello").bytes();
    kept.iter_mut().for_each(|connection| connection.send(&request).unwrap());
    let mut served = 0;
    let mut waiting = kept;
    wait::until("all are served but those in the frozen worker's own queue", wait::LONG, || {
        let before = waiting.len();
        waiting.retain_mut(|connection| answered(std::slice::from_mut(connection)) == 0);
        served += before - waiting.len();
        waiting.len() == queued(&fleet)
    });
    assert!(served > 0 && !waiting.is_empty(), "{served} of {KEPT}");
    process::signal(frozen, Signal::SIGCONT);
    wait::until("the others are answered", wait::LONG, || {
        waiting.retain_mut(|connection| answered(std::slice::from_mut(connection)) == 0);
        waiting.is_empty()
    });
}

#[test]
fn what_a_killed_worker_had_passed_on_is_served() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(2).set("REGATTA_WORKERS__HANG_TIMEOUT", "0s").start();
    let before = total(&fleet, ACCEPTED);
    let [(_, frozen), (_, killed)] = fleet.ready()[..] else { panic!("two workers") };
    process::signal(frozen, Signal::SIGSTOP);
    let mut kept = open(&fleet, KEPT);
    let request = Request::get("/hello").bytes();
    // The frozen one has no connection yet, so that half of what the other accepts is in the shared queue now.
    fleet.crash(killed);
    process::signal(frozen, Signal::SIGCONT);
    let mut lost = 0;
    for connection in &mut kept {
        let answer = connection.send(&request).and_then(|()| connection.receive(false));
        match answer {
            Ok(response) => assert_eq!(response.status, 200),
            Err(Failure::Reset | Failure::Closed) => lost += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    // Those it had accepted and kept are counted as accepted; one that was lost on its way would be missing.
    let accepted = total(&fleet, ACCEPTED) - before - 1.0;
    assert!((accepted - KEPT as f64).abs() < 0.5, "{accepted} accepted, {lost} lost");
    assert!(lost < KEPT / 2, "{lost} of {KEPT} lost");
}

#[test]
fn a_fleet_that_stops_answers_what_is_on_its_way() {
    let redis = TestRedis::start();
    for _ in 0..5 {
        let mut fleet = TestFleetBuilder::on(&redis).workers(4).start();
        let mut kept = open(&fleet, KEPT);
        fleet.signal(Signal::SIGTERM);
        let _ = use_all(&mut kept);
        drop(kept);
        assert_eq!(fleet.exit_code(wait::LONG), 0);
    }
}

#[test]
fn connections_in_a_crowd_are_even_and_none_is_lost() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(4).start();
    let before = total(&fleet, ACCEPTED);
    // More than the shared queue has room for.
    let mut kept = open(&fleet, 16 * KEPT);
    let answers = use_all(&mut kept);
    let accepted = total(&fleet, ACCEPTED) - before - 1.0;
    assert!((accepted - 16.0 * KEPT as f64).abs() < 0.5, "{accepted}");
    assert_even(&shares(&fleet, &answers));
}

#[test]
fn they_are_even_again_after_a_reload_and_an_upgrade() {
    let redis = TestRedis::start();
    let fleet =
        TestFleetBuilder::on(&redis).workers(4).set("REGATTA_WORKERS__CANARY_PERIOD", "100ms").start();
    for (signal, verb) in [(Signal::SIGHUP, "reload"), (Signal::SIGUSR2, "upgrade")] {
        let mut kept = open(&fleet, KEPT);
        let _ = use_all(&mut kept);
        let ready = fleet.ready().len();
        rollout(&fleet, signal, verb);
        drop(kept);
        let newest = fleet.ready()[ready..].to_vec();
        assert_eq!(newest.len(), 4);
        // A new worker is given none before it has served for a second.
        wait::until("the new workers are even", wait::LONG, || {
            let answers = use_all(&mut open(&fleet, KEPT));
            let share = |(_, pid): &(u64, u32)| answers.iter().filter(|worker| *worker == pid).count();
            let shares: Vec<usize> = newest.iter().map(share).collect();
            shares.iter().all(|share| *share == KEPT / 4)
        });
    }
}
