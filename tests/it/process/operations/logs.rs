//! The log in a file, its rotation, and the figures in it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::fleet::{TestFleet, TestFleetBuilder, field};
use crate::support::parallel_clients::ParallelClients;
use crate::support::redis::TestRedis;
use crate::support::{client, process, wait};

/// The lines of a log file that are whole by now: one may be in the writing while it is read.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Every line of a file that no one writes to any more; each has to be whole.
#[track_caller]
fn all_lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    assert!(text.is_empty() || text.ends_with('\n'), "the last line of {} is not whole", path.display());
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
    text.lines().map(parse).collect()
}

fn says(line: &Value, message: &str) -> bool {
    field(line, "message").as_str().is_some_and(|text| text.starts_with(message))
}

/// A fleet that logs to `path`, which is where its address is found.
#[track_caller]
fn start(plan: &TestFleetBuilder, path: &Path) -> TestFleet {
    let mut fleet = plan.spawn();
    let serving = wait::until_some("the file says where the fleet serves", wait::LONG, || {
        lines(path).into_iter().find(|line| says(line, "serving on"))
    });
    fleet.listen = field(&serving, "listen").as_str().unwrap().parse().unwrap();
    fleet
}

/// The processes whose lines stand in a file; 0 is the supervisor.
fn writers(path: &Path) -> BTreeSet<u64> {
    let worker = |line: &Value| line.get("slot").and_then(|_| line.get("pid")?.as_u64());
    lines(path).iter().map(|line| worker(line).unwrap_or(0)).collect()
}

#[test]
fn rotations_under_load_lose_no_line_and_every_process_goes_on_in_the_new_file() {
    let redis = TestRedis::shared();
    let plan = TestFleetBuilder::on(&redis)
        .set("REGATTA_LOG__FILE", "fleet.log")
        .set("REGATTA_LOG__FILTER", "info,regatta=debug");
    let path = plan.folder().join("fleet.log");
    let mut fleet = start(&plan, &path);
    let workers: BTreeSet<u64> = fleet.workers().into_iter().map(u64::from).collect();
    let listen = fleet.listen;
    let load = ParallelClients::start(4, |_| move || client::get(listen, "/hello").status);
    let mut files: Vec<PathBuf> = Vec::new();
    for rotation in 1..=5 {
        let before = load.seen();
        wait::until("requests are answered meanwhile", wait::LONG, || load.seen() > before + 20);
        let renamed = plan.folder().join(format!("fleet.log.{rotation}"));
        fs::rename(&path, &renamed).unwrap();
        fleet.signal(Signal::SIGUSR1);
        wait::until("every process goes on in the new file", wait::LONG, || {
            writers(&path).is_superset(&workers) && writers(&path).contains(&0)
        });
        files.push(renamed);
    }
    let answered = load.stop().concat();
    assert!(answered.iter().all(|status| *status == 200));
    assert_eq!(fleet.stop(), 0);
    files.push(path);
    let logged: Vec<Value> = files.iter().flat_map(|file| all_lines(file)).collect();
    let requests = logged.iter().filter(|line| says(line, "request answered")).count();
    assert_eq!(requests, answered.len(), "a line for each request");
    assert_eq!(fleet.log(), "", "nothing goes elsewhere");
}

#[test]
fn a_path_that_cannot_be_opened_again_leaves_the_old_file_in_use_and_says_so() {
    let plan = TestFleetBuilder::new().set("REGATTA_LOG__FILE", "logs/fleet.log");
    let (folder, moved) = (plan.folder().join("logs"), plan.folder().join("moved"));
    fs::create_dir(&folder).unwrap();
    let mut fleet = start(&plan, &folder.join("fleet.log"));
    fs::rename(&folder, &moved).unwrap();
    fleet.signal(Signal::SIGUSR1);
    let old = moved.join("fleet.log");
    let complaints =
        || lines(&old).into_iter().filter(|line| says(line, "cannot open the log file again")).count();
    wait::until("supervisor and workers complain", wait::LONG, || complaints() == 3);
    assert_eq!(fleet.stop(), 0);
    assert!(lines(&old).iter().any(|line| says(line, "stopped")), "the old file has the end too");
}

#[test]
fn a_worker_that_is_started_between_rename_and_signal_writes_where_the_others_do() {
    let redis = TestRedis::shared();
    let plan = TestFleetBuilder::on(&redis).workers(1).set("REGATTA_LOG__FILE", "fleet.log");
    let path = plan.folder().join("fleet.log");
    let mut fleet = start(&plan, &path);
    let renamed = plan.folder().join("fleet.log.1");
    fs::rename(&path, &renamed).unwrap();
    let first = fleet.workers()[0];
    process::signal(first, Signal::SIGKILL);
    wait::until("its successor is READY", wait::LONG, || {
        lines(&renamed).iter().filter(|line| says(line, "worker ready")).count() == 2
    });
    let successor = u64::from(fleet.workers()[0]);
    wait::until("the successor writes to the renamed file", wait::LONG, || {
        writers(&renamed).contains(&successor)
    });
    assert!(!path.exists(), "nobody has made a file of that name yet");
    assert_eq!(fleet.stop(), 0);
}

#[test]
fn a_log_file_in_a_folder_that_is_not_there_is_a_mistake_that_names_the_setting() {
    for args in [&["serve"][..], &["check"]] {
        let (code, said) =
            TestFleetBuilder::new().set("REGATTA_LOG__FILE", "missing/fleet.log").args(args).run();
        assert_eq!(code, 64, "{said}");
        assert!(said.contains("missing/fleet.log (log.file)") && said.contains("No such file"), "{said}");
    }
}

#[test]
fn the_figures_in_the_log_add_up_to_what_clients_counted() {
    let redis = TestRedis::shared();
    let mut fleet = TestFleetBuilder::on(&redis).set("REGATTA_LOG__STATS_INTERVAL", "100ms").start();
    for _ in 0..50 {
        assert_eq!(fleet.get("/hello").status, 200);
    }
    let numbers = |name: &str| -> Vec<u64> {
        fleet.log_lines("stats: ").iter().map(|line| field(line, name).as_u64().unwrap()).collect()
    };
    wait::until("a line has counted them all", wait::LONG, || numbers("requests_total").last() == Some(&50));
    assert_eq!(numbers("requests").iter().sum::<u64>(), 50);
    assert!(numbers("requests_total").is_sorted());
    assert_eq!(fleet.stop(), 0);
}

#[test]
fn the_log_goes_on_in_its_file_over_an_upgrade() {
    let redis = TestRedis::shared();
    let plan = TestFleetBuilder::on(&redis).workers(1).set("REGATTA_LOG__FILE", "fleet.log");
    let path = plan.folder().join("fleet.log");
    let mut fleet = start(&plan, &path);
    let before = fleet.workers();
    fleet.signal(Signal::SIGUSR2);
    wait::until("a worker of the new program serves alone", wait::LONG, || {
        let now = fleet.workers();
        now.len() == 1 && now != before && lines(&path).iter().any(|line| says(line, "upgrade done"))
    });
    let renamed = plan.folder().join("fleet.log.1");
    fs::rename(&path, &renamed).unwrap();
    fleet.signal(Signal::SIGUSR1);
    wait::until("the supervisor goes on in the new file", wait::LONG, || path.exists());
    assert_eq!(fleet.stop(), 0);
    assert!(all_lines(&path).iter().any(|line| says(line, "stopped")));
    assert!(all_lines(&renamed).iter().any(|line| says(line, "upgrade done")));
}
