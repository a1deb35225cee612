//! Slow is not hung: neighbours that take every processor.

use std::thread;

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
