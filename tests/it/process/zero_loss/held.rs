//! Connections that are held for ever do not hold up the fleet: their workers are bounded in number and in time.

use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::client::{Connection, Request};
use crate::support::soak;
use crate::support::traffic::Scene;
use crate::support::traffic::{Census, MOST};

/// How long a worker may drain here.
const DRAIN: Duration = Duration::from_secs(3);

/// A connection that left HTTP, as a WebSocket does.
fn held_socket(scene: &mut Scene) -> Connection {
    let mut connection = Connection::open(scene.fleet.listen).unwrap();
    let upgrade = Request::get("/echo").header("Connection", "upgrade").header("Upgrade", "websocket");
    assert_eq!(connection.request(&upgrade).expect("it is agreed to").status, 101);
    scene.own += 1;
    connection
}

#[test]
fn held_connections_bound_old_generations() {
    let mut scene = Scene::start("held connections", |plan| {
        plan.set("REGATTA_DRAIN__TIMEOUT", &format!("{}s", DRAIN.as_secs()))
    });
    let census = Census::of(scene.fleet.pid());
    let mut held = Vec::new();
    for round in 0..soak::length(4, 60) {
        held.push(held_socket(&mut scene));
        let newest = held.last_mut().unwrap();
        newest.send(b"still there?").unwrap();
        scene.rollout(Signal::SIGHUP, "reload");
        assert_eq!(held.last_mut().unwrap().read(12).unwrap(), b"still there?", "round {round}");
    }
    soak::log("held connections", &format!("at most {} processes", census.most()));
    assert!(census.most() <= MOST, "{} processes at a time", census.most());
    drop(census);
    scene.settled(2);
    assert!(
        !scene.fleet.log_lines("connections aborted at drain timeout").is_empty(),
        "what was cut is told: {}",
        scene.fleet.log()
    );
    scene.end();
}

#[test]
fn requests_longer_than_a_drain_are_cut_and_shorter_ones_finished() {
    let mut scene = Scene::start("held requests", |plan| {
        plan.set("REGATTA_DRAIN__TIMEOUT", &format!("{}s", DRAIN.as_secs()))
    });
    let ask = |millis: u64| {
        let mut connection = Connection::open(scene.fleet.listen).unwrap();
        connection.send(&Request::get(&format!("/slow/{millis}")).bytes()).unwrap();
        thread::spawn(move || connection.receive(false))
    };
    let short: Vec<_> = (0..4).map(|_| ask(1_000)).collect();
    let long: Vec<_> = (0..4).map(|_| ask(600_000)).collect();
    for _ in 0..soak::length(2, 10) {
        scene.rollout(Signal::SIGHUP, "reload");
    }
    for request in short {
        assert_eq!(request.join().unwrap().expect("it is finished").status, 200);
        scene.own += 1;
    }
    for request in long {
        assert!(request.join().unwrap().is_err(), "it is cut at the deadline");
    }
    scene.settled(2);
    assert!(
        !scene.fleet.log_lines("connections aborted at drain timeout").is_empty(),
        "what was cut is told: {}",
        scene.fleet.log()
    );
    scene.end();
}
