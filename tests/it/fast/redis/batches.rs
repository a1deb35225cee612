//! What the requests of one turn want of Redis is one call, and each request's answer is its own all the same.

use std::time::{Duration, Instant};

use futures_util::FutureExt;
use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::redis::begin::{
    BeginReply, BeginRequest, CounterIncrement, LimitParameters, RateLimitCheck,
};
use regatta::__internals::redis::{RedisClient, RedisError, ServerRejection};
use tokio::task::JoinSet;

use crate::support::fault_proxy::FaultProxy;
use crate::support::redis::{TestRedis, calls, connect, eventually};

const BOTH: [(ScriptingMode, &str); 2] =
    [(ScriptingMode::Fcall, "fcall"), (ScriptingMode::Evalsha, "evalsha")];

async fn add(redis: &RedisClient, key: &str) -> Result<i64, RedisError> {
    add_as(redis, key, &[], "").await
}

async fn add_as(
    redis: &RedisClient,
    key: &str,
    limits: &[RateLimitCheck],
    token: &str,
) -> Result<i64, RedisError> {
    let counters = [CounterIncrement { key: key.to_owned(), by: 1 }];
    match redis.begin(&BeginRequest { limits, counters: &counters, session: None, token }).await? {
        BeginReply::Granted { counters, .. } => Ok(counters[0]),
        BeginReply::Denied { .. } => Ok(-1),
    }
}

/// So many at the same time, each adding one to the key that is its own; their answers, in order of their numbers.
async fn crowd(redis: &RedisClient, keys: impl IntoIterator<Item = String>) -> Vec<Result<i64, RedisError>> {
    let mut tasks = JoinSet::new();
    for (number, key) in keys.into_iter().enumerate() {
        let redis = redis.clone();
        tasks.spawn(async move { (number, add(&redis, &key).await) });
    }
    let mut answers = tasks.join_all().await;
    answers.sort_by_key(|(number, _)| *number);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

fn same(count: usize) -> impl Iterator<Item = String> {
    std::iter::repeat_n("p:c:x".to_owned(), count)
}

#[tokio::test]
async fn a_turns_requests_share_calls_and_each_has_a_number_of_its_own() {
    for (mode, command) in BOTH {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        add(&redis, "p:c:x").await.unwrap();
        server.cli(&["CONFIG", "RESETSTAT"]);
        let mut sums: Vec<_> = crowd(&redis, same(200)).await.into_iter().map(Result::unwrap).collect();
        sums.sort_unstable();
        assert_eq!(sums, (2..=201).collect::<Vec<_>>());
        // Sixty-four at most in one.
        assert_eq!(calls(&server, command), 4, "{mode:?}");
    }
}

#[tokio::test]
async fn a_request_that_is_alone_is_one_call_and_large_ones_share_none() {
    for (mode, command) in BOTH {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        server.cli(&["CONFIG", "RESETSTAT"]);
        for sum in 1..=10 {
            assert_eq!(add(&redis, "p:c:x").await, Ok(sum));
        }
        assert_eq!(calls(&server, command), 10);
        let large = (0..4).map(|number| format!("p:c:{number}{}", "x".repeat(9000)));
        assert!(crowd(&redis, large).await.iter().all(|sum| *sum == Ok(1)));
        assert_eq!(calls(&server, command), 14, "two of them are more than a call may be");
    }
}

#[tokio::test]
async fn an_entry_that_fails_fails_alone() {
    for (mode, command) in BOTH {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        server.cli(&["LPUSH", "p:c:list", "1"]);
        server.cli(&["SET", "p:c:full", &i64::MAX.to_string()]);
        server.cli(&["CONFIG", "RESETSTAT"]);
        let keys = ["p:c:x", "p:c:list", "p:c:x", "p:c:full", "p:c:x"].map(str::to_owned);
        let answers = crowd(&redis, keys).await;
        assert_eq!([&answers[0], &answers[2], &answers[4]], [&Ok(1), &Ok(2), &Ok(3)], "{mode:?}");
        let refused =
            matches!(&answers[1], Err(RedisError::Rejected { rejection: ServerRejection::WrongType, .. }));
        assert!(refused && answers[3] == Err(RedisError::Overflow), "{answers:?}");
        assert_eq!(calls(&server, command), 1, "{mode:?}");
        assert!(redis.breaker_states().all_closed());
    }
}

#[tokio::test]
async fn a_caller_that_leaves_before_its_turn_ends_has_sent_nothing() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Auto).await;
    // Polled once, and dropped before anything else has been.
    assert!(add(&redis, "p:c:gone").now_or_never().is_none());
    assert_eq!((add(&redis, "p:c:x").await, add(&redis, "p:c:gone").await), (Ok(1), Ok(1)));
}

#[tokio::test]
async fn a_caller_that_leaves_later_harms_no_other_and_keeps_no_place() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Auto).await;
    let parameters = LimitParameters::Concurrency { lease_us: 600_000_000, max: 10 };
    let limit = RateLimitCheck { key: "p:l:q:v:x".into(), parameters, shadow: false, cost: 1 };
    server.stop();
    let mut tasks = JoinSet::new();
    for number in 0..8 {
        let (redis, limits) = (redis.clone(), [limit.clone()]);
        let token = format!("one-{number}");
        tasks.spawn(async move { add_as(&redis, "p:c:x", &limits, &token).await });
    }
    let other = tokio::spawn({
        let redis = redis.clone();
        async move { add(&redis, "p:c:x").await }
    });
    // Until all of it is out.
    eventually("a silence", async || redis.outage_stats().silences > 0).await;
    tasks.abort_all();
    while tasks.join_next().await.is_some() {}
    server.cont();
    assert!(other.await.unwrap().is_ok());
    assert_eq!(redis.increment("p:c:x", 0).await, Ok(9), "what was sent was done");
    eventually("the places are given back", async || server.cli(&["ZCARD", "p:l:q:v:x"]) == "0").await;
}

#[tokio::test]
async fn calls_whose_answers_are_lost_count_once() {
    let server = TestRedis::start();
    let proxy = FaultProxy::before(&server);
    let redis = proxy.connect(&server, "p", ScriptingMode::Fcall).await;
    for round in 1..=5_i64 {
        let before = proxy.faults_injected();
        proxy.lose_replies("regatta_v6_batch", 1);
        let answers = crowd(&redis, same(100)).await;
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        assert_eq!(proxy.faults_injected(), before + 1);
        assert_eq!(redis.increment("p:c:x", 0).await, Ok(round * 100));
    }
}

#[tokio::test]
async fn code_that_is_gone_is_loaded_and_the_batch_sent_again() {
    for (mode, _) in BOTH {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        for round in 1..=3 {
            server.cli(&["FUNCTION", "FLUSH", "SYNC"]);
            server.cli(&["SCRIPT", "FLUSH", "SYNC"]);
            let answers = crowd(&redis, same(100)).await;
            assert!(answers.iter().all(Result::is_ok), "{mode:?}: {answers:?}");
            assert_eq!(redis.increment("p:c:x", 0).await, Ok(round * 100));
        }
    }
}

#[tokio::test]
async fn a_server_that_takes_no_writes_refuses_all_of_a_batch_and_does_none_of_it() {
    for (mode, _) in BOTH {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        for round in 1..=2 {
            server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
            let answers = crowd(&redis, same(50)).await;
            let full = |answer: &Result<i64, RedisError>| {
                matches!(answer, Err(RedisError::Rejected { rejection: ServerRejection::WritesDisabled, .. }))
            };
            assert!(answers.iter().all(full), "{mode:?}: {answers:?}");
            server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
            eventually("it writes again", async || add(&redis, "p:c:y").await.is_ok()).await;
            let answers = crowd(&redis, same(50)).await;
            assert!(answers.iter().all(Result::is_ok), "{mode:?}: {answers:?}");
            assert_eq!(redis.increment("p:c:x", 0).await, Ok(round * 50));
        }
    }
}

#[tokio::test]
async fn a_thousand_wait_for_a_frozen_redis_and_are_counted_once_or_told_in_time() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Auto).await;
    server.stop();
    let waiting = tokio::spawn({
        let redis = redis.clone();
        async move { crowd(&redis, same(1000)).await }
    });
    eventually("a silence", async || redis.outage_stats().silences > 0).await;
    server.cont();
    assert!(waiting.await.unwrap().iter().all(Result::is_ok));
    assert_eq!(redis.increment("p:c:x", 0).await, Ok(1000));
    server.stop();
    let begun = Instant::now();
    let answers = crowd(&redis, same(1000)).await;
    let unsent =
        answers.iter().filter(|answer| matches!(answer, Err(RedisError::Unavailable { .. }))).count();
    let lost =
        answers.iter().filter(|answer| matches!(answer, Err(RedisError::ConnectionLost { .. }))).count();
    // Eight calls of sixty-four were out.
    assert_eq!((unsent, lost), (1000 - 512, 512));
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    server.cont();
    eventually("it is used again", async || redis.increment("p:c:x", 0).await.is_ok()).await;
    let sum = redis.increment("p:c:x", 0).await.unwrap();
    assert!((1000..=1512).contains(&sum), "{sum}: what was not sent is not done later");
}
