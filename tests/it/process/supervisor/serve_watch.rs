//! `serve --watch`: what changes on disk is followed, once it has come to rest.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::{process, wait};

fn watching(redis: &TestRedis) -> TestFleetBuilder {
    TestFleetBuilder::on(redis).set("REGATTA_WORKERS__CANARY_PERIOD", "200ms").args(&["serve", "--watch"])
}

/// Waits until so many lines begin like this.
fn said(fleet: &TestFleet, message: &str, times: usize) {
    wait::until(&format!("{times} × {message:?}"), wait::LONG, || fleet.log_lines(message).len() == times);
}

#[test]
fn another_configuration_is_a_reload() {
    let redis = TestRedis::start();
    let plan = watching(&redis);
    let file = plan.folder().join("regatta.toml");
    let fleet = plan.start();
    // It was not there; now it is, written in pieces.
    fs::write(&file, "[http]\n").unwrap();
    fs::write(&file, "[http]\nkeep_alive_timeout = \"20s\"\n").unwrap();
    said(&fleet, "reload done", 1);
    // An editor writes beside it and renames.
    let beside = plan.folder().join("regatta.toml.new");
    fs::write(&beside, "[http]\nkeep_alive_timeout = \"30s\"\n").unwrap();
    fs::rename(&beside, &file).unwrap();
    said(&fleet, "reload done", 2);
    // A mistake changes nothing, and its repair is followed.
    let before = fleet.workers();
    fs::write(&file, "[http]\nkeep_alive_timeout = \"never\"\n").unwrap();
    said(&fleet, "reload refused", 1);
    assert_eq!(fleet.workers(), before);
    fs::write(&file, "[http]\nkeep_alive_timeout = \"40s\"\n").unwrap();
    said(&fleet, "reload done", 3);
    assert_eq!(fleet.log_lines("reload started").len(), 3, "each change is one reload");
    // A change of something else in the folder is none.
    fs::write(plan.folder().join("other.toml"), "x = 1\n").unwrap();
}

/// Puts a program in a place as a compiler does: the old one is deleted, the new one written.
fn build(program: &Path, from: &Path) {
    let _ = fs::remove_file(program);
    fs::copy(from, program).unwrap();
}

/// A fleet that watches a copy of the program; the copy's path, and the program's own.
fn watched_copy(redis: &TestRedis) -> (TestFleet, PathBuf, &'static Path) {
    let plan = watching(redis);
    let own = Path::new(env!("CARGO_BIN_EXE_regatta"));
    let program = plan.folder().join("program");
    build(&program, own);
    (plan.program(&program).start(), program, own)
}

#[test]
fn another_binary_is_an_upgrade() {
    let redis = TestRedis::start();
    let (fleet, program, own) = watched_copy(&redis);
    let before = fleet.workers();
    build(&program, own);
    said(&fleet, "upgrade done", 1);
    assert!(process::alive(fleet.pid()), "the same process");
    wait::until("other workers serve", wait::LONG, || {
        let now = fleet.workers();
        now.len() == 2 && now.iter().all(|pid| !before.contains(pid))
    });
    // The program that took over watches too.
    build(&program, own);
    said(&fleet, "upgrade done", 2);
    // One that is no program is refused, and the next good one is taken.
    fs::remove_file(&program).unwrap();
    fs::write(&program, "no program").unwrap();
    wait::until("it is refused", wait::LONG, || fleet.log().contains("upgrade refused"));
    build(&program, own);
    said(&fleet, "upgrade done", 3);
    assert_eq!(fleet.get("/hello").status, 200);
}

#[test]
fn a_link_that_leads_to_another_release_is_an_upgrade_and_its_target_is_followed() {
    let redis = TestRedis::start();
    let plan = watching(&redis);
    let own = Path::new(env!("CARGO_BIN_EXE_regatta"));
    let below = |name: &str| plan.folder().join(name);
    for release in ["first", "second"] {
        fs::create_dir(below(release)).unwrap();
        build(&below(release).join("program"), own);
    }
    symlink("first", below("current")).unwrap();
    let fleet = plan.clone().program(&below("current").join("program")).start();
    symlink("second", below("next")).unwrap();
    fs::rename(below("next"), below("current")).unwrap();
    said(&fleet, "upgrade done", 1);
    assert_eq!(process::program(fleet.pid()).unwrap(), fs::canonicalize(below("second/program")).unwrap());
    build(&below("second/program"), own);
    said(&fleet, "upgrade done", 2);
    // Another program by an operator's order does not stop the watch.
    let (code, said_by_command) =
        plan.clone().args(&["upgrade", "--binary", below("first/program").to_str().unwrap()]).run();
    assert_eq!(code, 0, "{said_by_command}");
    build(&below("second/program"), own);
    said(&fleet, "upgrade done", 4);
    assert_eq!(process::program(fleet.pid()).unwrap(), fs::canonicalize(below("second/program")).unwrap());
}

#[test]
fn the_end_of_the_watch_is_logged_and_the_fleet_lives_on() {
    let redis = TestRedis::start();
    let (fleet, program, own) = watched_copy(&redis);
    let command_line = |pid: u32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let is_watcher = |pid: &u32| command_line(*pid).contains("watch-files");
    let watcher = process::children(fleet.pid()).into_iter().find(is_watcher).expect("a process watches");
    build(&program, own);
    said(&fleet, "upgrade done", 1);
    process::signal(watcher, Signal::SIGKILL);
    said(&fleet, "files are no longer watched", 1);
    assert_eq!(fleet.get("/hello").status, 200);
}
