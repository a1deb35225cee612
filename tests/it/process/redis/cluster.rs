//! A real cluster: every call goes to its node, a denied request changes nothing anywhere, and no move loses a count.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::redis::begin::{
    BeginReply, CounterIncrement, LimitParameters, NewSessionLimit, ProvisionalSessionQuery, RateLimitCheck,
    SessionAccess, SessionLookup, SessionQuery,
};
use regatta::__internals::redis::{RedisClient, RedisError, RedisStatus, begin, functions, keys};
use tokio::task::JoinSet;

use crate::support::cluster_client::{TOTAL, connect, limit, session};
use crate::support::fleet::TestFleetBuilder;
use crate::support::redis::{eventually, new_session};
use crate::support::redis_cluster::TestRedisCluster;
use crate::support::wait;

fn counter(name: &str, by: i64) -> CounterIncrement {
    CounterIncrement { key: keys::counter("p", name), by }
}

/// Names under which keys lie in a cluster.
const SESSIONS: &str = "p:{s}:s:";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_s_keys_lie_on_several_nodes_and_are_one_round_trip() {
    let cluster = TestRedisCluster::start();
    for mode in [ScriptingMode::Fcall, ScriptingMode::Evalsha] {
        let redis = connect(&cluster, mode).await;
        let digest = format!("{mode:?}");
        let (new, old) = (session(&digest, true), session(&digest, false));
        let limits = [limit("10.0.0.1", 100), limit("10.0.0.2", 100), limit("10.0.0.3", 100)];
        let counters = [counter("total", 1), counter(&digest, 5)];
        let request = |session| begin::BeginRequest {
            limits: &limits,
            session: Some(session),
            counters: &counters,
            token: "",
        };
        redis.begin(&request(&new)).await.unwrap();
        let BeginReply::Granted {
            limits: decided,
            session: SessionLookup::Found { views, .. },
            counters: sums,
            ..
        } = redis.begin(&request(&old)).await.unwrap()
        else {
            panic!("denied or gone")
        };
        assert_eq!((views, sums[1]), (2, 10));
        assert!(decided.iter().all(|limit| limit.allowed), "{decided:?}");
        assert_eq!(redis.increment(&keys::counter("p", &digest), 1).await, Ok(11));
    }
    let places: std::collections::BTreeSet<_> = cluster.keys().iter().map(|key| cluster.owner(key)).collect();
    assert!(places.len() > 1, "everything lies on one node");
    assert_eq!(cluster.query("GET", TOTAL, &[]), "4");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_node_denies_changes_nothing_on_any_other() {
    let cluster = TestRedisCluster::start();
    let redis = connect(&cluster, ScriptingMode::Fcall).await;
    let new = session("a", true);
    let (open, closed) = (limit("open", 10), limit("closed", 0));
    let counters = [counter("total", 7)];
    let before = cluster.keys();
    let limits = [open.clone(), closed.clone()];
    let request =
        begin::BeginRequest { limits: &limits, session: Some(&new), counters: &counters, token: "" };
    let BeginReply::Denied { limits: decided } = redis.begin(&request).await.unwrap() else {
        panic!("granted")
    };
    assert!(decided[0].allowed && decided[0].remaining == 10 && !decided[1].allowed, "{decided:?}");
    // But marks that it was taken back, which end by themselves.
    let (marks, left): (Vec<_>, Vec<_>) = cluster.keys().into_iter().partition(|key| key.contains(":m:"));
    assert_eq!(left, before, "a denied request left something");
    assert!(marks.iter().all(|mark| cluster.query("PTTL", mark, &[]) != "-1"), "{marks:?}");

    // The same where everything was there before.
    let open_only = [open.clone()];
    let request =
        begin::BeginRequest { limits: &open_only, session: Some(&new), counters: &counters, token: "" };
    redis.begin(&request).await.unwrap();
    let place = RateLimitCheck {
        key: keys::limit("p", "places", "v", "x"),
        parameters: LimitParameters::Concurrency { lease_us: 60_000_000, max: 3 },
        shadow: false,
        cost: 1,
    };
    let old = session("a", false);
    let limits = [place, open, closed];
    let request =
        begin::BeginRequest { limits: &limits, session: Some(&old), counters: &counters, token: "t" };
    for _ in 0..5 {
        let BeginReply::Denied { limits: decided } = redis.begin(&request).await.unwrap() else {
            panic!("granted")
        };
        assert_eq!((decided[0].remaining, decided[1].remaining), (3, 9), "{decided:?}");
    }
    assert_eq!(cluster.query("GET", TOTAL, &[]), "7");
    assert_eq!(cluster.query("HGET", &format!("{SESSIONS}a"), &["_v"]), "1");
    assert_eq!(cluster.query("EXISTS", "p:{l:places:v:x}", &[]), "0");
}

/// A session of a ticket, and the limit on new sessions that it counts in.
fn newcomer(digest: &str, mode: SessionAccess, burst: u64) -> SessionQuery {
    let interval_us = 3_600_000_000;
    let key = keys::new_session_limit("p", digest);
    let limit = Some(NewSessionLimit { key, interval_us, tolerance_us: interval_us * burst });
    SessionQuery {
        access: mode,
        provisional: Some(ProvisionalSessionQuery { limit, ..new_session() }),
        ..session(digest, false)
    }
}

/// Asks for a session, and for a limit that lies elsewhere and allows it or not; whether it was granted.
async fn ask(redis: &RedisClient, session: &SessionQuery, allows: bool) -> bool {
    let limits = [limit(if allows { "open" } else { "closed" }, if allows { 100 } else { 0 })];
    let request = begin::BeginRequest { limits: &limits, session: Some(session), ..Default::default() };
    matches!(redis.begin(&request).await.unwrap(), BeginReply::Granted { .. })
}

/// What is stored of a session, and what its client is charged for new ones.
fn stands(cluster: &TestRedisCluster, digest: &str) -> [String; 3] {
    let (session, charged) = (format!("{SESSIONS}{digest}"), format!("p:{{s}}:n:{digest}"));
    let fields = cluster.query("HGETALL", &session, &[]);
    [fields, cluster.query("EXISTS", &session, &[]), cluster.query("GET", &charged, &[])]
}

const MODES: [ScriptingMode; 2] = [ScriptingMode::Fcall, ScriptingMode::Evalsha];
const USES: [SessionAccess; 2] = [SessionAccess::Read, SessionAccess::CountView];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_a_denied_request_made_is_taken_back_and_its_charge_given_back() {
    let cluster = TestRedisCluster::start();
    for (mode, how) in MODES.into_iter().flat_map(|mode| USES.map(|how| (mode, how))) {
        let redis = connect(&cluster, mode).await;
        let digest = format!("{mode:?}{how:?}");
        let nothing = stands(&cluster, &digest);
        // With room for a new session, and without: that one would be short-lived, and charges nothing.
        for burst in [1, 0] {
            assert!(!ask(&redis, &newcomer(&digest, how, burst), false).await);
            assert_eq!(stands(&cluster, &digest), nothing, "{digest} {burst}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_another_request_made_outlives_one_that_is_denied() {
    let cluster = TestRedisCluster::start();
    for (mode, how) in MODES.into_iter().flat_map(|mode| USES.map(|how| (mode, how))) {
        let redis = connect(&cluster, mode).await;
        for burst in [1, 0] {
            let digest = format!("{mode:?}{how:?}{burst}");
            assert!(ask(&redis, &newcomer(&digest, SessionAccess::Read, burst), true).await);
            let before = stands(&cluster, &digest);
            assert_eq!((before[1].as_str(), before[2].is_empty()), ("1", burst == 0), "{digest}");
            assert!(!ask(&redis, &newcomer(&digest, how, burst), false).await);
            assert_eq!(stands(&cluster, &digest), before, "{digest}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_at_once_exactly_the_limit_is_let_in_and_counted() {
    const ALLOWED: u64 = 50;
    let cluster = TestRedisCluster::start();
    let redis = connect(&cluster, ScriptingMode::Fcall).await;
    let one = begin::BeginRequest { session: Some(&session("a", true)), ..Default::default() };
    redis.begin(&one).await.unwrap();
    let mut tasks = JoinSet::new();
    // Each is four calls at once, and a worker lets 512 wait.
    for number in 0..120 {
        let redis = redis.clone();
        tasks.spawn(async move {
            let limits = [limit("shared", ALLOWED), limit(&format!("own {number}"), 1)];
            let counters = [counter("total", 1)];
            let session = session("a", false);
            let request = begin::BeginRequest {
                limits: &limits,
                session: Some(&session),
                counters: &counters,
                token: "",
            };
            matches!(redis.begin(&request).await.unwrap(), BeginReply::Granted { .. })
        });
    }
    let granted = tasks.join_all().await.into_iter().filter(|granted| *granted).count() as u64;
    assert_eq!(granted, ALLOWED);
    assert_eq!(cluster.query("GET", TOTAL, &[]), ALLOWED.to_string());
    let views = (ALLOWED + 1).to_string();
    assert_eq!(cluster.query("HGET", &format!("{SESSIONS}a"), &["_v"]), views);
    let own =
        cluster.keys().iter().filter(|key| key.contains(":own ") && !key.contains(":m:")).count() as u64;
    assert_eq!(own, ALLOWED, "limits of those who were denied are as if never used");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_the_code_gets_it_again() {
    let cluster = TestRedisCluster::start();
    let redis = connect(&cluster, ScriptingMode::Fcall).await;
    for node in cluster.primaries() {
        for library in functions::LIBRARIES.iter().filter(|library| library.current) {
            assert!(node.cli(&["FUNCTION", "LIST"]).contains(library.name), "{} is missing", library.name);
        }
        assert_eq!(node.cli(&["FUNCTION", "FLUSH"]), "OK");
    }
    let counters = [counter("total", 1)];
    for number in 0..30 {
        let limits = [limit(&number.to_string(), 5)];
        let request = begin::BeginRequest { limits: &limits, counters: &counters, ..Default::default() };
        redis.begin(&request).await.unwrap();
    }
    assert_eq!(cluster.query("GET", TOTAL, &[]), "30");
}

/// What went wrong for clients that visit as long as they are not told to stop, and how often they were served.
async fn visit_until(redis: RedisClient, client: usize, ended: Arc<AtomicBool>) -> (u64, Vec<RedisError>) {
    let (mut served, mut failed) = (0, Vec::new());
    while !ended.load(Relaxed) {
        let limits = [limit(&format!("client {client}"), 1_000_000)];
        let counters = [counter("total", 1)];
        let session = session("a", false);
        let request =
            begin::BeginRequest { limits: &limits, session: Some(&session), counters: &counters, token: "" };
        match redis.begin(&request).await {
            Ok(BeginReply::Granted { session: SessionLookup::Found { .. }, .. }) => served += 1,
            Ok(other) => panic!("a wrong answer: {other:?}"),
            Err(error) => failed.push(error),
        }
        wait::paced(Duration::from_millis(1)).await;
    }
    (served, failed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_under_load_costs_no_answer_and_no_count() {
    let cluster = Arc::new(TestRedisCluster::start());
    let redis = connect(&cluster, ScriptingMode::Fcall).await;
    let first = session("a", true);
    redis.begin(&begin::BeginRequest { session: Some(&first), ..Default::default() }).await.unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for client in 0..8 {
        clients.spawn(visit_until(redis.clone(), client, Arc::clone(&ended)));
    }
    let moving = Arc::clone(&cluster);
    let moved = tokio::task::spawn_blocking(move || {
        for key in [TOTAL.to_owned(), format!("{SESSIONS}a")] {
            let slot = moving.slot(&key);
            for _ in 0..3 {
                let to = (moving.owner(&key) + 1) % 3;
                moving.migrate(&slot, to, || wait::pace(Duration::from_millis(100)));
                assert_eq!(moving.owner(&key), to);
                wait::pace(Duration::from_millis(100));
            }
        }
    });
    moved.await.unwrap();
    ended.store(true, Relaxed);
    let results = clients.join_all().await;
    let served: u64 = results.iter().map(|(served, _)| served).sum();
    let failed: Vec<_> = results.into_iter().flat_map(|(_, failed)| failed).collect();
    assert!(failed.is_empty(), "{} of {} failed: {:?}", failed.len(), served, failed.first());
    assert!(served > 200, "hardly any load: {served}");
    assert_eq!(cluster.query("GET", TOTAL, &[]), served.to_string());
    assert_eq!(cluster.query("HGET", &format!("{SESSIONS}a"), &["_v"]), (served + 1).to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_costs_its_own_slots_only_until_its_replica_serves_them() {
    let mut cluster = TestRedisCluster::start();
    let redis = connect(&cluster, ScriptingMode::Fcall).await;
    // One subject on each node.
    let subject = |node: usize| {
        let of = |name: &String| cluster.owner(&format!("p:{{l:slow:v:{name}}}")) == node;
        (0..).map(|number: u32| number.to_string()).find(of).unwrap()
    };
    let subjects = [subject(0), subject(1), subject(2)];
    let ask = async |subject: &str| {
        let limits = [limit(subject, 1_000_000)];
        redis.begin(&begin::BeginRequest { limits: &limits, ..Default::default() }).await
    };
    for subject in &subjects {
        ask(subject).await.unwrap();
    }
    cluster.nodes[0].kill();
    // Requests for its slots wait for the replica, and the others never notice.
    eventually("the replica serves them", async || {
        for subject in &subjects[1..] {
            ask(subject).await.unwrap();
        }
        ask(&subjects[0]).await.is_ok()
    })
    .await;
    eventually("all is well again", async || redis.status() == RedisStatus::Up).await;
}

#[test]
fn a_fleet_serves_from_a_cluster() {
    let cluster = TestRedisCluster::start();
    let plan =
        TestFleetBuilder::new().set("REGATTA_REDIS__URL", &cluster.url()).set("REGATTA_REDIS__PREFIX", "p");
    let (code, said) = plan.clone().args(&["migrate"]).run();
    assert_eq!(code, 0, "{said}");
    let (code, said) = plan.clone().args(&["check"]).run();
    assert!(code == 0 && said.contains("0 migrations pending"), "{said}");
    let fleet = plan.start();
    let first = fleet.get("/");
    assert_eq!(first.status, 200);
    assert_eq!(first.view().1, 1);
    for views in 1..=20 {
        assert_eq!(fleet.get("/").status, 200, "visit {views}");
    }
    assert_eq!(cluster.query("GET", "p:{c}:c:@views", &[]), "21");
}

#[test]
fn a_url_of_the_wrong_kind_says_which_one_is_right() {
    let cluster = TestRedisCluster::start();
    let alone = crate::support::redis_tcp::TestRedisTcp::plain();
    // A node that happens to have the ledger would show nothing by it.
    let other = (cluster.owner("regatta:mig") + 1) % 3;
    let cases = [
        (format!("redis://127.0.0.1:{}", cluster.nodes[other].port), "redis-cluster://"),
        (format!("redis-cluster://127.0.0.1:{}", alone.port), "must begin with redis://"),
    ];
    for (url, advice) in cases {
        let (code, said) = TestFleetBuilder::new().set("REGATTA_REDIS__URL", &url).args(&["check"]).run();
        assert!(code == 69 && said.contains(advice), "{url}: {code} {said}");
    }
}
