//! Redis away, late, restarted, emptied or wrong: always a defined answer, and back without help.

use std::time::{Duration, Instant};

use regatta::__internals::config::ConfigInputs;
use regatta::__internals::config::settings::{RedisUrl, ScriptingMode};
use regatta::__internals::counters::commands::CounterIncrement;
use regatta::__internals::redis::{BreakerStatus, RedisClient, RedisError, RedisStatus};
use regatta::__internals::request_state::begin;
use regatta::__internals::request_state::begin::BeginReply;
use regatta::__internals::sessions::keys;

use crate::support::redis::{TestRedis, connect, eventually};
use regatta::__internals::request_state::StateClient;

async fn add(redis: &StateClient) -> Result<i64, RedisError> {
    let request = begin::BeginRequest {
        counters: &[CounterIncrement { key: "p:c:x".into(), by: 1 }],
        ..Default::default()
    };
    match redis.begin(&request).await? {
        BeginReply::Granted { counters, .. } => Ok(counters[0]),
        BeginReply::Denied { .. } => unreachable!("no limit was asked"),
    }
}

fn reason(health: RedisStatus) -> String {
    match health {
        RedisStatus::Down { reason } => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_worker_boots_without_redis_and_uses_it_once_it_is_there() {
    let mut server = TestRedis::absent(&[]);
    let redis = StateClient::new(
        RedisClient::new(&server.settings("p", ScriptingMode::Auto), &server.url(), "w").unwrap(),
    );
    assert_eq!(redis.status(), RedisStatus::Connecting);
    redis.start();
    let health = redis.wait_for_first_attempt().await;
    assert!(matches!(health, RedisStatus::Down { .. }), "{health:?}");
    assert!(matches!(add(&redis).await, Err(RedisError::Unavailable { .. })));
    server.restart();
    eventually("Redis is used", async || add(&redis).await.is_ok()).await;
    assert_eq!(redis.status(), RedisStatus::Up);
}

#[tokio::test]
async fn a_killed_and_restarted_redis_is_used_again_without_help() {
    let mut server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Auto).await;
    let secret = redis.generated_signing_keys();
    server.kill();
    eventually("the loss is noticed", async || {
        matches!(add(&redis).await, Err(RedisError::Unavailable { .. }))
    })
    .await;
    assert!(matches!(redis.status(), RedisStatus::Down { .. }));
    server.restart();
    let since = Instant::now();
    eventually("Redis is used again", async || add(&redis).await.is_ok()).await;
    println!("back {:?} after the restart", since.elapsed());
    // It came back empty; the fleet's key was put back, so cookies stay genuine.
    assert!(!secret.is_empty());
    assert_eq!(connect(&server, "p", ScriptingMode::Auto).await.generated_signing_keys(), secret);
}

#[tokio::test]
async fn a_stopped_redis_holds_no_call_longer_than_the_patience_and_is_used_again() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Auto).await;
    assert_eq!(add(&redis).await, Ok(1));
    server.stop();
    let patience = Duration::from_secs(6);
    let answer = tokio::time::timeout(patience, add(&redis)).await.expect("an answer");
    assert!(matches!(answer, Err(RedisError::ConnectionLost { .. })), "{answer:?}");
    assert!(matches!(redis.status(), RedisStatus::Down { .. }));
    // From here on no call waits.
    let since = Instant::now();
    for _ in 0..100 {
        assert!(matches!(add(&redis).await, Err(RedisError::Unavailable { .. })));
    }
    println!("an answer that is known takes {:?}", since.elapsed() / 100);
    server.cont();
    let since = Instant::now();
    eventually("Redis is used again", async || add(&redis).await.is_ok()).await;
    println!("back {:?} after SIGCONT", since.elapsed());
}

#[tokio::test]
async fn flushing_functions_scripts_or_everything_heals_within_the_call() {
    for (mode, flush) in [
        (ScriptingMode::Fcall, ["FUNCTION", "FLUSH"].as_slice()),
        (ScriptingMode::Fcall, &["FLUSHALL"]),
        (ScriptingMode::Evalsha, &["SCRIPT", "FLUSH"]),
        (ScriptingMode::Evalsha, &["FLUSHALL"]),
    ] {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        for _ in 0..3 {
            assert_eq!(server.cli(flush), "OK");
            let calls =
                (0..100).map(|_| redis.clone()).map(|redis| tokio::spawn(async move { add(&redis).await }));
            for call in calls.collect::<Vec<_>>() {
                assert!(call.await.unwrap().is_ok(), "{mode:?} {flush:?}");
            }
        }
        let before = redis.generated_signing_keys();
        if flush == ["FLUSHALL"] {
            eventually("the signing key is put back", async || server.cli(&["EXISTS", "p:secret"]) == "1")
                .await;
        }
        assert_eq!(connect(&server, "p", mode).await.generated_signing_keys(), before);
    }
}

#[tokio::test]
async fn a_wrong_password_or_database_is_told_without_the_password() {
    let server = TestRedis::start_with(&["--requirepass", "right-one"]);
    let path = server.socket().display().to_string();
    for (url, part) in [
        (format!("unix://:wrong-one@h{path}"), "WRONGPASS"),
        (format!("unix://{path}"), "NOAUTH"),
        (format!("unix://:right-one@h{path}?db=200"), "out of range"),
    ] {
        let redis = StateClient::new(
            RedisClient::new(&server.settings("p", ScriptingMode::Auto), &url_of(&url), "w").unwrap(),
        );
        redis.start();
        let reason = reason(redis.wait_for_first_attempt().await);
        assert!(reason.contains(part), "{reason}");
        assert!(!reason.contains("-one"), "{reason}");
    }
    let right = url_of(&format!("unix://:right-one@h{path}?db=2"));
    let redis =
        StateClient::new(RedisClient::new(&server.settings("p", ScriptingMode::Auto), &right, "w").unwrap());
    redis.start();
    assert_eq!(redis.wait_for_first_attempt().await, RedisStatus::Up);
}

/// Only the configuration makes URLs from text.
fn url_of(text: &str) -> RedisUrl {
    let flags = vec![("redis.url".to_owned(), text.to_owned(), "--redis".to_owned())];
    let inputs = ConfigInputs { flags, ..ConfigInputs::default() };
    regatta::__internals::config::load(&inputs)
        .expect("a usable configuration")
        .redis
        .url
        .expect("the URL given")
}

#[tokio::test]
async fn a_full_redis_refuses_writes_by_name_and_recovers() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Auto).await;
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let refused = add(&redis).await;
    assert!(
        matches!(&refused, Err(RedisError::Rejected { reason, .. }) if reason.starts_with("OOM")),
        "{refused:?}"
    );
    // Reading and deleting go on, however often writing was refused.
    for _ in 0..20 {
        assert!(add(&redis).await.is_err_and(|error| error.blocks_writes_only()));
        assert_eq!(redis.increment("p:c:x", 0).await, Ok(0));
        assert_eq!(redis.delete("p:c:y").await, Ok(()));
    }
    assert_eq!(redis.breaker_states().reads, BreakerStatus::default());
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    eventually("writes are taken again", async || add(&redis).await == Ok(1)).await;
}

#[tokio::test]
async fn a_full_redis_lists_a_user_s_sessions_and_ends_them() {
    const DAY_MS: u64 = 86_400_000;
    for mode in [ScriptingMode::Fcall, ScriptingMode::Evalsha] {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        let now_ms = format!("{}000", server.cli(&["TIME"]).lines().next().unwrap());
        let [stays, other] = ["stays", "other"].map(|digest| keys::session("p", digest));
        for key in [&stays, &other] {
            server.cli(&["HSET", key, "_c", &now_ms, "_t", &now_ms, "_v", "1", "_u", "ann", "_g", "0"]);
        }
        // Scored as an earlier release did, which a look would mend.
        let index = keys::user_sessions("p", "ann");
        let of_session = |at: usize, digest: &str| {
            server.cli(&["ZADD", &index, &(now_ms.parse::<u64>().unwrap() + at as u64).to_string(), digest])
        };
        ["stays", "other"].iter().enumerate().for_each(|(at, digest)| _ = of_session(at, digest));
        server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
        for _ in 0..20 {
            assert!(add(&redis).await.is_err_and(|error| error.blocks_writes_only()));
        }
        let listed = async || {
            let listed = redis.user_sessions("p", "ann", DAY_MS).await.unwrap();
            let mut digests: Vec<_> = listed.into_iter().map(|session| session.digest).collect();
            digests.sort();
            digests
        };
        assert_eq!(listed().await, ["other", "stays"], "{mode:?}");
        assert_eq!(
            redis.destroy_user_sessions("p", "ann", Some("stays"), DAY_MS, DAY_MS).await,
            Ok(()),
            "{mode:?}"
        );
        assert_eq!(listed().await, ["stays"], "{mode:?}");
        assert_eq!(redis.destroy_user_sessions("p", "ann", None, DAY_MS, DAY_MS).await, Ok(()), "{mode:?}");
        assert_eq!(listed().await, [""; 0], "{mode:?}");
        assert!(server.cli(&["GET", &keys::user_generation("p", "ann")]) > now_ms, "{mode:?}");
    }
}

#[tokio::test]
async fn a_demoted_server_is_read_and_written_to_once_promoted() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Auto).await;
    server.cli(&["CONFIG", "SET", "replica-serve-stale-data", "yes"]);
    server.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    for _ in 0..20 {
        assert!(add(&redis).await.is_err_and(|error| error.blocks_writes_only()));
        assert_eq!(redis.increment("p:c:x", 0).await, Ok(0));
    }
    assert_eq!(redis.status(), RedisStatus::Up);
    server.cli(&["REPLICAOF", "NO", "ONE"]);
    eventually("the server is written to again", async || add(&redis).await.is_ok()).await;
}

#[tokio::test]
async fn a_crowd_waits_for_its_turn_and_only_what_is_beyond_all_bounds_is_refused() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Auto).await;
    let crowd = |count: usize| {
        let one = |redis: StateClient| tokio::spawn(async move { add(&redis).await });
        (0..count).map(|_| one(redis.clone())).collect::<Vec<_>>()
    };
    for count in [512, 1000, 6000] {
        for call in crowd(count) {
            assert!(call.await.unwrap().is_ok());
        }
    }
    assert_eq!(redis.increment("p:c:x", 0).await, Ok(512 + 1000 + 6000));
    server.stop();
    let (bound, more) = (16_384, 100);
    let (mut refused, mut failed) = (0, 0);
    for call in crowd(bound + more) {
        match call.await.unwrap() {
            Err(RedisError::Unavailable { reason }) if reason.contains("calls wait already") => refused += 1,
            answer => failed += usize::from(answer.is_err()),
        }
    }
    server.cont();
    assert_eq!((refused, failed), (more, bound));
    eventually("Redis is used again", async || add(&redis).await.is_ok()).await;
}

#[tokio::test]
async fn killed_connections_are_replaced() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Auto).await;
    for _ in 0..5 {
        server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
        eventually("the connection is replaced", async || add(&redis).await.is_ok()).await;
    }
    assert!(server.cli(&["CLIENT", "LIST"]).contains("name=test"));
}
