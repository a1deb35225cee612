//! A seat outlives the workers that sit in it, and a pause or a bad neighbour costs a visitor nothing.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::client::{Connection, Request};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::{client, process, wait};

/// Answers of this many new connections, each with its own deadline.
fn ask(fleet: &TestFleet, count: usize) {
    for _ in 0..count {
        let request = Request::get("/hello").header("Connection", "close");
        let response = client::once(fleet.listen, request).expect("every new connection is answered");
        assert_eq!(response.status, 200);
    }
}

#[test]
fn a_worker_that_is_told_to_leave_passes_its_seat_on() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(2).start();
    for pid in fleet.workers() {
        let slot = fleet.slot_of(pid);
        process::signal(pid, Signal::SIGTERM);
        wait::until("a successor is ready", Duration::from_secs(10), || {
            fleet.ready().iter().any(|(of, successor)| *of == slot && *successor != pid)
                && !process::alive(pid)
        });
        ask(&fleet, 40);
    }
    assert!(!fleet.log().contains("cannot accept"), "{}", fleet.log());
    let slots = fleet.operator("/fleet.json").json()["slots"].clone();
    let crashes: Vec<_> = slots.as_array().unwrap().iter().map(|slot| slot["crashes"].clone()).collect();
    assert_eq!(crashes, [0, 0], "leaving on request is no crash");
}

#[test]
fn what_is_sent_to_a_paused_fleet_is_answered_when_it_goes_on() {
    let redis = TestRedis::shared();
    // The pause is to be no hang.
    let plan = TestFleetBuilder::on(&redis).workers(2).set("REGATTA_WORKERS__HANG_TIMEOUT", "0");
    let plan = plan.set("REGATTA_HTTP__KEEP_ALIVE_TIMEOUT", "1s").set("REGATTA_HTTP__HEADER_TIMEOUT", "1s");
    // Who stands still for so long would be replaced.
    let plan = plan.set("REGATTA_WORKERS__HANG_TIMEOUT", "0");
    let fleet = plan.start();
    let request = Request::get("/hello");
    let mut connections: Vec<_> = (0..30).map(|_| Connection::open(fleet.listen).unwrap()).collect();
    // Half of them have been used before, the others were only accepted.
    for connection in &mut connections[15..] {
        assert_eq!(connection.request(&request).unwrap().status, 200);
    }
    fleet.workers().iter().for_each(|pid| process::stop(*pid));
    for connection in &mut connections {
        connection.send(&request.bytes()).unwrap();
    }
    wait::let_pass(Duration::from_millis(2500));
    fleet.workers().iter().for_each(|pid| process::signal(*pid, Signal::SIGCONT));
    for connection in &mut connections {
        assert_eq!(connection.receive(false).expect("sent in time").status, 200);
    }
}

#[test]
fn new_connections_pass_a_slot_that_cannot_boot() {
    let redis = TestRedis::shared();
    let plan = TestFleetBuilder::on(&redis).workers(3).example("faulty");
    let file = plan.folder().join("failing");
    fs::write(&file, "1").unwrap();
    let fleet = plan.set("FAULTY_FILE", &file.display().to_string()).bind();
    wait::until("the slot has failed twice", Duration::from_secs(20), || {
        fleet.log_lines("worker crashed").len() >= 2
    });
    ask(&fleet, 60);
    // Mended, it takes its share again.
    fs::write(&file, "").unwrap();
    wait::until("every slot is ready", Duration::from_secs(20), || fleet.ready().len() >= 3);
    let healed = fleet.ready().iter().find(|(slot, _)| *slot == 1).map(|(_, pid)| *pid).unwrap();
    wait::until("the mended slot serves", Duration::from_secs(10), || {
        client::once(fleet.listen, Request::get("/hello").header("Connection", "close")).unwrap().worker()
            == healed
    });
}

#[test]
fn a_fleet_starts_at_once_where_one_was_killed() {
    let redis = TestRedis::shared();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let plan = TestFleetBuilder::on(&redis).workers(2).set("REGATTA_LISTEN", &format!("127.0.0.1:{port}"));
    let mut killed = plan.start();
    process::signal(killed.pid(), Signal::SIGKILL);
    // A process that is dying holds its run folder still; its workers may go on.
    wait::until("it is dead", Duration::from_secs(5), || !process::alive(killed.pid()));
    let next = plan.start();
    ask(&next, 5);
    killed.exit_code(Duration::from_secs(5));
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    for command in ["settings", "signals", "--help"] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_regatta"))
            .arg(command)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn settings_that_would_silence_or_mislead_are_refused() {
    let redis = TestRedis::shared();
    for (name, value, part) in [
        ("REGATTA_LOG__FILTER", "inof", "inof is neither a level"),
        ("REGATTA_REDIS__URL", "unix:///tmp/x.sock?db=999", "0 to 255"),
        ("REGATTA_REDIS__URL", "unix://relative/x.sock", "must begin with /"),
    ] {
        let (code, said) = TestFleetBuilder::on(&redis).set(name, value).args(&["check"]).run();
        assert!(code == 64 && said.contains(part), "{code}: {said}");
    }
    let plan = TestFleetBuilder::on(&redis);
    let file = plan.folder().join("regatta.toml");
    fs::write(&file, "[limits.login]\n").unwrap();
    let (code, said) = plan.args(&["check", "--config", &file.display().to_string()]).run();
    assert!(code == 64 && said.contains("limits.login"), "{code}: {said}");
}
