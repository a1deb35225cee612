//! What the requests of one turn commit is one call, and each commit is stored, or not, as it would be alone.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use fred::clients::Client;
use fred::interfaces::{ClientLike, FunctionInterface};
use fred::types::config::{Config, ServerConfig};
use fred::types::{ClusterHash, CustomCommand, Value};
use futures_util::FutureExt;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::redis::begin::batch::BatchLedger;
use regatta::__internals::redis::begin::{SessionAccess, SessionLookup, SessionQuery};
use regatta::__internals::redis::commit::batch::CommitEntry;
use regatta::__internals::redis::commit::{CommitOutcome, CommitSession, NewSession, batch};
use regatta::__internals::redis::{RedisClient, RedisError, ServerRejection, begin};
use tokio::task::JoinSet;

use crate::support::fault_proxy::FaultProxy;
use crate::support::redis::calls;
use crate::support::redis::{TestRedis, connect, eventually};
use crate::support::{property, soak};

const BOTH: [(ScriptingMode, &str); 2] =
    [(ScriptingMode::Fcall, "fcall"), (ScriptingMode::Evalsha, "evalsha")];
const DAY_MS: u64 = 86_400_000;

/// A commit that owns what it names.
#[derive(Debug, Clone, Default)]
struct Change {
    session: String,
    create: bool,
    expect: Vec<(String, Option<Bytes>)>,
    set: Vec<(String, Bytes)>,
    add: Vec<(String, i64)>,
    remove: Vec<String>,
    max_fields: u64,
    max_bytes: u64,
}

impl Change {
    fn of(session: &str) -> Self {
        Self { session: session.to_owned(), max_fields: 256, ..Self::default() }
    }

    fn set(mut self, name: &str, value: &str) -> Self {
        self.set.push((name.to_owned(), Bytes::from(value.to_owned())));
        self
    }

    fn add(mut self, name: &str, by: i64) -> Self {
        self.add.push((name.to_owned(), by));
        self
    }

    fn expect(mut self, name: &str, value: Option<&str>) -> Self {
        self.expect.push((name.to_owned(), value.map(|value| Bytes::from(value.to_owned()))));
        self
    }

    fn request<'a>(&'a self, key: &'a str) -> CommitSession<'a> {
        let create =
            NewSession { created_ms: Some(now_ms()), views: 3, idle_ms: DAY_MS, absolute_ms: 30 * DAY_MS };
        CommitSession {
            key,
            create: self.create.then_some(create),
            expect: &self.expect,
            set: &self.set,
            add: &self.add,
            remove: &self.remove,
            max_fields: self.max_fields,
            max_bytes: self.max_bytes,
        }
    }

    /// The arguments of version 2's commit, which does one at a time.
    fn alone(&self) -> Vec<Value> {
        let mut args = vec![Value::from(if self.create { "1" } else { "0" })];
        if self.create {
            args.extend([now_ms(), 3, DAY_MS, 30 * DAY_MS].map(|number| Value::from(number.to_string())));
        }
        let count = |count: usize| Value::from(count.to_string());
        args.extend([Value::from(self.max_fields.to_string()), Value::from(self.max_bytes.to_string())]);
        args.push(count(self.expect.len()));
        for (name, value) in &self.expect {
            args.extend([stored_name(name), Value::from(if value.is_some() { "1" } else { "0" })]);
            args.push(Value::Bytes(value.clone().unwrap_or_default()));
        }
        args.push(count(self.set.len()));
        for (name, value) in &self.set {
            args.extend([stored_name(name), Value::Bytes(value.clone())]);
        }
        args.push(count(self.add.len()));
        for (name, by) in &self.add {
            args.extend([stored_name(name), Value::from(by.to_string())]);
        }
        args.extend(self.remove.iter().map(|name| stored_name(name)));
        args
    }
}

/// An application's own `_` is stored as `__`.
fn stored_name(name: &str) -> Value {
    Value::from(if name.starts_with('_') { format!("_{name}") } else { name.to_owned() })
}

fn now_ms() -> u64 {
    // Of the hour: the same for both ways of asking.
    let now_ms = u64::try_from(regatta::__internals::sys::clock::wall_clock().as_millis()).unwrap();
    now_ms - now_ms % 3_600_000
}

fn stored(sums: &[i64]) -> Result<CommitOutcome, RedisError> {
    Ok(CommitOutcome::Committed { sums: sums.to_vec() })
}

/// All at the same time; their answers in their order.
async fn crowd(redis: &RedisClient, changes: Vec<Change>) -> Vec<Result<CommitOutcome, RedisError>> {
    let mut tasks = JoinSet::new();
    for (number, change) in changes.into_iter().enumerate() {
        let redis = redis.clone();
        tasks.spawn(async move { (number, redis.commit(&change.request(&change.session)).await) });
    }
    let mut answers = tasks.join_all().await;
    answers.sort_by_key(|(number, _)| *number);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

fn session(server: &TestRedis, key: &str) {
    let now = regatta::__internals::sys::clock::wall_clock().as_millis().to_string();
    server.cli(&["HSET", key, "_c", &now, "_t", &now, "_v", "1"]);
}

/// The application's fields as the next request sees them.
async fn fields(redis: &RedisClient, key: &str) -> BTreeMap<String, Bytes> {
    let session = SessionQuery {
        key: key.into(),
        generation: None,
        access: SessionAccess::Read,
        provisional: None,
        idle_ms: DAY_MS,
        absolute_ms: 30 * DAY_MS,
    };
    let request = begin::BeginRequest { session: Some(&session), ..Default::default() };
    match redis.begin(&request).await.unwrap() {
        begin::BeginReply::Granted { session: SessionLookup::Found { fields, .. }, .. } => {
            fields.into_iter().collect()
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn two_hundred_at_once_each_keep_their_own_field_of_one_session() {
    for (mode, command) in BOTH {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        session(&server, "p:s:one");
        server.cli(&["CONFIG", "RESETSTAT"]);
        let changes = (0..200).map(|at| Change::of("p:s:one").set(&format!("field{at}"), &at.to_string()));
        let answers = crowd(&redis, changes.collect()).await;
        assert!(answers.iter().all(|answer| *answer == stored(&[])), "{mode:?}: {answers:?}");
        // Sixty-four at most in one.
        assert_eq!(calls(&server, command), 4, "{mode:?}");
        let found = fields(&redis, "p:s:one").await;
        assert!((0..200).all(|at| found[&format!("field{at}")] == at.to_string()), "{mode:?}: {found:?}");
    }
}

#[tokio::test]
async fn commits_of_many_sessions_share_calls_and_one_that_is_alone_is_one_and_is_not_noted() {
    for (mode, command) in BOTH {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        let names: Vec<_> = (0..64).map(|at| format!("p:s:{at}")).collect();
        names.iter().for_each(|name| session(&server, name));
        server.cli(&["CONFIG", "RESETSTAT"]);
        for at in 1..=10 {
            let change = Change::of("p:s:0").add("sum", 1);
            assert_eq!(redis.commit(&change.request("p:s:0")).await, stored(&[at]));
        }
        assert_eq!(calls(&server, command), 10, "{mode:?}");
        assert!(!server.keys().iter().any(|key| key.contains(":once:")), "{:?}", server.keys());
        let answers =
            crowd(&redis, names.iter().map(|name| Change::of(name).set("cart", "[1]")).collect()).await;
        assert!(answers.iter().all(|answer| *answer == stored(&[])), "{mode:?}: {answers:?}");
        assert_eq!(calls(&server, command), 11, "{mode:?}");
        for name in &names {
            assert_eq!(server.cli(&["HGET", name, "cart"]), "[1]");
        }
    }
}

#[tokio::test]
async fn each_commit_fails_by_its_own_rules_and_harms_no_other() {
    for (mode, command) in BOTH {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        session(&server, "p:s:one");
        server.cli(&["HSET", "p:s:one", "name", "x"]);
        server.cli(&["HSET", "p:s:marked", "_r", "1"]);
        server.cli(&["SET", "p:s:text", "x"]);
        server.cli(&["CONFIG", "RESETSTAT"]);
        let one = || Change::of("p:s:one");
        let changes = vec![
            one().add("sum", 7).add("other", -2),
            one().expect("name", Some("y")).set("a", "1"),
            one().expect("name", Some("x")).set("name", "y"),
            one().expect("name", Some("y")).set("b", "1"),
            Change { max_fields: 3, ..one().set("c", "1") },
            one().add("name", 1),
            Change::of("p:s:text").set("a", "1"),
            Change::of("p:s:gone").set("a", "1"),
            Change::of("p:s:marked").set("a", "1"),
            Change { create: true, ..Change::of("p:s:new").add("sum", 5) },
            Change { create: true, ..Change::of("p:s:new").set("late", "1") },
            one().add("sum", 1),
        ];
        let answers = crowd(&redis, changes).await;
        let refused = |at: usize| {
            matches!(&answers[at], Err(RedisError::Rejected { rejection: ServerRejection::WrongType, .. }))
        };
        assert!(refused(6), "{mode:?}: {answers:?}");
        let answers: Vec<_> = answers.into_iter().filter_map(Result::ok).collect();
        let sums = |sums: &[i64]| CommitOutcome::Committed { sums: sums.to_vec() };
        let expected = [
            sums(&[7, -2]),
            CommitOutcome::Conflict,
            sums(&[]),
            sums(&[]),
            CommitOutcome::TooLarge,
            CommitOutcome::NotANumber,
            CommitOutcome::Gone,
            CommitOutcome::Rotated,
            sums(&[5]),
            CommitOutcome::Exists,
            sums(&[8]),
        ];
        assert_eq!(answers, expected, "{mode:?}");
        assert_eq!(calls(&server, command), 1, "{mode:?}");
        assert!(redis.breaker_states().all_closed());
        let found = fields(&redis, "p:s:one").await;
        assert_eq!(found.keys().collect::<Vec<_>>(), ["b", "name", "other", "sum"]);
    }
}

#[tokio::test]
async fn a_large_commit_goes_alone_and_small_ones_do_not_wait_for_it() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Fcall).await;
    session(&server, "p:s:one");
    server.cli(&["CONFIG", "RESETSTAT"]);
    let large = Change::of("p:s:one").set("large", &"x".repeat(9000));
    let small = (0..20).map(|at| Change::of("p:s:one").set(&format!("f{at}"), "1"));
    let answers = crowd(&redis, std::iter::once(large).chain(small).collect()).await;
    assert!(answers.iter().all(|answer| *answer == stored(&[])), "{answers:?}");
    assert_eq!(calls(&server, "fcall"), 2);
    assert_eq!(fields(&redis, "p:s:one").await.len(), 21);
}

#[tokio::test]
async fn a_caller_that_leaves_early_has_sent_nothing_and_one_that_leaves_later_harms_no_other() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Fcall).await;
    session(&server, "p:s:one");
    let one = || Change::of("p:s:one").add("sum", 1);
    let gone = one();
    assert!(redis.commit(&gone.request("p:s:one")).now_or_never().is_none());
    assert_eq!(crowd(&redis, vec![one()]).await, [stored(&[1])]);
    server.stop();
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let redis = redis.clone();
        tasks.spawn(async move { redis.commit(&one().request("p:s:one")).await });
    }
    let other = tokio::spawn({
        let redis = redis.clone();
        async move { redis.commit(&one().request("p:s:one")).await }
    });
    eventually("a silence", async || redis.outage_stats().silences > 0).await;
    tasks.abort_all();
    while tasks.join_next().await.is_some() {}
    server.cont();
    assert_eq!(other.await.unwrap(), stored(&[10]), "what was sent is stored, once");
    assert_eq!(server.cli(&["HGET", "p:s:one", "sum"]), "10");
}

#[tokio::test]
async fn commits_whose_answer_is_lost_are_stored_once_and_one_that_is_alone_is_told_so() {
    let server = TestRedis::start();
    let proxy = FaultProxy::before(&server);
    let redis = proxy.connect(&server, "p", ScriptingMode::Fcall).await;
    session(&server, "p:s:one");
    let one = || Change::of("p:s:one").add("sum", 1);
    for round in 0..5 {
        let before = proxy.faults_injected();
        proxy.lose_replies("regatta_v6_commits", 1);
        let answers = crowd(&redis, (0..100).map(|_| one()).collect()).await;
        let sums: BTreeSet<_> = answers
            .iter()
            .map(|answer| match answer {
                Ok(CommitOutcome::Committed { sums }) => sums[0],
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(sums, (round * 100 + 1..=round * 100 + 100).collect());
        assert_eq!(proxy.faults_injected(), before + 1);
    }
    proxy.lose_replies("regatta_v6_commits", 1);
    let lost = redis.commit(&one().request("p:s:one")).await;
    assert!(matches!(lost, Err(RedisError::ConnectionLost { .. })), "{lost:?}");
    assert_eq!(server.cli(&["HGET", "p:s:one", "sum"]), "501");
}

#[tokio::test]
async fn connections_that_are_killed_in_the_middle_lose_no_sum_and_store_none_twice() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Fcall).await;
    session(&server, "p:s:one");
    let (mut sums, mut lost) = (BTreeSet::new(), 0);
    for _ in 0..10 {
        let crowd = crowd(&redis, (0..150).map(|_| Change::of("p:s:one").add("sum", 1)).collect());
        let kill = async {
            tokio::task::yield_now().await;
            server.cli(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])
        };
        for answer in tokio::join!(crowd, kill).0 {
            match answer {
                Ok(CommitOutcome::Committed { sums: told }) => {
                    assert!(sums.insert(told[0]), "told twice: {told:?}")
                }
                Err(RedisError::ConnectionLost { .. }) => lost += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    let sum: i64 = server.cli(&["HGET", "p:s:one", "sum"]).parse().unwrap();
    assert!(sums.iter().all(|told| (1..=sum).contains(told)));
    assert!((sums.len()..=sums.len() + lost).contains(&usize::try_from(sum).unwrap()), "{sum}: {lost} lost");
    assert_eq!(lost, 0, "all of them share calls, which are noted");
}

#[tokio::test]
async fn code_that_is_gone_is_loaded_and_a_full_server_stores_none() {
    for (mode, _) in BOTH {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        session(&server, "p:s:one");
        let adds = || (0..50).map(|_| Change::of("p:s:one").add("sum", 1)).collect();
        server.cli(&["FUNCTION", "FLUSH", "SYNC"]);
        server.cli(&["SCRIPT", "FLUSH", "SYNC"]);
        let answers = crowd(&redis, adds()).await;
        assert!(answers.iter().all(Result::is_ok), "{mode:?}: {answers:?}");
        server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
        let answers = crowd(&redis, adds()).await;
        let full = |answer: &Result<CommitOutcome, RedisError>| {
            matches!(answer, Err(RedisError::Rejected { rejection: ServerRejection::WritesDisabled, .. }))
        };
        assert!(answers.iter().all(full), "{mode:?}: {answers:?}");
        server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
        let one = Change::of("p:s:one").add("sum", 1);
        eventually("it stores again", async || redis.commit(&one.request("p:s:one")).await == stored(&[51]))
            .await;
    }
}

fn change() -> impl Strategy<Value = Change> {
    let session = prop_oneof![6 => 0..3u8, 3 => 3..8u8].prop_map(|number| format!("s:{number}"));
    let name = || prop_oneof![5 => (0..5u8).prop_map(|at| format!("f{at}")), 1 => Just("_x".to_owned())];
    let value = || prop_oneof![Just(Bytes::new()), Just("1".into()), Just("2".into()), Just("many".into())];
    let expect = vec((name(), proptest::option::of(value())), 0..2);
    let by = prop_oneof![6 => -3..4_i64, 1 => Just(i64::MAX), 1 => Just(i64::MIN)];
    let sized =
        (prop_oneof![3 => Just(64_u64), 1 => 0..6_u64], prop_oneof![3 => Just(0_u64), 1 => 4..20_u64]);
    let parts = (expect, vec((name(), value()), 0..3), vec((name(), by), 0..3), vec(name(), 0..2));
    (session, 0..6u8, parts, sized).prop_map(
        |(session, create, (expect, set, add, remove), (most, bytes))| Change {
            session,
            create: create == 0,
            expect,
            set,
            add,
            remove,
            max_fields: most,
            max_bytes: bytes,
        },
    )
}

struct World(Client);

impl World {
    async fn start(server: &TestRedis) -> Self {
        let unix = ServerConfig::Unix { path: server.socket() };
        let client = Client::new(Config { server: unix, ..Config::default() }, None, None, None);
        client.init().await.unwrap();
        Self(client)
    }

    async fn ask(&self, command: &'static str, args: &[&str]) -> Result<Value, String> {
        let custom = CustomCommand::new_static(command, ClusterHash::FirstKey, false);
        let args: Vec<_> = args.iter().map(|arg| Value::from(*arg)).collect();
        self.0.custom(custom, args).await.map_err(|error| error.details().to_owned())
    }

    async fn fill(&self, prefix: &str) {
        for (number, more) in [(0, &[][..]), (1, &["f0", "1", "f1", "many"]), (2, &["f2", "9", "__x", "1"])] {
            let key = format!("{prefix}s:{number}");
            let mut args = vec![key.as_str(), "_c", "5", "_t", "5", "_v", "1"];
            args.extend_from_slice(more);
            self.ask("HSET", &args).await.unwrap();
        }
        self.ask("HSET", &[&format!("{prefix}s:3"), "_r", "1"]).await.unwrap();
        self.ask("HSET", &[&format!("{prefix}s:4"), "f0", "1"]).await.unwrap();
        self.ask("SET", &[&format!("{prefix}s:5"), "x"]).await.unwrap();
    }

    /// What lies under each session's key, without when it was touched.
    async fn state(&self, prefix: &str) -> Vec<BTreeMap<String, String>> {
        let mut state = Vec::new();
        for number in 0..8 {
            let flat = self.ask("HGETALL", &[&format!("{prefix}s:{number}")]).await;
            let flat = match flat {
                Ok(Value::Array(flat)) => flat,
                other => vec![Value::from("failed"), Value::from(format!("{other:?}"))],
            };
            let texts: Vec<_> = flat.iter().map(|value| value.as_string().unwrap()).collect();
            let pairs = texts.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone()));
            state.push(pairs.filter(|(name, _)| name != "_t").collect());
        }
        state
    }

    async fn alone(&self, prefix: &str, change: &Change) -> Result<CommitOutcome, ()> {
        let key = Bytes::from(format!("{prefix}{}", change.session));
        let answer = self.0.fcall::<Value, _, _, _>("regatta_v2_commit", vec![key], change.alone()).await;
        Ok(match answer.map_err(|_| ())? {
            Value::Array(parts) => CommitOutcome::Committed {
                sums: parts[1..].iter().map(|sum| sum.as_i64().unwrap()).collect(),
            },
            number => match number.as_i64().unwrap() {
                1 => CommitOutcome::Committed { sums: vec![] },
                0 => CommitOutcome::Gone,
                -1 => CommitOutcome::Exists,
                -2 => CommitOutcome::TooLarge,
                -3 => CommitOutcome::Conflict,
                -4 => CommitOutcome::NotANumber,
                -5 => CommitOutcome::Rotated,
                other => panic!("{other}"),
            },
        })
    }

    async fn batch(
        &self,
        prefix: &str,
        changes: &[Change],
        ledger: Option<&BatchLedger>,
    ) -> Result<Vec<Result<CommitOutcome, ()>>, String> {
        let keys: Vec<_> = changes.iter().map(|change| format!("{prefix}{}", change.session)).collect();
        let entries: Vec<_> =
            changes.iter().zip(&keys).map(|(change, key)| CommitEntry::new(&change.request(key))).collect();
        let entries: Vec<_> = entries.iter().collect();
        let mut args = batch::encode(&entries, ledger, Value::Null).split_off(1);
        let count = usize::try_from(args[0].as_u64().unwrap()).unwrap();
        let rest = args.split_off(1 + count);
        let keys: Vec<Bytes> = args.split_off(1).into_iter().map(|key| key.into_bytes().unwrap()).collect();
        let reply = self.0.fcall::<Value, _, _, _>("regatta_v6_commits", keys, rest).await;
        let reply = reply.map_err(|error| error.details().to_owned())?;
        let answers = batch::decode(&entries, reply).map_err(|error| error.to_string())?;
        Ok(answers.into_iter().map(|answer| answer.map_err(|_| ())).collect())
    }
}

async fn check(world: &World, run: u64, changes: &[Change], noted: bool) -> Result<(), TestCaseError> {
    let (one, other) = (format!("a{run}:"), format!("b{run}:"));
    world.fill(&one).await;
    world.fill(&other).await;
    let key = Value::from(format!("once{run}"));
    let ledger = |number, repeated| BatchLedger { key: key.clone(), number, repeated };
    let batch = async |ledger: Option<&BatchLedger>| {
        world.batch(&one, changes, ledger).await.map_err(TestCaseError::fail)
    };
    let first = ledger(8, false);
    let replies = batch(noted.then_some(&first)).await?;
    for (at, change) in changes.iter().enumerate() {
        prop_assert_eq!(&replies[at], &world.alone(&other, change).await, "{}: {:?}", at, change);
    }
    let state = world.state(&one).await;
    prop_assert_eq!(&state, &world.state(&other).await);
    if noted {
        // The repetition, and the first sending if it comes late, are told what was told; one before it does nothing.
        for repeated in [true, false] {
            prop_assert_eq!(&batch(Some(&ledger(8, repeated))).await?, &replies);
        }
        prop_assert!(batch(Some(&ledger(7, false))).await.is_err());
        prop_assert_eq!(&world.state(&one).await, &state);
    }
    Ok(())
}

#[test]
fn a_batch_of_commits_does_what_they_do_one_by_one_and_does_it_once() {
    let server = TestRedis::start();
    server.load(&["regatta_v2", "regatta_v6"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let world = runtime.block_on(World::start(&server));
    let values = (vec(change(), 1..12), any::<bool>());
    property::holds(soak::length(300, 10_000), &values, |run, (changes, noted)| {
        runtime.block_on(check(&world, run, &changes, noted))
    });
}
