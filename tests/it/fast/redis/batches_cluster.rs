//! In a cluster what a turn's requests want of one slot is one call, and each request is all or nothing as before.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::FutureExt;
use proptest::collection::vec;
use proptest::prelude::*;
use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::redis::begin::{
    BeginReply, BeginRequest, CounterIncrement, LimitParameters, RateLimitCheck, SessionAccess,
    SessionLookup, SessionQuery,
};
use regatta::__internals::redis::{RedisClient, RedisError, RedisStatus, keys};
use tokio::task::JoinSet;

use crate::support::cluster_client::{TOTAL, connect, limit, session};
use crate::support::redis::{TestRedis, eventually};
use crate::support::redis_cluster::TestRedisCluster;
use crate::support::{property, wait};

/// What one request was answered: its session's views and the total; `None` if it was denied.
type Visit = Result<Option<(u64, i64)>, RedisError>;

async fn visit(redis: &RedisClient, digest: &str, limits: &[RateLimitCheck], token: &str) -> Visit {
    let (session, counters) = (session(digest, false), total());
    match redis.begin(&BeginRequest { limits, session: Some(&session), counters: &counters, token }).await? {
        BeginReply::Granted { session: SessionLookup::Found { views, .. }, counters, .. } => {
            Ok(Some((views, counters[0])))
        }
        BeginReply::Granted { session, .. } => panic!("no session: {session:?}"),
        BeginReply::Denied { .. } => Ok(None),
    }
}

fn total() -> [CounterIncrement; 1] {
    [CounterIncrement { key: keys::counter("p", "total"), by: 1 }]
}

/// Makes a session, which has the one view of its ticket.
async fn make(redis: &RedisClient, digest: &str) {
    let new = session(digest, true);
    redis.begin(&BeginRequest { session: Some(&new), ..BeginRequest::default() }).await.unwrap();
}

/// All of them at the same time.
async fn crowd(redis: &RedisClient, visits: impl Iterator<Item = (String, RateLimitCheck)>) -> Vec<Visit> {
    let mut tasks = JoinSet::new();
    for (digest, limit) in visits {
        let redis = redis.clone();
        tasks.spawn(async move { visit(&redis, &digest, &[limit], "").await });
    }
    tasks.join_all().await
}

/// Calls of functions or scripts that all nodes have executed.
fn calls(cluster: &TestRedisCluster, command: &str) -> u64 {
    let of = |line: String| line.strip_prefix("calls=")?.split(',').next()?.parse::<u64>().ok();
    let name = format!("cmdstat_{command}");
    cluster.primaries().iter().filter_map(|node| of(node.info("commandstats", &name))).sum()
}

fn reset(cluster: &TestRedisCluster) {
    cluster.primaries().iter().for_each(|node| assert_eq!(node.cli(&["CONFIG", "RESETSTAT"]), "OK"));
}

fn views(cluster: &TestRedisCluster, digest: &str) -> u64 {
    cluster.query("HGET", &format!("p:{{s}}:s:{digest}"), &["_v"]).parse().unwrap_or(0)
}

fn counted(cluster: &TestRedisCluster) -> u64 {
    cluster.query("GET", TOTAL, &[]).parse().unwrap_or(0)
}

/// Nodes that the sessions and the total lie on; the third has neither.
const SESSIONS_ON: usize = 0;
const TOTAL_ON: usize = 1;
const NEITHER: usize = 2;

fn places(cluster: &TestRedisCluster) -> (usize, usize) {
    (cluster.owner("p:{s}:s:a"), cluster.owner(TOTAL))
}

/// A subject of this burst whose limit lies on that node.
fn limit_on(cluster: &TestRedisCluster, node: usize, burst: u64) -> RateLimitCheck {
    let of = |name: &String| cluster.owner(&format!("p:{{l:slow:v:{name}}}")) == node;
    limit(&(0..).map(|number: u32| format!("{burst}-{number}")).find(of).unwrap(), burst)
}

#[tokio::test]
async fn a_turns_requests_make_one_call_a_slot() {
    let cluster = TestRedisCluster::start();
    for (mode, command) in [(ScriptingMode::Fcall, "fcall"), (ScriptingMode::Evalsha, "evalsha")] {
        let redis = connect(&cluster, mode).await;
        let digest = |number: u32| format!("{mode:?}-{number}");
        for number in 0..64 {
            make(&redis, &digest(number)).await;
        }
        let before = counted(&cluster);
        for (shared, expected) in [(true, 3), (false, 64 + 2)] {
            let limits = |number: u32| match shared {
                true => limit("shared", 1000),
                false => limit(&digest(number), 1000),
            };
            reset(&cluster);
            let visits = crowd(&redis, (0..64).map(|number| (digest(number), limits(number)))).await;
            assert!(visits.iter().all(|visit| matches!(visit, Ok(Some(_)))), "{visits:?}");
            assert_eq!(calls(&cluster, command), expected, "{mode:?}");
        }
        assert_eq!(counted(&cluster), before + 128);
        assert!((0..64).all(|number| views(&cluster, &digest(number)) == 3));
    }
}

#[tokio::test]
async fn a_request_that_is_alone_is_a_call_a_slot() {
    let cluster = TestRedisCluster::start();
    let redis = connect(&cluster, ScriptingMode::Fcall).await;
    make(&redis, "a").await;
    reset(&cluster);
    for number in 1..=10 {
        let answer = visit(&redis, "a", &[limit("x", 1000)], "").await;
        assert_eq!(answer, Ok(Some((number + 1, i64::try_from(number).unwrap()))));
    }
    assert_eq!(calls(&cluster, "fcall"), 30);
}

#[tokio::test]
async fn each_of_two_hundred_visits_of_one_session_has_numbers_of_its_own() {
    let cluster = TestRedisCluster::start();
    let redis = connect(&cluster, ScriptingMode::Fcall).await;
    make(&redis, "a").await;
    let visits = crowd(&redis, (0..200).map(|_| ("a".to_owned(), limit("x", 1000)))).await;
    let mut numbers: Vec<_> = visits.into_iter().map(|visit| visit.unwrap().unwrap()).collect();
    numbers.sort_unstable();
    let expected: Vec<_> =
        (1..=200).map(|number: u64| (number + 1, i64::try_from(number).unwrap())).collect();
    assert_eq!(
        numbers.iter().map(|(views, _)| *views).collect::<Vec<_>>(),
        expected.iter().map(|(views, _)| *views).collect::<Vec<_>>()
    );
    let mut totals: Vec<_> = numbers.into_iter().map(|(_, total)| total).collect();
    totals.sort_unstable();
    assert_eq!(totals, expected.into_iter().map(|(_, total)| total).collect::<Vec<_>>());
    assert_eq!((counted(&cluster), views(&cluster, "a")), (200, 201));
}

#[tokio::test]
async fn of_what_a_limit_denies_nothing_stays_in_any_session_of_the_turn() {
    const ALLOWED: usize = 25;
    let cluster = TestRedisCluster::start();
    let redis = connect(&cluster, ScriptingMode::Fcall).await;
    for number in 0..64 {
        make(&redis, &number.to_string()).await;
    }
    let limit = limit("shared", ALLOWED as u64);
    let visits = crowd(&redis, (0..64).map(|number| (number.to_string(), limit.clone()))).await;
    let granted = visits.into_iter().filter(|visit| visit.as_ref().unwrap().is_some()).count();
    assert_eq!((granted, counted(&cluster)), (ALLOWED, ALLOWED as u64));
    let seen: Vec<_> = (0..64).map(|number| views(&cluster, &number.to_string())).collect();
    assert!(seen.iter().all(|views| [1, 2].contains(views)), "{seen:?}");
    assert_eq!(seen.iter().sum::<u64>(), 64 + ALLOWED as u64);
}

#[tokio::test]
async fn an_entry_that_fails_fails_alone_and_leaves_nothing() {
    let cluster = TestRedisCluster::start();
    let redis = connect(&cluster, ScriptingMode::Fcall).await;
    for digest in ["a", "b", "c"] {
        make(&redis, digest).await;
    }
    let broken = limit("broken", 10);
    cluster.query("LPUSH", "p:{l:slow:v:broken}", &["x"]);
    let visits = [("a", limit("x", 10)), ("b", broken), ("c", limit("x", 10))];
    let visits = crowd(&redis, visits.map(|(digest, limit)| (digest.to_owned(), limit)).into_iter()).await;
    let (granted, failed): (Vec<_>, Vec<_>) = visits.into_iter().partition(Result::is_ok);
    assert_eq!((granted.len(), failed.len()), (2, 1));
    assert!(matches!(failed[0], Err(RedisError::Rejected { .. })), "{failed:?}");
    assert_eq!(["a", "b", "c"].map(|digest| views(&cluster, digest)), [2, 1, 2]);
    assert_eq!(counted(&cluster), 2);
    assert!(redis.breaker_states().all_closed());
}

#[tokio::test]
async fn a_caller_that_leaves_before_its_turn_ends_has_sent_nothing() {
    let cluster = TestRedisCluster::start();
    let redis = connect(&cluster, ScriptingMode::Fcall).await;
    make(&redis, "a").await;
    // Polled once, and dropped before anything else has been.
    assert!(visit(&redis, "a", &[limit("x", 10)], "").now_or_never().is_none());
    make(&redis, "b").await;
    assert_eq!((counted(&cluster), views(&cluster, "a")), (0, 1));
    assert_eq!(cluster.query("EXISTS", "p:{l:slow:v:x}", &[]), "0");
}

/// Starts a visit of which the session's node has done its part while the total's stands still, and lets its caller leave.
async fn left_half_way(cluster: &TestRedisCluster, redis: &RedisClient, limits: Vec<RateLimitCheck>) {
    assert_eq!(places(cluster), (SESSIONS_ON, TOTAL_ON));
    let before = views(cluster, "a");
    cluster.nodes[TOTAL_ON].stop();
    let leaving = {
        let redis = redis.clone();
        tokio::spawn(async move { visit(&redis, "a", &limits, "one").await })
    };
    // The node is asked by itself: one that stands still cannot be asked who serves what.
    let seen = || cluster.nodes[SESSIONS_ON].cli(&["HGET", "p:{s}:s:a", "_v"]).parse::<u64>().unwrap();
    eventually("its session's node has answered", async || seen() > before).await;
    leaving.abort();
    assert!(leaving.await.is_err());
    cluster.nodes[TOTAL_ON].cont();
}

#[tokio::test]
async fn what_a_denial_takes_back_is_taken_back_although_the_caller_has_left() {
    let cluster = TestRedisCluster::start();
    let redis = connect(&cluster, ScriptingMode::Fcall).await;
    make(&redis, "a").await;
    left_half_way(&cluster, &redis, vec![limit_on(&cluster, TOTAL_ON, 0)]).await;
    eventually("the view is taken back", async || views(&cluster, "a") == 1).await;
    eventually("the total is taken back", async || counted(&cluster) == 0).await;
}

#[tokio::test]
async fn a_caller_that_leaves_half_way_is_counted_whole_or_not_at_all_and_keeps_no_place() {
    let cluster = TestRedisCluster::start();
    let redis = connect(&cluster, ScriptingMode::Fcall).await;
    make(&redis, "a").await;
    let parameters = LimitParameters::Concurrency { lease_us: 600_000_000, max: 10 };
    let name = |subject: &str| format!("p:{{l:q:v:{subject}}}");
    let granted = |subject: &String| cluster.owner(&name(subject)) == SESSIONS_ON;
    let subject = (0..).map(|number: u32| number.to_string()).find(granted).unwrap();
    let limit =
        RateLimitCheck { key: keys::limit("p", "q", "v", &subject), parameters, shadow: false, cost: 1 };
    left_half_way(&cluster, &redis, vec![limit]).await;
    eventually("its place is given back", async || cluster.query("ZCARD", &name(&subject), &[]) == "0").await;
    eventually("all of it or nothing", async || {
        matches!((views(&cluster, "a"), counted(&cluster)), (2, 1) | (1, 0))
    })
    .await;
    let answer = visit(&redis, "a", &[], "").await.unwrap().unwrap();
    assert!(matches!(answer, (3, 2) | (2, 1)), "{answer:?}");
}

/// Visits one session, and makes new ones, as long as it is not told to stop; how often it was served, and what failed.
async fn visit_until(
    redis: RedisClient,
    client: usize,
    limits: Vec<RateLimitCheck>,
    ended: Arc<AtomicBool>,
) -> (u64, Vec<RedisError>) {
    let (mut served, mut failed) = (0, Vec::new());
    for round in 0.. {
        if ended.load(Relaxed) {
            break;
        }
        let limits = [limits[round % limits.len()].clone()];
        match visit(&redis, &client.to_string(), &limits, "").await {
            Ok(visit) => served += u64::from(visit.is_some()),
            Err(error) => failed.push(error),
        }
        // What is made now may be missing on both nodes of a slot that moves.
        let new = session(&format!("{client}-{round}"), true);
        if let Err(error) =
            redis.begin(&BeginRequest { session: Some(&new), ..BeginRequest::default() }).await
        {
            failed.push(error);
        }
        wait::paced(Duration::from_millis(1)).await;
    }
    (served, failed)
}

const CLIENTS: usize = 16;

/// That many visitors, until `while_visiting` ends; how often each was served, and what failed.
async fn under_load(
    redis: &RedisClient,
    limits: &[RateLimitCheck],
    while_visiting: impl FnOnce() + Send + 'static,
) -> (Vec<u64>, Vec<RedisError>) {
    let ended = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        make(redis, &client.to_string()).await;
        clients.push(tokio::spawn(visit_until(redis.clone(), client, limits.to_vec(), Arc::clone(&ended))));
    }
    tokio::task::spawn_blocking(while_visiting).await.unwrap();
    ended.store(true, Relaxed);
    let (mut served, mut failed) = (Vec::new(), Vec::new());
    for client in clients {
        let (count, errors) = client.await.unwrap();
        served.push(count);
        failed.extend(errors);
    }
    (served, failed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_move_one_by_one_hold_no_batch_up_and_count_exactly() {
    let cluster = Arc::new(TestRedisCluster::start());
    let redis = connect(&cluster, ScriptingMode::Fcall).await;
    let moving = Arc::clone(&cluster);
    let (served, failed) = under_load(&redis, &[limit("x", 1_000_000)], move || {
        let key = "p:{s}:s:0";
        let slot = moving.slot(key);
        moving.migrate(&slot, (moving.owner(key) + 1) % 3, || wait::pace(Duration::from_millis(2)));
    })
    .await;
    assert!(failed.is_empty(), "{} of {:?} failed: {:?}", failed.len(), served, failed.first());
    for (client, served) in served.iter().enumerate() {
        assert!(*served > 0);
        assert_eq!(views(&cluster, &client.to_string()), served + 1, "client {client}");
    }
    assert_eq!(counted(&cluster), served.iter().sum::<u64>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_killed_under_load_leaves_no_request_half_done() {
    let cluster = TestRedisCluster::start();
    let redis = connect(&cluster, ScriptingMode::Fcall).await;
    // Sessions and the total lie elsewhere than on the node with the replica, so whatever is lost with it is taken back there.
    cluster.migrate(&cluster.slot("p:{s}:s:a"), NEITHER, || ());
    assert_eq!(places(&cluster), (NEITHER, TOTAL_ON));
    let limits = [0, 1, 2].map(|node| limit_on(&cluster, node, 1_000_000));
    let shared = Arc::new(std::sync::Mutex::new(cluster));
    let killing = Arc::clone(&shared);
    let (served, failed) = under_load(&redis, &limits, move || {
        let mut cluster = killing.lock().unwrap();
        wait::pace(Duration::from_millis(200));
        cluster.nodes[0].kill();
        wait::until("the replica serves", wait::LONG, || {
            cluster.nodes[3].info("replication", "role") == "master"
        });
        wait::pace(Duration::from_millis(300));
    })
    .await;
    let unknown = failed.iter().filter(|error| {
        !matches!(
            error,
            RedisError::ConnectionLost { .. } | RedisError::Unavailable { .. } | RedisError::Rejected { .. }
        )
    });
    assert_eq!(unknown.count(), 0, "{failed:?}");
    eventually("all is well again", async || redis.status() == RedisStatus::Up).await;
    let cluster = shared.lock().unwrap();
    for (client, served) in served.iter().enumerate() {
        assert!(*served > 0, "client {client}: {failed:?}");
        let seen = cluster.nodes[NEITHER].cli(&["HGET", &format!("p:{{s}}:s:{client}"), "_v"]);
        assert_eq!(seen, (served + 1).to_string(), "client {client}");
    }
    assert_eq!(cluster.nodes[TOTAL_ON].cli(&["GET", TOTAL]), served.iter().sum::<u64>().to_string());
}

/// What a random request is made of.
#[derive(Debug, Clone)]
struct Spec {
    /// Number of the session, and its use: 0 read, 1 visit, 2 and 3 with a ticket.
    session: Option<(u8, u8)>,
    /// Number, cost, whether in shadow.
    limits: Vec<(u8, u64, bool)>,
    place: bool,
    counters: Vec<(u8, i64)>,
}

fn specs() -> impl Strategy<Value = Vec<Spec>> {
    let session = prop_oneof![1 => Just(None), 6 => (0..4_u8, 0..4_u8).prop_map(Some)];
    let limits = vec((0..4_u8, 0..3_u64, proptest::bool::weighted(0.1)), 0..3);
    let counters = vec((0..2_u8, -1..3_i64), 0..3);
    let spec = (session, limits, proptest::bool::weighted(0.2), counters);
    let spec = spec.prop_map(|(session, limits, place, counters)| Spec { session, limits, place, counters });
    vec(spec, 1..25)
}

/// Of an answer what does not depend on the time.
async fn answer(redis: &RedisClient, prefix: &str, spec: &Spec, token: &str) -> String {
    let session = spec.session.map(|(number, how)| SessionQuery {
        key: keys::session("p", &format!("{prefix}{number}")),
        access: if how % 2 == 0 { SessionAccess::Read } else { SessionAccess::CountView },
        ..session("", how > 1)
    });
    let rate = |(number, cost, shadow): &(u8, u64, bool)| RateLimitCheck {
        shadow: *shadow,
        cost: *cost,
        ..limit(&format!("{prefix}{number}"), u64::from(*number) * 3 + 1)
    };
    let mut limits: Vec<_> = spec.limits.iter().map(rate).collect();
    if spec.place {
        let parameters = LimitParameters::Concurrency { lease_us: 600_000_000, max: 2 };
        limits.push(RateLimitCheck {
            key: keys::limit("p", "q", "v", prefix),
            parameters,
            shadow: false,
            cost: 1,
        });
    }
    let counter = |(number, by): &(u8, i64)| CounterIncrement {
        key: keys::counter("p", &format!("{prefix}{number}")),
        by: *by,
    };
    let counters: Vec<_> = spec.counters.iter().map(counter).collect();
    let request = BeginRequest { limits: &limits, session: session.as_ref(), counters: &counters, token };
    let stand = |limits: Vec<regatta::__internals::redis::begin::RateLimitDecision>| {
        limits.iter().map(|limit| (limit.allowed, limit.remaining)).collect::<Vec<_>>()
    };
    match redis.begin(&request).await {
        Ok(BeginReply::Denied { limits }) => format!("denied {:?}", stand(limits)),
        Ok(BeginReply::Granted { limits, session, counters, .. }) => {
            let session = match session {
                SessionLookup::Found { views, fields, .. } => format!("{views} {fields:?}"),
                other => format!("{other:?}"),
            };
            format!("granted {:?} {session} {counters:?}", stand(limits))
        }
        Err(error) => format!("{error:?}"),
    }
}

#[test]
fn a_cluster_answers_as_one_server_does() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (cluster, server) = (TestRedisCluster::start(), TestRedis::start());
    let (many, one) = runtime.block_on(async {
        (
            connect(&cluster, ScriptingMode::Fcall).await,
            crate::support::redis::connect(&server, "p", ScriptingMode::Fcall).await,
        )
    });
    property::holds(48, &specs(), |run, specs| {
        let prefix = format!("{run}-");
        for (number, spec) in specs.iter().enumerate() {
            let token = number.to_string();
            let (here, there) = runtime.block_on(async {
                (answer(&many, &prefix, spec, &token).await, answer(&one, &prefix, spec, &token).await)
            });
            prop_assert_eq!(here, there, "request {} of {:?}", number, specs);
        }
        Ok(())
    });
}
