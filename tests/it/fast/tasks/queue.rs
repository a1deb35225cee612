//! Tasks as an application sees them: what is refused, what every follower sees, and one queue in a cluster.

use std::sync::Arc;
use std::time::Duration;

use regatta::__internals::config;
use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::config::{ConfigInputs, settings};
use regatta::__internals::redis::{RedisClient, RedisStatus};
use regatta::__internals::tasks::TaskQueue;
use regatta::__internals::tasks::{INPUT_MAX, TaskError};
use regatta::task::{TaskContext, TaskState};
use tokio::task::JoinSet;

use crate::support::redis::{TestRedis, connect, eventually};
use crate::support::redis_cluster::TestRedisCluster;
use crate::support::task_steps::settings;
use crate::support::wait;

/// A worker of these tests: doubles numbers, in a while.
fn worker(redis: &RedisClient, set: &[(&str, &str)]) -> TaskQueue {
    worker_of(redis, set, "test:1")
}

fn worker_of(redis: &RedisClient, set: &[(&str, &str)], name: &str) -> TaskQueue {
    let tasks = TaskQueue::with_client(redis.clone(), &settings(set), name);
    let registered = tasks.register("double", |(number, millis): (u64, u64), progress: &TaskContext| {
        for step in 0..50 {
            wait::pace(Duration::from_micros(millis * 20));
            progress.percent(2 * step + 2);
        }
        Ok::<_, String>(number * 2)
    });
    registered.unwrap();
    tasks
}

#[tokio::test]
async fn what_cannot_be_taken_is_refused_and_nothing_is_made() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Auto).await;
    let tasks = worker(&redis, &[("max_queued", "2")]);
    assert_eq!(tasks.enqueue("halve", &1).await, Err(TaskError::UnknownKind("halve".to_owned())));
    let large = tasks.enqueue("double", &"x".repeat(INPUT_MAX)).await.unwrap_err();
    assert_eq!(large.to_string(), "the task's input cannot be taken: it has 16386 bytes; allowed: 16384");
    for _ in 0..2 {
        tasks.enqueue("double", &(1, 1)).await.unwrap();
    }
    assert_eq!(tasks.enqueue("double", &(1, 1)).await, Err(TaskError::QueueFull));
    assert_eq!(tasks.stats().await.unwrap().waiting, 2);
}

#[tokio::test]
async fn who_stops_taking_ends_what_it_has_and_takes_nothing_more() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Auto).await;
    let leaves = worker_of(&redis, &[], "test:leaves");
    leaves.start();
    let first = leaves.enqueue("double", &(1, 500)).await.unwrap();
    let state = async |id| leaves.status(&id).await.unwrap().unwrap().state;
    eventually("it runs", async || state(first).await == TaskState::Running).await;
    // No one waits for its end: one that is cut short takes nothing either.
    leaves.stop_claiming();
    let mut later = Vec::new();
    for _ in 0..5 {
        later.push(leaves.enqueue("double", &(1, 1)).await.unwrap());
    }
    eventually("the first one ends", async || state(first).await == TaskState::Done).await;
    let stays = worker_of(&redis, &[], "test:stays");
    stays.start();
    for id in later {
        eventually("the others end", async || state(id).await == TaskState::Done).await;
        let task = leaves.status(&id).await.unwrap().unwrap();
        assert_eq!(task.worker.as_deref(), Some("test:stays"));
    }
}

#[tokio::test]
async fn redis_away_is_an_error_and_no_hang() {
    let mut server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Auto).await;
    let tasks = worker(&redis, &[]);
    let id = tasks.enqueue("double", &(1, 1)).await.unwrap();
    server.kill();
    assert!(matches!(tasks.enqueue("double", &(1, 1)).await, Err(TaskError::Redis(_))));
    assert!(matches!(tasks.status(&id).await, Err(TaskError::Redis(_))));
    assert!(matches!(tasks.watch(&id).await.map(|_| ()), Err(TaskError::Redis(_))));
    assert_eq!(tasks.watched_count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_who_follow_one_task_are_one_reader_and_all_see_its_end() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Auto).await;
    let tasks = worker(&redis, &[]);
    tasks.start();
    let id = tasks.enqueue("double", &(21, 2000)).await.unwrap();
    server.cli(&["CONFIG", "RESETSTAT"]);
    let mut followers = JoinSet::new();
    for _ in 0..1000 {
        let mut following = tasks.watch(&id).await.unwrap();
        followers.spawn(async move {
            let (mut last, mut seen) = (0, 0);
            let mut end = None;
            while let Some(task) = following.next().await {
                assert!(task.percent >= last, "it went back");
                (last, seen) = (task.percent, seen + 1);
                end = Some(task);
            }
            (seen, end.map(|task| (task.state, task.result.as_ref().map(|result| result.get().to_owned()))))
        });
    }
    assert_eq!(tasks.watched_count(), 1);
    while let Some(followed) = followers.join_next().await {
        let (seen, end) = followed.unwrap();
        assert_eq!(end, Some((TaskState::Done, Some("42".to_owned()))));
        assert!(seen >= 3, "it saw {seen} changes");
    }
    let reads = server.commands().get("hmget").copied().unwrap_or(0);
    let renewals = server.commands().get("xclaim").copied().unwrap_or(0);
    // Each renewal reads too, within its function; the followers read once for each piece of news at most.
    assert!(reads <= 3 * renewals + 30, "{reads} reads for {renewals} renewals");
    eventually("nobody looks any more", async || tasks.watched_count() == 0).await;
    let mut late = tasks.watch(&id).await.unwrap();
    assert_eq!(late.next().await.map(|task| task.state), Some(TaskState::Done));
    assert!(late.next().await.is_none());
    let mut unknown = tasks.watch(&regatta::task::TaskId::new().unwrap()).await.unwrap();
    assert!(unknown.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_cluster_there_is_one_queue_and_everybody_hears() {
    let cluster = TestRedisCluster::start();
    let flags = vec![("redis.url".to_owned(), cluster.url(), "test".to_owned())];
    let url = config::load(&ConfigInputs { flags, ..ConfigInputs::default() }).unwrap().redis.url.unwrap();
    for scripting in [ScriptingMode::Fcall, ScriptingMode::Evalsha] {
        let settings = settings::RedisConfig {
            url: Some(url.clone()),
            prefix: format!("{scripting:?}"),
            scripting,
            silence_timeout: Duration::from_millis(250),
            maxmemory: settings::MaxMemory::Auto,
            reconnect_wait: Duration::from_secs(2),
            credentials: settings::RedisCredentials::default(),
        };
        let mut workers = Vec::new();
        for _ in 0..2 {
            let redis = RedisClient::new(&settings, &url, "test").unwrap();
            redis.start();
            eventually("all nodes are connected", async || redis.status() == RedisStatus::Up).await;
            let tasks = worker(&redis, &[]);
            tasks.start();
            workers.push(tasks);
        }
        let mut ids = Vec::new();
        for number in 0..20 {
            ids.push(workers[number % 2].enqueue("double", &(number, 20)).await.unwrap());
        }
        for (number, id) in ids.iter().enumerate() {
            let mut following = workers[(number + 1) % 2].watch(id).await.unwrap();
            let mut last = None;
            while let Some(task) = following.next().await {
                last = Some(task);
            }
            let last: Arc<_> = last.unwrap();
            assert_eq!(
                last.result.as_ref().unwrap().get(),
                (2 * number).to_string(),
                "{scripting:?} {last:?}"
            );
        }
        let survey = workers[0].stats().await.unwrap();
        assert_eq!((survey.waiting, survey.running.len(), survey.totals.done), (0, 0, 20));
        let keys = cluster.keys();
        let queue = keys.iter().find(|key| key.ends_with("queue:double")).unwrap();
        assert_eq!(cluster.query("XLEN", queue, &[]), "0");
    }
}
