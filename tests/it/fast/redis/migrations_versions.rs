//! Two releases, and two deployments, on one Redis.

use std::time::Duration;

use bytes::Bytes;
use fred::clients::Client;
use fred::interfaces::{ClientLike, FunctionInterface};
use fred::types::config::{Config, ServerConfig};
use regatta::__internals::broadcasts::keys as broadcast_keys;
use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::idempotency::{ClaimOutcome, ClaimRequest};
use regatta::__internals::limiter::commands::{LimitParameters, RateLimitCheck};
use regatta::__internals::redis::migrations::SHIPPED;
use regatta::__internals::redis::{RedisClient, functions, keys};
use regatta::__internals::registry;
use regatta::__internals::registry::{InstanceRecord, keys as registry_keys};
use regatta::__internals::request_state::begin;
use regatta::__internals::request_state::begin::BeginReply;
use regatta::__internals::sessions::commands::{InitialSession, RotateFrom, RotateOutcome, RotateSession};
use regatta::__internals::sessions::query::{SessionAccess, SessionLookup, SessionQuery};
use regatta::__internals::sessions::{commit as session_commit, keys as session_keys};
use regatta::__internals::tasks::keys as task_keys;
use regatta::task::TaskId;

use crate::support::redis::{TestRedis, connect, eventually, new_session};
use regatta::__internals::request_state::StateClient;

const DAY_MS: u64 = 86_400_000;

/// A worker of an earlier release, which calls what it always did.
#[derive(Clone)]
struct Old(Client);

impl Old {
    async fn start(server: &TestRedis) -> Self {
        let unix = ServerConfig::Unix { path: server.socket() };
        let client = Client::new(Config { server: unix, ..Config::default() }, None, None, None);
        client.init().await.unwrap();
        Self(client)
    }

    /// Has the server know a function as that release's workers had loaded it.
    fn load(&self, server: &TestRedis, function: &str) {
        let library = functions::library_by_name(function.trim_end_matches("_begin")).unwrap();
        // There already, where the new release calls something of it.
        server.cli(&["FUNCTION", "LOAD", "REPLACE", library.text]);
    }

    /// Counts a view by a version's function, all of which take the same; `None` if the session is gone.
    async fn visit_by(&self, function: &str, key: &str) -> Option<u64> {
        let numbers = [86_400_000f64, 2_592_000_000.0, 0.0].map(f64::to_le_bytes).concat();
        let args = vec![Bytes::from_static(b"v"), numbers.into(), Bytes::new()];
        let reply: fred::types::Value = self.0.fcall(function, vec![key], args).await.unwrap();
        let packed = match reply {
            fred::types::Value::Array(parts) => parts[0].clone().into_bytes().unwrap(),
            packed => packed.into_bytes().unwrap(),
        };
        let number = |at: usize| f64::from_le_bytes(packed[8 * at..][..8].try_into().unwrap());
        assert_eq!(number(0).to_string(), "1", "no limit was asked");
        (number(1).to_string() == "1").then(|| number(3) as u64)
    }

    /// Counts a view by the batch of version 5; the session has fields or none.
    async fn visit_batched(&self, key: &str) -> f64 {
        let head =
            [4.0, 86_400_000.0, 2_592_000_000.0, 0.0, 0.0, 1.0, 1.0, 0.0].map(f64::to_le_bytes).concat();
        let args = vec![Bytes::from(head), Bytes::new(), Bytes::from_static(&[2, 0, 0])];
        let reply: fred::types::Value = self.0.fcall("regatta_v5_batch", vec![key], args).await.unwrap();
        let packed = match reply {
            fred::types::Value::Array(parts) => parts[0].clone().into_bytes().unwrap(),
            packed => packed.into_bytes().unwrap(),
        };
        let (_, views) = packed.split_at(packed.len() - 16);
        f64::from_le_bytes(views[..8].try_into().unwrap())
    }

    async fn set(&self, key: &str, field: &str, value: &str) -> i64 {
        let args = vec!["0", "64", "0", "0", "1", field, value, "0"];
        self.0.fcall("regatta_v2_commit", vec![key], args).await.unwrap()
    }
}

async fn visit(redis: &StateClient, key: &str, create: bool) -> Option<(u64, usize)> {
    let session = SessionQuery {
        key: key.into(),
        generation: None,
        // One that is made has its ticket's view.
        access: if create { SessionAccess::Read } else { SessionAccess::CountView },
        provisional: create.then(new_session),
        idle_ms: DAY_MS,
        absolute_ms: 30 * DAY_MS,
    };
    let request = begin::BeginRequest { session: Some(&session), ..Default::default() };
    match redis.begin(&request).await.unwrap() {
        BeginReply::Granted { session: SessionLookup::Found { views, fields, .. }, .. } => {
            Some((views, fields.len()))
        }
        _ => None,
    }
}

async fn set(redis: &StateClient, key: &str, field: &str) -> session_commit::CommitOutcome {
    let set = [(field.to_owned(), Bytes::from_static(b"1"))];
    let request = session_commit::CommitSession { key, set: &set, max_fields: 64, ..Default::default() };
    redis.commit(&request).await.unwrap()
}

#[tokio::test]
async fn workers_of_two_releases_share_sessions_through_a_deploy_and_back() {
    for function in ["regatta_v2_begin", "regatta_v3_begin", "regatta_v4_begin", "regatta_v5_begin"] {
        let server = TestRedis::start();
        let new = connect(&server, "p", ScriptingMode::Fcall).await;
        let old = Old::start(&server).await;
        old.load(&server, function);
        visit(&new, "p:s:one", true).await;

        // Both releases at once, each from several requests: those of the new one share calls.
        let mut tasks = tokio::task::JoinSet::new();
        for index in 0..100 {
            let (old, new) = (old.clone(), new.clone());
            tasks.spawn(async move {
                let field = format!("field{}", index % 20);
                match index % 5 {
                    0 => old.visit_by(function, "p:s:one").await.is_some(),
                    1 => visit(&new, "p:s:one", false).await.is_some(),
                    2 => old.visit_batched("p:s:one").await > 0.0,
                    3 => old.set("p:s:one", &field, "1").await == 1,
                    _ => {
                        matches!(
                            set(&new, "p:s:one", &field).await,
                            session_commit::CommitOutcome::Committed { .. }
                        )
                    }
                }
            });
        }
        assert!(tasks.join_all().await.into_iter().all(|done| done), "every request of both is served");
        let views = visit(&new, "p:s:one", false).await;
        assert_eq!(views, Some((62, 8)), "{function}: no view and no change is lost");

        // Back again: what the new release keeps in a session is no trouble to the old one.
        server.cli(&["HSET", "p:s:one", "_u", "tag", "_g", "1", "_i", "86400000", "_d", "{}"]);
        assert_eq!(old.visit_by(function, "p:s:one").await, Some(63));
        assert_eq!(visit(&new, "p:s:one", false).await, Some((64, 8)));

        // A logout by either is one for both.
        new.delete("p:s:one").await.unwrap();
        assert_eq!(old.visit_by(function, "p:s:one").await, None);
        assert_eq!(old.set("p:s:one", "late", "1").await, 0);
        assert_eq!(set(&new, "p:s:one", "late").await, session_commit::CommitOutcome::Gone);
    }
}

/// The head that a batch packs is no trouble to the release before, which leaves it as it is, and no batch believes it
/// once the session is another one.
#[tokio::test]
async fn the_packed_head_of_a_session_goes_through_a_deploy_and_back() {
    let server = TestRedis::start();
    let new = connect(&server, "p", ScriptingMode::Fcall).await;
    let old = Old::start(&server).await;
    old.load(&server, "regatta_v4_begin");
    let now = || regatta::__internals::sys::clock::wall_clock().as_millis().to_string();
    server.cli(&["HSET", "p:s:one", "_c", &now(), "_t", &now(), "_v", "0"]);
    let has_head = || server.cli(&["HEXISTS", "p:s:one", "_h"]) == "1";
    let mut views = 0;
    for round in 0..3 {
        for _ in 0..3 {
            views += 1;
            assert_eq!(visit(&new, "p:s:one", false).await, Some((views, 0)), "{round}");
        }
        assert!(has_head(), "{round}: a session without fields has one");
        views += 1;
        assert_eq!(old.visit_by("regatta_v4_begin", "p:s:one").await, Some(views), "{round}");
        assert_eq!(old.set("p:s:one", "cart", "1").await, 1);
        views += 1;
        assert_eq!(visit(&new, "p:s:one", false).await, Some((views, 1)), "{round}: the field is seen");
        server.cli(&["HDEL", "p:s:one", "cart"]);
    }
}

/// Batches and single calls of either release charge the same stored times.
#[tokio::test]
async fn a_limit_is_one_for_calls_of_the_release_before_and_batches() {
    let server = TestRedis::start();
    let new = connect(&server, "p", ScriptingMode::Fcall).await;
    let old = Old::start(&server).await;
    old.load(&server, "regatta_v4_begin");
    // A burst of forty, an hour each.
    let (interval, tolerance) = (3_600_000_000_u64, 40 * 3_600_000_000);
    let parameters = LimitParameters::Rate { interval_us: interval, tolerance_us: tolerance };
    let limit = RateLimitCheck { key: "p:l:a:v:x".into(), parameters, shadow: false, cost: 1 };
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..100 {
        let (old, new, limit) = (old.0.clone(), new.clone(), limit.clone());
        tasks.spawn(async move {
            if index % 2 == 0 {
                let request = begin::BeginRequest { limits: &[limit], ..Default::default() };
                return matches!(new.begin(&request).await.unwrap(), BeginReply::Granted { .. });
            }
            let numbers = [0.0, 0.0, 0.0, 0.0, interval as f64, tolerance as f64, 1.0];
            let numbers = numbers.map(f64::to_le_bytes).concat();
            let args = vec![Bytes::from_static(b"-"), numbers.into(), Bytes::new()];
            let reply: Bytes = old.fcall("regatta_v4_begin", vec![&limit.key], args).await.unwrap();
            reply[..8] == 1_f64.to_le_bytes()
        });
    }
    let granted = tasks.join_all().await.into_iter().filter(|granted| *granted).count();
    assert_eq!(granted, 40);
}

/// What a cluster's node granted is taken back by either release's undo, on the keys that the other one wrote.
#[tokio::test]
async fn what_one_release_granted_the_other_one_takes_back() {
    let server = TestRedis::start();
    let new = connect(&server, "p", ScriptingMode::Fcall).await;
    let old = Old::start(&server).await;
    server.cli(&["FUNCTION", "LOAD", functions::library_by_name("regatta_cluster_v2").unwrap().text]);
    let now = regatta::__internals::sys::clock::wall_clock().as_millis().to_string();
    server.cli(&["HSET", "p:s:one", "_c", &now, "_t", &now, "_v", "0"]);
    for (round, function) in ["regatta_cluster_v2_undo", "regatta_cluster_v3_undo"].into_iter().enumerate() {
        assert_eq!(visit(&new, "p:s:one", false).await, Some((1, 0)), "{function}");
        let numbers = [1000.0, 1000.0, 0.0].map(f64::to_le_bytes).concat();
        let args = vec![Bytes::from_static(b"v"), numbers.into(), Bytes::new(), Bytes::from_static(b"60000")];
        let mark = format!("p:l:mark:{round}");
        for expected in [1, 0] {
            let undone: i64 = old.0.fcall(function, vec!["p:s:one", &mark], args.clone()).await.unwrap();
            assert_eq!(undone, expected, "{function}");
        }
        assert_eq!(server.cli(&["HGET", "p:s:one", "_v"]), "0", "{function}");
    }
}

#[tokio::test]
async fn a_session_whose_cookie_never_came_back_is_confirmed_by_any_release_and_what_ended_by_none() {
    let server = TestRedis::start();
    let new = connect(&server, "p", ScriptingMode::Fcall).await;
    let old = Old::start(&server).await;
    server.cli(&["FUNCTION", "LOAD", functions::library_by_name("regatta_v3").unwrap().text]);
    for function in ["regatta_v2_begin", "regatta_v3_begin"] {
        let set = [("cart".to_owned(), Bytes::from_static(b"1"))];
        let made = RotateSession {
            prefix: "p",
            new: function,
            from: RotateFrom::Nothing,
            user: None,
            login: false,
            details: None,
            idle_ms: DAY_MS,
            absolute_ms: 30 * DAY_MS,
            grace_ms: 10_000,
            max_fields: 64,
            max_bytes: 0x4000,
            lineage: None,
            set: &set,
            remove: &[],
            expect: &[],
            initial: InitialSession { views: 1, created_ms: 0 },
            limit: None,
        };
        assert!(matches!(new.rotate_session(&made).await, Ok(RotateOutcome::Done { .. })));
        let key = session_keys::session("p", function);
        let left = || server.cli(&["PTTL", &key]).parse::<u64>().unwrap();
        assert!(left() <= 600_000, "{function}");
        assert_eq!(old.visit_by(function, &key).await, Some(2));
        assert!(left() > DAY_MS - 60_000, "{function}");
        assert_eq!(visit(&new, &key, false).await, Some((3, 1)), "{function}");

        assert_eq!(new.destroy_session("p", function, None, false).await, Ok(true));
        assert_eq!(old.visit_by(function, &key).await, None, "{function}");
        assert_eq!(visit(&new, &key, true).await, None, "nor by its ticket");
    }
}

#[tokio::test]
async fn workers_of_two_releases_share_tasks() {
    let server = TestRedis::start();
    let new = connect(&server, "p", ScriptingMode::Fcall).await;
    let old = Old::start(&server).await.0;
    let lease = Some(Duration::from_millis(300));
    let queue = task_keys::task_queue("p", "a");
    let rules = crate::support::task_steps::RULES;
    for _ in 0..2 {
        new.enqueue_task(TaskId::new().unwrap(), "a", "1", &rules).await.unwrap();
    }
    // Each takes one, and neither has the other's before its lease is over; then each takes the other's over.
    let first: Vec<String> = old.fcall("regatta_task_v1_take", vec![&queue], vec!["300"]).await.unwrap();
    let second = new.claim_task(&["a"], lease).await.unwrap().unwrap();
    assert_ne!(first[2], second.id.to_string());
    assert_eq!(new.claim_task(&["a"], lease).await, Ok(None));
    let mut over = None;
    eventually("the old one's is overdue", async || {
        over = new.claim_task(&["a"], lease).await.unwrap().filter(|taken| taken.id.to_string() == first[2]);
        over.is_some()
    })
    .await;
    assert_eq!(over.unwrap().delivery_count, 2);
    eventually("the new one's is overdue", async || {
        let taken: Vec<String> = old.fcall("regatta_task_v1_take", vec![&queue], vec!["300"]).await.unwrap();
        !taken.is_empty()
    })
    .await;
}

#[tokio::test]
async fn workers_of_two_releases_share_claims_heartbeats_and_listeners() {
    let server = TestRedis::start();
    let new = connect(&server, "p", ScriptingMode::Fcall).await;
    let old = Old::start(&server).await.0;
    let claim = |key| ClaimRequest {
        key,
        fingerprint: "f",
        owner: "new",
        lease: Duration::from_secs(60),
        lifetime: Duration::from_secs(3600),
    };
    let args = || vec!["f", "old", "60000", "3600000"];
    let claimed: Vec<i64> = old.fcall("regatta_counter_v1_claim", vec!["p:i:1"], args()).await.unwrap();
    assert_eq!(claimed, [1]);
    assert!(matches!(new.claim(&claim("p:i:1")).await, Ok(ClaimOutcome::InProgress(_))));
    assert_eq!(new.claim(&claim("p:i:2")).await, Ok(ClaimOutcome::Granted));
    let claimed: Vec<i64> = old.fcall("regatta_counter_v1_claim", vec!["p:i:2"], args()).await.unwrap();
    assert_eq!(claimed[0], 2);

    let word = vec!["old", "60000", r#"{"version":1,"id":"old","host":"old"}"#];
    let keys = vec![
        registry_keys::instances("p"),
        registry_keys::instance_deadlines("p"),
        keys::libraries_in_use("p"),
    ];
    let alive: i64 = old.fcall("regatta_fleet_v1_beat", keys.clone(), word.clone()).await.unwrap();
    let mine = InstanceRecord {
        version: registry::DOCUMENT_VERSION,
        id: "new".into(),
        host: "new".into(),
        ..InstanceRecord::default()
    };
    assert_eq!((alive, new.heartbeat(&mine, Duration::from_secs(60)).await), (1, Ok(2)));
    let alive: i64 = old.fcall("regatta_fleet_v1_beat", keys, word).await.unwrap();
    assert_eq!((alive, new.list_instances().await.unwrap().instances.len()), (2, 2));

    let here = broadcast_keys::presence("p", "news");
    let _: Vec<i64> =
        old.fcall("regatta_live_v1_here", vec![&here], vec!["old", "60000", "3"]).await.unwrap();
    assert_eq!(new.report_presence("new", Duration::from_secs(60), &[("news", Some(4))]).await, Ok(vec![7]));
    let sums: Vec<i64> =
        old.fcall("regatta_live_v1_here", vec![&here], vec!["old", "60000", "-"]).await.unwrap();
    assert_eq!(sums, [7]);
}

#[tokio::test]
async fn no_library_is_deleted_because_other_fleets_of_the_server_may_call_it() {
    let server = TestRedis::start();
    let load = |name: &str| {
        let text = format!("#!lua name={name}\nredis.register_function('{name}_x', function() return 1 end)");
        server.cli(&["FUNCTION", "LOAD", &text]);
    };
    let old = ["regatta_v0", "regatta_v9", "regatta_session_v0", "regatta_live_v0", "stranger_v0"];
    old.into_iter().for_each(load);
    for prefix in ["p", "other"] {
        let redis =
            RedisClient::new(&server.settings(prefix, ScriptingMode::Fcall), &server.url(), "cli").unwrap();
        SHIPPED.apply(&redis, |_| ()).await.unwrap();
    }
    let there = |name: &str| server.cli(&["FUNCTION", "LIST", "LIBRARYNAME", name]).contains(name);
    assert!(old.into_iter().all(there));
}

#[tokio::test]
async fn deployments_with_different_prefixes_do_not_see_each_other() {
    for mode in [ScriptingMode::Fcall, ScriptingMode::Plain] {
        let server = TestRedis::start();
        let (a, b) = (connect(&server, "a", mode).await, connect(&server, "b", mode).await);
        visit(&a, "a:s:one", true).await;
        assert_eq!(visit(&b, "b:s:one", false).await, None, "{mode:?}");
        visit(&b, "b:s:one", true).await;
        set(&a, "a:s:one", "x").await;
        b.delete("b:s:one").await.unwrap();
        assert_eq!(visit(&a, "a:s:one", false).await, Some((2, 1)), "{mode:?}");
        if mode == ScriptingMode::Fcall {
            let ours = |key: &String| key.starts_with("a:") || key.starts_with("b:");
            assert!(server.keys().iter().all(ours));
            assert_eq!(server.cli(&["HLEN", "a:mig"]), server.cli(&["HLEN", "b:mig"]));
            assert_ne!(a.generated_signing_keys(), b.generated_signing_keys());
        }
    }
}
