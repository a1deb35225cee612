//! A fleet whose supervisor was killed, and the one that comes after it.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::client::{Connection, Request};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::{process, wait};

/// A fleet of one worker that fails on request, on a port that the next one will want.
fn plan(redis: &TestRedis) -> TestFleetBuilder {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let plan = TestFleetBuilder::on(redis).workers(1).example("faulty");
    plan.set("REGATTA_LISTEN", &format!("127.0.0.1:{port}"))
}

/// Sends a request and leaves its answer alone.
fn begun(fleet: &TestFleet, target: &str) -> Connection {
    let mut connection = Connection::open(fleet.listen).unwrap();
    connection.send(&Request::get(target).bytes()).unwrap();
    connection
}

/// Waits until the only worker has a request; it is asked of the supervisor, because a stuck worker answers nothing.
fn is_under_way(fleet: &TestFleet) {
    let status = fleet.plan().clone().args(&["status", "--json"]);
    wait::until("the request has come to the worker", wait::LONG, || {
        let said = serde_json::from_str::<serde_json::Value>(&status.run().1).unwrap_or_default();
        said["slots"][0]["in_flight"].as_u64().is_some_and(|in_flight| in_flight > 0)
    });
}

/// Kills the supervisor, and waits until it is really dead: a process that is being killed still has its locks.
fn kill(fleet: &TestFleet) {
    fleet.signal(Signal::SIGKILL);
    wait::until("the supervisor is dead", wait::LONG, || !process::alive(fleet.pid()));
}

#[test]
fn an_orphan_finishes_what_it_has_while_the_next_fleet_serves() {
    let redis = TestRedis::shared();
    let mut killed = plan(&redis).start();
    let orphan = killed.workers()[0];
    let mut long: Vec<_> = (0..20).map(|_| begun(&killed, "/slow/4000")).collect();
    wait::until("all are under way", wait::LONG, || killed.get("/held").text().trim() == "20");
    kill(&killed);
    let next = killed.plan().start();
    assert!(process::alive(orphan), "it still has something to do");
    assert!(next.log_lines("draining a worker of the previous fleet").len() == 1, "{}", next.log());
    for _ in 0..20 {
        assert_eq!(next.get("/hello").worker(), next.workers()[0], "nobody meets the orphan's queue");
    }
    for connection in &mut long {
        let answer = connection.receive(false).expect("it had drain.timeout");
        assert_eq!((answer.status, answer.worker()), (200, orphan));
    }
    wait::until("it has left", wait::LONG, || !process::alive(orphan));
    killed.exit_code(wait::LONG);
    assert!(next.log_lines("killing a worker of the previous fleet").is_empty(), "{}", next.log());
}

#[test]
fn an_orphan_that_is_stuck_keeps_no_port_from_the_next_fleet() {
    let redis = TestRedis::shared();
    for stuck in ["/spin/120000", "/block/120000"] {
        let mut killed = plan(&redis).start();
        let orphan = killed.workers()[0];
        let _unanswered = begun(&killed, stuck);
        is_under_way(&killed);
        kill(&killed);
        let next = killed.plan().start();
        assert!(!process::alive(orphan), "{stuck}");
        assert_eq!(next.log_lines("killing a worker of the previous fleet").len(), 1, "{}", next.log());
        assert_eq!(next.get("/hello").status, 200);
        killed.exit_code(wait::LONG);
    }
}

#[test]
fn an_orphan_that_is_stuck_or_stands_still_ends_without_help() {
    let redis = TestRedis::shared();
    for stuck in ["spins", "stands"] {
        let mut killed = plan(&redis).set("REGATTA_DRAIN__TIMEOUT", "2s").start();
        let orphan = killed.workers()[0];
        let _unanswered = (stuck == "spins").then(|| {
            let begun = begun(&killed, "/spin/120000");
            is_under_way(&killed);
            begun
        });
        if stuck == "stands" {
            process::stop(orphan);
        }
        let begin = Instant::now();
        kill(&killed);
        if stuck == "spins" {
            wait::until("it is gone", wait::LONG, || !process::alive(orphan));
            assert!(begin.elapsed() >= Duration::from_secs(2), "it had drain.timeout: {:?}", begin.elapsed());
        } else {
            // A signal to it waits until it goes on; then it has its time like any other.
            process::signal(orphan, Signal::SIGCONT);
            wait::until("it is gone", wait::LONG, || !process::alive(orphan));
        }
        killed.exit_code(wait::LONG);
    }
}

#[test]
fn a_process_that_has_an_old_workers_number_by_now_is_left_alone() {
    let redis = TestRedis::shared();
    let mut killed = plan(&redis).start();
    let list = wait::until_some("the workers are written down", wait::LONG, || list_of(&killed));
    kill(&killed);
    killed.exit_code(wait::LONG);
    let mut other = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    // The same number, and even the same program would not do: it has started at another time.
    let text = std::fs::read_to_string(&list).unwrap();
    let boot = text.lines().next().unwrap().to_owned();
    let rest = text.lines().nth(1).unwrap().split_once(' ').unwrap().1.to_owned();
    std::fs::write(&list, format!("{boot}\n{} {rest}\n", other.id())).unwrap();
    let next = killed.plan().start();
    assert!(next.log_lines("a worker of the previous fleet").is_empty(), "{}", next.log());
    assert!(process::alive(other.id()));
    other.kill().unwrap();
    other.wait().unwrap();
}

/// The file in the run folder.
fn list_of(fleet: &TestFleet) -> Option<std::path::PathBuf> {
    let place = fleet.plan().folder().join("run/workers");
    place.exists().then_some(place)
}

#[test]
fn memory_that_runs_out_ends_a_worker_before_its_supervisor() {
    let redis = TestRedis::shared();
    let fleet = plan(&redis).start();
    let score = |pid: u32| -> i32 {
        std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap()
    };
    let (supervisor, worker) = (score(fleet.pid()), score(fleet.workers()[0]));
    assert!(worker > supervisor || supervisor == 1000, "{worker} and {supervisor}");
}
