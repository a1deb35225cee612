//! What operators see of a running fleet: `status` and `top`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::client::Request;
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::terminal::PseudoTerminal;
use crate::support::{client, process, wait};

/// What leaves the alternate screen, so that the operator's own shows again.
const RESTORED: &str = "\x1b[?1049l";

fn run_dir(plan: &TestFleetBuilder) -> PathBuf {
    plan.folder().join("run")
}

/// Exit code, standard output and standard error of a command to a fleet.
fn ask(plan: &TestFleetBuilder, words: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_regatta"));
    command.arg("--run-dir").arg(run_dir(plan)).args(words).env_clear().stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn status(fleet: &TestFleet) -> Value {
    let (code, out, err) = ask(fleet.plan(), &["status", "--json"]);
    assert_eq!(code, 0, "{err}");
    serde_json::from_str(&out).unwrap()
}

#[test]
fn status_tells_what_clients_counted_and_who_serves() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(3).start();
    for _ in 0..40 {
        assert_eq!(fleet.get("/hello").status, 200);
    }
    let status = status(&fleet);
    assert_eq!(status["version"], 2);
    assert_eq!(status["supervisor_pid"], fleet.pid());
    assert_eq!((&status["state"], &status["workers"]["ready"]), (&"serving".into(), &3.into()), "{status}");
    assert_eq!(status["totals"]["requests"], 40);
    assert_eq!(status["totals"]["responses"]["2xx"], 40);
    assert_eq!(status["redis"]["private_pid"], Value::Null);
    let slots = status["slots"].as_array().unwrap();
    let pids: BTreeSet<u64> = slots.iter().map(|slot| slot["worker"]["pid"].as_u64().unwrap()).collect();
    assert_eq!(pids, fleet.workers().into_iter().map(u64::from).collect());
    assert!(slots.iter().all(|slot| slot["state"] == "ready" && slot["open"] == true), "{status}");
    assert_eq!(slots.iter().map(|slot| slot["requests"].as_u64().unwrap()).sum::<u64>(), 40);
}

#[test]
fn status_for_people_has_a_line_for_each_slot_and_no_colours_in_a_pipe() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).start();
    let (code, page, err) = ask(fleet.plan(), &["status"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(page.starts_with("● serving 2 of 2 workers") && !page.contains('\x1b'), "{page}");
    for pid in fleet.workers() {
        assert!(page.lines().any(|line| line.contains(&pid.to_string()) && line.contains("ready")), "{page}");
    }
    let (code, picture, _) = ask(fleet.plan(), &["top", "--once"]);
    assert_eq!(code, 0);
    assert!(picture.contains("SLOT") && !picture.contains('\x1b'), "{picture}");
}

#[test]
fn a_crash_and_its_reason_are_seen() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(1).start();
    process::signal(fleet.workers()[0], Signal::SIGKILL);
    let slot = wait::until_some("the slot serves again", wait::LONG, || {
        let status = status(&fleet);
        (status["totals"]["crashes"] == 1 && status["workers"]["ready"] == 1)
            .then(|| status["slots"][0].clone())
    });
    assert_eq!(slot["last_exit_reason"], "signal");
    assert_eq!((&slot["exits"]["signal"], &slot["starts"]), (&1.into(), &2.into()), "{slot}");
}

#[test]
fn without_a_fleet_both_end_with_69_and_say_so() {
    let plan = TestFleetBuilder::new();
    for words in [&["status"][..], &["status", "--json"], &["top", "--once"], &["top"]] {
        let (code, out, err) = ask(&plan, words);
        assert_eq!((code, out.as_str()), (69, ""), "{words:?}");
        assert!(err.contains("no fleet runs here"), "{words:?}: {err}");
    }
}

#[test]
fn top_needs_a_terminal_and_says_what_does_not() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(1).start();
    let (code, _, err) = ask(fleet.plan(), &["top"]);
    assert_eq!(code, 64);
    assert!(err.contains("--once"), "{err}");
}

#[test]
fn top_gives_the_terminal_back_however_it_ends() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(1).start();
    for key in ["q", "\x03", "\x1b"] {
        let mut top = PseudoTerminal::run(&run_dir(fleet.plan()), &["top"]);
        top.shows("serving");
        top.press(key);
        assert_eq!(top.ends(wait::LONG), Some(0), "{key:?}");
        top.shows(RESTORED);
    }
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let mut top = PseudoTerminal::run(&run_dir(fleet.plan()), &["top"]);
        top.shows("serving");
        process::signal(top.pid(), signal);
        assert_eq!(top.ends(wait::LONG), Some(0), "{signal}");
        top.shows(RESTORED);
    }
}

#[test]
fn top_replaces_a_worker_only_after_a_yes() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(1).start();
    let before = fleet.workers();
    let mut top = PseudoTerminal::run(&run_dir(fleet.plan()), &["top", "--interval", "100ms"]);
    top.shows("SLOT");
    top.press("x");
    top.shows("replace the worker of slot 0?");
    top.press("n");
    top.shows("q leave");
    assert_eq!(fleet.workers(), before);
    top.press("xy");
    wait::until("another worker serves alone", wait::LONG, || {
        let now = fleet.workers();
        now.len() == 1 && now != before
    });
    top.press("q");
    assert_eq!(top.ends(wait::LONG), Some(0));
}

#[test]
fn top_bears_a_stopped_supervisor_and_finds_the_next_fleet() {
    let redis = TestRedis::shared();
    let plan = TestFleetBuilder::on(&redis).workers(1);
    let mut first = plan.start();
    let mut top = PseudoTerminal::run(&run_dir(&plan), &["top", "--interval", "100ms"]);
    top.shows("serving");
    process::stop(first.pid());
    top.shows("no answer for");
    process::signal(first.pid(), Signal::SIGCONT);
    top.shows("serving");
    assert_eq!(first.stop(), 0);
    top.shows("gone:");
    let _second = plan.start();
    top.shows("serving");
    top.press("q");
    assert_eq!(top.ends(wait::LONG), Some(0));
}

#[test]
fn top_and_the_totals_go_on_over_an_upgrade() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(1).start();
    assert_eq!(fleet.get("/hello").status, 200);
    let mut top = PseudoTerminal::run(&run_dir(fleet.plan()), &["top", "--interval", "100ms"]);
    top.shows("serving");
    let (code, said, err) = ask(fleet.plan(), &["upgrade"]);
    assert_eq!(code, 0, "{said}{err}");
    top.shows("last upgrade, to generation 2: done");
    top.press("q");
    assert_eq!(top.ends(wait::LONG), Some(0));
    let status = status(&fleet);
    assert_eq!((&status["totals"]["requests"], &status["supervisor_pid"]), (&1.into(), &fleet.pid().into()));
    assert_eq!((&status["last_rollout"]["kind"], &status["generation"]), (&"upgrade".into(), &2.into()));
}

/// Names in a document, at any depth, that give another unit than seconds, bytes and ratios.
fn names_in_other_units(document: &Value) -> Vec<String> {
    let odd = |name: &str| {
        let units = ["_ms", "_us", "_ns", "_s", "_percent", "_permille", "_milliseconds"];
        units.iter().any(|unit| name.ends_with(unit))
    };
    match document {
        Value::Object(fields) => {
            let own = fields.keys().filter(|name| odd(name)).cloned();
            own.chain(fields.values().flat_map(names_in_other_units)).collect()
        }
        Value::Array(items) => items.iter().flat_map(names_in_other_units).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn every_number_that_leaves_the_fleet_is_in_base_units() {
    let redis = TestRedis::start();
    let plan = TestFleetBuilder::on(&redis).set("REGATTA_FLEET__HEARTBEAT_INTERVAL", "200ms");
    let fleet = plan.set("REGATTA_TASKS__CONCURRENCY", "1").start();
    let body = br#"{"kind":"primes","n":7}"#;
    let task = client::once(fleet.listen, Request::post("/tasks").body("application/json", body)).unwrap();
    let id = task.json()["id"].as_str().unwrap().to_owned();
    let done = || fleet.get(&format!("/tasks/{id}")).json();
    wait::until("the task is done", wait::LONG, || done()["state"] == "done");
    let victim = fleet.workers()[0];
    fleet.crash(victim);
    let all = wait::until_some("its heartbeat has figures", wait::LONG, || {
        let (_, text) = fleet.plan().clone().args(&["status", "--all", "--json"]).run();
        let listed: Value = serde_json::from_str(&text).unwrap();
        listed["instances"][0]["figures"].is_object().then_some(listed)
    });
    let (code, events, _) = ask(fleet.plan(), &["events", "--json"]);
    assert_eq!(code, 0);
    let own = fleet.operator("/fleet.json").json();
    assert_eq!((&own["version"], &all["version"]), (&2.into(), &2.into()));
    for moment in [&own["started_at"], &own["instances"][0]["started_at"], &done()["finished_at"]] {
        assert!(moment.as_str().is_some_and(|text| text.ends_with('Z')), "{moment}");
    }
    let mut documents = vec![own, all, status(&fleet), done(), task.json()];
    let lines = [events, fleet.log()];
    documents.extend(
        lines.iter().flat_map(|text| text.lines()).filter_map(|line| serde_json::from_str(line).ok()),
    );
    assert!(documents.len() > 10);
    for document in documents {
        assert_eq!(names_in_other_units(&document), [""; 0], "{document}");
    }
}

/// The command line and the page read one document.
#[test]
fn fleet_json_is_the_status_document_without_what_only_the_supervisor_knows() {
    fn names(value: &Value) -> Vec<&String> {
        value.as_object().unwrap().keys().collect()
    }
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    let (page, own) = (fleet.operator("/fleet.json").json(), status(&fleet));
    let shown: Vec<_> = names(&page).into_iter().filter(|name| !name.starts_with("instances")).collect();
    assert_eq!(shown, names(&own));
    assert_eq!(names(&page["slots"][0]), names(&own["slots"][0]));
    assert_eq!(names(&page["slots"][0]["worker"]), names(&own["slots"][0]["worker"]));
    assert_eq!((&page["state"], &page["slots"][0]["open"]), (&"unknown".into(), &Value::Null));
    for field in ["supervisor_pid", "started_at", "generation", "build"] {
        assert_eq!(page[field], own[field], "{field}");
    }
    assert_eq!(page["slots"][0]["worker"]["pid"], own["slots"][0]["worker"]["pid"]);
}
