//! A process that stood still and lost the lock writes nothing more, and says so.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::redis::migrations::{Migration, MigrationSet, MigrationState, SHIPPED};
use regatta::__internals::redis::{RedisClient, RedisError};

use crate::support::redis::TestRedis;
use crate::support::wait;

fn named(server: &TestRedis, name: &str) -> RedisClient {
    RedisClient::new(&server.settings("p", ScriptingMode::Fcall), &server.url(), name).unwrap()
}

/// Everything a migration may have written.
fn written(server: &TestRedis) -> [String; 3] {
    [&["DEBUG", "DIGEST"][..], &["FUNCTION", "LIST"], &["GET", "p:mig:fence"]].map(|args| server.cli(args))
}

/// Lets `work` run until `stop`, which is looked at whenever it waits for an answer; then it stands still, as a
/// suspended process does.
async fn run_until<T>(mut work: std::pin::Pin<&mut impl Future<Output = T>>, mut stop: impl FnMut() -> bool) {
    let deadline = Instant::now() + wait::LONG;
    std::future::poll_fn(|context| {
        assert!(Instant::now() < deadline, "it never came to where it is to be stopped");
        assert!(work.as_mut().poll(context).is_pending(), "it ended before it could be stopped");
        if stop() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

#[tokio::test]
async fn a_runner_that_stood_still_between_two_steps_writes_nothing_more() {
    let server = TestRedis::start();
    let (first, second) = (named(&server, "first"), named(&server, "second"));
    let mut stopped = pin!(SHIPPED.apply(&first, |_| ()));
    run_until(stopped.as_mut(), || server.cli(&["HGET", "p:mig", "0001"]).contains("running")).await;

    // Its lock runs out, and another one takes over and finishes.
    server.cli(&["DEL", "p:mig:lock"]);
    assert!(SHIPPED.apply(&second, |_| ()).await.unwrap().iter().all(MigrationState::is_applied));
    let before = written(&server);
    assert!(before[2] == "2" && server.cli(&["HGET", "p:mig", "0001"]).contains("second"));

    assert_eq!(stopped.await, Err(RedisError::MigrationLockLost));
    assert_eq!(written(&server), before);
}

#[tokio::test]
async fn a_runner_whose_lock_was_taken_writes_nothing_while_the_other_one_works() {
    let server = TestRedis::start();
    let first = named(&server, "first");
    let mut stopped = pin!(SHIPPED.apply(&first, |_| ()));
    run_until(stopped.as_mut(), || server.cli(&["HGET", "p:mig", "0001"]).contains("running")).await;
    // The same token under a later fencing number, and another token under the same number: both bar it.
    let (token, before) = (server.cli(&["GET", "p:mig:lock"]), server.cli(&["HGETALL", "p:mig"]));
    server.cli(&["SET", "p:mig:fence", "2"]);
    assert_eq!(stopped.await, Err(RedisError::MigrationLockLost));
    assert_eq!(server.cli(&["HGETALL", "p:mig"]), before);
    assert!(!token.is_empty() && server.cli(&["EXISTS", "p:mig:lock"]) == "0", "its own lock it gives back");
}

const SLOW: &[Migration] = &[Migration::new(
    "0001",
    "slow",
    "#!walk keys=w:*
local function convert(key)
  local from = redis.call('TIME')
  repeat
    local now = redis.call('TIME')
  until (now[1] - from[1]) * 1000000 + now[2] - from[2] > 1000
  return redis.call('APPEND', key, '!') > 0
end
",
)];

/// Walks on a runtime of its own, and tells after each step.
fn walk(server: &TestRedis, name: &str, mut told: impl FnMut()) -> Result<Vec<MigrationState>, RedisError> {
    let work = async |redis: RedisClient| MigrationSet::from_migrations(SLOW).apply(&redis, |_| told()).await;
    regatta::__internals::redis::run_once(
        &server.settings("p", ScriptingMode::Fcall),
        &server.url(),
        name,
        work,
    )
    .unwrap()
}

#[test]
fn a_walk_that_stood_still_converts_no_further_key() {
    let server = TestRedis::start();
    for index in 0..30 {
        server.cli(&["SET", &format!("p:w:{index}"), "v"]);
    }
    // In the middle of the first one's walk its lock runs out, and another one walks to the end.
    let mut after = None;
    let outcome = walk(&server, "first", || {
        after.get_or_insert_with(|| {
            server.cli(&["DEL", "p:mig:walk:lock"]);
            std::thread::scope(|scope| {
                scope.spawn(|| walk(&server, "second", || ())).join().unwrap().unwrap()
            });
            server.cli(&["DEBUG", "DIGEST"])
        });
    });
    assert_eq!(outcome, Err(RedisError::MigrationLockLost));
    assert_eq!(Some(server.cli(&["DEBUG", "DIGEST"])), after);
}

#[test]
fn a_long_walk_renews_its_lock() {
    let server = TestRedis::start();
    for index in 0..40 {
        server.cli(&["SET", &format!("p:w:{index}"), "v"]);
    }
    let left = |key: &str| server.cli(&["PTTL", key]).parse::<i64>().unwrap();
    let (began, mut least) = (Instant::now(), i64::MAX);
    walk(&server, "long", || {
        least = least.min(left("p:mig:walk:lock"));
        // As if each step took its time.
        wait::let_pass(Duration::from_millis(40));
    })
    .unwrap();
    let taken = i64::try_from(began.elapsed().as_millis()).unwrap();
    assert!(least > 5000 - taken / 2, "the lock had {least} ms left in a run of {taken} ms");
}
