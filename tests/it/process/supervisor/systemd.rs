//! What the service manager is told: `sd_notify(3)`, on a socket of the test's own.

use std::fs;

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::fleet::TestFleetBuilder;
use crate::support::redis::TestRedis;
use crate::support::service_manager::Manager;
use crate::support::{process, wait};

/// The number behind a name in a message.
#[track_caller]
fn number(message: &str, name: &str) -> u64 {
    let found = message.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    found.unwrap_or_else(|| panic!("no {name} in {message:?}")).parse().unwrap()
}

#[test]
fn ready_reloading_and_stopping_are_told_and_the_pid_never_changes() {
    let redis = TestRedis::start();
    let (mut manager, plan) =
        Manager::of(TestFleetBuilder::on(&redis).set("REGATTA_WORKERS__CANARY_PERIOD", "300ms"));
    let mut fleet = plan.start();
    let pid = u64::from(fleet.pid());
    let ready = manager.hears("READY=1");
    assert_eq!(number(&ready, "MAINPID"), pid);
    assert!(ready.contains("STATUS=2 workers serve on http://"), "{ready}");
    let mut last = 0;
    for signal in [Signal::SIGHUP, Signal::SIGUSR2] {
        fleet.signal(signal);
        let began = number(&manager.hears("RELOADING=1"), "MONOTONIC_USEC");
        assert!(began > last, "{signal}: a clock that goes on");
        last = began;
        let ready = manager.hears("READY=1");
        assert_eq!(number(&ready, "MAINPID"), pid, "{signal}");
        assert!(ready.contains(" done: 2 workers"), "{ready}");
    }
    fs::write(fleet.plan().folder().join("regatta.toml"), "listne = 1").unwrap();
    fleet.signal(Signal::SIGHUP);
    manager.hears("RELOADING=1");
    assert!(manager.hears("READY=1").contains("STATUS=reload refused: unknown setting listne"));
    fleet.signal(Signal::SIGTERM);
    assert!(number(&manager.hears("STOPPING=1"), "EXTEND_TIMEOUT_USEC") > 10_000_000);
    assert_eq!(fleet.exit_code(wait::LONG), 0);
}

#[test]
fn a_supervisor_that_hangs_gives_no_sign_of_life() {
    const SIGN: Duration = Duration::from_millis(200);
    let redis = TestRedis::start();
    let (mut manager, plan) = Manager::of(TestFleetBuilder::on(&redis));
    let fleet = plan.set("WATCHDOG_USEC", &(2 * SIGN).as_micros().to_string()).start();
    for _ in 0..5 {
        manager.hears("WATCHDOG=1");
    }
    process::stop(fleet.pid());
    manager.listen();
    manager.heard.clear();
    wait::let_pass(4 * SIGN);
    manager.listen();
    assert!(manager.heard.is_empty(), "{:?}", manager.heard);
    fleet.signal(Signal::SIGCONT);
    manager.hears("WATCHDOG=1");
}

#[test]
fn the_shipped_units_name_what_the_program_does() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let service = fs::read_to_string(folder.join("regatta.service")).unwrap();
    for line in ["Type=notify-reload", "NotifyAccess=main", "KillMode=mixed", "RestartPreventExitStatus=64"] {
        assert!(service.lines().any(|other| other == line), "{line}");
    }
    assert!(fs::read_to_string(folder.join("regatta.socket")).unwrap().contains("ListenStream="));
}
