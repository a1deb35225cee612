//! A worker that hangs is found, says where, and is replaced; one that only looks like it is left alone.

use std::thread;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::client::Connection;
use crate::support::client::Request;
use crate::support::fleet::Fleet;
use crate::support::fleet::Plan;
use crate::support::fleet::field;
use crate::support::process;
use crate::support::redis::RedisServer;
use crate::support::wait;

/// What `workers.hang_timeout` promises by default.
const FOUND: Duration = Duration::from_secs(3);

fn faulty(redis: &RedisServer) -> Plan {
    Plan::on(redis).example("faulty")
}

/// Sends one request that keeps its worker from serving; the connection, which nobody answers.
fn harm(fleet: &Fleet, target: &str) -> Connection {
    let mut connection = Connection::open(fleet.listen).unwrap();
    connection.send(&Request::get(target).bytes()).unwrap();
    connection
}

/// Waits until a hang is in the log: its line.
fn hang(fleet: &Fleet) -> Value {
    wait::until_some("the hang is found", wait::LONG, || fleet.said("worker hangs").into_iter().next())
}

fn pid(line: &Value) -> u32 {
    u32::try_from(field(line, "pid").as_u64().unwrap()).unwrap()
}

fn text(line: &Value, name: &str) -> String {
    field(line, name).as_str().unwrap_or_default().to_owned()
}

/// The first READY worker of a slot after the one that hung.
fn successor(fleet: &Fleet, slot: u64, hung: u32) -> u32 {
    wait::until_some("the slot has a new worker", wait::LONG, || {
        let mut ready = fleet.ready().into_iter().skip_while(|(_, pid)| *pid != hung);
        ready.find(|(seat, pid)| *seat == slot && *pid != hung).map(|(_, pid)| pid)
    })
}

#[test]
fn a_blocked_loop_is_found_tells_where_it_stood_and_is_replaced() {
    let redis = RedisServer::start();
    let fleet = faulty(&redis).start();
    let before = fleet.workers();
    let begin = Instant::now();
    let _unanswered = harm(&fleet, "/block/60000");
    let line = hang(&fleet);
    assert!(begin.elapsed() < FOUND + Duration::from_secs(2), "found after {:?}", begin.elapsed());
    assert!(text(&line, "message").contains("blocked in a call"), "{line}");
    assert_eq!(text(&line, "reason"), "hang");
    let (hung, slot) = (pid(&line), field(&line, "slot").as_u64().unwrap());
    assert!(before.contains(&hung));
    let new = successor(&fleet, slot, hung);
    assert!(!before.contains(&new));
    let last = wait::until_some("the worker's last words", wait::LONG, || fleet.said("aborted").pop());
    assert_eq!(pid(&last), hung);
    assert!(text(&last, "backtrace").contains("faulty::block"), "{last}");
    wait::until("the hung one is gone", wait::LONG, || !process::alive(hung));
    assert!(fleet.workers().iter().all(|pid| *pid == new || before.contains(pid)));
    for _ in 0..20 {
        assert_eq!(fleet.get("/hello").status, 200);
    }
}

#[test]
fn a_loop_that_only_computes_is_found_too() {
    let redis = RedisServer::start();
    let fleet = faulty(&redis).start();
    let _unanswered = harm(&fleet, "/spin/60000");
    let line = hang(&fleet);
    assert!(text(&line, "message").contains("computed without a pause"), "{line}");
    let hung = pid(&line);
    successor(&fleet, field(&line, "slot").as_u64().unwrap(), hung);
    wait::until("the hung one is gone", wait::LONG, || !process::alive(hung));
}

#[test]
fn while_a_worker_is_suspected_new_connections_go_to_the_others() {
    let redis = RedisServer::start();
    // So patient that suspicion lasts.
    let fleet = faulty(&redis).set("REGATTA_WORKERS__HANG_TIMEOUT", "10s").start();
    let _unanswered = harm(&fleet, "/block/60000");
    wait::until("the worker is suspected", wait::LONG, || {
        !fleet.said("new connections go to other workers").is_empty()
    });
    for _ in 0..40 {
        assert_eq!(fleet.get("/hello").status, 200, "nobody waits for the one that hangs");
    }
    assert!(fleet.said("worker hangs").is_empty());
    hang(&fleet);
}

#[test]
fn a_stopped_worker_is_replaced() {
    let redis = RedisServer::start();
    let fleet = Plan::on(&redis).start();
    let stopped = fleet.workers()[0];
    process::stop(stopped);
    let line = hang(&fleet);
    assert_eq!(pid(&line), stopped);
    assert!(text(&line, "message").contains("stopped by a signal"), "{line}");
    successor(&fleet, field(&line, "slot").as_u64().unwrap(), stopped);
    wait::until("the stopped one is gone", wait::LONG, || !process::alive(stopped));
    assert!(
        fleet.operator("/metrics").text().contains("reason=\"hang\"")
            || !fleet.said("worker died").is_empty()
    );
}

#[test]
fn a_suspended_supervisor_kills_nobody_and_finds_the_next_hang() {
    let redis = RedisServer::start();
    let fleet = faulty(&redis).start();
    let before = fleet.workers();
    process::stop(fleet.pid());
    wait::let_pass(Duration::from_secs(4));
    fleet.signal(Signal::SIGCONT);
    // Long enough for a mistaken verdict to have fallen.
    wait::let_pass(Duration::from_secs(1));
    assert_eq!(fleet.workers(), before);
    let _unanswered = harm(&fleet, "/block/60000");
    assert!(before.contains(&pid(&hang(&fleet))));
}

#[test]
fn a_fleet_that_was_suspended_as_a_whole_goes_on_as_it_was() {
    let redis = RedisServer::start();
    let fleet = Plan::on(&redis).start();
    let before = fleet.workers();
    let all: Vec<_> = [fleet.pid()].into_iter().chain(before.iter().copied()).collect();
    all.iter().for_each(|pid| process::stop(*pid));
    wait::let_pass(Duration::from_secs(4));
    // The supervisor is the first to wake, and finds workers that stand still.
    for pid in all {
        process::signal(pid, Signal::SIGCONT);
        thread::sleep(Duration::from_millis(100));
    }
    wait::let_pass(Duration::from_secs(1));
    assert_eq!(fleet.workers(), before);
    assert!(fleet.said("worker hangs").is_empty());
}

#[test]
fn without_a_timeout_nobody_is_watched() {
    let redis = RedisServer::start();
    let fleet = Plan::on(&redis).set("REGATTA_WORKERS__HANG_TIMEOUT", "0").start();
    let before = fleet.workers();
    process::stop(before[0]);
    wait::let_pass(FOUND + Duration::from_secs(1));
    process::signal(before[0], Signal::SIGCONT);
    assert_eq!(fleet.workers(), before);
}
