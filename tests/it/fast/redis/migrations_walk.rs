//! Long walks over keys: interrupted, resumed, refused; in small form here, over a million keys in the long one.

use std::cell::RefCell;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::redis::migrations::{
    Migration, MigrationSet, MigrationState, MigrationStatus, WalkProgress,
};
use regatta::__internals::redis::{RedisClient, RedisError};

use crate::support::redis::{TestRedis, connect};
use crate::support::{soak, wait};

/// Converts what holds `old`, counts every call, and refuses what is no string.
const RENAME: Migration = Migration::new(
    "0002",
    "rename",
    "#!walk keys=w:*
local function convert(key)
  redis.call('INCR', 'p:work')
  if redis.call('GET', key) ~= 'old' then return false end
  redis.call('SET', key, 'new')
  return true
end
",
);
const LIBRARY: Migration = Migration::new(
    "0001",
    "regatta_walked_v1",
    "#!lua name=regatta_walked_v1\nredis.register_function('regatta_walked_v1_x', function() return 1 end)",
);

fn series() -> MigrationSet {
    MigrationSet::from_migrations([LIBRARY, RENAME])
}

fn redis(server: &TestRedis, name: &str) -> RedisClient {
    RedisClient::new(&server.settings("p", ScriptingMode::Fcall), &server.url(), name).unwrap()
}

/// So many keys to convert, and some that are none of the walk's.
fn fill(server: &TestRedis, keys: u64) {
    let script = "for i = 1, ARGV[1] do redis.call('SET', 'p:w:' .. i, 'old') end
        redis.call('SET', 'p:other', 'old') redis.call('SET', 'q:w:1', 'old')";
    server.cli(&["EVAL", script, "0", &keys.to_string()]);
}

fn number(server: &TestRedis, args: &[&str]) -> u64 {
    server.cli(args).parse().unwrap()
}

/// Every key was converted, and the conversion was called for at most a twentieth more than there are.
#[track_caller]
fn assert_converted(server: &TestRedis, keys: u64) {
    let script = "local old = 0 for i = 1, ARGV[1] do
        if redis.call('GET', 'p:w:' .. i) ~= 'new' then old = old + 1 end end return old";
    assert_eq!(number(server, &["EVAL", script, "0", &keys.to_string()]), 0, "keys that were left out");
    assert_eq!(server.cli(&["MGET", "p:other", "q:w:1"]), "old\nold");
    let work = number(server, &["GET", "p:work"]);
    soak::log("walk", &format!("{keys} keys, converted {work} times"));
    assert!(work >= keys && work <= keys + keys / 20, "{work} conversions of {keys} keys");
}

/// Runs until so many keys are done and ends there without another word, as a killed process does.
async fn killed_at(server: &TestRedis, keys: u64) -> WalkProgress {
    let (doomed, series) = (redis(server, "doomed"), series());
    let seen: RefCell<Option<WalkProgress>> = RefCell::default();
    let mut walk = Box::pin(series.apply(&doomed, |now| _ = seen.replace(Some(now.clone()))));
    let deadline = Instant::now() + wait::LONG * 10;
    std::future::poll_fn(|context| {
        assert!(Instant::now() < deadline, "the walk does not come so far");
        assert!(walk.as_mut().poll(context).is_pending(), "the walk was to be killed on its way");
        match &*seen.borrow() {
            Some(now) if now.keys >= keys => Poll::Ready(now.clone()),
            _ => Poll::Pending,
        }
    })
    .await
}

#[tokio::test]
async fn a_killed_walk_goes_on_from_where_it_was() {
    let keys = soak::length(4_000, 1_000_000);
    let server = TestRedis::start();
    fill(&server, keys);
    let foreground = soak::soaks().then(|| Foreground::start(&server));
    let reached = killed_at(&server, keys / 2).await;

    let successor = redis(&server, "successor");
    let steps = series().plan(&successor).await.unwrap();
    assert!(
        matches!(&steps[1].status, MigrationStatus::Started { by, keys } if by == "doomed" && *keys + 200 > reached.keys)
    );
    assert!(steps[0].is_applied(), "a library does not wait for walks");
    // Until its lock has run out no one takes over.
    assert_eq!(series().apply(&successor, |_| ()).await, Err(RedisError::MigrationsLocked));
    server.cli(&["DEL", "p:mig:walk:lock"]);

    let mut first = None;
    let steps = series().apply(&successor, |now| _ = first.get_or_insert(now.keys)).await.unwrap();
    assert!(steps.iter().all(MigrationState::is_applied));
    assert!(first.unwrap() >= keys / 2, "it began at {first:?}");
    assert_converted(&server, keys);
    if let Some(foreground) = foreground {
        soak::log("walk", &format!("slowest of 100 calls beside it: {:?}", foreground.stop()));
    }
}

/// Someone who asks Redis something all the time while a walk runs.
struct Foreground {
    ended: Arc<std::sync::atomic::AtomicBool>,
    thread: std::thread::JoinHandle<Vec<Duration>>,
}

impl Foreground {
    fn start(server: &TestRedis) -> Self {
        use std::io::{Read, Write};
        let ended = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (stop, socket) = (Arc::clone(&ended), server.socket());
        let thread = std::thread::spawn(move || {
            let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
            let mut times = Vec::new();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let began = Instant::now();
                stream.write_all(b"PING\r\n").unwrap();
                stream.read_exact(&mut [0; 7]).unwrap();
                times.push(began.elapsed());
                wait::pace(Duration::from_millis(1));
            }
            times
        });
        Self { ended, thread }
    }

    /// The time that one in a hundred took, or more.
    fn stop(self) -> Duration {
        self.ended.store(true, std::sync::atomic::Ordering::Relaxed);
        let mut times = self.thread.join().unwrap();
        times.sort();
        times[times.len() * 99 / 100]
    }
}

#[tokio::test]
async fn a_cursor_of_another_server_process_is_not_trusted() {
    let mut server = TestRedis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    fill(&server, 2_000);
    killed_at(&server, 1_000).await;
    server.restart();
    server.cli(&["DEL", "p:mig:walk:lock"]);
    server.cli(&["SET", "p:work", "0"]);
    series().apply(&redis(&server, "successor"), |_| ()).await.unwrap();
    assert_converted(&server, 2_000);
}

#[tokio::test]
async fn a_key_that_cannot_be_converted_is_named_and_stops_the_walk_until_it_is_gone() {
    let server = TestRedis::start();
    fill(&server, 300);
    server.cli(&["RPUSH", "p:w:stray", "a"]);
    let runner = redis(&server, "runner");
    let Err(RedisError::UnconvertibleKey { file, key, reason }) = series().apply(&runner, |_| ()).await
    else {
        panic!("a list was converted")
    };
    assert_eq!((file.as_str(), key.as_str()), ("migrations/0002_rename.lua", "p:w:stray"));
    assert!(reason.contains("WRONGTYPE"), "{reason}");
    server.cli(&["DEL", "p:w:stray"]);
    assert!(series().apply(&runner, |_| ()).await.unwrap().iter().all(MigrationState::is_applied));
    let before = server.cli(&["DEBUG", "DIGEST"]);
    assert!(series().apply(&runner, |_| ()).await.is_ok());
    assert_eq!(server.cli(&["DEBUG", "DIGEST"]), before, "what is applied is not walked again");
}

#[tokio::test]
async fn a_survey_counts_and_changes_nothing() {
    let server = TestRedis::start();
    fill(&server, 700);
    for key in ["p:s:a", "p:l:default:v:10.0.0.1", "p:c:hits"] {
        server.cli(&["SET", key, "1"]);
    }
    let before = server.cli(&["DEBUG", "DIGEST"]);
    let survey = series().survey(&redis(&server, "looker")).await.unwrap();
    assert_eq!(survey.keys["sessions"] + survey.keys["limits"] + survey.keys["counters"], 3);
    assert_eq!(survey.keys["other"], 701);
    assert_eq!((survey.walks[0].file.as_str(), survey.walks[0].keys), ("migrations/0002_rename.lua", 700));
    assert!(survey.walks[0].time > Duration::ZERO);
    assert_eq!(server.cli(&["DEBUG", "DIGEST"]), before);
}

#[tokio::test]
async fn workers_do_not_wait_for_a_walk_and_a_library_is_loaded_beside_it() {
    let server = TestRedis::start();
    // Someone walks.
    server.cli(&["SET", "p:mig:walk:lock", "a-walker", "PX", "60000"]);
    let worker = connect(&server, "p", ScriptingMode::Fcall).await;
    assert_eq!(worker.increment("p:c:x", 1).await, Ok(1));
    assert_eq!(server.cli(&["GET", "p:mig:walk:lock"]), "a-walker");
}
