//! What stays over an upgrade, and what must not grow with each.

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::process::supervisor::upgrade::{Site, UPGRADE, upgraded};
use crate::support::fleet::TestFleetBuilder;
use crate::support::redis::TestRedis;
use crate::support::{client, process, soak, wait};

#[test]
fn descriptors_threads_and_workers_do_not_grow() {
    let site = Site::new();
    let fleet = site.plan.start();
    let look = || {
        wait::until("the old workers are gone", wait::LONG, || fleet.workers().len() == 2);
        let worker = fleet.workers()[0];
        (process::descriptors(fleet.pid()), process::descriptors(worker), process::threads(fleet.pid()))
    };
    let first = look();
    for round in 0..soak::length(3, 10) {
        upgraded(&fleet);
        assert_eq!(look(), first, "after {} upgrades", round + 1);
    }
}

#[test]
fn workers_and_their_requests_outlive_the_supervisors_program() {
    let site = Site::new();
    let fleet = site.plan.clone().set("REGATTA_WORKERS__CANARY_PERIOD", "3s").start();
    let workers = fleet.workers();
    fleet.signal(Signal::SIGUSR2);
    wait::until("the new program has the fleet", wait::LONG, || {
        !fleet.log_lines("upgrade: build").is_empty()
    });
    wait::until("its first worker serves", wait::LONG, || fleet.ready().len() == 3);
    assert!(
        workers.iter().all(|pid| process::alive(*pid)),
        "nobody has told them that their supervisor is gone"
    );
    assert!(fleet.log_lines("worker draining").is_empty());
}

#[test]
fn the_private_redis_stays_and_is_looked_after() {
    let fleet = TestFleetBuilder::new().set("REGATTA_WORKERS__CANARY_PERIOD", "300ms").start();
    let redis = fleet.others();
    upgraded(&fleet);
    assert_eq!(fleet.others(), redis, "it is the same process");
    process::signal(redis[0], Signal::SIGKILL);
    wait::until("another one runs", wait::LONG, || fleet.others().iter().any(|pid| *pid != redis[0]));
    upgraded(&fleet);
}

#[test]
fn a_handoff_that_is_not_for_this_process_is_nothing() {
    let site = Site::new();
    let fleet = site.plan.clone().set("REGATTA_HANDOFF", "1 3 4").start();
    upgraded(&fleet);
}

#[test]
fn a_crash_on_trial_is_mended_by_the_new_program() {
    let site = Site::new();
    let fleet = site.plan.clone().set("REGATTA_WORKERS__CANARY_PERIOD", "2s").start();
    let workers = fleet.workers();
    fleet.signal(Signal::SIGUSR2);
    wait::until("its first worker serves", wait::LONG, || fleet.ready().len() == 3);
    // The last slot still has its old worker.
    let victim = workers.iter().copied().find(|pid| fleet.slot_of(*pid) == 1).unwrap();
    process::signal(victim, Signal::SIGKILL);
    wait::until("the upgrade comes through", UPGRADE, || !fleet.log_lines("upgrade done").is_empty());
    wait::until("two workers", wait::LONG, || fleet.workers().len() == 2);
    assert_eq!(fleet.get("/hello").status, 200);
}

#[test]
fn sockets_that_systemd_lends_go_along_and_are_still_its_own() {
    let redis = TestRedis::shared();
    let lent = TcpListener::bind("127.0.0.1:0").unwrap();
    let plan = TestFleetBuilder::on(&redis).workers(2).set("REGATTA_WORKERS__CANARY_PERIOD", "300ms");
    let mut fleet = plan.lend("web", OwnedFd::from(lent.try_clone().unwrap())).start();
    for _ in 0..2 {
        upgraded(&fleet);
        assert_eq!(client::get(lent.local_addr().unwrap(), "/hello").status, 200);
    }
    fleet.stop();
    TcpStream::connect(lent.local_addr().unwrap()).expect("it listens for the next fleet");
}

/// Whether this machine lets a test have a process namespace.
fn may_be_pid_1() -> bool {
    let tried = Command::new("unshare").args(["--pid", "--fork", "--mount-proc", "true"]).output();
    tried.is_ok_and(|output| output.status.success())
}

#[test]
fn pid_1_of_a_container_stays_pid_1() {
    if !may_be_pid_1() {
        return;
    }
    let site = Site::new();
    let link = site.plan.folder().join("program").display().to_string();
    let plan = site.plan.clone().program("/usr/bin/unshare".as_ref());
    let plan = plan.args(&["--pid", "--fork", "--mount-proc", "--kill-child", &link]);
    let mut fleet = plan.start();
    let supervisor = process::children(fleet.pid())[0];
    for round in 1..=2 {
        process::signal(supervisor, Signal::SIGUSR2);
        wait::until("the upgrade comes through", UPGRADE, || fleet.log_lines("upgrade done").len() == round);
        assert_eq!(fleet.get("/hello").status, 200);
    }
    process::signal(supervisor, Signal::SIGTERM);
    assert_eq!(fleet.exit_code(wait::LONG), 0);
}
