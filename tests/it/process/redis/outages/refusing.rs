//! A Redis that is there and says no.

use std::thread;
use std::time::Instant;

use regatta::__internals::redis::ServerWarning;

use crate::process::redis::outages::{BACK, HANG, Watch, assert_defined, assert_shown, impatient, page};
use crate::support::client::{CookieClient, Request};
use crate::support::fault_proxy::FaultProxy;
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::{client, wait};

#[track_caller]
fn assert_degraded(fleet: &TestFleet, reason: &str) {
    wait::until("a worker says what it lacks", wait::LONG, || {
        let answer = fleet.operator("/readyz");
        assert_eq!(answer.status, 200, "{answer:?}");
        let told = answer.json();
        told["status"] == "degraded" && told["reason"].as_str().is_some_and(|text| text.contains(reason))
    });
}

#[test]
fn redis_becomes_a_replica() {
    let redis = TestRedis::start();
    let proxy = FaultProxy::before(&redis);
    let fleet = TestFleetBuilder::through(&proxy).start();
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
    watch.fault_is_over();
    redis.cli(&["REPLICAOF", "NO", "ONE"]);
    assert_shown(&watch.end("F7 replica", &fleet), "read-only");
}

#[test]
fn redis_is_full() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    let mut watch = Watch::start(&fleet);
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    watch.fault_begins();
    assert_degraded(&fleet, "OOM");
    watch.last(500);
    let metrics = fleet.operator("/metrics").text();
    assert!(metrics.contains("regatta_redis_breaker_state{slot=\"0\",breaker=\"reads\"} 0"), "{metrics}");
    let opened = metrics.lines().filter(|line| line.starts_with("regatta_redis_breaker_opens_total"));
    let opened = opened.filter(|line| line.contains("breaker=\"writes\"") && !line.ends_with(" 0")).count();
    assert!(opened > 0, "{metrics}");
    watch.fault_is_over();
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_shown(&watch.end("F8 full", &fleet), "read-only");
}

#[test]
fn redis_is_busy_with_a_script() {
    let redis = TestRedis::start();
    redis.cli(&["CONFIG", "SET", "busy-reply-threshold", "10"]);
    let proxy = FaultProxy::before(&redis);
    // The first lease opens the connection for news, and what is opened while the server is busy is opened again.
    let plan = impatient(TestFleetBuilder::through(&proxy)).set("REGATTA_LIMITS__DEFAULT__PREFETCH", "false");
    let fleet = plan.start();
    let mut watch = Watch::start(&fleet);
    let connections = proxy.accepted().len();
    thread::scope(|scope| {
        scope.spawn(|| redis.cli(&["EVAL", "while true do end", "0"]));
        watch.fault_begins();
        assert_degraded(&fleet, "BUSY");
        watch.last(500);
        watch.fault_is_over();
        wait::until("the script is killed", HANG, || redis.cli(&["SCRIPT", "KILL"]).contains("OK"));
    });
    // One that was lost while Redis was still silent may be made again; no one reconnects to a server that answers.
    assert!(proxy.accepted().len() - connections <= 2 * fleet.workers().len());
    assert_shown(&watch.end("F9 busy", &fleet), "stale");
}

#[test]
fn redis_says_that_it_cannot_at_present() {
    let redis = TestRedis::start();
    let proxy = FaultProxy::before(&redis);
    let fleet = TestFleetBuilder::through(&proxy).start();
    let cases = [
        ("LOADING Redis is loading the dataset in memory", "F10 LOADING", false),
        ("CLUSTERDOWN The cluster is down", "F10 CLUSTERDOWN", false),
        ("MISCONF Redis is configured to save RDB snapshots", "F10 MISCONF", true),
        ("NOREPLICAS Not enough good replicas to write.", "F10 NOREPLICAS", true),
    ];
    for (reply, name, reads) in cases {
        let mut watch = Watch::start(&fleet);
        let commands = ["regatta_v6_batch", "INCRBY", "HGETALL", "GET"];
        for command in &commands[..if reads { 2 } else { 4 }] {
            proxy.answer(command, u64::MAX, &format!("-{reply}"));
        }
        watch.fault_begins();
        assert_degraded(&fleet, reply.split(' ').next().unwrap());
        watch.last(200);
        watch.fault_is_over();
        proxy.clear_command_faults();
        let during = watch.end(name, &fleet);
        assert_shown(&during, if reads { "read-only" } else { "stale" });
    }
}

#[test]
fn a_page_that_only_reads_shows_what_redis_has() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    let mut visitor = CookieClient::default();
    for _ in 0..3 {
        visitor.view(fleet.listen);
    }
    let cookies = visitor.cookies.clone();
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    for _ in 0..20 {
        let response = visitor.request(fleet.listen, page());
        assert_defined(&response);
        assert_eq!((response.status, response.header("Session-State")), (200, "read-only"), "{response:?}");
        // The session is true, and no view is counted: a client that wants the number gets none.
        assert_eq!(visitor.request(fleet.listen, Request::get("/")).status, 503);
        assert_defined(&fleet.get("/"));
        assert_eq!(client::once(fleet.listen, Request::post("/counters/x")).unwrap().status, 503);
    }
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    // Each worker finds out for itself, within its breaker's pause.
    wait::until("every worker is back", BACK, || (0..20).all(|_| fleet.get("/").status == 200));
    assert_eq!(
        (visitor.view(fleet.listen).1, &visitor.cookies),
        (4, &cookies),
        "nothing was counted meanwhile"
    );
}

const FORM: &str = "application/x-www-form-urlencoded";

/// The token of a page's form.
fn token(visitor: &mut CookieClient, fleet: &TestFleet, target: &str) -> String {
    let page = visitor.request(fleet.listen, Request::get(target).header("Accept", "text/html")).text();
    let field = page.split("name=\"token\" value=\"").nth(1).unwrap_or_else(|| panic!("no token in {page}"));
    field.split('"').next().unwrap().to_owned()
}

fn send(visitor: &mut CookieClient, fleet: &TestFleet, target: &str, body: &str) -> u16 {
    let request = Request::post(target).header("Accept", "text/html").body(FORM, body.as_bytes());
    visitor.request(fleet.listen, request).status
}

/// Logs in as a browser does; the token for the next form.
fn log_in(visitor: &mut CookieClient, fleet: &TestFleet, name: &str) -> String {
    let body = format!("name={name}&token={}", token(visitor, fleet, "/login"));
    assert_eq!(send(visitor, fleet, "/login", &body), 303);
    token(visitor, fleet, "/me")
}

fn log_out(visitor: &mut CookieClient, fleet: &TestFleet, token: &str) -> u16 {
    send(visitor, fleet, "/logout", &format!("token={token}"))
}

#[test]
fn logging_out_of_a_full_redis_works() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    let mut visitor = CookieClient::default();
    let token = log_in(&mut visitor, &fleet, "ann");
    let of_users = |key: &String| key.contains(":s:") && redis.cli(&["HEXISTS", key, "_u"]) == "1";
    let sessions = || redis.keys().into_iter().filter(of_users).count();
    assert_eq!(sessions(), 1);
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    wait::until("writes are refused", wait::LONG, || fleet.get("/").status == 503);
    assert_eq!(log_out(&mut visitor, &fleet, &token), 303);
    assert!(visitor.cookies.is_empty());
    assert_eq!(sessions(), 0);
}

#[test]
fn whoever_logged_out_on_another_worker_is_not_remembered() {
    let mut redis = TestRedis::start();
    let fleet = impatient(TestFleetBuilder::on(&redis)).workers(3).start();
    let mut visitor = CookieClient::default();
    let token = log_in(&mut visitor, &fleet, "ann");
    // Every worker has read it, and hears of ends.
    let mut thief = CookieClient { cookies: visitor.cookies.clone() };
    let mut workers = std::collections::BTreeSet::new();
    wait::until("every worker has read the session", wait::LONG, || {
        let me = thief.request(fleet.listen, Request::get("/me"));
        assert_eq!(me.status, 200);
        workers.insert(me.worker());
        workers.len() == 3
    });
    let listeners = || redis.cli(&["CLIENT", "LIST", "TYPE", "pubsub"]).lines().count();
    wait::until("every worker listens", wait::LONG, || listeners() == 3);
    let deliveries = || redis.commands().get("publish").copied().unwrap_or(0);
    assert_eq!(log_out(&mut visitor, &fleet, &token), 303);
    wait::until("the workers are told", wait::LONG, || deliveries() > 0);
    redis.kill();
    wait::until("Redis is away", wait::LONG, || (0..20).all(|_| fleet.get("/").status == 503));
    for _ in 0..30 {
        assert_eq!(thief.request(fleet.listen, Request::get("/me")).status, 503);
    }
}

#[test]
fn what_will_lose_state_one_day_is_told_at_boot() {
    let redis = TestRedis::start_with(&["--maxmemory-policy", "volatile-lru", "--maxmemory", "100mb"]);
    let fleet = TestFleetBuilder::on(&redis).start();
    let told = wait::until_some("warnings are told", wait::LONG, || {
        fleet.operator("/readyz").json()["warnings"].as_array().cloned()
    });
    let expected = [ServerWarning::EvictionPolicy, ServerWarning::NoPersistence].map(ServerWarning::advice);
    assert_eq!(told, expected);
    for advice in expected {
        wait::until("the log has it, once", wait::LONG, || fleet.log_lines(advice).len() == 1);
    }
}

#[test]
fn a_redis_that_is_set_up_well_is_not_complained_of() {
    let redis = TestRedis::start_with(&["--appendonly", "yes"]);
    let fleet = TestFleetBuilder::on(&redis).start();
    wait::until("it was looked at", wait::LONG, || redis.commands().contains_key("config|get"));
    let answer = fleet.operator("/readyz").json();
    assert_eq!((&answer["status"], answer.get("warnings")), (&"ready".into(), None), "{answer}");
}
