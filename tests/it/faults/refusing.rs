//! A Redis that is there and says no.

use std::thread;
use std::time::Instant;

use regatta::redis::Finding;

use crate::faults::BACK;
use crate::faults::HANG;
use crate::faults::Sample;
use crate::faults::Watch;
use crate::faults::assert_defined;
use crate::faults::assert_stale;
use crate::faults::deadlines;
use crate::support::client;
use crate::support::client::Request;
use crate::support::client::Visitor;
use crate::support::fleet::Fleet;
use crate::support::fleet::Plan;
use crate::support::proxy::Proxy;
use crate::support::redis::RedisServer;
use crate::support::wait;

/// That during the fault whoever came again was shown what Redis has, and everybody else refused.
#[track_caller]
fn assert_read_only(during: &[Vec<Sample>]) {
    for (client, samples) in super::CLIENTS.iter().zip(during) {
        let expected = if *client == "returning" { (200, "read-only") } else { (503, "") };
        let wrong: Vec<_> =
            samples.iter().filter(|sample| (sample.status, sample.state.as_str()) != expected).collect();
        assert!(!samples.is_empty() && wrong.is_empty(), "{client}: {wrong:?}");
    }
}

#[track_caller]
fn assert_degraded(fleet: &Fleet, reason: &str) {
    wait::until("a worker says what it lacks", wait::LONG, || {
        let answer = fleet.operator("/readyz");
        assert_eq!(answer.status, 200, "{answer:?}");
        let told = answer.json();
        told["status"] == "degraded" && told["reason"].as_str().is_some_and(|text| text.contains(reason))
    });
}

#[test]
fn redis_becomes_a_replica() {
    let redis = RedisServer::start();
    let proxy = Proxy::before(&redis);
    let fleet = deadlines(Plan::through(&proxy)).start();
    let mut watch = Watch::start(&fleet);
    let (connections, since) = (proxy.accepted().len(), Instant::now());
    redis.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    watch.fault_begins();
    assert_degraded(&fleet, "READONLY");
    watch.last(500);
    let attempts = proxy.accepted().len() - connections;
    let (seconds, workers) = (since.elapsed().as_secs_f64(), fleet.workers().len());
    println!("F7 replica: {attempts} connections of {workers} workers in {seconds:.1} s");
    assert!(attempts as f64 <= (2.0 * seconds + 1.0) * workers as f64);
    redis.cli(&["REPLICAOF", "NO", "ONE"]);
    watch.fault_is_over();
    assert_read_only(&watch.end("F7 replica", &fleet));
}

#[test]
fn redis_is_full() {
    let redis = RedisServer::start();
    let fleet = deadlines(Plan::on(&redis)).start();
    let mut watch = Watch::start(&fleet);
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    watch.fault_begins();
    assert_degraded(&fleet, "OOM");
    watch.last(500);
    let metrics = fleet.operator("/metrics").text();
    assert!(metrics.contains("regatta_redis_breaker_state{slot=\"0\",lane=\"reads\"} 0"), "{metrics}");
    let opened = metrics.lines().filter(|line| line.starts_with("regatta_redis_breaker_opens_total"));
    let opened = opened.filter(|line| line.contains("lane=\"writes\"") && !line.ends_with(" 0")).count();
    assert!(opened > 0, "{metrics}");
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    watch.fault_is_over();
    assert_read_only(&watch.end("F8 full", &fleet));
}

#[test]
fn redis_is_busy_with_a_script() {
    let redis = RedisServer::start();
    redis.cli(&["CONFIG", "SET", "busy-reply-threshold", "10"]);
    let proxy = Proxy::before(&redis);
    let fleet = deadlines(Plan::through(&proxy)).start();
    let mut watch = Watch::start(&fleet);
    let connections = proxy.accepted().len();
    thread::scope(|scope| {
        scope.spawn(|| redis.cli(&["EVAL", "while true do end", "0"]));
        watch.fault_begins();
        assert_degraded(&fleet, "BUSY");
        watch.last(500);
        wait::until("the script is killed", HANG, || redis.cli(&["SCRIPT", "KILL"]).contains("OK"));
        watch.fault_is_over();
    });
    // One that was lost while Redis was still silent may be made again; nobody reconnects to a server that answers.
    assert!(proxy.accepted().len() - connections <= 2 * fleet.workers().len());
    assert_stale(&watch.end("F9 busy", &fleet));
}

#[test]
fn redis_says_that_it_cannot_at_present() {
    let redis = RedisServer::start();
    let proxy = Proxy::before(&redis);
    let fleet = deadlines(Plan::through(&proxy)).start();
    let cases = [
        ("LOADING Redis is loading the dataset in memory", "F10 LOADING", false),
        ("CLUSTERDOWN The cluster is down", "F10 CLUSTERDOWN", false),
        ("MISCONF Redis is configured to save RDB snapshots", "F10 MISCONF", true),
        ("NOREPLICAS Not enough good replicas to write.", "F10 NOREPLICAS", true),
    ];
    for (reply, name, reads) in cases {
        let mut watch = Watch::start(&fleet);
        for command in ["regatta_v2_begin", "INCRBY"] {
            proxy.answer(command, u64::MAX, &format!("-{reply}"));
        }
        watch.fault_begins();
        assert_degraded(&fleet, reply.split(' ').next().unwrap());
        watch.last(200);
        proxy.spare();
        watch.fault_is_over();
        let during = watch.end(name, &fleet);
        if reads { assert_read_only(&during) } else { assert_stale(&during) }
    }
}

#[test]
fn a_page_that_only_reads_shows_what_redis_has() {
    let redis = RedisServer::start();
    let fleet = deadlines(Plan::on(&redis)).start();
    let mut visitor = Visitor::default();
    for _ in 0..3 {
        visitor.visit(fleet.listen);
    }
    let cookies = visitor.cookies.clone();
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    for _ in 0..20 {
        let response = visitor.ask(fleet.listen, Request::get("/"));
        assert_defined(&response);
        assert_eq!((response.visit().1, response.header("Session-State")), (3, "read-only"), "{response:?}");
        assert_defined(&fleet.get("/"));
        assert_eq!(client::once(fleet.listen, Request::post("/counters/x")).unwrap().status, 503);
    }
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    wait::until("views are counted again", BACK, || {
        visitor.ask(fleet.listen, Request::get("/")).header("Session-State").is_empty()
    });
    assert_eq!(visitor.cookies, cookies);
}

#[test]
fn what_will_lose_state_one_day_is_told_at_boot() {
    let redis = RedisServer::start_with(&["--maxmemory-policy", "volatile-lru", "--maxmemory", "100mb"]);
    let fleet = Plan::on(&redis).start();
    let told = wait::until_some("warnings are told", wait::LONG, || {
        fleet.operator("/readyz").json()["warnings"].as_array().cloned()
    });
    let expected = [Finding::Evicts, Finding::ForgetsAll].map(Finding::advice);
    assert_eq!(told, expected);
    for advice in expected {
        wait::until("the log has it, once", wait::LONG, || fleet.said(advice).len() == 1);
    }
}

#[test]
fn a_redis_that_is_set_up_well_is_not_complained_of() {
    let redis = RedisServer::start_with(&["--appendonly", "yes"]);
    let fleet = Plan::on(&redis).start();
    wait::until("it was looked at", wait::LONG, || redis.commands().contains_key("config|get"));
    let answer = fleet.operator("/readyz").json();
    assert_eq!((&answer["status"], answer.get("warnings")), (&"ready".into(), None), "{answer}");
}
