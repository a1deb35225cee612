//! What operators read: totals over all workers, no matter which worker answers, which never go back.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;

use crate::support::client::{CookieClient, Request};
use crate::support::exposition::{REQUESTS, sum};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::parallel_clients::ParallelClients;
use crate::support::redis::TestRedis;
use crate::support::{client, parallel_clients, process, wait};

fn scrape(fleet: &TestFleet) -> (u32, String) {
    let response = fleet.operator("/metrics");
    assert_eq!(response.status, 200);
    (response.worker(), response.text())
}

#[test]
fn totals_equal_what_the_clients_counted_and_every_worker_tells_the_same() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(4).start();
    let statuses = parallel_clients::parallel(6, 50, |client| {
        let target = if client == 0 { "/nothing/here" } else { "/hello" };
        client::get(fleet.listen, target).status
    });
    assert_eq!(statuses.len(), 300);
    wait::until("all are counted", wait::LONG, || sum(&scrape(&fleet).1, REQUESTS, &[]) >= 300.0);
    let mut answered_by = BTreeSet::new();
    for _ in 0..40 {
        let (worker, text) = scrape(&fleet);
        answered_by.insert(worker);
        assert_eq!(sum(&text, REQUESTS, &[]), 300.0);
        assert_eq!(sum(&text, REQUESTS, &["status_class=\"4xx\""]), 50.0);
        assert_eq!(sum(&text, REQUESTS, &["status_class=\"2xx\""]), 250.0);
    }
    assert_eq!(answered_by.len(), 4, "every worker was asked");
}

#[test]
fn totals_never_go_back_over_crashes() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(3).start();
    let address = fleet.listen;
    let load = ParallelClients::start(3, |_| move || client::once(address, Request::get("/hello")).is_ok());
    let mut last = 0.0;
    for pid in fleet.workers() {
        let seen = load.seen();
        wait::until("requests", wait::LONG, || load.seen() > seen + 40);
        process::signal(pid, Signal::SIGKILL);
        wait::until("the slot is taken again", wait::LONG, || {
            let now = client::once(fleet.admin, Request::get("/metrics"));
            if let Ok(response) = now {
                let total = sum(&response.text(), REQUESTS, &[]);
                assert!(total >= last, "{total} after {last}");
                last = total;
            }
            fleet.workers().len() == 3 && fleet.ready().len() >= 3
        });
    }
    wait::until("all workers are ready", wait::LONG, || fleet.ready().len() == 6);
    let answered = load.stop().into_iter().flatten().filter(|answered| *answered).count();
    let total = sum(&scrape(&fleet).1, REQUESTS, &[]);
    // A worker may have died between an answer and its count, or between the count and the client's read.
    assert!((total - answered as f64).abs() <= 9.0, "{total} counted, {answered} answered");
}

#[test]
fn the_exposition_is_well_formed() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    CookieClient::default().view(fleet.listen);
    let response = fleet.operator("/metrics");
    let text = response.text();
    assert!(response.header("Content-Type").contains("text"), "{response:?}");
    let mut typed = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let name = rest.split(' ').next().unwrap();
            assert!(typed.insert(name.to_owned()), "{name} is declared twice");
            assert!(name.starts_with("regatta_"), "{line}");
        } else if !line.starts_with('#') && !line.is_empty() {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
            assert!(value.parse::<f64>().is_ok(), "{line}");
            let name = series.split('{').next().unwrap();
            assert!(typed.iter().any(|known| name.starts_with(known.as_str())), "{line} has no type");
        }
    }
}

#[test]
fn the_fleet_is_told_as_json() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(3).start();
    let json = fleet.operator("/fleet.json").json();
    let slots = json["slots"].as_array().unwrap_or_else(|| panic!("{json}"));
    assert_eq!(slots.len(), 3, "{json}");
    let pids: BTreeSet<_> = slots.iter().filter_map(|slot| slot["pid"].as_u64()).collect();
    let workers: BTreeSet<_> = fleet.workers().into_iter().map(u64::from).collect();
    assert_eq!(pids, workers);
}

#[test]
fn why_workers_ended_and_what_the_others_do_is_told() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    let text = scrape(&fleet).1;
    assert_eq!(
        sum(&text, "regatta_worker_exits_total", &["reason=\"signal\""]),
        0.0,
        "a series from the start"
    );
    assert_eq!(sum(&text, "regatta_workers", &["state=\"ready\""]), 2.0);
    process::signal(fleet.workers()[0], Signal::SIGKILL);
    wait::until("the end and its reason are counted", wait::LONG, || {
        client::once(fleet.admin, Request::get("/metrics")).is_ok_and(|response| {
            sum(&response.text(), "regatta_worker_exits_total", &["reason=\"signal\""]) == 1.0
        })
    });
    wait::until("both slots serve again", wait::LONG, || {
        client::once(fleet.admin, Request::get("/metrics"))
            .is_ok_and(|response| sum(&response.text(), "regatta_workers", &["state=\"ready\""]) == 2.0)
    });
    let json = fleet.operator("/fleet.json").json();
    let slots = json["slots"].as_array().unwrap();
    assert_eq!(slots.iter().filter_map(|slot| slot["exits"]["signal"].as_u64()).sum::<u64>(), 1, "{json}");
    assert!(slots.iter().all(|slot| slot["workers"][0]["state"] == "ready"), "{json}");
}

#[test]
fn busy_time_grows_and_heartbeats_are_young() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(1).start();
    wait::until("work is counted as busy time", wait::LONG, || {
        assert_eq!(fleet.get("/hello").status, 200);
        sum(&scrape(&fleet).1, "regatta_worker_busy_seconds_total", &[]) > 0.0
    });
    let text = scrape(&fleet).1;
    assert!(sum(&text, "regatta_worker_cpu_seconds_total", &[]) > 0.0);
    assert!(sum(&text, "regatta_worker_heartbeat_age_seconds", &[]) < 60.0);
}
