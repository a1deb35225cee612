//! Slow is not hung: long queues, and neighbours that take every processor.

use std::thread;
use std::time::Duration;

use crate::support::client::{Connection, Request};
use crate::support::fleet::TestFleetBuilder;
use crate::support::redis::TestRedis;

/// Neighbours that take every CPU there is, four to one.
#[test]
fn a_worker_beside_spinning_neighbours_is_not_hung() {
    let redis = TestRedis::start();
    let fleet =
        TestFleetBuilder::on(&redis).example("faulty").set("REGATTA_WORKERS__HANG_TIMEOUT", "1s").start();
    let before = fleet.workers();
    let cores = thread::available_parallelism().unwrap().get();
    let spin =
        || std::process::Command::new("timeout").args(["8", "sh", "-c", "while :; do :; done"]).spawn();
    let mut neighbours: Vec<_> = (0..cores * 4).map(|_| spin().unwrap()).collect();
    for _ in 0..20 {
        assert_eq!(fleet.get("/spin/50").status, 200);
    }
    for neighbour in &mut neighbours {
        neighbour.wait().unwrap();
    }
    assert!(fleet.log_lines("worker hung").is_empty(), "{:?}", fleet.log_lines("worker hung"));
    assert_eq!(fleet.workers(), before);
}

/// More connections than a pass through the run queue serves in seconds, and fewer than are refused: each worker is busy
/// as can be, and it is not hung for a moment.
#[test]
fn a_worker_with_a_queue_of_seconds_is_not_hung() {
    let redis = TestRedis::start();
    let fleet =
        TestFleetBuilder::on(&redis).example("faulty").set("REGATTA_HTTP__MAX_CONNECTIONS", "20000").start();
    let before = fleet.workers();
    let mut clients: Vec<_> = (0..2500).map(|_| Connection::open(fleet.listen).unwrap()).collect();
    for round in 0..2 {
        for client in &mut clients {
            client.set_timeout(Duration::from_secs(120));
            client.send(&Request::get("/spin/1").bytes()).unwrap();
        }
        for client in &mut clients {
            assert_eq!(client.receive(false).unwrap().status, 200, "round {round}");
        }
    }
    assert!(fleet.log_lines("worker hung").is_empty(), "{:?}", fleet.log_lines("worker hung"));
    assert_eq!(fleet.workers(), before);
}
