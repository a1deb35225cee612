//! What one round trip does, on functions and on scripts alike.

use bytes::Bytes;
use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::counters::commands::CounterIncrement;
use regatta::__internals::limiter::commands::{LimitParameters, RateLimitCheck, RateLimitDecision};
use regatta::__internals::redis::{RedisError, functions};
use regatta::__internals::request_state::begin;
use regatta::__internals::request_state::begin::BeginReply;
use regatta::__internals::sessions::commit;
use regatta::__internals::sessions::query::SessionLookup;
use tokio::task::JoinSet;

use crate::support::redis::{TestRedis, connect, eventually, session_query as session};
use regatta::__internals::request_state::StateClient;

const MODES: [ScriptingMode; 2] = [ScriptingMode::Fcall, ScriptingMode::Evalsha];
const DAY_MS: u64 = 86_400_000;

fn limit(key: &str, burst: u64) -> RateLimitCheck {
    // So slow that a test never sees a request come back.
    let interval_us = 3_600_000_000;
    RateLimitCheck {
        key: key.into(),
        parameters: LimitParameters::Rate { interval_us, tolerance_us: interval_us * burst },
        shadow: false,
        cost: 1,
    }
}

fn counter(key: &str, by: i64) -> CounterIncrement {
    CounterIncrement { key: key.into(), by }
}

async fn visit(redis: &StateClient, key: &str, create: bool) -> SessionLookup {
    let session = session(key, create);
    let request = begin::BeginRequest { session: Some(&session), ..Default::default() };
    match redis.begin(&request).await.unwrap() {
        BeginReply::Granted { session, .. } => session,
        BeginReply::Denied { .. } => panic!("denied without a limit"),
    }
}

fn change<'a>(key: &'a str, set: &'a [(String, Bytes)], remove: &'a [String]) -> commit::CommitSession<'a> {
    commit::CommitSession { key, set, remove, max_fields: 64, ..commit::CommitSession::default() }
}

fn field(name: &str, value: &str) -> (String, Bytes) {
    (name.to_owned(), Bytes::from(value.to_owned()))
}

#[tokio::test]
async fn one_call_decides_counts_and_reads_everything() {
    for mode in MODES {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        visit(&redis, "p:s:1", true).await;
        redis.commit(&change("p:s:1", &[field("cart", "[1]"), field("_csrf", "7")], &[])).await.unwrap();
        server.cli(&["CONFIG", "RESETSTAT"]);

        let session = session("p:s:1", false);
        let request = begin::BeginRequest {
            limits: &[limit("p:l:a", 5), limit("p:l:b", 3)],
            session: Some(&session),
            counters: &[counter("p:c:x", 2), counter("p:c:y", 0)],
            token: "",
        };
        let BeginReply::Granted { limits, session, counters, .. } = redis.begin(&request).await.unwrap()
        else {
            panic!("denied")
        };
        assert_eq!(limits.iter().map(|limit| limit.remaining).collect::<Vec<_>>(), [4, 2]);
        assert_eq!(counters, [2, 0]);
        let SessionLookup::Found { created_ms, views, mut fields, attributes: None } = session else {
            panic!("gone")
        };
        fields.sort();
        assert!(created_ms > 1_600_000_000_000);
        assert_eq!((views, fields), (2, vec![field("_csrf", "7"), field("cart", "[1]")]));

        let commands = server.commands();
        let calls = commands.get("fcall").or(commands.get("evalsha"));
        assert_eq!(calls, Some(&1), "{mode:?}: {commands:?}");
    }
}

#[tokio::test]
async fn a_denied_call_changes_nothing() {
    for mode in MODES {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        visit(&redis, "p:s:1", true).await;
        let (existing, made) = (session("p:s:1", false), session("p:s:new", true));
        let limits = [limit("p:l:free", 5), limit("p:l:full", 1), limit("p:l:third", 5)];
        let counters = [counter("p:c:x", 1)];
        let request = |session| begin::BeginRequest {
            limits: &limits,
            session: Some(session),
            counters: &counters,
            token: "",
        };
        assert!(matches!(redis.begin(&request(&existing)).await, Ok(BeginReply::Granted { .. })));

        let before = (server.cli(&["DEBUG", "DIGEST"]), server.keys());
        for session in [&existing, &made] {
            let Ok(BeginReply::Denied { limits }) = redis.begin(&request(session)).await else {
                panic!("granted")
            };
            assert_eq!(limits.iter().map(|limit| limit.allowed).collect::<Vec<_>>(), [true, false, true]);
            // What the others would allow is told as it is, without the charge that was not made.
            assert_eq!(limits.iter().map(|limit| limit.remaining).collect::<Vec<_>>(), [4, 0, 4]);
            assert!(limits[1].retry_after_us.is_some_and(|us| us <= 3_600_000_000 && us > 3_500_000_000));
        }
        assert_eq!((server.cli(&["DEBUG", "DIGEST"]), server.keys()), before, "{mode:?}");
    }
}

#[tokio::test]
async fn two_hundred_parallel_begins_are_two_hundred_views_and_counts() {
    for mode in MODES {
        let server = TestRedis::start();
        let workers = [connect(&server, "p", mode).await, connect(&server, "p", mode).await];
        visit(&workers[0], "p:s:1", true).await;
        let mut tasks = JoinSet::new();
        for index in 0..200 {
            let redis = workers[index % 2].clone();
            tasks.spawn(async move {
                let session = session("p:s:1", false);
                let counters = [counter("p:c:total", 1)];
                let request = begin::BeginRequest {
                    session: Some(&session),
                    counters: &counters,
                    ..Default::default()
                };
                redis.begin(&request).await.unwrap()
            });
        }
        let replies = tasks.join_all().await;
        let mut totals: Vec<i64> = replies
            .iter()
            .map(|reply| match reply {
                BeginReply::Granted { counters, .. } => counters[0],
                BeginReply::Denied { .. } => 0,
            })
            .collect();
        totals.sort_unstable();
        assert_eq!(totals, (1..=200).collect::<Vec<i64>>());
        let SessionLookup::Found { views, .. } = visit(&workers[1], "p:s:1", false).await else {
            panic!("gone")
        };
        assert_eq!(views, 202);
    }
}

#[tokio::test]
async fn a_limit_is_never_exceeded_by_parallel_requests_of_several_workers() {
    for mode in MODES {
        let server = TestRedis::start();
        let workers = [connect(&server, "p", mode).await, connect(&server, "p", mode).await];
        let mut tasks = JoinSet::new();
        for index in 0..300 {
            let redis = workers[index % 2].clone();
            tasks.spawn(async move {
                let request = begin::BeginRequest { limits: &[limit("p:l:a", 50)], ..Default::default() };
                matches!(redis.begin(&request).await, Ok(BeginReply::Granted { .. }))
            });
        }
        let granted = tasks.join_all().await.into_iter().filter(|granted| *granted).count();
        assert_eq!(granted, 50, "{mode:?}");
    }
}

#[tokio::test]
async fn changes_of_different_fields_both_survive() {
    for mode in MODES {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        visit(&redis, "p:s:1", true).await;
        let mut tasks = JoinSet::new();
        for index in 0..50 {
            let redis = redis.clone();
            tasks.spawn(async move {
                let set = [field(&format!("field{index}"), "1")];
                redis.commit(&change("p:s:1", &set, &["field0".to_owned()][..usize::from(index == 49)])).await
            });
        }
        assert!(
            tasks
                .join_all()
                .await
                .into_iter()
                .all(|reply| matches!(reply, Ok(commit::CommitOutcome::Committed { .. })))
        );
        let fields: i64 = server.cli(&["HLEN", "p:s:1"]).parse().unwrap();
        assert!((49 + 3..=50 + 3).contains(&fields), "{fields}");
    }
}

#[tokio::test]
async fn a_session_that_is_gone_stays_gone() {
    for mode in MODES {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        visit(&redis, "p:s:1", true).await;
        redis.delete("p:s:1").await.unwrap();
        assert_eq!(visit(&redis, "p:s:1", false).await, SessionLookup::Gone);
        assert_eq!(
            redis.commit(&change("p:s:1", &[field("a", "1")], &[])).await,
            Ok(commit::CommitOutcome::Gone)
        );
        server.cli(&["HSET", "p:s:2", "a", "1"]);
        assert_eq!(
            redis.commit(&change("p:s:2", &[field("a", "2")], &[])).await,
            Ok(commit::CommitOutcome::Gone)
        );
        assert_eq!(server.cli(&["EXISTS", "p:s:1"]), "0", "{mode:?}");
    }
}

#[tokio::test]
async fn sessions_end_by_idleness_and_by_age() {
    for mode in MODES {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        visit(&redis, "p:s:1", true).await;
        let ttl = || server.cli(&["PTTL", "p:s:1"]).parse::<u64>().unwrap();
        assert!((DAY_MS - 60_000..=DAY_MS).contains(&ttl()));
        // A visit shortly afterwards does not touch; one after a tenth of the idle time does.
        server.cli(&["PEXPIRE", "p:s:1", "1000000"]);
        visit(&redis, "p:s:1", false).await;
        assert!(ttl() <= 1_000_000);
        let unheaded = || server.cli(&["HDEL", "p:s:1", "_h"]);
        server.cli(&["HINCRBY", "p:s:1", "_t", &format!("-{}", DAY_MS / 10)]);
        unheaded();
        visit(&redis, "p:s:1", false).await;
        assert!(ttl() > 1_000_000);
        // Near its end by age, the idle time is cut.
        server.cli(&["HINCRBY", "p:s:1", "_c", &format!("-{}", 30 * DAY_MS - 600_000)]);
        server.cli(&["HSET", "p:s:1", "_t", "0"]);
        unheaded();
        visit(&redis, "p:s:1", false).await;
        assert!(ttl() <= 600_000, "{}", ttl());
        server.cli(&["HINCRBY", "p:s:1", "_c", "-600000"]);
        unheaded();
        assert_eq!(visit(&redis, "p:s:1", false).await, SessionLookup::Gone, "{mode:?}");
    }
}

#[tokio::test]
async fn too_many_fields_are_refused_and_nothing_is_changed() {
    for mode in MODES {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        visit(&redis, "p:s:1", true).await;
        let fields: Vec<_> = (0..65).map(|index| field(&index.to_string(), "1")).collect();
        assert_eq!(redis.commit(&change("p:s:1", &fields, &[])).await, Ok(commit::CommitOutcome::TooLarge));
        assert_eq!(
            redis.commit(&change("p:s:1", &fields[..64], &[])).await,
            Ok(commit::CommitOutcome::Committed { sums: vec![] })
        );
        assert_eq!(
            redis.commit(&change("p:s:1", &fields[..64], &[])).await,
            Ok(commit::CommitOutcome::Committed { sums: vec![] })
        );
        assert_eq!(
            redis.commit(&change("p:s:1", &fields[64..], &[])).await,
            Ok(commit::CommitOutcome::TooLarge)
        );
        let swap = ["0".to_owned()];
        assert_eq!(
            redis.commit(&change("p:s:1", &fields[64..], &swap)).await,
            Ok(commit::CommitOutcome::Committed { sums: vec![] })
        );
        assert_eq!(server.cli(&["HLEN", "p:s:1"]), "67", "{mode:?}");
    }
}

#[tokio::test]
async fn something_else_under_a_session_key_is_told_and_damaged_numbers_do_no_harm() {
    for mode in MODES {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        server.cli(&["SET", "p:s:1", "garbage"]);
        assert_eq!(visit(&redis, "p:s:1", false).await, SessionLookup::Corrupt);
        server.cli(&["HSET", "p:s:3", "cart", "1"]);
        assert_eq!(visit(&redis, "p:s:3", false).await, SessionLookup::Corrupt);
        visit(&redis, "p:s:2", true).await;
        server.cli(&["HSET", "p:s:2", "_v", "many", "_t", "later"]);
        let SessionLookup::Found { views, .. } = visit(&redis, "p:s:2", false).await else {
            panic!("{mode:?}")
        };
        assert_eq!(views, 1);
    }
}

#[tokio::test]
async fn an_overflowing_counter_is_refused_and_leaves_the_others_alone() {
    for mode in MODES {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        server.cli(&["SET", "p:c:full", &i64::MAX.to_string()]);
        let request = begin::BeginRequest {
            limits: &[limit("p:l:a", 5)],
            counters: &[counter("p:c:x", 5), counter("p:c:full", 1)],
            ..Default::default()
        };
        assert_eq!(redis.begin(&request).await, Err(RedisError::Overflow));
        assert_eq!(redis.increment("p:c:full", 1).await, Err(RedisError::Overflow));
        assert_eq!(
            (redis.increment("p:c:x", 0).await, redis.increment("p:c:full", 0).await),
            (Ok(0), Ok(i64::MAX))
        );
        assert_eq!(server.cli(&["EXISTS", "p:l:a"]), "0", "{mode:?}");
    }
}

#[tokio::test]
async fn an_arrival_time_an_hour_ahead_locks_nobody_out() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Fcall).await;
    server.cli(&["SET", "p:l:a", "9000000000000000"]);
    let limits = [RateLimitCheck {
        parameters: LimitParameters::Rate { interval_us: 1000, tolerance_us: 5000 },
        ..limit("p:l:a", 1)
    }];
    let request = begin::BeginRequest { limits: &limits, ..Default::default() };
    let Ok(BeginReply::Denied { limits }) = redis.begin(&request).await else { panic!("granted") };
    assert_eq!(limits[0].retry_after_us, Some(1000));
    // The denied call has mended it: an hour is not waited, nor is it seen an hour ahead by the next one.
    assert!(server.cli(&["PTTL", "p:l:a"]).parse::<i64>().unwrap() <= 5);
}

#[tokio::test]
async fn a_place_that_a_later_clock_took_is_kept_no_longer_than_a_lease() {
    for mode in MODES {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        server.cli(&["ZADD", "p:l:a", "9000000000000000", "other"]);
        let parameters = LimitParameters::Concurrency { lease_us: 100_000, max: 1 };
        let limits = [RateLimitCheck { parameters, ..limit("p:l:a", 1) }];
        let request = begin::BeginRequest { limits: &limits, token: "mine", ..Default::default() };
        assert!(matches!(redis.begin(&request).await, Ok(BeginReply::Denied { .. })), "{mode:?}");
        eventually("its own place is free when its lease is over", async || {
            matches!(redis.begin(&request).await, Ok(BeginReply::Granted { .. }))
        })
        .await;
    }
}

/// The cases that also drive the Rust arithmetic (`limiter::gcra`), with a clock that only this test can set: the
/// library has no entry that takes a time, so one is added to a copy of its text.
#[test]
fn the_arithmetic_on_the_server_agrees_with_throttled_in_both_forms() {
    let server = TestRedis::start();
    // The numbers come as text here, because a command line carries no doubles: lifetimes, limit, time.
    let at = "local now = tonumber(table.remove(args))
        return { struct.unpack('<ddddd', begin_at(now, keys, { '-', struct.pack('<ddddddd', unpack(args)), '' })) }";
    let source = functions::library_by_name("regatta_v5").unwrap().text;
    let as_library = source.replace("regatta_v5", "regatta_test")
        + &format!("redis.register_function('regatta_at', function(keys, args) {at} end)\n");
    assert_eq!(server.cli(&["FUNCTION", "LOAD", &as_library]), "regatta_test");
    let as_script = functions::script_source(source, &format!("local keys, args = KEYS, ARGV {at}"));
    for (command, name, key) in [("FCALL", "regatta_at", "a"), ("EVAL", as_script.as_str(), "b")] {
        for line in
            include_str!("../../support/gcra_throttled.txt").lines().filter(|line| !line.starts_with('#'))
        {
            let row: Vec<&str> = line.split_ascii_whitespace().collect();
            // Far from 0, as real clocks are: microseconds must survive at this size.
            let now = (1_763_694_494_000_000 + row[0].parse::<u64>().unwrap() * 1000).to_string();
            let reply = server
                .cli(&[command, name, "1", key, "0", "0", "0", "0", "1000000", "5000000", row[1], &now]);
            // unpack also says where it stopped; that number is not of the reply.
            let numbers: Vec<i64> = reply.lines().take(5).map(|number| number.parse().unwrap()).collect();
            let us = |column: usize| row[column].parse::<i64>().map_or(-1, |ms| ms * 1000);
            let allowed = i64::from(row[5] == "yes");
            assert_eq!(
                numbers,
                [allowed, allowed, row[2].parse().unwrap(), us(4), us(3)],
                "{command}: {line}"
            );
        }
    }
}

#[tokio::test]
async fn cost_nothing_only_looks() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Fcall).await;
    let look = [RateLimitCheck { cost: 0, ..limit("p:l:a", 5) }];
    let request = begin::BeginRequest { limits: &look, ..Default::default() };
    let expected = RateLimitDecision { allowed: true, remaining: 5, retry_after_us: None, reset_us: 0 };
    let Ok(BeginReply::Granted { limits, .. }) = redis.begin(&request).await else { panic!("denied") };
    assert_eq!((limits, server.cli(&["EXISTS", "p:l:a"])), (vec![expected], "0".to_owned()));
}

#[tokio::test]
async fn fleets_with_other_prefixes_are_strangers_and_with_the_same_are_one() {
    let server = TestRedis::start();
    let [one, same, other] = [
        connect(&server, "one", ScriptingMode::Auto).await,
        connect(&server, "one", ScriptingMode::Auto).await,
        connect(&server, "other", ScriptingMode::Auto).await,
    ];
    assert_eq!(one.generated_signing_keys(), same.generated_signing_keys());
    assert_ne!(one.generated_signing_keys(), other.generated_signing_keys());
    assert!(server.keys().iter().all(|key| key.starts_with("one:") || key.starts_with("other:")));
    let name = regatta::__internals::counters::CounterName::parse("hits").unwrap();
    assert_eq!(one.add_to_counter("one", &name, 3).await, Ok(3));
    assert_eq!(regatta::__internals::counters::value(&same, "one", &name).await, Ok(3));
    assert_eq!(regatta::__internals::counters::value(&other, "other", &name).await, Ok(0));
}
