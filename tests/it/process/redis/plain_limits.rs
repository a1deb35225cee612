//! Limits and counters where no server-side code is allowed.

use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::counters::commands::CounterIncrement;
use regatta::__internals::limiter::commands::{
    LimitCharge, LimitParameters, RateLimitCheck, RateLimitDecision,
};
use regatta::__internals::redis::RedisError;
use regatta::__internals::request_state::begin;
use regatta::__internals::request_state::begin::BeginReply;
use regatta::__internals::sessions::query::{SessionAccess, SessionQuery};

use crate::support::fleet::TestFleetBuilder;
use crate::support::parallel_clients;
use crate::support::redis::{TestRedis, connect, eventually, new_session};

fn limit(key: &str, burst: u64) -> RateLimitCheck {
    let interval_us = 3_600_000_000;
    let parameters = LimitParameters::Rate { interval_us, tolerance_us: interval_us * burst };
    RateLimitCheck { key: key.into(), parameters, shadow: false, cost: 1 }
}

#[tokio::test]
async fn a_limit_admits_its_burst_and_a_denied_call_changes_nothing() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Plain).await;
    let limits = [limit("p:l:wide", 1000), limit("p:l:a", 20)];
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..60 {
        let (redis, limits) = (redis.clone(), limits.clone());
        tasks.spawn(async move {
            let counters = [CounterIncrement { key: "p:c:x".into(), by: 1 }];
            let request = begin::BeginRequest { limits: &limits, counters: &counters, ..Default::default() };
            matches!(redis.begin(&request).await.unwrap(), BeginReply::Granted { .. })
        });
    }
    let granted = tasks.join_all().await.into_iter().filter(|granted| *granted).count();
    // A denied one counts for a moment, so that another one may be denied with it; more than allowed never are.
    assert!(granted <= 20, "{granted} of 20");
    assert_eq!(server.cli(&["GET", "p:c:x"]), granted.to_string());
    let mut more = 0;
    let denied = loop {
        let request = begin::BeginRequest { limits: &limits, ..Default::default() };
        match redis.begin(&request).await.unwrap() {
            BeginReply::Granted { .. } => more += 1,
            BeginReply::Denied { limits } => break limits,
        }
    };
    assert_eq!(granted + more, 20, "what denied ones were counted for is given back");
    let [wide, RateLimitDecision { allowed: false, remaining: 0, retry_after_us: Some(retry), reset_us }] =
        denied[..]
    else {
        panic!("{denied:?}")
    };
    assert!(wide.allowed && wide.remaining == 980, "{wide:?}");
    assert!(retry == reset_us && retry <= 20 * 3_600_000_000);
    let before = server.cli(&["DEBUG", "DIGEST"]);
    let (key, idle_ms, absolute_ms) = ("p:s:new".into(), 1000, 1000);
    let access = SessionAccess::CountView;
    let arg = SessionQuery {
        key,
        generation: None,
        access,
        provisional: Some(new_session()),
        idle_ms,
        absolute_ms,
    };
    let request = begin::BeginRequest { limits: &limits, session: Some(&arg), ..Default::default() };
    assert!(matches!(redis.begin(&request).await, Ok(BeginReply::Denied { .. })));
    assert_eq!(server.cli(&["DEBUG", "DIGEST"]), before);
}

#[tokio::test]
async fn a_window_ends_and_a_count_without_an_end_gets_one() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Plain).await;
    let parameters = LimitParameters::Rate { interval_us: 100_000, tolerance_us: 300_000 };
    let limits = [RateLimitCheck { parameters, ..limit("p:l:a", 1) }];
    let request = begin::BeginRequest { limits: &limits, ..Default::default() };
    let granted = async || matches!(redis.begin(&request).await.unwrap(), BeginReply::Granted { .. });
    for _ in 0..2 {
        eventually("it is allowed", granted).await;
        eventually("it is denied", async || !granted().await).await;
    }
    server.cli(&["SET", "p:l:a:w", "77"]);
    assert!(!granted().await);
    eventually("a count that had no end ends", granted).await;
    server.cli(&["SET", "p:l:a:w", "garbage"]);
    assert!(
        matches!(redis.begin(&request).await, Err(RedisError::Rejected { .. })),
        "an error, and no panic"
    );
}

#[tokio::test]
async fn a_limit_in_shadow_denies_nothing_and_a_look_costs_nothing() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Plain).await;
    let limits = [
        RateLimitCheck { shadow: true, ..limit("p:l:a", 1) },
        RateLimitCheck { cost: 0, ..limit("p:l:b", 5) },
    ];
    let request = begin::BeginRequest { limits: &limits, ..Default::default() };
    for expected in [true, false, false] {
        let BeginReply::Granted { limits, .. } = redis.begin(&request).await.unwrap() else {
            panic!("denied")
        };
        assert_eq!((limits[0].allowed, limits[1].remaining), (expected, 5));
    }
}

#[tokio::test]
async fn counters_overflow_to_an_error_that_leaves_the_others_as_they_were() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Plain).await;
    server.cli(&["SET", "p:c:full", &i64::MAX.to_string()]);
    let counters = ["p:c:a", "p:c:full", "p:c:b"].map(|key| CounterIncrement { key: key.into(), by: 2 });
    let limits = [limit("p:l:a", 5)];
    let request = begin::BeginRequest { limits: &limits, counters: &counters, ..Default::default() };
    assert_eq!(redis.begin(&request).await, Err(RedisError::Overflow));
    let left = server.cli(&["MGET", "p:c:a", "p:c:full", "p:c:b", "p:l:a:w"]);
    assert_eq!(left, format!("0\n{}\n0\n0", i64::MAX));
}

#[test]
fn limits_hold_over_all_workers_without_server_side_code() {
    let server = TestRedis::start();
    let fleet = TestFleetBuilder::on(&server)
        .set("REGATTA_REDIS__MODE", "plain")
        .set("REGATTA_LIMITS__DEFAULT__RATE", "10/h")
        .set("REGATTA_LIMITS__DEFAULT__BURST", "10")
        .workers(2)
        .start();
    let answers = parallel_clients::parallel(1, 15, |_| fleet.get("/").status);
    assert_eq!(answers.iter().filter(|status| **status == 200).count(), 10, "{answers:?}");
    let denied = fleet.get("/");
    denied.assert_problem(429);
    assert!(denied.header("Retry-After").parse::<u64>().unwrap() > 0);
}

#[tokio::test]
async fn what_is_given_back_looked_at_reset_and_merged_counts_once() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Plain).await;
    let (five, interval_us) = (limit("p:l:a", 5), 3_600_000_000);
    let left = async || redis.limit_status(&five).await.unwrap().remaining;
    let of =
        |requests| LimitCharge { key: "p:l:a".into(), interval_us, tolerance_us: 5 * interval_us, requests };
    let limits = [five.clone()];
    let request = begin::BeginRequest { limits: &limits, ..Default::default() };
    for _ in 0..3 {
        redis.begin(&request).await.unwrap();
    }
    assert_eq!(left().await, 2);
    assert_eq!(redis.refund_limit(&of(2)).await, Ok(4));
    assert_eq!(redis.apply_deferred_charge("batch", &of(3)).await, Ok(true));
    assert_eq!(redis.apply_deferred_charge("batch", &of(3)).await, Ok(false), "the same batch counts once");
    assert_eq!(left().await, 1);
    assert_eq!(redis.reset_limit("p:l:a").await, Ok(true));
    assert_eq!(left().await, 5);
    assert!(matches!(redis.prefetch_quota(&of(1)).await, Err(RedisError::Unsupported { .. })));
}
