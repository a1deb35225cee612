//! A worker that hangs is found, says where, and gets a spare; one that only looks like it is left alone.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::client::{Connection, Request};
use crate::support::faulty_fleet::Scene;
use crate::support::fleet::{TestFleet, TestFleetBuilder, field};
use crate::support::redis::TestRedis;
use crate::support::{client, process, wait};

/// What `workers.hang_timeout` promises by default.
const FOUND: Duration = Duration::from_secs(3);

fn faulty(redis: &TestRedis) -> TestFleetBuilder {
    TestFleetBuilder::on(redis).example("faulty")
}

/// Sends one request that keeps its worker from serving; the connection, which no one answers.
fn harm(fleet: &TestFleet, target: &str) -> Connection {
    let mut connection = Connection::open(fleet.listen).unwrap();
    connection.send(&Request::get(target).bytes()).unwrap();
    connection
}

/// Waits until a hang is in the log: its line.
fn hang(fleet: &TestFleet) -> Value {
    wait::until_some("the hang is found", wait::LONG, || fleet.log_lines("worker hung").into_iter().next())
}

fn pid(line: &Value) -> u32 {
    u32::try_from(field(line, "pid").as_u64().unwrap()).unwrap()
}

fn text(line: &Value, name: &str) -> String {
    field(line, name).as_str().unwrap_or_default().to_owned()
}

/// The first READY worker of a slot after the one that hung.
fn successor(fleet: &TestFleet, slot: u64, hung: u32) -> u32 {
    wait::until_some("the slot has a new worker", wait::LONG, || {
        let mut ready = fleet.ready().into_iter().skip_while(|(_, pid)| *pid != hung);
        ready.find(|(seat, pid)| *seat == slot && *pid != hung).map(|(_, pid)| pid)
    })
}

/// The supervisor is short with what still hangs when a test ends.
fn short(redis: &TestRedis) -> TestFleetBuilder {
    faulty(redis).set("REGATTA_DRAIN__TIMEOUT", "3s").set("REGATTA_WORKERS__HANG_KILL", "40s")
}

#[test]
fn a_blocked_loop_gets_a_spare_tells_where_it_stands_and_loses_nothing_when_it_comes_back() {
    let redis = TestRedis::start();
    let fleet = short(&redis).workers(1).set("REGATTA_DRAIN__TIMEOUT", "10s").start();
    let old = fleet.workers()[0];
    // What it has begun when it blocks, on connections that were used before.
    let mut begun: Vec<_> = (0..10).map(|_| Connection::open(fleet.listen).unwrap()).collect();
    for connection in &mut begun {
        assert_eq!(connection.request(&Request::get("/hello")).unwrap().worker(), old);
        connection.send(&Request::get("/slow/500").bytes()).unwrap();
    }
    wait::until("all are under way", wait::LONG, || fleet.get("/held").text().trim() == "10");
    let begin = Instant::now();
    let mut blocked = harm(&fleet, "/block/9000");
    // The queue of the slot is the spare's at once; only one slot is there, so that no client is steered past it.
    let queued = thread::spawn({
        let listen = fleet.listen;
        move || {
            wait::pace(Duration::from_millis(200));
            let begin = Instant::now();
            let answer = client::once(listen, Request::get("/hello").header("Connection", "close")).unwrap();
            (answer.worker(), begin.elapsed())
        }
    });
    wait::until("it is suspected", wait::LONG, || !fleet.log_lines("worker suspect").is_empty());
    let steered = begin.elapsed();
    let line = hang(&fleet);
    let found = begin.elapsed();
    assert!(text(&line, "message").contains("blocked in a call"), "{line}");
    assert_eq!((text(&line, "reason"), pid(&line)), ("hang".to_owned(), old));
    let new = successor(&fleet, 0, old);
    let served = begin.elapsed();
    println!("steered away after {steered:?}, found after {found:?}, spare ready after {served:?}");
    assert!(found >= FOUND - Duration::from_millis(500) && found < FOUND + Duration::from_secs(2));
    let (who, waited) = queued.join().unwrap();
    println!("a connection that was queued behind the hang was answered after {waited:?}");
    assert_eq!(who, new);
    let stands = wait::until_some("it tells where it stands", Duration::from_secs(60), || {
        fleet.log_lines("backtrace of the hung worker").pop()
    });
    assert_eq!(pid(&stands), old);
    assert!(text(&stands, "backtrace").contains("faulty::block"), "{stands}");
    // It has told without ending, and all it had begun is answered.
    let mut answers: Vec<_> = begun.iter_mut().map(|connection| connection.receive(false).unwrap()).collect();
    answers.push(blocked.receive(false).unwrap());
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.worker() == old));
    wait::until("it has left as any old worker does", wait::LONG, || !process::alive(old));
    let left = wait::until_some("that is said", wait::LONG, || fleet.log_lines("worker exited").pop());
    assert_eq!((pid(&left), text(&left, "reason")), (old, "hang".to_owned()));
    assert!(fleet.log_lines("worker killed").is_empty() && fleet.log_lines("worker crashed").is_empty());
    assert_eq!(fleet.get("/hello").worker(), new);
}

#[test]
fn a_loop_that_never_ends_is_killed_in_the_end_and_only_then() {
    let redis = TestRedis::start();
    let fleet = faulty(&redis).set("REGATTA_WORKERS__HANG_KILL", "6s").start();
    let begin = Instant::now();
    let _unanswered = harm(&fleet, "/spin/120000");
    let line = hang(&fleet);
    assert!(text(&line, "message").contains("computed without a pause"), "{line}");
    let hung = pid(&line);
    successor(&fleet, field(&line, "slot").as_u64().unwrap(), hung);
    assert!(process::alive(hung), "the spare serves beside it");
    for _ in 0..20 {
        assert_eq!(fleet.get("/hello").status, 200);
    }
    wait::until("it is given up", Duration::from_secs(60), || !process::alive(hung));
    assert!(begin.elapsed() >= Duration::from_secs(5), "{:?}", begin.elapsed());
    let killed = fleet.log_lines("worker killed").pop().unwrap();
    assert_eq!(pid(&killed), hung);
    wait::until("it is counted", wait::LONG, || {
        let slots = fleet.operator("/fleet.json").json()["slots"].clone();
        slots.as_array().unwrap().iter().any(|slot| slot["exits"]["hang"] == 1)
    });
}

#[test]
fn while_a_worker_is_suspected_new_connections_go_to_the_others() {
    let redis = TestRedis::start();
    // So patient that suspicion lasts.
    let fleet = short(&redis).set("REGATTA_WORKERS__HANG_TIMEOUT", "10s").start();
    let begin = Instant::now();
    let _unanswered = harm(&fleet, "/block/14000");
    wait::until("the worker is suspected", wait::LONG, || !fleet.log_lines("worker suspect").is_empty());
    println!("new connections go elsewhere after {:?}", begin.elapsed());
    for _ in 0..40 {
        assert_eq!(fleet.get("/hello").status, 200, "nobody waits for the one that hangs");
    }
    assert!(fleet.log_lines("worker hung").is_empty());
    hang(&fleet);
}

#[test]
fn a_stopped_worker_gets_a_spare_and_drains_when_it_goes_on() {
    let redis = TestRedis::start();
    let fleet = short(&redis).start();
    let stopped = fleet.workers()[0];
    process::stop(stopped);
    let line = hang(&fleet);
    assert_eq!(pid(&line), stopped);
    assert!(text(&line, "message").contains("stopped by a signal"), "{line}");
    successor(&fleet, field(&line, "slot").as_u64().unwrap(), stopped);
    assert!(process::alive(stopped));
    process::signal(stopped, Signal::SIGCONT);
    wait::until("it leaves as any old worker does", wait::LONG, || !process::alive(stopped));
    let left = wait::until_some("that is said", wait::LONG, || fleet.log_lines("worker exited").pop());
    assert!(fleet.log_lines("worker killed").is_empty());
    assert_eq!((pid(&left), text(&left, "reason")), (stopped, "hang".to_owned()));
}

/// More connections than a pass through the run queue serves in seconds, and fewer than are refused: each worker is busy
/// as can be, and it is not hung for a moment.
#[test]
fn a_worker_with_a_queue_of_seconds_is_not_hung() {
    let redis = TestRedis::start();
    let fleet = faulty(&redis).set("REGATTA_HTTP__MAX_CONNECTIONS", "20000").start();
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

/// Neighbours that take every CPU there is, four to one.
#[test]
fn a_worker_beside_spinning_neighbours_is_not_hung() {
    let redis = TestRedis::start();
    let fleet = faulty(&redis).set("REGATTA_WORKERS__HANG_TIMEOUT", "1s").start();
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

#[test]
fn a_fleet_with_a_hung_worker_reloads_scales_restarts_and_stops() {
    let scene = Scene::start_as(2, |plan| {
        plan.set("REGATTA_WORKERS__HANG_TIMEOUT", "1s").set("REGATTA_DRAIN__TIMEOUT", "4s")
    });
    let _unanswered = harm(&scene.fleet, "/block/120000");
    let line = hang(&scene.fleet);
    let (hung, slot) = (pid(&line), field(&line, "slot").as_u64().unwrap());
    successor(&scene.fleet, slot, hung);
    scene.expect(&["reload"], 0, "reload done: 2 workers of generation 2");
    scene.expect(&["restart", &slot.to_string()], 0, "has a new worker");
    scene.expect(&["scale", "3"], 0, "3 workers");
    scene.expect(&["scale", "1"], 0, "1 worker");
    assert!(process::alive(hung), "nobody had to kill it for that");
    scene.expect(&["scale", "2"], 0, "2 workers");
    if slot == 0 {
        let status = scene.status()["slots"][0].clone();
        assert_eq!(status["worker"]["state"], "ready", "{status}");
        assert!(
            status["others"].as_array().unwrap().iter().any(|other| other["state"] == "hung"),
            "{status}"
        );
    }
    let begin = Instant::now();
    let mut fleet = scene.fleet;
    assert_eq!(fleet.stop(), 0);
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert!(!process::alive(hung));
}

#[test]
fn a_fleet_with_a_hung_worker_becomes_another_program_and_knows_it_still() {
    let redis = TestRedis::start();
    let plan = short(&redis).set("REGATTA_WORKERS__CANARY_PERIOD", "200ms");
    let fleet = plan.set("REGATTA_WORKERS__HANG_TIMEOUT", "1s").workers(2).start();
    let mut blocked = harm(&fleet, "/block/12000");
    let line = hang(&fleet);
    let (hung, slot) = (pid(&line), field(&line, "slot").as_u64().unwrap());
    successor(&fleet, slot, hung);
    let (code, said) = fleet.plan().clone().args(&["upgrade"]).run();
    assert_eq!(code, 0, "{said}");
    assert!(process::alive(hung));
    assert_eq!(blocked.receive(false).unwrap().status, 200, "the new program waits for it, too");
    wait::until("it leaves as any old worker does", wait::LONG, || !process::alive(hung));
    assert!(fleet.log_lines("worker killed").is_empty());
}

#[test]
fn a_suspended_supervisor_kills_nobody_and_finds_the_next_hang() {
    let redis = TestRedis::start();
    let fleet = faulty(&redis).start();
    let before = fleet.workers();
    process::stop(fleet.pid());
    wait::let_pass(Duration::from_secs(5));
    fleet.signal(Signal::SIGCONT);
    // Long enough for a mistaken verdict to have fallen.
    wait::let_pass(Duration::from_secs(1));
    assert_eq!(fleet.workers(), before);
    let _blocked = harm(&fleet, "/block/6000");
    assert!(before.contains(&pid(&hang(&fleet))));
}

#[test]
fn a_fleet_that_was_suspended_as_a_whole_goes_on_as_it_was() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    let before = fleet.workers();
    let all: Vec<_> = [fleet.pid()].into_iter().chain(before.iter().copied()).collect();
    all.iter().for_each(|pid| process::stop(*pid));
    wait::let_pass(Duration::from_secs(4));
    // The supervisor is the first to wake, and finds workers that stand still.
    for pid in all {
        process::signal(pid, Signal::SIGCONT);
        wait::pace(Duration::from_millis(100));
    }
    wait::let_pass(Duration::from_secs(1));
    assert_eq!(fleet.workers(), before);
    assert!(fleet.log_lines("worker hung").is_empty());
}

#[test]
fn without_a_timeout_nobody_is_watched() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).set("REGATTA_WORKERS__HANG_TIMEOUT", "0").start();
    let before = fleet.workers();
    process::stop(before[0]);
    wait::let_pass(FOUND + Duration::from_secs(1));
    process::signal(before[0], Signal::SIGCONT);
    assert_eq!(fleet.workers(), before);
}

#[test]
fn a_reload_that_ends_the_watch_leaves_no_worker_hung_for_ever() {
    let scene = Scene::start_as(1, |plan| plan.set("REGATTA_DRAIN__TIMEOUT", "3s"));
    let _unanswered = harm(&scene.fleet, "/block/120000");
    let hung = pid(&hang(&scene.fleet));
    successor(&scene.fleet, 0, hung);
    std::fs::write(&scene.file, "[workers]\ncount = 1\nhang_timeout = \"0s\"\ncanary_period = \"0s\"\n")
        .unwrap();
    scene.expect(&["reload"], 0, "reload done: 1 worker");
    wait::until("it is a worker like any other, which has drain.timeout", wait::LONG, || {
        !process::alive(hung)
    });
}

/// Each worker that takes this request hangs. It is sent nine times: the slot has room for eight, and serves on.
#[test]
fn a_slot_in_which_one_spare_after_the_other_hangs_serves_on() {
    let redis = TestRedis::start();
    let fleet = short(&redis).workers(1).set("REGATTA_WORKERS__HANG_TIMEOUT", "1s").start();
    let mut unanswered = Vec::new();
    for round in 1..=9 {
        unanswered.push(harm(&fleet, "/block/120000"));
        wait::until("it hangs", wait::LONG, || fleet.log_lines("worker hung").len() == round);
        wait::until("a spare serves", wait::LONG, || fleet.ready().len() == round + 1);
        assert_eq!(fleet.get("/hello").status, 200, "round {round}");
    }
    let hung: Vec<_> = fleet.log_lines("worker hung").iter().map(pid).collect();
    let killed: Vec<_> = fleet.log_lines("worker killed").iter().map(pid).collect();
    assert_eq!(killed, hung[..2], "the oldest, as many as room was needed for");
    let alive = hung.iter().filter(|pid| process::alive(**pid)).count();
    assert_eq!(alive, 7);
}
