//! Batches among faults: whatever becomes of Redis in the middle of a load, each answer is its caller's own, each number
//! is right, and no caller waits for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::thread;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::counters::commands::CounterIncrement;
use regatta::__internals::redis::RedisError;
use regatta::__internals::request_state::begin::{BeginReply, BeginRequest};
use regatta::__internals::sessions::query::{SessionAccess, SessionLookup, SessionQuery};
use tokio::task::JoinSet;

use crate::support::clock::Clock;
use crate::support::fault_proxy::{FaultProxy, LinkState};
use crate::support::redis::{TestRedis, connect};
use crate::support::{process, wait};
use regatta::__internals::request_state::StateClient;

/// With functions, and where they are not allowed; and what a batch is called there.
const BOTH: [(ScriptingMode, &str); 2] =
    [(ScriptingMode::Fcall, "regatta_v6_batch"), (ScriptingMode::Evalsha, "EVALSHA")];

/// Callers of a load; more than a call has entries.
const CALLERS: usize = 100;

/// Far above a caller's patience, which is 2 s, and a silence; far below a hang.
const HANG: Duration = Duration::from_secs(10);

const DAY_MS: u64 = 86_400_000;

/// What a caller was told.
#[derive(Debug, Default)]
struct Seen {
    /// Which caller it was.
    caller: usize,
    /// Its own number, unless the server may have forgotten it.
    told: Option<i64>,
    /// Calls since then of which it is unknown whether they were executed.
    maybe: i64,
    /// The numbers of all together.
    totals: Vec<i64>,
}

#[derive(Debug, Default)]
struct Shared {
    ended: AtomicBool,
    /// Whether answers get lost on the way.
    repeats: AtomicBool,
    /// Whether the server may forget what it told.
    forgetful: AtomicBool,
    counted: AtomicU64,
    failed: Mutex<BTreeMap<String, u64>>,
    longest: Mutex<Duration>,
}

impl Shared {
    fn failures(&self) -> u64 {
        self.failed.lock().unwrap().values().sum()
    }
}

/// Callers that go on until they are stopped, on a runtime of one thread, as a worker's is.
struct Crowd {
    shared: Arc<Shared>,
    thread: JoinHandle<Vec<Seen>>,
}

impl Crowd {
    fn start(server: &TestRedis, proxy: Option<&FaultProxy>, mode: ScriptingMode) -> Self {
        for number in 0..CALLERS {
            let now = regatta::__internals::sys::clock::wall_clock().as_millis().to_string();
            server.cli(&["HSET", &format!("p:s:{number}"), "_c", &now, "_t", &now, "_v", "0"]);
        }
        let shared = Arc::new(Shared::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let redis = runtime.block_on(async {
            match proxy {
                Some(proxy) => proxy.connect(server, "p", mode).await,
                None => connect(server, "p", mode).await,
            }
        });
        let of_thread = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                let mut callers = JoinSet::new();
                for number in 0..CALLERS {
                    callers.spawn(caller(redis.clone(), number, Arc::clone(&of_thread)));
                }
                callers.join_all().await
            })
        });
        shared.repeats.store(proxy.is_some(), SeqCst);
        let crowd = Self { shared, thread };
        crowd.more();
        crowd
    }

    /// Waits until several times as many as there are callers were counted.
    #[track_caller]
    fn more(&self) {
        let enough = self.shared.counted.load(SeqCst) + 5 * CALLERS as u64;
        wait::until("calls are counted", wait::LONG, || self.shared.counted.load(SeqCst) > enough);
    }

    /// Waits until calls fail.
    #[track_caller]
    fn fails(&self) {
        let enough = self.shared.failures() + CALLERS as u64;
        wait::until("calls fail", wait::LONG, || self.shared.failures() > enough);
    }

    /// Ends the load: every number is right. What failed, by reason.
    #[track_caller]
    fn end(self, name: &str, server: &TestRedis) -> BTreeMap<String, u64> {
        self.more();
        self.shared.ended.store(true, SeqCst);
        let seen = self.thread.join().expect("a caller was told what is wrong");
        let number = |key: &str| server.cli(&["GET", key]).parse::<i64>().unwrap_or(0);
        let (mut sum, mut totals, mut told) = (0, BTreeSet::<i64>::new(), 0);
        for seen in &seen {
            let at = seen.caller;
            let value = number(&format!("p:c:{at}"));
            let own = seen.told.expect("it was told in the end");
            assert!((own..=own + seen.maybe).contains(&value), "{name}: {value} after {seen:?}");
            let views = server.cli(&["HGET", &format!("p:s:{at}"), "_v"]);
            assert!(views.is_empty() || views == value.to_string(), "{name}: {views} views of {value}");
            sum += value;
            told += seen.totals.len();
            totals.extend(&seen.totals);
        }
        assert_eq!(number("p:c:all"), sum, "{name}: an entry is done as a whole or not at all");
        // A batch whose answer was lost is answered by what stands now: that is told to others, too.
        let exact = !self.shared.repeats.load(SeqCst) && !self.shared.forgetful.load(SeqCst);
        assert!(!exact || totals.len() == told, "{name}: a number is told once");
        let (longest, failed) =
            (*self.shared.longest.lock().unwrap(), self.shared.failed.lock().unwrap().clone());
        eprintln!(
            "{name}: {} counted, at most {longest:?}, failed {failed:?}",
            self.shared.counted.load(SeqCst)
        );
        failed
    }
}

/// Views a session, adds to a counter of its own and to one of all, again and again.
async fn caller(redis: StateClient, number: usize, shared: Arc<Shared>) -> Seen {
    let mut seen = Seen { caller: number, ..Seen::default() };
    while !shared.ended.load(SeqCst) {
        let begun = Instant::now();
        let answer = tokio::time::timeout(HANG, one(&redis, number)).await;
        let answer = answer.unwrap_or_else(|_| panic!("caller {number} waits for ever"));
        {
            let mut longest = shared.longest.lock().unwrap();
            *longest = begun.elapsed().max(*longest);
        }
        match answer {
            Ok([own, all]) => {
                seen.note(own, all, shared.forgetful.load(SeqCst));
                shared.counted.fetch_add(1, SeqCst);
                wait::paced(Duration::from_millis(1)).await;
            }
            Err(error) => {
                let reason = match &error {
                    RedisError::ConnectionLost { .. } => "lost".to_owned(),
                    RedisError::Unavailable { .. } => "unavailable".to_owned(),
                    RedisError::Rejected { rejection: refusal, .. } => format!("{refusal:?}"),
                    other => panic!("caller {number}: {other:?}"),
                };
                seen.maybe += i64::from(matches!(error, RedisError::ConnectionLost { .. }));
                *shared.failed.lock().unwrap().entry(reason).or_default() += 1;
                wait::paced(Duration::from_millis(5)).await;
            }
        }
    }
    seen
}

async fn one(redis: &StateClient, number: usize) -> Result<[i64; 2], RedisError> {
    let session = SessionQuery {
        key: format!("p:s:{number}"),
        // Some are a user's, whose generation is read with them.
        generation: number.is_multiple_of(4).then(|| format!("p:g:{number}")),
        access: SessionAccess::CountView,
        provisional: None,
        idle_ms: DAY_MS,
        absolute_ms: 30 * DAY_MS,
    };
    let counters = [format!("p:c:{number}"), "p:c:all".to_owned()].map(|key| CounterIncrement { key, by: 1 });
    let request = BeginRequest { session: Some(&session), counters: &counters, ..Default::default() };
    match redis.begin(&request).await? {
        BeginReply::Granted { counters, session, .. } => {
            if let SessionLookup::Found { views, .. } = session {
                assert_eq!(i64::try_from(views).unwrap(), counters[0], "an answer of one call");
            }
            Ok([counters[0], counters[1]])
        }
        BeginReply::Denied { .. } => panic!("no limit was asked"),
    }
}

impl Seen {
    #[track_caller]
    fn note(&mut self, own: i64, all: i64, forgetful: bool) {
        if let Some(told) = self.told.filter(|_| !forgetful) {
            assert!(
                (told + 1..=told + 1 + self.maybe).contains(&own),
                "{own} after {told} and {}",
                self.maybe
            );
            assert!(
                self.totals.last().is_none_or(|last| *last < all),
                "{all} after {:?}",
                self.totals.last()
            );
        }
        self.told = Some(own);
        self.maybe = 0;
        self.totals.push(all);
    }
}

fn none(failed: &BTreeMap<String, u64>) {
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn a_server_that_becomes_a_replica_and_a_primary_again() {
    for (mode, _) in BOTH {
        let server = TestRedis::start();
        let crowd = Crowd::start(&server, None, mode);
        for _ in 0..3 {
            server.cli(&["REPLICAOF", "127.0.0.1", "1"]);
            crowd.fails();
            server.cli(&["REPLICAOF", "NO", "ONE"]);
            crowd.more();
        }
        let failed = crowd.end("READONLY", &server);
        let known = |reason: &String| ["ReadOnly", "unavailable"].contains(&reason.as_str());
        assert!(failed.keys().all(known), "{failed:?}");
    }
}

#[test]
fn a_server_that_is_full_and_has_room_again() {
    for (mode, _) in BOTH {
        let server = TestRedis::start();
        let crowd = Crowd::start(&server, None, mode);
        for _ in 0..3 {
            server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
            crowd.fails();
            server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
            crowd.more();
        }
        let failed = crowd.end("OOM", &server);
        let known = |reason: &String| ["WritesDisabled", "unavailable"].contains(&reason.as_str());
        assert!(failed.keys().all(known), "{failed:?}");
    }
}

#[test]
fn code_that_is_forgotten_again_and_again() {
    for (mode, _) in BOTH {
        let server = TestRedis::start();
        let crowd = Crowd::start(&server, None, mode);
        for _ in 0..10 {
            server.cli(&["FUNCTION", "FLUSH", "SYNC"]);
            server.cli(&["SCRIPT", "FLUSH", "SYNC"]);
            crowd.more();
        }
        none(&crowd.end("flush", &server));
    }
}

#[test]
fn answers_that_are_lost_again_and_again() {
    for (mode, name) in BOTH {
        let server = TestRedis::start();
        let proxy = FaultProxy::before(&server);
        let crowd = Crowd::start(&server, Some(&proxy), mode);
        for _ in 0..10 {
            let sprung = proxy.faults_injected();
            proxy.lose_replies(name, 1);
            wait::until("it is lost", wait::LONG, || proxy.faults_injected() > sprung);
            crowd.more();
        }
        none(&crowd.end("lost answers", &server));
    }
}

#[test]
fn a_lost_answer_whose_repetition_is_refused_is_no_refusal() {
    for (mode, name) in BOTH {
        let server = TestRedis::start();
        let proxy = FaultProxy::before(&server);
        let crowd = Crowd::start(&server, Some(&proxy), mode);
        for reply in ["-READONLY You can't write against a read only replica.", "-OOM command not allowed"] {
            let lost = || crowd.shared.failed.lock().unwrap().get("lost").copied().unwrap_or(0);
            let before = lost();
            // What is refused next is the repetition, or another call that was out as well: until it was the repetition.
            wait::until("what was lost and refused is told to be lost", wait::LONG, || {
                proxy.lose_replies(name, 1);
                proxy.answer(name, 1, reply);
                crowd.more();
                lost() > before
            });
        }
        proxy.clear_command_faults();
        crowd.end("lost and refused", &server);
    }
}

#[test]
fn what_stands_still_on_the_way_and_comes_late() {
    for (mode, _) in BOTH {
        let server = TestRedis::start();
        let proxy = FaultProxy::before(&server);
        let crowd = Crowd::start(&server, Some(&proxy), mode);
        for _ in 0..3 {
            proxy.set_link(LinkState::Stalled);
            wait::let_pass(Duration::from_millis(600));
            proxy.set_link(LinkState::Open);
            crowd.more();
            // One that is lost without a word, and one whose connections alone are.
            proxy.blackhole();
            crowd.more();
            proxy.reset();
            crowd.more();
        }
        none(&crowd.end("stalled, forgotten, reset", &server));
    }
}

/// Calls that were sent before it stood still are behind their own repetitions then, or before them.
#[test]
fn a_server_that_stands_still_for_a_while() {
    for (mode, _) in BOTH {
        let server = TestRedis::start();
        let crowd = Crowd::start(&server, None, mode);
        crowd.shared.repeats.store(true, SeqCst);
        for millis in [300, 1000, 300, 1000] {
            server.stop();
            wait::let_pass(Duration::from_millis(millis));
            server.cont();
            crowd.more();
        }
        none(&crowd.end("frozen for 0.3 and 1 s", &server));
    }
}

#[test]
fn a_server_that_stands_still_for_longer_than_callers_wait() {
    for (mode, _) in BOTH {
        let server = TestRedis::start();
        let crowd = Crowd::start(&server, None, mode);
        crowd.shared.repeats.store(true, SeqCst);
        server.stop();
        wait::let_pass(Duration::from_secs(5));
        server.cont();
        let failed = crowd.end("frozen for 5 s", &server);
        assert!(failed["lost"] <= CALLERS as u64, "{failed:?}");
    }
}

#[test]
fn a_server_that_is_killed_and_has_its_data_again() {
    for (mode, _) in BOTH {
        let mut server = TestRedis::start_with(&["--appendonly", "yes"]);
        let crowd = Crowd::start(&server, None, mode);
        crowd.shared.repeats.store(true, SeqCst);
        for _ in 0..3 {
            server.restart();
            crowd.more();
        }
        none(&crowd.end("restarted with its data", &server));
    }
}

#[test]
fn a_server_that_is_killed_and_has_lost_its_data() {
    for (mode, _) in BOTH {
        let mut server = TestRedis::start();
        let crowd = Crowd::start(&server, None, mode);
        for _ in 0..3 {
            crowd.shared.forgetful.store(true, SeqCst);
            server.restart();
            crowd.more();
        }
        none(&crowd.end("restarted without data", &server));
    }
}

#[test]
fn connections_that_are_killed_and_clients_that_are_paused() {
    for (mode, _) in BOTH {
        let server = TestRedis::start();
        let crowd = Crowd::start(&server, None, mode);
        crowd.shared.repeats.store(true, SeqCst);
        for round in 0..10 {
            server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
            crowd.more();
            if round % 3 == 0 {
                server.cli(&["CLIENT", "PAUSE", "500", ["ALL", "WRITE"][round / 3 % 2]]);
                crowd.more();
            }
        }
        none(&crowd.end("killed and paused", &server));
    }
}

#[test]
fn a_clock_that_steps_both_ways() {
    for (mode, _) in BOTH {
        let clock = Clock::new();
        let server = TestRedis::with_clock(&clock);
        let crowd = Crowd::start(&server, None, mode);
        for step in [600, 0, -600, 0] {
            clock.step(step);
            crowd.more();
        }
        none(&crowd.end("clock", &server));
    }
}

/// Sixteen times what may be out at once, and then more than may wait.
#[test]
fn more_than_may_wait_are_told_at_once_and_the_others_are_counted() {
    const WAIT: usize = 16_384;
    let server = TestRedis::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let redis = connect(&server, "p", ScriptingMode::Auto).await;
        let before = process::private_memory(std::process::id());
        let mut counted = 0;
        for (calls, refused) in [(16 * 8 * 64, 0), (WAIT + 3000, 3000)] {
            server.stop();
            let mut callers = JoinSet::new();
            for number in 0..calls {
                let redis = redis.clone();
                callers.spawn(async move {
                    (Instant::now(), redis.increment(&format!("p:c:{}", number % 7), 1).await)
                });
            }
            let mut told = Vec::new();
            while told.len() < refused {
                let (begun, answer) = callers.join_next().await.unwrap().unwrap();
                assert!(matches!(answer, Err(RedisError::Unavailable { .. })), "{answer:?}");
                told.push(begun.elapsed());
            }
            let grown = process::private_memory(std::process::id()).saturating_sub(before);
            assert!(grown < 100 << 20, "{grown} bytes for {calls} calls");
            server.cont();
            let answers = callers.join_all().await;
            assert!(answers.iter().all(|(_, answer)| answer.is_ok()), "{calls} calls");
            counted += answers.len();
            eprintln!("{calls} calls: {grown} bytes, {refused} told within {:?}", told.iter().max());
        }
        let sum: usize = (0..7)
            .map(|number| server.cli(&["GET", &format!("p:c:{number}")]).parse::<usize>().unwrap())
            .sum();
        assert_eq!(sum, counted);
    });
}
