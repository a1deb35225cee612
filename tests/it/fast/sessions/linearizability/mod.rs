//! Requests that meet, against a model that does one step after the other: every answer and the end must agree.
//!
//! Once with steps in a random order, each answer known exactly; and once with all clients at the same time, where
//! some order must explain what they saw. A counterexample is shrunk to its shortest form.

mod history;
mod model;
mod play;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestRunner;
use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::redis::RedisClient;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::fast::sessions::linearizability::history::Event;
use crate::fast::sessions::linearizability::model::{Answer, Index, Seen, Step, Use, World};
use crate::fast::sessions::linearizability::play::{NAME_COUNT, play};
use crate::support::fault_proxy::FaultProxy;
use crate::support::redis::{TestRedis, connect};
use crate::support::soak;

/// How many sessions there are.
const KEYS: Index = 2;

/// What a client does next.
#[derive(Debug, Clone)]
enum Move {
    Step(Step),
    /// Reads a field and puts a longer value in its place, unless someone else has changed it meanwhile.
    Update {
        key: Index,
        name: Index,
    },
}

/// A client: its moves, and what it knows.
#[derive(Debug, Default)]
struct Client {
    moves: Vec<Move>,
    /// The update that has read, and what is committed next.
    updates: Option<(Index, Index)>,
    next: Option<Step>,
}

impl Client {
    fn new(mut moves: Vec<Move>) -> Self {
        moves.reverse();
        Self { moves, ..Self::default() }
    }

    /// Its next step; none when it is done.
    fn step(&mut self) -> Option<Step> {
        if let Some(step) = self.next.take() {
            return Some(step);
        }
        match self.moves.pop()? {
            Move::Step(step) => Some(step),
            Move::Update { key, name } => {
                self.updates = Some((key, name));
                let session = Some(Use { key, visit: false, create: false, user: false });
                let none = (Vec::new(), Vec::new(), Vec::new());
                Some(Step::Begin { session, rates: none.0, leases: none.1, counters: none.2, token: 0 })
            }
        }
    }

    /// Takes note of the answer.
    fn hear(&mut self, answer: &Answer) {
        let Some((key, name)) = self.updates.take() else { return };
        let Answer::Granted { session: Seen::Live { fields, .. }, .. } = answer else { return };
        let before = fields.get(&name).cloned();
        let after = format!("{}+", before.as_deref().unwrap_or_default());
        self.next = Some(Step::Commit {
            key,
            create: false,
            expect: vec![(name, before)],
            set: vec![(name, after)],
            add: Vec::new(),
            remove: Vec::new(),
            max_bytes: 0,
        });
    }
}

/// Values that are numbers, nearly numbers, nearly too large, and long.
const VALUES: &[&str] = &[
    "",
    "7",
    "-3",
    "007",
    "-0",
    "1.5",
    "x",
    "9223372036854775807",
    "9223372036854775800",
    "a value of twenty-nine letters",
];

fn value() -> impl Strategy<Value = String> {
    select(VALUES).prop_map(str::to_owned)
}

fn name() -> impl Strategy<Value = Index> {
    0..NAME_COUNT
}

/// Every index once at most: no request has a limit, a counter or a field twice.
fn once<T>(mut list: Vec<T>, index: impl Fn(&T) -> Index) -> Vec<T> {
    let mut seen = Vec::new();
    list.retain(|item| {
        let new = !seen.contains(&index(item));
        seen.push(index(item));
        new
    });
    list
}

fn begin(makes: bool) -> impl Strategy<Value = Step> {
    let session = (0..KEYS, any::<bool>(), prop::bool::weighted(0.3), prop::bool::weighted(0.3)).prop_map(
        move |(key, visit, create, user)| Use { key, visit, create: create && makes, user: user && !create },
    );
    let rates = vec((0..2u8, 0..3u64, prop::bool::weighted(0.2)), 0..3);
    let leases = vec((0..2u8, prop::bool::weighted(0.3)), 0..2);
    let counters = vec((0..2u8, select(&[0, 1, -2, 40, i64::MAX, i64::MIN][..])), 0..3);
    (option::of(session), rates, leases, counters, 0..5u8).prop_map(
        |(session, rates, leases, counters, token)| Step::Begin {
            session,
            rates: once(rates, |rate| rate.0),
            leases: once(leases, |lease| lease.0),
            counters: once(counters, |counter| counter.0),
            token,
        },
    )
}

fn commit() -> impl Strategy<Value = Step> {
    let expect = vec((name(), option::of(value())), 0..2);
    let set = vec((name(), value()), 0..3);
    let add = vec((name(), select(&[1, -5, 1000, i64::MAX][..])), 0..3);
    let remove = vec(name(), 0..2);
    let key = (0..KEYS, prop::bool::weighted(0.2), prop_oneof![3 => Just(0), 1 => 20..80u64]);
    (key, expect, set, add, remove).prop_map(|((key, create, max_bytes), expect, set, add, remove)| {
        let set = once(set, |(name, _)| *name);
        let add = once(add, |(name, _)| *name);
        Step::Commit { key, create, expect, set, add, remove, max_bytes }
    })
}

fn moves(makes: bool, most: usize) -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        6 => begin(makes).prop_map(Move::Step),
        5 => commit().prop_map(Move::Step),
        3 => (0..KEYS, name()).prop_map(|(key, name)| Move::Update { key, name }),
        1 => (0..KEYS).prop_map(|key| Move::Step(Step::Delete(key))),
        1 => Just(Move::Step(Step::Revoke)),
    ];
    vec(one, 1..most)
}

/// Two workers' connections, and keys of its own for every run.
struct Place {
    runtime: Runtime,
    workers: [RedisClient; 2],
    runs: AtomicU64,
    _server: TestRedis,
}

impl Place {
    /// Over lines that break at every twentieth command, before or after it was done.
    fn over_bad_lines(mode: ScriptingMode) -> (Self, [FaultProxy; 2]) {
        let server = TestRedis::start();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let proxies = [FaultProxy::before(&server), FaultProxy::before(&server)];
        let workers = runtime.block_on(async {
            [proxies[0].connect(&server, "p", mode).await, proxies[1].connect(&server, "p", mode).await]
        });
        proxies.iter().for_each(|proxy| proxy.set_faults(|toxics| toxics.resets = 0.05));
        (Self { runtime, workers, runs: AtomicU64::new(0), _server: server }, proxies)
    }

    fn new(mode: ScriptingMode) -> Self {
        let server = TestRedis::start();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let workers = runtime
            .block_on(async { [connect(&server, "p", mode).await, connect(&server, "p", mode).await] });
        Self { runtime, workers, runs: AtomicU64::new(0), _server: server }
    }

    fn space(&self) -> String {
        format!("p:{}", self.runs.fetch_add(1, SeqCst))
    }
}

fn runner(short: u32, long: u32) -> TestRunner {
    let cases = soak::length(short, long);
    TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..ProptestConfig::default()
    })
}

/// A plain read of one session and of all counters.
fn look(key: Index) -> Step {
    let session = Some(Use { key, visit: false, create: false, user: false });
    let counters = vec![(0, 0), (1, 0)];
    Step::Begin { session, rates: Vec::new(), leases: Vec::new(), counters, token: 0 }
}

async fn in_turn(place: &Place, clients: Vec<Vec<Move>>, turns: Vec<usize>) -> Result<(), TestCaseError> {
    let space = place.space();
    let mut world = World::default();
    let mut clients: Vec<_> = clients.into_iter().map(Client::new).collect();
    let count = clients.len();
    // After the random turns all clients finish.
    for turn in turns.into_iter().chain((0..count).flat_map(|client| [client; 40])) {
        let client = &mut clients[turn % count];
        let Some(step) = client.step() else { continue };
        if world.is_impossible(&step) {
            continue;
        }
        let expected = world.step(&step);
        let answer = play(&place.workers[turn % 2], &space, &step).await;
        prop_assert_eq!(&answer, &expected, "{:?}", step);
        client.hear(&answer);
    }
    for step in (0..KEYS).map(look) {
        prop_assert_eq!(
            play(&place.workers[0], &space, &step).await,
            world.step(&step),
            "at the end: {:?}",
            step
        );
    }
    Ok(())
}

/// Does these steps one after the other, by the clock of all.
async fn told(
    redis: &RedisClient,
    space: &str,
    clock: &AtomicU64,
    mut next: impl FnMut(Option<&Answer>) -> Option<Step>,
) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    while let Some(step) = next(events.last().map(|event| &event.answer)) {
        let asked = clock.fetch_add(1, SeqCst);
        let answer = play(redis, space, &step).await;
        events.push(Event { asked, answered: clock.fetch_add(1, SeqCst), step, answer });
    }
    events
}

async fn at_once(place: &Place, clients: Vec<Vec<Move>>) -> Result<(), TestCaseError> {
    let space: Arc<str> = place.space().into();
    let mut world = World::default();
    for key in 0..KEYS {
        let session = Some(Use { key, visit: true, create: true, user: false });
        let none = (Vec::new(), Vec::new(), Vec::new());
        let step = Step::Begin { session, rates: none.0, leases: none.1, counters: none.2, token: 0 };
        prop_assert_eq!(play(&place.workers[0], &space, &step).await, world.step(&step));
    }
    let clock = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for (number, moves) in clients.into_iter().enumerate() {
        let (clock, space) = (Arc::clone(&clock), Arc::clone(&space));
        let redis = place.workers[number % 2].clone();
        tasks.spawn(async move {
            let mut client = Client::new(moves);
            told(&redis, &space, &clock, |answer| {
                answer.inspect(|answer| client.hear(answer));
                client.step()
            })
            .await
        });
    }
    let mut events = tasks.join_all().await;
    // What is left must come of the same order.
    let mut looks = (0..KEYS).map(look);
    events.push(told(&place.workers[0], &space, &clock, |_| looks.next()).await);
    match history::explain(&world, &events) {
        true => Ok(()),
        false => Err(TestCaseError::fail(format!("no order explains {events:#?}"))),
    }
}

#[test]
fn steps_in_any_order_are_what_the_model_says() {
    for mode in [ScriptingMode::Fcall, ScriptingMode::Evalsha] {
        let place = Place::new(mode);
        let programs = (vec(moves(true, 14), 1..4), vec(0..3usize, 0..60));
        let outcome = runner(300, 5_000)
            .run(&programs, |(clients, turns)| place.runtime.block_on(in_turn(&place, clients, turns)));
        outcome.unwrap_or_else(|failure| panic!("{mode:?}: {failure}"));
    }
}

/// What a request does at its start, and what may be sent again: as if no connection had ever broken. Left out are what
/// the first sending alone can tell: a limit in shadow that refused, and a session that was revoked by it.
fn beginnings() -> impl Strategy<Value = Vec<Move>> {
    let plain = |step: Step| match step {
        Step::Begin { session, rates, leases, counters, token } => Step::Begin {
            session: session.map(|how| Use { user: false, ..how }),
            rates: rates.into_iter().map(|(limit, cost, _)| (limit, cost, false)).collect(),
            leases: leases.into_iter().map(|(limit, _)| (limit, false)).collect(),
            counters,
            token,
        },
        other => other,
    };
    vec(begin(true).prop_map(plain).prop_map(Move::Step), 1..14)
}

/// Each request with a token of its own, as real ones have: what was done once already is answered by how things stand,
/// where a second request under the same name would seem to need one place more.
fn with_tokens(mut clients: Vec<Vec<Move>>) -> Vec<Vec<Move>> {
    let begun = clients.iter_mut().flatten().filter_map(|step| match step {
        Move::Step(Step::Begin { token, .. }) => Some(token),
        _ => None,
    });
    (0..).zip(begun).for_each(|(number, token)| *token = number);
    clients
}

#[test]
fn what_is_sent_again_over_bad_lines_is_done_once() {
    for mode in [ScriptingMode::Fcall, ScriptingMode::Evalsha] {
        let (place, proxies) = Place::over_bad_lines(mode);
        let programs = (vec(beginnings(), 1..4), vec(0..3usize, 0..60));
        let outcome = runner(30, 500).run(&programs, |(clients, turns)| {
            place.runtime.block_on(in_turn(&place, with_tokens(clients), turns))
        });
        outcome.unwrap_or_else(|failure| panic!("{mode:?}: {failure}"));
        assert!(proxies.iter().any(|proxy| proxy.faults_injected() > 0));
    }
}

#[test]
fn clients_at_the_same_time_see_what_some_order_explains() {
    let place = Place::new(ScriptingMode::Fcall);
    let outcome = runner(300, 5_000)
        .run(&vec(moves(false, 7), 2..4), |clients| place.runtime.block_on(at_once(&place, clients)));
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}
