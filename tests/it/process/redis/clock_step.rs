//! Redis's clock steps by ten minutes, both ways: no stored time holds a caller up for longer than its own length.
//!
//! Each test keeps what a process left behind that never comes back, steps the clock, and waits for as long as the
//! thing itself lasts (some hundred milliseconds), with a deadline far below the step.

use std::time::{Duration, Instant};

use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::redis::idempotency::{ClaimOutcome, ClaimRequest};
use regatta::__internals::redis::registry::InstanceRecord;
use regatta::__internals::redis::task::StartOutcome;
use regatta::__internals::redis::{RedisClient, registry};

use crate::support::client::{CookieClient, Request};
use crate::support::clock::Clock;
use crate::support::fleet::TestFleetBuilder;
use crate::support::redis::{TestRedis, connect, eventually};
use crate::support::task_steps::{MODES, begin, make, take};
use crate::support::wait;

/// By how much the clock steps, seconds.
const STEPS: [i64; 2] = [-600, 600];

/// How long what is left behind holds.
const LIFE: Duration = Duration::from_millis(400);

async fn setting(mode: ScriptingMode) -> (Clock, TestRedis, RedisClient) {
    let clock = Clock::new();
    let server = TestRedis::with_clock(&clock);
    let redis = connect(&server, "p", mode).await;
    (clock, server, redis)
}

#[tokio::test]
async fn the_task_of_a_lost_worker_is_taken_over() {
    for (mode, step) in MODES.into_iter().zip(STEPS).chain([(ScriptingMode::Fcall, STEPS[1])]) {
        let (clock, _server, redis) = setting(mode).await;
        let id = make(&redis, "a").await;
        let taken = take(&redis, &["a"]).await.unwrap();
        assert!(matches!(begin(&redis, taken).await.1, StartOutcome::Started { .. }));
        clock.step(step);
        let mut again = None;
        eventually("it is overdue", async || {
            again = take(&redis, &["a"]).await;
            again.is_some()
        })
        .await;
        let again = again.unwrap();
        assert_eq!((again.id, again.delivery_count), (id, 2), "{mode:?} {step}");
        assert!(matches!(begin(&redis, again).await.1, StartOutcome::Started { .. }));
    }
}

#[tokio::test]
async fn a_worker_that_renews_keeps_its_task_and_new_ones_are_not_held_up_by_old_ones() {
    let (clock, _server, redis) = setting(ScriptingMode::Auto).await;
    make(&redis, "a").await;
    let taken = take(&redis, &["a"]).await.unwrap();
    let (execution, _) = begin(&redis, taken).await;
    let old = make(&redis, "a").await;
    clock.step(-600);
    let new = make(&redis, "b").await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        assert_eq!(redis.renew_task(&execution, None).await, Ok(true));
        wait::paced(Duration::from_millis(50)).await;
    }
    let mut seen = Vec::new();
    for _ in 0..2 {
        seen.push(take(&redis, &["a", "b"]).await.unwrap().id);
    }
    assert!(
        seen.contains(&old) && seen.contains(&new),
        "each is taken once, and the one that is renewed is not"
    );
}

#[tokio::test]
async fn a_request_that_counts_once_is_carried_out_by_another_one_when_its_worker_is_lost() {
    for (mode, step) in MODES.into_iter().zip(STEPS).chain([(ScriptingMode::Fcall, STEPS[1])]) {
        let (clock, _server, redis) = setting(mode).await;
        let claim = |owner| ClaimRequest {
            key: "p:i:1",
            fingerprint: "f",
            owner,
            lease: LIFE,
            lifetime: Duration::from_secs(3600),
        };
        assert_eq!(redis.claim(&claim("lost")).await, Ok(ClaimOutcome::Granted));
        clock.step(step);
        match redis.claim(&claim("other")).await.unwrap() {
            ClaimOutcome::InProgress(left) => assert!(left <= LIFE, "{left:?}"),
            other => assert_eq!((other, step), (ClaimOutcome::Granted, 600)),
        }
        eventually("its lease ends", async || {
            redis.claim(&claim("other")).await.unwrap() == ClaimOutcome::Granted
        })
        .await;
    }
}

fn machine(id: &str) -> InstanceRecord {
    InstanceRecord {
        version: registry::DOCUMENT_VERSION,
        id: id.into(),
        host: id.into(),
        ..InstanceRecord::default()
    }
}

#[tokio::test]
async fn a_machine_that_is_gone_is_dead_after_its_lifetime() {
    for mode in [ScriptingMode::Fcall, ScriptingMode::Evalsha, ScriptingMode::Plain] {
        for step in STEPS {
            let (clock, _server, redis) = setting(mode).await;
            redis.heartbeat(&machine("gone"), LIFE).await.unwrap();
            redis.heartbeat(&machine("lives"), LIFE).await.unwrap();
            clock.step(step);
            eventually("only one lives, and the list is whole", async || {
                assert!(redis.heartbeat(&machine("lives"), LIFE).await.is_ok());
                let machines = redis.list_instances().await.unwrap();
                let ids: Vec<_> = machines.instances.iter().map(|seen| seen.instance.id.as_str()).collect();
                assert!(ids.contains(&"lives"), "{mode:?} {step} {ids:?}");
                ids == ["lives"] && machines.complete
            })
            .await;
            assert_eq!(redis.heartbeat(&machine("lives"), LIFE).await, Ok(1));
        }
    }
}

#[tokio::test]
async fn whoever_listened_on_a_lost_worker_is_not_counted_for_ever() {
    for step in STEPS {
        let (clock, _server, redis) = setting(ScriptingMode::Auto).await;
        assert_eq!(redis.report_presence("lost", LIFE, &[("news", Some(7))]).await, Ok(vec![7]));
        clock.step(step);
        eventually("only the living count", async || {
            redis.report_presence("lives", LIFE, &[("news", Some(2))]).await == Ok(vec![2])
        })
        .await;
    }
}

#[tokio::test]
async fn a_lock_of_the_migrations_whose_holder_died_keeps_nobody_from_booting() {
    let clock = Clock::new();
    let server = TestRedis::with_clock(&clock);
    server.cli(&["SET", "p:mig:lock", "somebody who died", "PX", "5000"]);
    clock.step(-600);
    assert!(server.cli(&["PTTL", "p:mig:lock"]).parse::<u64>().unwrap() > 500_000);
    let redis = RedisClient::new(&server.settings("p", ScriptingMode::Auto), &server.url(), "test").unwrap();
    redis.start();
    eventually("it boots", async || redis.status().is_up()).await;
}

#[test]
fn a_replaced_id_is_a_stranger_for_as_long_as_its_mark_lasts_and_no_longer() {
    let clock = Clock::new();
    let server = TestRedis::with_clock(&clock);
    let plan = TestFleetBuilder::on(&server).workers(1).set("REGATTA_LIMITS__DEFAULT__ENABLED", "false");
    let fleet = plan.start();
    let mut visitor = CookieClient::default();
    visitor.view(fleet.listen);
    let mut old = visitor.clone();
    let login = Request::post("/login").body("application/json", b"{\"name\":\"ann\"}");
    assert_eq!(visitor.request(fleet.listen, login).status, 200);
    clock.step(-600);
    assert!(old.request(fleet.listen, Request::get("/")).all("Set-Cookie").is_empty(), "a stranger");
    // The mark that is left then keeps its ticket from making the session anew, and refuses no visitor.
    wait::until("the mark ends with its own length", wait::LONG, || {
        !old.request(fleet.listen, Request::get("/")).all("Set-Cookie").is_empty()
    });
}

#[test]
fn whoever_logs_in_after_the_step_stays_and_his_oldest_session_ends() {
    for step in STEPS {
        let clock = Clock::new();
        let server = TestRedis::with_clock(&clock);
        let plan = TestFleetBuilder::on(&server).workers(1).set("REGATTA_LIMITS__DEFAULT__ENABLED", "false");
        let fleet = plan.set("REGATTA_SESSION__MAX_PER_USER", "2").start();
        let log_in = || {
            let mut visitor = CookieClient::default();
            let login = Request::post("/login").body("application/json", b"{\"name\":\"ann\"}");
            assert_eq!(visitor.request(fleet.listen, login).status, 200);
            // A session whose cookie never came back is gone after ten minutes.
            assert_eq!(visitor.request(fleet.listen, Request::get("/me")).status, 200);
            visitor
        };
        let mut logged_in = vec![log_in(), log_in()];
        clock.step(step);
        logged_in.push(log_in());
        let statuses: Vec<_> = logged_in
            .iter_mut()
            .map(|visitor| visitor.request(fleet.listen, Request::get("/me")).status)
            .collect();
        assert_eq!(statuses, [401, 200, 200], "{step}");
    }
}

#[tokio::test]
async fn a_window_without_server_side_code_is_as_long_as_one_is() {
    use regatta::__internals::redis::begin;
    use regatta::__internals::redis::begin::{LimitParameters, RateLimitCheck};
    for step in STEPS {
        let (clock, _server, redis) = setting(ScriptingMode::Plain).await;
        let parameters = LimitParameters::Rate { interval_us: 400_000, tolerance_us: 400_000 };
        let limits = [RateLimitCheck { key: "p:l:a".into(), parameters, shadow: false, cost: 1 }];
        let ask = async || {
            let request = begin::BeginRequest { limits: &limits, ..Default::default() };
            redis.begin(&request).await.unwrap()
        };
        assert!(matches!(ask().await, begin::BeginReply::Granted { .. }));
        clock.step(step);
        if let begin::BeginReply::Denied { limits } = ask().await {
            assert!(limits[0].retry_after_us.is_some_and(|wait| wait <= 400_000), "{limits:?}");
        }
        eventually("the window ends", async || matches!(ask().await, begin::BeginReply::Granted { .. }))
            .await;
    }
}
