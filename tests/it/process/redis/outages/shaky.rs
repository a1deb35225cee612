//! A connection that is slow, in pieces, or cut again and again.

use std::time::{Duration, Instant};

use regatta::__internals::config::settings::ScriptingMode;

use crate::process::redis::outages::{Watch, impatient};
use crate::support::client::{CookieClient, Request};
use crate::support::fault_proxy::FaultProxy;
use crate::support::fleet::TestFleetBuilder;
use crate::support::parallel_clients::ParallelClients;
use crate::support::redis::TestRedis;
use crate::support::wait;

#[test]
fn redis_is_far_away() {
    let redis = TestRedis::start();
    let proxy = FaultProxy::before(&redis);
    let fleet = impatient(TestFleetBuilder::through(&proxy)).start();
    let mut watch = Watch::start(&fleet);
    proxy.set_faults(|toxics| {
        (toxics.latency, toxics.jitter) = (Duration::from_millis(50), Duration::from_millis(50))
    });
    watch.fault_begins();
    watch.last(300);
    watch.fault_is_over();
    proxy.set_faults(|toxics| (toxics.latency, toxics.jitter) = (Duration::ZERO, Duration::ZERO));
    let during = watch.end("F5 latency of 50 ± 50 ms", &fleet);
    let unusual: Vec<_> = during.iter().flatten().filter(|sample| !sample.is_usual()).collect();
    assert!(unusual.is_empty(), "slow is not away: {unusual:?}");
}

#[tokio::test]
async fn what_may_be_made_twice_is_when_connections_break() {
    let server = TestRedis::start();
    let proxy = FaultProxy::before(&server);
    let redis = proxy.connect(&server, "p", ScriptingMode::Auto).await;
    server.cli(&["SET", "p:c:x", "7"]);
    proxy.set_faults(|toxics| toxics.resets = 0.01);
    let (mut failed, calls) = (0, 2000);
    for _ in 0..calls {
        match redis.increment("p:c:x", 0).await {
            Ok(value) => assert_eq!(value, 7),
            Err(_) => failed += 1,
        }
    }
    println!("F6 {} resets in {calls} reads, {failed} failed", proxy.faults_injected());
    assert!(proxy.faults_injected() > 0 && failed * 100 < calls, "{failed} of {calls}");
    proxy.set_faults(|toxics| toxics.resets = 0.0);
}

#[tokio::test]
async fn what_is_executed_once_is_sent_again_when_its_answer_is_lost() {
    let server = TestRedis::start();
    let proxy = FaultProxy::before(&server);
    for mode in [ScriptingMode::Fcall, ScriptingMode::Evalsha] {
        server.cli(&["FLUSHALL"]);
        let redis = proxy.connect(&server, "p", mode).await;
        let name = if mode == ScriptingMode::Fcall { "regatta_v6_batch" } else { "EVALSHA" };
        for round in 1..=20 {
            let sprung = proxy.faults_injected();
            proxy.lose_replies(name, 1);
            assert_eq!(redis.increment("p:c:x", 1).await, Ok(round), "{mode:?}");
            assert!(proxy.faults_injected() > sprung, "{mode:?}: nothing was lost");
        }
    }
}

#[tokio::test]
async fn what_may_not_be_made_twice_is_not() {
    let server = TestRedis::start();
    let proxy = FaultProxy::before(&server);
    let redis = proxy.connect(&server, "p", ScriptingMode::Plain).await;
    let mut failed = 0;
    for round in 1..=20 {
        proxy.lose_replies("INCRBY", 1);
        failed += i64::from(redis.increment("p:c:x", 1).await.is_err());
        assert_eq!(server.cli(&["GET", "p:c:x"]), round.to_string());
        crate::support::redis::eventually("it is back", async || {
            redis.increment("p:c:x", 0).await == Ok(round)
        })
        .await;
    }
    assert_eq!(failed, 20);
}

#[test]
fn connections_are_killed_five_times_a_second() {
    let redis = TestRedis::start();
    let fleet = impatient(TestFleetBuilder::on(&redis)).start();
    let address = fleet.listen;
    let load = ParallelClients::start(4, |_| {
        let mut visitor = CookieClient::default();
        move || {
            let response =
                visitor.try_request(address, Request::get("/")).expect("every request is answered");
            super::assert_defined(&response);
            (response.status == 200 && response.header("Session-State").is_empty()).then(|| response.view().1)
        }
    });
    wait::until("visits", wait::LONG, || load.seen() > 100);
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
        wait::let_pass(Duration::from_millis(200));
    }
    let results = load.stop();
    let (all, usual) = (results.iter().flatten().count(), results.iter().flatten().flatten().count());
    println!("F15 {usual} of {all} visits counted ({:.2} %)", 100.0 * usual as f64 / all as f64);
    assert!(usual * 10 > all * 9);
    for views in &results {
        // A visitor's own views rise by one, or by two where one was counted and its answer lost: never less.
        let lost = views.iter().filter(|views| views.is_none()).count() as u64;
        let (counted, last) =
            (views.iter().flatten().count() as u64, *views.iter().flatten().last().unwrap());
        assert!((counted..=counted + lost).contains(&last), "{counted} seen, {lost} lost, {last} counted");
    }
}

#[test]
fn redis_comes_in_pieces_and_slowly() {
    let redis = TestRedis::start();
    let proxy = FaultProxy::before(&redis);
    let fleet = TestFleetBuilder::through(&proxy).start();
    for (slices, bandwidth) in [(1, 0), (3, 0), (10, 0), (0, 1 << 20), (7, 1 << 20)] {
        proxy.set_faults(|toxics| (toxics.slices, toxics.bandwidth) = (slices, bandwidth));
        let mut visitor = CookieClient::default();
        let since = Instant::now();
        for views in 1..=20 {
            assert_eq!(visitor.view(fleet.listen).1, views);
        }
        println!("F17 slices of {slices}, {bandwidth} B/s: {:?} a visit", since.elapsed() / 20);
    }
}
