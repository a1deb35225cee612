//! A short absence of Redis is invisible: requests wait for it and are then carried out, once each. And what is only
//! slow, or held up by the worker itself, is no absence.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::redis::{OutageStats, RedisClient, RedisError, RedisStatus};

use crate::support::client::{CookieClient, Request};
use crate::support::fault_proxy::{FaultProxy, LinkState};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::parallel_clients::ParallelClients;
use crate::support::redis::{TestRedis, connect, eventually};
use crate::support::{process, wait};
use regatta::__internals::request_state::StateClient;

/// After a patience of a second, the time in which an absence is known.
const NOTICED: Duration = Duration::from_millis(750);

/// Calls on one client at the same time.
const CROWD: usize = 64;

/// Each task adds one again and again while `act` does its worst; how many were answered, and the errors instead.
async fn under(redis: &StateClient, act: impl AsyncFnOnce()) -> (i64, Vec<RedisError>) {
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let one = |redis: StateClient, stopped: tokio::sync::watch::Receiver<bool>| async move {
        let (mut done, mut failed) = (0, Vec::new());
        while !*stopped.borrow() {
            match redis.increment("p:c:x", 1).await {
                Ok(_) => done += 1,
                Err(error) => failed.push(error),
            }
        }
        (done, failed)
    };
    let crowd: Vec<_> = (0..CROWD).map(|_| tokio::spawn(one(redis.clone(), stopped.clone()))).collect();
    act().await;
    wait::pass(Duration::from_millis(300)).await;
    stop.send_replace(true);
    let (mut done, mut failed) = (0, Vec::new());
    for one in crowd {
        let (more, wrong) = one.await.unwrap();
        done += more;
        failed.extend(wrong);
    }
    (done, failed)
}

/// How long a fault, or what follows it, lasts under the load.
async fn lasts(ms: u64) {
    wait::pass(Duration::from_millis(ms)).await;
}

#[tokio::test]
async fn a_redis_that_stands_still_for_a_second_keeps_everybody_waiting_and_loses_nothing() {
    for mode in [ScriptingMode::Fcall, ScriptingMode::Plain] {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        let connections = || server.cli(&["CLIENT", "LIST"]).matches("name=test").count();
        let (done, failed) = under(&redis, async || {
            for ms in [200, 1000] {
                server.stop();
                lasts(ms).await;
                server.cont();
                lasts(100).await;
            }
        })
        .await;
        assert_eq!(failed, [], "{mode:?}");
        assert_eq!(redis.increment("p:c:x", 0).await, Ok(done), "{mode:?}");
        assert!(redis.outage_stats().silences <= 2 && redis.breaker_states().all_closed());
        assert_eq!(
            (redis.status(), connections()),
            (RedisStatus::Up, 1),
            "{mode:?}: the same connection goes on"
        );
    }
}

#[tokio::test]
async fn a_server_that_is_slow_or_pauses_is_not_away() {
    let server = TestRedis::start();
    let proxy = FaultProxy::before(&server);
    let redis = proxy.connect(&server, "p", ScriptingMode::Auto).await;
    let ms = Duration::from_micros;
    for (latency, jitter) in [(ms(20_500), ms(0)), (ms(50_000), ms(50_000))] {
        proxy.set_faults(|toxics| (toxics.latency, toxics.jitter) = (latency, jitter));
        assert_eq!(under(&redis, async || lasts(1000).await).await.1, []);
    }
    proxy.set_faults(|toxics| (toxics.latency, toxics.jitter) = (ms(0), ms(0)));
    let paused = under(&redis, async || {
        for _ in 0..3 {
            server.cli(&["CLIENT", "PAUSE", "40", "ALL"]);
            lasts(300).await;
        }
    });
    assert_eq!(paused.await.1, []);
    assert_eq!(redis.outage_stats(), OutageStats::default());
    assert_eq!(
        (
            redis.breaker_states().reads.open_count,
            redis.breaker_states().writes.open_count,
            proxy.accepted().len()
        ),
        (0, 0, 1)
    );
}

#[tokio::test]
async fn a_worker_that_stands_still_itself_charges_nobody() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Auto).await;
    let (_, failed) = under(&redis, async || {
        for _ in 0..3 {
            // A handler that blocks the loop.
            wait::let_pass(Duration::from_millis(700));
            lasts(20).await;
        }
    })
    .await;
    assert_eq!((failed, redis.outage_stats()), (Vec::new(), OutageStats::default()));
}

#[tokio::test]
async fn connections_that_break_cost_nobody_an_answer() {
    for mode in [ScriptingMode::Fcall, ScriptingMode::Evalsha] {
        let server = TestRedis::start();
        let proxy = FaultProxy::before(&server);
        let redis = proxy.connect(&server, "p", mode).await;
        let (done, failed) = under(&redis, async || {
            for _ in 0..5 {
                proxy.reset();
                lasts(50).await;
                proxy.set_link(LinkState::Down);
                lasts(200).await;
                proxy.set_link(LinkState::Open);
                lasts(200).await;
            }
        })
        .await;
        assert_eq!(failed, [], "{mode:?}");
        assert_eq!(redis.increment("p:c:x", 0).await, Ok(done), "{mode:?}");
        assert!(redis.outage_stats().waited > 0 && redis.outage_stats().waiting == 0);
    }
}

#[tokio::test]
async fn a_server_that_answers_on_another_connection_has_lost_the_silent_one() {
    let server = TestRedis::start();
    let proxy = FaultProxy::before(&server);
    let redis = proxy.connect(&server, "p", ScriptingMode::Auto).await;
    let (done, failed) = under(&redis, async || {
        proxy.blackhole();
        lasts(1000).await;
    })
    .await;
    assert_eq!(failed, []);
    assert_eq!(redis.increment("p:c:x", 0).await, Ok(done));
    assert_eq!((redis.outage_stats().silences, proxy.accepted().len()), (1, 2));
}

#[tokio::test]
async fn whoever_has_no_patience_waits_for_nobody() {
    let server = TestRedis::start();
    let settings = regatta::__internals::config::settings::RedisConfig {
        reconnect_wait: Duration::ZERO,
        ..server.settings("p", ScriptingMode::Auto)
    };
    let redis = StateClient::new(RedisClient::new(&settings, &server.url(), "test").unwrap());
    redis.start();
    eventually("it is connected", async || redis.status().is_up()).await;
    server.stop();
    let since = Instant::now();
    assert!(redis.increment("p:c:x", 1).await.is_err());
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    server.cont();
    eventually("it is back", async || redis.increment("p:c:x", 0).await.is_ok()).await;
}

/// Four visitors go on visiting while `act` does its worst. Every answer is a view that was counted, in its order, and
/// then Redis has exactly so many.
fn visits(fleet: &TestFleet, act: impl FnOnce()) -> Duration {
    let address = fleet.listen;
    let load = ParallelClients::start(4, |_| {
        let mut visitor = CookieClient::default();
        move || {
            let since = Instant::now();
            let response = visitor.try_request(address, Request::get("/")).expect("an answer");
            assert_eq!((response.status, response.header("Session-State")), (200, ""), "{response:?}");
            (response.view().1, since.elapsed())
        }
    });
    wait::until("visits", wait::LONG, || load.seen() > 100);
    act();
    let seen = load.seen();
    wait::until("visits go on", wait::LONG, || load.seen() > seen + 200);
    let results = load.stop();
    for visitor in &results {
        let views: Vec<u64> = visitor.iter().map(|(views, _)| *views).collect();
        assert_eq!(views, (1..=views.len() as u64).collect::<Vec<_>>(), "each counted once");
    }
    results.iter().flatten().map(|(_, took)| *took).max().unwrap()
}

#[test]
fn a_redis_that_is_killed_and_restarted_within_two_seconds_is_not_missed() {
    for ms in [200, 1000, 1900] {
        let mut redis = TestRedis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
        let fleet = TestFleetBuilder::on(&redis).start();
        let longest = visits(&fleet, || {
            let killed = Instant::now();
            redis.kill();
            wait::let_pass(Duration::from_millis(ms).saturating_sub(killed.elapsed()));
            redis.restart();
        });
        println!("away for {ms} ms: the longest answer took {longest:?}");
        assert!(fleet.log_lines("redis unavailable").is_empty());
    }
}

#[test]
fn a_longer_absence_is_waited_for_by_nobody_and_exact_afterwards() {
    let mut redis = TestRedis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let fleet = TestFleetBuilder::on(&redis).workers(1).set("REGATTA_REDIS__PATIENCE", "1s").start();
    let address = fleet.listen;
    let load = ParallelClients::start(4, |_| {
        let mut visitor = CookieClient::default();
        move || {
            let (begun, cookies) = (Instant::now(), visitor.cookies.clone());
            let response = visitor.try_request(address, Request::get("/")).expect("an answer");
            let usual = response.status == 200 && response.header("Session-State").is_empty();
            assert!(
                usual || visitor.cookies == cookies && matches!(response.status, 200 | 503),
                "{response:?}"
            );
            (begun, begun.elapsed(), usual.then(|| response.view().1))
        }
    });
    wait::until("visits", wait::LONG, || load.seen() > 100);
    let killed = Instant::now();
    redis.kill();
    wait::let_pass(Duration::from_secs(3));
    redis.restart();
    let back = Instant::now();
    wait::until("visits are counted again", Duration::from_secs(2), || {
        (0..20).all(|_| fleet.get("/").status == 200)
    });
    let seen = load.seen();
    wait::until("visits go on", wait::LONG, || load.seen() > seen + 200);
    for visitor in load.stop() {
        let known = |(begun, _, _): &&(Instant, Duration, Option<u64>)| {
            *begun > killed + 2 * NOTICED && *begun < back
        };
        let mut during: Vec<_> = visitor.iter().filter(known).map(|(_, took, _)| *took).collect();
        during.sort();
        println!("once known: {} answers, p50 {:?}", during.len(), during.get(during.len() / 2));
        assert!(during.len() > 100, "nobody waits for what is known to be away: {during:?}");
        // Usual, then without Redis, then usual: no visitor sees it change more than that.
        let changes = visitor.windows(2).filter(|pair| pair[0].2.is_some() != pair[1].2.is_some()).count();
        assert_eq!(changes, 2);
        let views: Vec<u64> = visitor.iter().filter_map(|(_, _, views)| *views).collect();
        // What was under way in the moment of the loss was answered without Redis, and may have been counted.
        let (seen, counted) = (views.len() as u64, *views.last().unwrap());
        assert!((seen..=seen + 1).contains(&counted), "{seen} seen, {counted} counted");
    }
}

#[test]
fn a_worker_that_was_stopped_for_a_second_finds_its_redis_well() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(1).start();
    let worker = fleet.workers()[0];
    visits(&fleet, || {
        process::stop(worker);
        wait::let_pass(Duration::from_secs(1));
        process::signal(worker, Signal::SIGCONT);
    });
    assert!(!fleet.log().contains("Redis does not answer"), "{}", fleet.log());
}
