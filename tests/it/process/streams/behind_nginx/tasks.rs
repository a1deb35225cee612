//! Tasks behind nginx: their progress passes, and a host that dies takes none along.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::process::streams::behind_nginx::{Site, until_says};
use crate::support::client::{Connection, Failure, Request};
use crate::support::fleet::TestFleet;
use crate::support::operate::kill;
use crate::support::{client, soak, wait};

/// Enqueues one; its id.
#[track_caller]
fn enqueue(site: &Site, kind: &str, n: u64) -> String {
    let body = json!({ "kind": kind, "n": n }).to_string();
    let request = Request::post("/tasks").body("application/json", body.as_bytes());
    let answer = client::once(site.address, request).unwrap();
    assert_eq!(answer.status, 202, "{answer:?}");
    let place = answer.header("Location").to_owned();
    assert!(place.starts_with("/tasks/"), "{answer:?}");
    place
}

/// The task as anyone sees it.
fn look(site: &Site, place: &str) -> Result<Value, Failure> {
    let request = Request::get(place).header("Accept", "application/json");
    client::once(site.address, request).map(|answer| answer.json())
}

#[test]
fn progress_passes_as_it_is_made() {
    let site = Site::start();
    let place = enqueue(&site, "fibonacci", 10_000);
    let mut connection = Connection::open(site.address).unwrap();
    connection.send(&Request::get(&format!("{place}/events")).bytes()).unwrap();
    let head = until_says(&mut connection, "\r\n\r\n").to_ascii_lowercase();
    assert!(head.contains("text/event-stream"), "{head}");
    until_says(&mut connection, "\"done\"");
    until_says(&mut connection, "\r\n0\r\n\r\n");
    let task = look(&site, &place).unwrap();
    assert_eq!(task["state"], "done", "{task}");
}

#[test]
fn a_task_whose_host_dies_is_finished_by_the_other() {
    let mut site = Site::start();
    // A debug build needs a while for it; if it does not, nothing was shown and the test says so.
    let place = enqueue(&site, "primes", 5_000_000);
    let worker = wait::until_some("it runs", wait::LONG, || {
        let task = look(&site, &place).ok()?;
        assert_ne!(task["state"], "done", "too fast to be killed: {task}");
        (task["state"] == "running").then(|| task["worker"].clone())
    });
    let named =
        |fleet: &TestFleet| fleet.workers().iter().any(|pid| worker.to_string().contains(&pid.to_string()));
    let on = site.hosts.iter().position(named).unwrap_or_else(|| panic!("{worker} is nobody's"));
    kill(&mut site.hosts[on]);
    let begin = Instant::now();
    wait::until("another worker has it", wait::LONG, || {
        look(&site, &place).is_ok_and(|task| task["worker"] != worker || task["state"] == "done")
    });
    soak::log("task of a killed host", &format!("taken over after {:.1?}", begin.elapsed()));
    wait::until("it is done", Duration::from_secs(120), || {
        look(&site, &place).is_ok_and(|task| task["state"] == "done")
    });
}
