//! What a commit promises besides storing, and the limits and sessions that only version 2 of the code knows.

use bytes::Bytes;
use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::limiter::commands::{LimitParameters, RateLimitCheck, RateLimitDecision};
use regatta::__internals::request_state::begin;
use regatta::__internals::request_state::begin::BeginReply;
use regatta::__internals::sessions::commit;
use regatta::__internals::sessions::commit::NewSession;
use regatta::__internals::sessions::query::{SessionAccess, SessionLookup, SessionQuery};

use crate::support::redis::{TestRedis, connect, eventually};
use regatta::__internals::request_state::StateClient;

const MODES: [ScriptingMode; 2] = [ScriptingMode::Fcall, ScriptingMode::Evalsha];
const KEY: &str = "p:s:1";

fn create() -> NewSession {
    NewSession { created_ms: None, views: 0, idle_ms: 60_000, absolute_ms: 600_000 }
}

fn change<'a>() -> commit::CommitSession<'a> {
    commit::CommitSession { key: KEY, max_fields: 64, ..commit::CommitSession::default() }
}

fn stored(sums: &[i64]) -> commit::CommitOutcome {
    commit::CommitOutcome::Committed { sums: sums.to_vec() }
}

fn named(name: &str, value: &str) -> (String, Bytes) {
    (name.to_owned(), Bytes::from(value.to_owned()))
}

async fn commit(redis: &StateClient, request: commit::CommitSession<'_>) -> commit::CommitOutcome {
    redis.commit(&request).await.unwrap()
}

async fn ask(redis: &StateClient, limits: &[RateLimitCheck], token: &str) -> (bool, Vec<RateLimitDecision>) {
    let request = begin::BeginRequest { limits, token, ..begin::BeginRequest::default() };
    match redis.begin(&request).await.unwrap() {
        BeginReply::Granted { limits, .. } => (true, limits),
        BeginReply::Denied { limits } => (false, limits),
    }
}

async fn read(redis: &StateClient, generation: Option<&str>) -> SessionLookup {
    let session = SessionQuery {
        key: KEY.into(),
        generation: generation.map(str::to_owned),
        access: SessionAccess::Read,
        provisional: None,
        idle_ms: 60_000,
        absolute_ms: 600_000,
    };
    let request = begin::BeginRequest { session: Some(&session), ..begin::BeginRequest::default() };
    match redis.begin(&request).await.unwrap() {
        BeginReply::Granted { session, .. } => session,
        BeginReply::Denied { .. } => panic!("denied without a limit"),
    }
}

#[tokio::test]
async fn sums_are_atomic_exact_and_refused_where_they_cannot_be() {
    for mode in MODES {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        commit(&redis, commit::CommitSession { create: Some(create()), ..change() }).await;
        let add = [("a".to_owned(), 2), ("_b".to_owned(), -3)];
        assert_eq!(commit(&redis, commit::CommitSession { add: &add, ..change() }).await, stored(&[2, -3]));
        let huge = [("h".to_owned(), i64::MAX)];
        assert_eq!(
            commit(&redis, commit::CommitSession { add: &huge, ..change() }).await,
            stored(&[i64::MAX])
        );
        let over = [("h".to_owned(), 1)];
        assert_eq!(
            commit(&redis, commit::CommitSession { add: &over, ..change() }).await,
            commit::CommitOutcome::NotANumber
        );
        let both = [("a".to_owned(), 1), ("h".to_owned(), 1)];
        let set = [named("x", "1")];
        let both = commit::CommitSession { add: &both, set: &set, ..change() };
        assert_eq!(commit(&redis, both).await, commit::CommitOutcome::NotANumber);
        assert_eq!(server.cli(&["HMGET", KEY, "a", "__b", "x"]), "2\n-3", "{mode:?}");
    }
}

#[tokio::test]
async fn an_expectation_that_does_not_hold_changes_nothing() {
    for mode in MODES {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        let set = [named("a", "1")];
        commit(&redis, commit::CommitSession { create: Some(create()), set: &set, ..change() }).await;
        let set = [named("a", "2"), named("b", "1")];
        let swap = |expect: Option<&'static str>| [("a".to_owned(), expect.map(Bytes::from))];
        for wrong in [Some("2"), Some(""), None] {
            let request = commit::CommitSession { expect: &swap(wrong), set: &set, ..change() };
            assert_eq!(commit(&redis, request).await, commit::CommitOutcome::Conflict, "{wrong:?}");
        }
        let request = commit::CommitSession { expect: &swap(Some("1")), set: &set, ..change() };
        assert_eq!(commit(&redis, request).await, stored(&[]));
        let absent = [("c".to_owned(), None)];
        assert_eq!(commit(&redis, commit::CommitSession { expect: &absent, ..change() }).await, stored(&[]));
        assert_eq!(server.cli(&["HMGET", KEY, "a", "b"]), "2\n1");
    }
}

#[tokio::test]
async fn bytes_are_bounded_by_the_server_too() {
    for mode in MODES {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        let set = [named("a", &"x".repeat(90))];
        commit(&redis, commit::CommitSession { create: Some(create()), set: &set, ..change() }).await;
        let more = [named("b", "123456789")];
        let bounded = |max_bytes| commit::CommitSession { set: &more, max_bytes, ..change() };
        assert_eq!(commit(&redis, bounded(100)).await, commit::CommitOutcome::TooLarge);
        let remove = ["a".to_owned()];
        assert_eq!(
            commit(&redis, commit::CommitSession { remove: &remove, ..bounded(100) }).await,
            stored(&[])
        );
        assert_eq!(server.cli(&["HEXISTS", KEY, "a"]), "0");
    }
}

#[tokio::test]
async fn concurrency_counts_leases_and_a_dead_holder_gives_its_place_back() {
    for mode in MODES {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        let parameters = LimitParameters::Concurrency { lease_us: 400_000, max: 2 };
        let limit = [RateLimitCheck { key: "p:l:c".into(), parameters, shadow: false, cost: 1 }];
        assert_eq!(ask(&redis, &limit, "one").await.1[0].remaining, 1);
        assert_eq!(ask(&redis, &limit, "two").await.1[0].remaining, 0);
        let (granted, replies) = ask(&redis, &limit, "three").await;
        assert!(!granted && replies[0].retry_after_us == Some(400_000), "{replies:?}");
        server.cli(&["ZREM", "p:l:c", "one"]);
        assert!(ask(&redis, &limit, "three").await.0);
        eventually("the leases end", async || ask(&redis, &limit, "four").await.0).await;
        assert_eq!(server.cli(&["ZSCORE", "p:l:c", "two"]), "", "{mode:?}");
    }
}

#[tokio::test]
async fn a_limit_in_shadow_tells_and_denies_nothing() {
    for mode in MODES {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        let parameters = LimitParameters::Rate { interval_us: 3_600_000_000, tolerance_us: 3_600_000_000 };
        let shadow = RateLimitCheck { key: "p:l:s".into(), parameters, shadow: true, cost: 1 };
        let real = RateLimitCheck { key: "p:l:r".into(), shadow: false, ..shadow.clone() };
        assert!(ask(&redis, std::slice::from_ref(&shadow), "").await.0);
        let (granted, replies) = ask(&redis, &[shadow.clone(), real.clone()], "").await;
        assert!(granted && !replies[0].allowed && replies[1].allowed);
        let (granted, replies) =
            ask(&redis, &[RateLimitCheck { key: "p:l:s2".into(), ..shadow }, real], "").await;
        assert!(!granted && replies[0].allowed && replies[0].remaining == 1, "{replies:?}");
        assert_eq!(server.cli(&["EXISTS", "p:l:s2"]), "0", "a denied call charged a limit in shadow");
    }
}

#[tokio::test]
async fn rotated_and_revoked_sessions_are_told_and_never_changed() {
    for mode in MODES {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        // An id is told apart for ten seconds from one whose session ended.
        server.cli(&["HSET", KEY, "_r", "1"]);
        assert_eq!(read(&redis, None).await, SessionLookup::Gone);
        let now: u64 = server.cli(&["TIME"]).lines().next().unwrap().parse().unwrap();
        server.cli(&["HSET", KEY, "_r", &(now * 1000).to_string()]);
        assert_eq!(read(&redis, None).await, SessionLookup::Rotated);
        let set = [named("a", "1")];
        assert_eq!(
            commit(&redis, commit::CommitSession { set: &set, ..change() }).await,
            commit::CommitOutcome::Rotated
        );
        server.cli(&["DEL", KEY]);
        commit(&redis, commit::CommitSession { create: Some(create()), ..change() }).await;
        server.cli(&["HSET", KEY, "_u", "tag", "_g", "1", "_i", "30000"]);
        server.cli(&["SET", "p:g:tag", "1"]);
        let SessionLookup::Found { attributes: Some(own), .. } = read(&redis, Some("p:g:tag")).await else {
            panic!("gone")
        };
        assert_eq!((own.user.as_deref(), own.idle_ms), (Some("tag"), Some(30_000)));
        server.cli(&["SET", "p:g:tag", "2"]);
        assert_eq!(read(&redis, Some("p:g:tag")).await, SessionLookup::Revoked);
        assert_eq!(server.cli(&["EXISTS", KEY]), "0", "{mode:?}");
    }
}

/// Found by the oracle: "007" looked like a number until the first addition was made.
#[tokio::test]
async fn several_additions_are_made_together_or_not_at_all() {
    for mode in MODES {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        for odd in ["007", "-0", "1.5", "", "9223372036854775807"] {
            server.cli(&["DEL", KEY]);
            let set = [named("odd", odd), named("plain", "1")];
            let made = commit::CommitSession { create: Some(create()), set: &set, ..change() };
            assert_eq!(commit(&redis, made).await, stored(&[]));
            let add = [("plain".to_owned(), 1), ("odd".to_owned(), 1)];
            assert_eq!(
                commit(&redis, commit::CommitSession { add: &add, ..change() }).await,
                commit::CommitOutcome::NotANumber
            );
            assert_eq!(server.cli(&["HGET", KEY, "plain"]), "1", "{mode:?} {odd:?}");
        }
    }
}
