//! The control socket of a real fleet: found after a kill, open to operators no matter who else is there.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

use nix::sys::signal::Signal;
use regatta::__internals::control;
use serde_json::Value;

use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::scripted_supervisor::RawControlClient;
use crate::support::{process, wait};

fn knock(fleet: &TestFleet) -> RawControlClient {
    RawControlClient::new(
        UnixStream::connect(control::socket_path(&fleet.plan().folder().join("run"))).unwrap(),
    )
}

#[test]
fn the_socket_of_a_killed_fleet_is_replaced() {
    let redis = TestRedis::shared();
    let mut fleet = TestFleetBuilder::on(&redis).workers(1).start();
    let path = control::socket_path(&fleet.plan().folder().join("run"));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    let workers = fleet.workers();
    fleet.signal(Signal::SIGKILL);
    assert_eq!(fleet.exit_code(wait::LONG), -9);
    wait::until("its workers are gone", wait::LONG, || !workers.iter().any(|pid| process::alive(*pid)));
    let (code, said) = fleet.plan().clone().args(&["status"]).run();
    assert!(code == 69 && said.contains("no fleet runs here"), "{code}: {said}");
    assert!(path.exists(), "the file is left behind");
    let mut next = fleet.plan().start();
    assert!(knock(&next).has_status());
    assert_eq!(next.stop(), 0);
    assert!(!path.exists(), "a fleet that ends in order takes its file along");
}

#[test]
fn idle_clients_and_noise_hold_up_no_operator() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(2).start();
    let workers = fleet.workers();
    let before = process::descriptors(fleet.pid()).len();
    let idle: Vec<RawControlClient> = (0..200).map(|_| knock(&fleet)).collect();
    for noise in ["", "\n", "{\"version\":1", "stop\n", "{\"version\":3,\"verb\":\"stop\"}\n"] {
        (0..20).for_each(|_| knock(&fleet).send(noise));
    }
    knock(&fleet).send("x".repeat(1024 * 1024));
    assert_eq!(fleet.plan().clone().args(&["status"]).run().0, 0);
    assert!(idle.into_iter().all(|mut one| one.has_status()), "none of them was in the way or dropped");
    assert_eq!(fleet.workers(), workers);
    wait::until("every client is closed", wait::LONG, || process::descriptors(fleet.pid()).len() == before);
}

#[test]
fn whoever_follows_is_told_of_a_crash() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(2).start();
    let mut follower = knock(&fleet);
    follower.send("{\"version\":2,\"command\":\"events\",\"follow\":true}\n");
    let mut bystander = knock(&fleet);
    assert!(bystander.has_status());
    let victim = fleet.workers()[0];
    let slot = fleet.slot_of(victim);
    let successor = fleet.crash(victim);
    let mut last = 0;
    let mut until = |kind: &str, pid: u32| -> Value {
        loop {
            let event = follower.receive().expect("it is told, not cut off")["event"].take();
            assert_eq!(event["sequence"], last + 1, "numbers have no gap: {event}");
            last += 1;
            if event["kind"] == kind && event["pid"] == pid {
                return event;
            }
        }
    };
    let died = until("worker_crashed", victim);
    assert_eq!(died["slot"], slot);
    assert!(died["reason"].is_string(), "{died}");
    assert_eq!(until("worker_ready", successor)["slot"], slot);
    // The new worker was forked while this connection was open: it must not hold it.
    bystander.send("goodbye\n");
    assert!(bystander.result_message().contains("not a JSON object"));
    assert_eq!(bystander.receive(), None);
}

/// Dashboards that were forgotten: they follow the events and read nothing, and cost next to nothing for it.
#[test]
fn followers_that_do_not_read_cost_neither_memory_nor_an_upgrade() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(1).set("REGATTA_WORKERS__CANARY_PERIOD", "0s").start();
    let before = process::private_memory(fleet.pid());
    let mut followers: Vec<_> = (0..240).map(|_| knock(&fleet)).collect();
    for follower in &mut followers {
        follower.send("{\"version\":2,\"command\":\"events\",\"follow\":true}\n");
    }
    for workers in 0..30 {
        let (code, said) = fleet.plan().clone().args(&["scale", &(2 - workers % 2).to_string()]).run();
        assert_eq!(code, 0, "{said}");
    }
    let grown = process::private_memory(fleet.pid()).saturating_sub(before);
    println!("240 followers that do not read: {} KiB", grown / 1024);
    assert!(grown < 32 << 20, "{grown} bytes");
    let (code, said) = fleet.plan().clone().args(&["upgrade"]).run();
    assert_eq!(code, 0, "{said}");
    // They have their places still, and find everything there.
    let mut seqs = Vec::new();
    let done = loop {
        let event = followers[239].receive().unwrap()["event"].clone();
        seqs.push(event["sequence"].as_u64().unwrap());
        if event["kind"] == "upgrade_completed" {
            break event;
        }
    };
    assert!(seqs.windows(2).all(|pair| pair[1] == pair[0] + 1), "{done}: {seqs:?}");
}
