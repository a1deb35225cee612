//! No server-side code: what is kept all the same, what is refused, and how it is found out.

use std::collections::BTreeSet;
use std::path::Path;

use bytes::Bytes;
use regatta::__internals::config::settings::{RedisUrl, ScriptingMode};
use regatta::__internals::limiter::commands::{LimitParameters, RateLimitCheck};
use regatta::__internals::redis::{RedisClient, RedisError, RedisStatus};
use regatta::__internals::request_state::begin;
use regatta::__internals::request_state::begin::BeginReply;
use regatta::__internals::sessions::commands::{InitialSession, RotateFrom, RotateOutcome, RotateSession};
use regatta::__internals::sessions::commit::NewSession;
use regatta::__internals::sessions::query::{SessionLookup, SessionQuery};
use regatta::__internals::sessions::{commit, keys};

use crate::support::client::{CookieClient, Request};
use crate::support::fleet::TestFleetBuilder;
use crate::support::redis::{TestRedis, connect, eventually, session_query as session};
use crate::support::{client, parallel_clients, wait};
use regatta::__internals::request_state::StateClient;

const DAY_MS: u64 = 86_400_000;

fn limit(key: &str, burst: u64) -> RateLimitCheck {
    let interval_us = 3_600_000_000;
    let parameters = LimitParameters::Rate { interval_us, tolerance_us: interval_us * burst };
    RateLimitCheck { key: key.into(), parameters, shadow: false, cost: 1 }
}

async fn visit(redis: &StateClient, arg: &SessionQuery) -> SessionLookup {
    let request = begin::BeginRequest { session: Some(arg), ..Default::default() };
    match redis.begin(&request).await.unwrap() {
        BeginReply::Granted { session, .. } => session,
        BeginReply::Denied { .. } => panic!("denied"),
    }
}

async fn views(redis: &StateClient, key: &str) -> Option<u64> {
    match visit(redis, &session(key, false)).await {
        SessionLookup::Found { views, .. } => Some(views),
        _ => None,
    }
}

async fn fields(redis: &StateClient, key: &str) -> Vec<(String, Bytes)> {
    let SessionLookup::Found { mut fields, .. } = visit(redis, &session(key, false)).await else {
        panic!("gone")
    };
    fields.sort();
    fields
}

fn field(name: &str, value: &str) -> (String, Bytes) {
    (name.to_owned(), Bytes::from(value.to_owned()))
}

fn change<'a>(key: &'a str, set: &'a [(String, Bytes)], remove: &'a [String]) -> commit::CommitSession<'a> {
    commit::CommitSession { key, set, remove, max_fields: 64, max_bytes: 16_384, ..Default::default() }
}

/// The URL of a user of this server who may do everything but what `without` takes away.
fn user(server: &TestRedis, without: &[&str]) -> RedisUrl {
    let rules = [&["ACL", "SETUSER", "limited", "on", ">word", "~*", "&*", "+@all"], without].concat();
    assert_eq!(server.cli(&rules), "OK");
    RedisUrl::from_socket_path(Path::new(&format!("limited:word@{}", server.socket().display())))
}

async fn connected(server: &TestRedis, url: &RedisUrl) -> StateClient {
    let redis =
        StateClient::new(RedisClient::new(&server.settings("p", ScriptingMode::Auto), url, "test").unwrap());
    redis.start();
    eventually("it is connected", async || redis.status() == RedisStatus::Up).await;
    redis
}

#[tokio::test]
async fn a_user_without_functions_gets_scripts_and_one_without_scripts_plain_commands() {
    let cases: [(&[&str], &[&str], bool); 5] = [
        (&["-function", "-fcall", "-fcall_ro"], &["evalsha"], false),
        (&["-fcall"], &["evalsha"], false),
        (&["-function|load"], &["evalsha"], false),
        (&["-@scripting"], &["set", "get"], true),
        (&["-function", "-fcall", "-evalsha"], &["set", "get"], true),
    ];
    for (without, called, plain) in cases {
        let server = TestRedis::start();
        let url = user(&server, without);
        let redis = connected(&server, &url).await;
        assert_eq!(redis.is_plain(), plain, "{without:?}");
        visit(&redis, &session("p:s:one", true)).await;
        assert_eq!(views(&redis, "p:s:one").await, Some(2), "{without:?}");
        let commit = redis.commit(&change("p:s:one", &[field("a", "1")], &[])).await;
        assert_eq!(commit, Ok(commit::CommitOutcome::Committed { sums: vec![] }), "{without:?}");
        assert_eq!(redis.increment("p:c:x", 5).await, Ok(5));
        let stats = server.commands();
        assert!(called.iter().all(|name| stats.contains_key(*name)), "{without:?}: {stats:?}");
    }
}

#[tokio::test]
async fn functions_that_may_be_called_but_not_loaded_are_used_once_they_are_there() {
    let server = TestRedis::start();
    connect(&server, "p", ScriptingMode::Fcall).await;
    let url = user(&server, &["-function|load"]);
    let redis = connected(&server, &url).await;
    server.cli(&["CONFIG", "RESETSTAT"]);
    visit(&redis, &session("p:s:one", true)).await;
    assert!(server.commands().contains_key("fcall"));
}

#[tokio::test]
async fn one_session_counts_every_view_of_all_that_come_at_once() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Plain).await;
    visit(&redis, &session("p:s:one", true)).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let redis = redis.clone();
        tasks.spawn(async move { views(&redis, "p:s:one").await.unwrap() });
    }
    let seen: BTreeSet<u64> = tasks.join_all().await.into_iter().collect();
    assert_eq!(seen, (2..=101).collect());
    let stats = server.commands();
    assert!(!stats.contains_key("fcall") && !stats.contains_key("eval") && !stats.contains_key("evalsha"));
    assert!(!server.keys().iter().any(|key| key == "p:s:one"), "the record lies under the store's own name");
}

#[tokio::test]
async fn changes_are_stored_merged_removed_and_bounded() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Plain).await;
    visit(&redis, &session("p:s:one", true)).await;
    let committed = Ok(commit::CommitOutcome::Committed { sums: vec![] });
    let both = [field("cart", "[1]"), field("_c", "\"mine\"")];
    assert_eq!(redis.commit(&change("p:s:one", &both, &[])).await, committed);
    assert_eq!(redis.commit(&change("p:s:one", &[field("name", "7")], &["cart".into()])).await, committed);
    assert_eq!(fields(&redis, "p:s:one").await, [field("_c", "\"mine\""), field("name", "7")]);

    let raw = [("sealed".to_owned(), Bytes::from_static(&[0, 255, 128]))];
    assert_eq!(redis.commit(&change("p:s:one", &raw, &[])).await, committed);
    assert_eq!(fields(&redis, "p:s:one").await[2], raw[0], "bytes that are no text survive");

    let many: Vec<_> = (0..65).map(|index| field(&index.to_string(), "1")).collect();
    assert_eq!(redis.commit(&change("p:s:one", &many, &[])).await, Ok(commit::CommitOutcome::TooLarge));
    let large = [field("large", &"x".repeat(20_000))];
    assert_eq!(redis.commit(&change("p:s:one", &large, &[])).await, Ok(commit::CommitOutcome::TooLarge));
    assert_eq!(fields(&redis, "p:s:one").await.len(), 3);
}

#[tokio::test]
async fn a_session_that_is_gone_stays_gone_and_one_that_is_there_is_not_made_again() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Plain).await;
    assert_eq!(views(&redis, "p:s:none").await, None);
    assert_eq!(
        redis.commit(&change("p:s:none", &[field("a", "1")], &[])).await,
        Ok(commit::CommitOutcome::Gone)
    );
    let create = NewSession { created_ms: None, views: 3, idle_ms: DAY_MS, absolute_ms: DAY_MS };
    let make = commit::CommitSession { create: Some(create), ..change("p:s:one", &[], &[]) };
    assert_eq!(redis.commit(&make).await, Ok(commit::CommitOutcome::Committed { sums: vec![] }));
    let keys = server.keys();
    assert_eq!(redis.commit(&make).await, Ok(commit::CommitOutcome::Exists));
    assert_eq!(server.keys(), keys, "and nothing else is made in its place");
    assert_eq!(views(&redis, "p:s:one").await, Some(4));

    redis.delete("p:s:one").await.unwrap();
    let set = [field("late", "1")];
    assert_eq!(redis.commit(&change("p:s:one", &set, &[])).await, Ok(commit::CommitOutcome::Gone));
    assert_eq!(server.keys(), ["p:secret"]);
}

#[tokio::test]
async fn changes_in_flight_at_a_logout_bring_nothing_back() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Plain).await;
    for _ in 0..20 {
        visit(&redis, &session("p:s:one", true)).await;
        let mut tasks = tokio::task::JoinSet::new();
        for index in 0..20 {
            let redis = redis.clone();
            tasks.spawn(async move {
                let set = [field(&format!("f{index}"), "1")];
                let reply = redis.commit(&change("p:s:one", &set, &[])).await.unwrap();
                assert!(
                    matches!(reply, commit::CommitOutcome::Gone | commit::CommitOutcome::Committed { .. }),
                    "{reply:?}"
                );
            });
        }
        redis.delete("p:s:one").await.unwrap();
        tasks.join_all().await;
        assert_eq!(views(&redis, "p:s:one").await, None);
        assert_eq!(server.keys(), ["p:secret"]);
    }
}

#[tokio::test]
async fn sessions_end_by_the_shorter_lifetime_and_use_prolongs_only_the_idle_one() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Plain).await;
    let arg =
        |idle_ms, absolute_ms, create| SessionQuery { idle_ms, absolute_ms, ..session("p:s:one", create) };
    visit(&redis, &arg(400, DAY_MS, true)).await;
    let begun = std::time::Instant::now();
    // Used all the time it outlives its idle lifetime.
    while begun.elapsed().as_millis() < 900 {
        assert!(matches!(visit(&redis, &arg(400, DAY_MS, false)).await, SessionLookup::Found { .. }));
        wait::paced(std::time::Duration::from_millis(20)).await;
    }
    eventually("it is gone without use", async || server.keys() == ["p:secret"]).await;
    visit(&redis, &arg(DAY_MS, 300, true)).await;
    eventually("it is gone in spite of use", async || {
        visit(&redis, &arg(DAY_MS, 300, false)).await == SessionLookup::Gone
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_read_is_set_aside_and_its_visitor_begins_anew() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Plain).await;
    visit(&redis, &session("p:s:one", true)).await;
    let own = server.keys().into_iter().find(|key| !key.starts_with("p:")).unwrap();
    for garbage in [&["SET", &own, "garbage"][..], &["HSET", &own, "a", "1"]] {
        server.cli(&["DEL", &own]);
        server.cli(garbage);
        assert_eq!(visit(&redis, &session("p:s:one", false)).await, SessionLookup::Corrupt);
        assert_eq!(redis.quarantine_session("p", "one", 3_600_000).await, Ok(true));
        assert_eq!(redis.quarantine_session("p", "one", 3_600_000).await, Ok(false));
        assert!(server.cli(&["PTTL", &keys::quarantine("p", "one")]).parse::<i64>().unwrap() > 0);
        assert_eq!(visit(&redis, &session("p:s:one", false)).await, SessionLookup::Gone);
        visit(&redis, &session("p:s:one", true)).await;
        assert_eq!(views(&redis, "p:s:one").await, Some(2));
    }
}

#[tokio::test]
async fn another_id_keeps_age_views_and_fields_and_a_login_is_refused_by_name() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Plain).await;
    visit(&redis, &session("p:s:one", true)).await;
    redis.commit(&change("p:s:one", &[field("cart", "1")], &[])).await.unwrap();
    let set = [field("more", "2")];
    let cycle = |new, from| RotateSession {
        prefix: "p",
        new,
        from,
        user: None,
        login: false,
        details: None,
        idle_ms: DAY_MS,
        absolute_ms: DAY_MS,
        grace_ms: 1,
        max_fields: 64,
        max_bytes: 16_384,
        lineage: None,
        set: &set,
        remove: &[],
        expect: &[],
        initial: InitialSession::default(),
        limit: None,
    };
    let moved = redis.rotate_session(&cycle("two", RotateFrom::Session("one"))).await.unwrap();
    assert!(matches!(moved, RotateOutcome::Done { created_ms, .. } if created_ms > 0), "{moved:?}");
    assert_eq!(views(&redis, "p:s:one").await, None);
    assert_eq!(views(&redis, "p:s:two").await, Some(2));
    assert_eq!(fields(&redis, "p:s:two").await, [field("cart", "1"), field("more", "2")]);
    assert_eq!(
        redis.rotate_session(&cycle("three", RotateFrom::Session("one"))).await,
        Ok(RotateOutcome::Gone)
    );
    assert_eq!(redis.rotate_session(&cycle("two", RotateFrom::Nothing)).await, Ok(RotateOutcome::IdInUse));
    let login = RotateSession { login: true, user: Some("tag"), ..cycle("four", RotateFrom::Nothing) };
    assert!(matches!(redis.rotate_session(&login).await, Err(RedisError::Unsupported { .. })));
    assert_eq!(redis.destroy_session("p", "two", None, false).await, Ok(true));
    assert_eq!(redis.destroy_session("p", "two", None, false).await, Ok(false));
    // Marks, by which no ticket makes either anew.
    assert_eq!(server.keys(), ["p:s:one", "p:s:two", "p:secret"]);
    assert_eq!(visit(&redis, &session("p:s:two", true)).await, SessionLookup::Gone);
    let left: u64 = server.cli(&["PTTL", "p:s:two"]).parse().unwrap();
    assert!((590_000..=600_000).contains(&left), "{left}");
}

#[tokio::test]
async fn what_needs_server_side_code_is_refused_by_name() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Plain).await;
    visit(&redis, &session("p:s:one", true)).await;
    let expect = [("a".to_owned(), None)];
    let strict = commit::CommitSession { expect: &expect, ..change("p:s:one", &[], &[]) };
    assert!(matches!(redis.commit(&strict).await, Err(RedisError::Unsupported { .. })));
    let add = [("n".to_owned(), 1)];
    let sum = commit::CommitSession { add: &add, ..change("p:s:one", &[], &[]) };
    assert!(matches!(redis.commit(&sum).await, Err(RedisError::Unsupported { .. })));
    let parameters = LimitParameters::Concurrency { lease_us: 1, max: 1 };
    let limits = [RateLimitCheck { parameters, ..limit("p:l:a", 1) }];
    let request = begin::BeginRequest { limits: &limits, ..Default::default() };
    assert!(matches!(redis.begin(&request).await, Err(RedisError::Unsupported { .. })));
}

#[test]
fn a_fleet_serves_its_pages_without_server_side_code_and_says_once_what_is_lost() {
    let server = TestRedis::start();
    let url = user(&server, &["-@scripting"]);
    let fleet = TestFleetBuilder::on(&server).set("REGATTA_REDIS__URL", url.expose()).workers(2).start();
    let mut visitor = CookieClient::default();
    assert_eq!(visitor.view(fleet.listen).1, 1);
    let visits = parallel_clients::parallel(10, 5, |_| visitor.clone().view(fleet.listen));
    assert_eq!(visits.iter().map(|(_, views)| *views).collect::<BTreeSet<_>>(), (2..=51).collect());
    assert_eq!(client::once(fleet.listen, Request::post("/counters/x")).unwrap().json()["value"], 1);
    assert_eq!(fleet.operator("/readyz").status, 200);
    assert_eq!(fleet.log_lines("the shared state is kept by plain commands").len(), 2, "one line a worker");
    let (code, said) = TestFleetBuilder::on(&server)
        .set("REGATTA_REDIS__URL", url.expose())
        .args(&["migrate", "--check"])
        .run();
    assert!(code == 0 && said.contains("redis.mode plain"), "{said}");
}
