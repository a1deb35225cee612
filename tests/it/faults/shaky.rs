//! A connection that is slow, in pieces, or cut again and again.

use std::time::Duration;
use std::time::Instant;

use regatta::__internals::config::schema::Mode;

use crate::faults::Watch;
use crate::faults::impatient;
use crate::support::client::Request;
use crate::support::client::Visitor;
use crate::support::fleet::Plan;
use crate::support::load::Load;
use crate::support::proxy::Proxy;
use crate::support::redis::RedisServer;
use crate::support::wait;

#[test]
fn redis_is_far_away() {
    let redis = RedisServer::start();
    let proxy = Proxy::before(&redis);
    let fleet = impatient(Plan::through(&proxy)).start();
    let mut watch = Watch::start(&fleet);
    proxy.toxics(|toxics| {
        (toxics.latency, toxics.jitter) = (Duration::from_millis(50), Duration::from_millis(50))
    });
    watch.fault_begins();
    watch.last(300);
    watch.fault_is_over();
    proxy.toxics(|toxics| (toxics.latency, toxics.jitter) = (Duration::ZERO, Duration::ZERO));
    let during = watch.end("F5 latency of 50 ± 50 ms", &fleet);
    let unusual: Vec<_> = during.iter().flatten().filter(|sample| !sample.is_usual()).collect();
    assert!(unusual.is_empty(), "slow is not away: {unusual:?}");
}

#[tokio::test]
async fn what_may_be_made_twice_is_when_connections_break() {
    let server = RedisServer::start();
    let proxy = Proxy::before(&server);
    let redis = proxy.connect(&server, "p", Mode::Auto).await;
    server.cli(&["SET", "p:c:x", "7"]);
    proxy.toxics(|toxics| toxics.resets = 0.01);
    let (mut failed, calls) = (0, 2000);
    for _ in 0..calls {
        match redis.count("p:c:x", 0).await {
            Ok(value) => assert_eq!(value, 7),
            Err(_) => failed += 1,
        }
    }
    println!("F6 {} resets in {calls} reads, {failed} failed", proxy.sprung());
    assert!(proxy.sprung() > 0 && failed * 100 < calls, "{failed} of {calls}");
    proxy.toxics(|toxics| toxics.resets = 0.0);
}

#[tokio::test]
async fn what_is_executed_once_is_sent_again_when_its_answer_is_lost() {
    let server = RedisServer::start();
    let proxy = Proxy::before(&server);
    for mode in [Mode::Fcall, Mode::Evalsha] {
        server.cli(&["FLUSHALL"]);
        let redis = proxy.connect(&server, "p", mode).await;
        let name = if mode == Mode::Fcall { "regatta_v6_batch" } else { "EVALSHA" };
        for round in 1..=20 {
            let sprung = proxy.sprung();
            proxy.lose_replies(name, 1);
            assert_eq!(redis.count("p:c:x", 1).await, Ok(round), "{mode:?}");
            assert!(proxy.sprung() > sprung, "{mode:?}: nothing was lost");
        }
    }
}

#[tokio::test]
async fn what_may_not_be_made_twice_is_not() {
    let server = RedisServer::start();
    let proxy = Proxy::before(&server);
    let redis = proxy.connect(&server, "p", Mode::Plain).await;
    let mut failed = 0;
    for round in 1..=20 {
        proxy.lose_replies("INCRBY", 1);
        failed += i64::from(redis.count("p:c:x", 1).await.is_err());
        assert_eq!(server.cli(&["GET", "p:c:x"]), round.to_string());
        crate::support::redis::eventually("it is back", async || redis.count("p:c:x", 0).await == Ok(round))
            .await;
    }
    assert_eq!(failed, 20);
}

#[test]
fn connections_are_killed_five_times_a_second() {
    let redis = RedisServer::start();
    let fleet = impatient(Plan::on(&redis)).start();
    let address = fleet.listen;
    let load = Load::start(4, |_| {
        let mut visitor = Visitor::default();
        move || {
            let response = visitor.try_ask(address, Request::get("/")).expect("every request is answered");
            super::assert_defined(&response);
            (response.status == 200 && response.header("Session-State").is_empty())
                .then(|| response.visit().1)
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
    let redis = RedisServer::start();
    let proxy = Proxy::before(&redis);
    let fleet = Plan::through(&proxy).start();
    for (slices, bandwidth) in [(1, 0), (3, 0), (10, 0), (0, 1 << 20), (7, 1 << 20)] {
        proxy.toxics(|toxics| (toxics.slices, toxics.bandwidth) = (slices, bandwidth));
        let mut visitor = Visitor::default();
        let since = Instant::now();
        for views in 1..=20 {
            assert_eq!(visitor.visit(fleet.listen).1, views);
        }
        println!("F17 slices of {slices}, {bandwidth} B/s: {:?} a visit", since.elapsed() / 20);
    }
}
