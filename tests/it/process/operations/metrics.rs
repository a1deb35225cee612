//! What operators read: totals over all workers, no matter which worker answers, which never go back.

use std::collections::{BTreeMap, BTreeSet};

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
    let redis = TestRedis::shared();
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
    let redis = TestRedis::shared();
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

fn scrape_as(fleet: &TestFleet, accept: &str) -> (String, String) {
    let request = Request::get("/metrics").header("Accept", accept);
    let response = client::once(fleet.admin, request).unwrap();
    assert_eq!((response.status, response.header("Vary")), (200, "Accept"));
    (response.header("Content-Type").to_owned(), response.text())
}

/// The series of a text with the kind of each, by the rules of its format: a name is described once, before its series,
/// and each series has a suffix of its kind.
fn parse_metrics(text: &str, is_open_metrics: bool) -> BTreeMap<String, String> {
    let (mut kinds, mut series) = (BTreeMap::new(), BTreeMap::new());
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            assert!(name.starts_with("regatta_"), "{line}");
            assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} is declared twice");
        } else if let Some((_, unit)) = line.strip_prefix("# UNIT ").and_then(|rest| rest.split_once(' ')) {
            assert!(is_open_metrics && ["seconds", "bytes"].contains(&unit), "{line}");
        } else if line.starts_with('#') {
            let is_known = line.starts_with("# HELP ") || (is_open_metrics && line == "# EOF");
            assert!(is_known, "{line}");
        } else {
            let (id, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
            assert!(value.parse::<f64>().is_ok(), "{line}");
            let name = id.split('{').next().unwrap();
            let described = |suffix: &str| {
                let kind = kinds.get(name.strip_suffix(suffix)?)?;
                let counts = if is_open_metrics { "_total" } else { "" };
                let info = if is_open_metrics { ("info", "_info") } else { ("gauge", "") };
                let is_suffix = match kind.as_str() {
                    "counter" => suffix == counts,
                    "histogram" => ["_bucket", "_sum", "_count"].contains(&suffix),
                    "gauge" => suffix.is_empty(),
                    other => (other, suffix) == info,
                };
                is_suffix.then(|| kind.clone())
            };
            let kind = ["", "_total", "_info", "_bucket", "_sum", "_count"].into_iter().find_map(described);
            let kind = kind.unwrap_or_else(|| panic!("{line} is not described"));
            assert!(kind != "counter" || name.ends_with("_total"), "{line}");
            let kind = if kind == "info" { "gauge".to_owned() } else { kind };
            assert!(series.insert(id.to_owned(), kind).is_none(), "{id} is there twice");
        }
    }
    assert_eq!(text.ends_with("# EOF\n"), is_open_metrics);
    series
}

#[test]
fn both_text_formats_are_well_formed_and_have_the_same_series() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).start();
    CookieClient::default().view(fleet.listen);
    let (kind, text) =
        scrape_as(&fleet, "application/openmetrics-text;version=1.0.0,text/plain;q=0.5,*/*;q=0.1");
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let open_metrics = parse_metrics(&text, true);
    let (kind, text) = scrape_as(&fleet, "text/plain;version=0.0.4;q=0.9,application/openmetrics-text;q=0.8");
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(parse_metrics(&text, false), open_metrics);
    assert_eq!(fleet.operator("/metrics").header("Content-Type"), kind, "without Accept");
    for name in open_metrics.keys() {
        let name = name.split('{').next().unwrap();
        for bad in ["_ms", "_us", "_milliseconds", "_percent"] {
            assert!(!name.contains(bad), "{name} has no base unit");
        }
    }
}

#[test]
fn the_fleet_is_told_as_json() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(3).start();
    let json = fleet.operator("/fleet.json").json();
    let slots = json["slots"].as_array().unwrap_or_else(|| panic!("{json}"));
    assert_eq!(slots.len(), 3, "{json}");
    let pids: BTreeSet<_> = slots.iter().filter_map(|slot| slot["worker"]["pid"].as_u64()).collect();
    let workers: BTreeSet<_> = fleet.workers().into_iter().map(u64::from).collect();
    assert_eq!(pids, workers);
}

#[test]
fn why_workers_ended_and_what_the_others_do_is_told() {
    let redis = TestRedis::shared();
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
    assert!(slots.iter().all(|slot| slot["worker"]["state"] == "ready"), "{json}");
}

#[test]
fn busy_time_grows_and_heartbeats_are_young() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(1).start();
    wait::until("work is counted as busy time", wait::LONG, || {
        assert_eq!(fleet.get("/hello").status, 200);
        sum(&scrape(&fleet).1, "regatta_worker_busy_seconds_total", &[]) > 0.0
    });
    let text = scrape(&fleet).1;
    assert!(sum(&text, "regatta_worker_cpu_seconds_total", &[]) > 0.0);
    assert!(sum(&text, "regatta_worker_heartbeat_age_seconds", &[]) < 60.0);
}
