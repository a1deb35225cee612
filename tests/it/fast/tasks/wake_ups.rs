//! A task wakes one worker, whatever their number; and a task for which none was woken is found all the same.

use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::interfaces::{ClientLike, PubsubInterface};
use fred::types::RespVersion;
use fred::types::config::{Config, ServerConfig};
use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::redis::keys;
use regatta::__internals::redis::notifications::NotificationChannel;
use regatta::__internals::tasks::TaskQueue;
use regatta::__internals::tasks::keys as task_keys;
use regatta::task::{TaskContext, TaskId, TaskState};

use crate::support::redis::{TestRedis, connect, eventually, function_calls};
use crate::support::task_steps::settings;
use crate::support::wait;
use regatta::__internals::request_state::StateClient;

/// A worker over a connection of its own.
async fn worker(server: &TestRedis, name: &str, set: &[(&str, &str)]) -> (StateClient, TaskQueue) {
    let redis = connect(server, "p", ScriptingMode::Auto).await;
    let tasks = TaskQueue::with_client(redis.redis().clone(), &settings(set), name);
    for kind in ["a", "b"] {
        let registered = tasks.register(kind, |millis: u64, progress: &TaskContext| {
            let until = Instant::now() + Duration::from_millis(millis);
            while Instant::now() < until && !progress.is_cancelled() {
                wait::pace(Duration::from_millis(1));
            }
            progress.percent(100);
            Ok::<_, String>(millis)
        });
        registered.unwrap();
    }
    (redis, tasks)
}

async fn ended(tasks: &TaskQueue, id: TaskId) {
    eventually("it is done", async || {
        tasks.status(&id).await.unwrap().is_some_and(|task| task.state == TaskState::Done)
    })
    .await;
}

/// How many wait for a kind.
fn idle(server: &TestRedis, kind: &str) -> usize {
    server.cli(&["ZCARD", &task_keys::task_idle_workers("p", kind)]).parse().unwrap()
}

#[tokio::test]
async fn a_task_costs_four_calls_whatever_the_number_of_workers() {
    const TASKS: u64 = 40;
    for workers in [1, 16] {
        let server = TestRedis::start();
        let mut all = Vec::new();
        for number in 0..workers {
            let (redis, tasks) = worker(&server, &format!("w{number}"), &[("concurrency", "1")]).await;
            tasks.start();
            eventually("it listens", async || redis.notifications_complete_since().is_some()).await;
            all.push(tasks);
        }
        eventually("all wait", async || idle(&server, "a") == workers).await;
        server.cli(&["CONFIG", "RESETSTAT"]);
        let begun = Instant::now();
        for _ in 0..TASKS {
            let id = all[0].enqueue("a", &0).await.unwrap();
            ended(&all[0], id).await;
        }
        // Two looks a second for all, and a worker that waits for so long looks anew.
        let looks = 3 * (begun.elapsed().as_secs() + 1) + 8;
        let calls = function_calls(&server);
        assert!(calls <= TASKS * 42 / 10 + looks, "{workers} workers: {calls} calls for {TASKS} tasks");
        eventually("all wait again", async || idle(&server, "a") == workers).await;
        let asleep = Duration::from_secs(2);
        server.cli(&["CONFIG", "RESETSTAT"]);
        wait::pass(asleep).await;
        let at_rest = function_calls(&server);
        assert!(at_rest <= 14, "{workers} workers at rest: {at_rest} calls in {asleep:?}");
    }
}

#[tokio::test]
async fn many_tasks_at_once_wake_as_many_workers_as_there_are() {
    const TASKS: u64 = 60;
    let server = TestRedis::start();
    let mut all = Vec::new();
    for number in 0..8 {
        let (redis, tasks) = worker(&server, &format!("w{number}"), &[("concurrency", "1")]).await;
        tasks.start();
        eventually("it listens", async || redis.notifications_complete_since().is_some()).await;
        all.push(tasks);
    }
    eventually("all wait", async || idle(&server, "a") == 8).await;
    server.cli(&["CONFIG", "RESETSTAT"]);
    let begun = Instant::now();
    let mut made = Vec::new();
    for number in 0..TASKS {
        made.push(all[0].enqueue(if number % 2 == 0 { "a" } else { "b" }, &10).await.unwrap());
    }
    let mut by = std::collections::BTreeSet::new();
    for id in made {
        ended(&all[0], id).await;
        by.extend(all[0].status(&id).await.unwrap().unwrap().worker);
    }
    assert!(by.len() >= 6, "{by:?}");
    let most = TASKS * 42 / 10 + 3 * (begun.elapsed().as_secs() + 1) + 32;
    assert!(function_calls(&server) <= most, "{} calls for {TASKS} tasks", function_calls(&server));
}

/// A listener that is woken and does nothing: a worker in the moment before it is killed.
async fn doomed(server: &TestRedis, name: &str) -> Client {
    let unix = ServerConfig::Unix { path: server.socket() };
    let client = Client::new(
        Config { server: unix, version: RespVersion::RESP3, ..Config::default() },
        None,
        None,
        None,
    );
    client.init().await.unwrap();
    client.subscribe(NotificationChannel::worker(name).name("p")).await.unwrap();
    client.ping::<()>(None).await.unwrap();
    // As if it had begun to wait last, so that it is the first to be woken.
    let now: u64 = server.cli(&["TIME"]).lines().next().unwrap().parse::<u64>().unwrap() * 1000;
    for kind in ["a", "b"] {
        server.cli(&["ZADD", &task_keys::task_idle_workers("p", kind), &(now + 60_000).to_string(), name]);
    }
    client
}

#[tokio::test]
async fn a_task_whose_woken_worker_is_gone_is_begun_by_another() {
    let server = TestRedis::start();
    let (_, tasks) = worker(&server, "lives", &[]).await;
    tasks.start();
    eventually("it waits", async || idle(&server, "a") == 1).await;
    for round in 0..3 {
        let name = format!("doomed{round}");
        let doomed = doomed(&server, &name).await;
        // Gone before: its channel has no listener, which is seen at once. Gone after: the next look finds the task.
        if round == 1 {
            doomed.quit().await.unwrap();
        }
        let id = tasks.enqueue("a", &0).await.unwrap();
        ended(&tasks, id).await;
        assert_eq!(
            server.cli(&["ZSCORE", &task_keys::task_idle_workers("p", "a"), &name]),
            "",
            "it is woken once"
        );
    }
}

#[tokio::test]
async fn who_leaves_passes_on_what_it_was_woken_for() {
    let server = TestRedis::start();
    let (_, stays) = worker(&server, "stays", &[]).await;
    let (_, leaves) = worker(&server, "leaves", &[]).await;
    stays.start();
    eventually("it waits", async || idle(&server, "a") == 1).await;
    leaves.start();
    eventually("both wait", async || idle(&server, "a") == 2).await;
    leaves.stop_claiming();
    eventually("one waits no more", async || idle(&server, "a") == 1).await;
    for _ in 0..5 {
        let id = stays.enqueue("a", &0).await.unwrap();
        ended(&stays, id).await;
        assert_eq!(stays.status(&id).await.unwrap().unwrap().worker.as_deref(), Some("stays"));
    }
}

#[tokio::test]
async fn a_job_is_stopped_when_it_was_cancelled_and_not_when_somebody_says_so() {
    let server = TestRedis::start();
    let (redis, tasks) = worker(&server, "w", &[]).await;
    tasks.start();
    eventually("it listens", async || redis.notifications_complete_since().is_some()).await;
    let state = async |id| tasks.status(&id).await.unwrap().unwrap().state;
    let told = tasks.enqueue("a", &700).await.unwrap();
    let cancelled = tasks.enqueue("a", &600_000).await.unwrap();
    for id in [told, cancelled] {
        eventually("it runs", async || state(id).await == TaskState::Running).await;
    }
    let worker = server.cli(&["HGET", &task_keys::task("p", &told.to_string()), "v"]);
    for channel in [NotificationChannel::worker(&worker).name("p"), keys::notifications_channel("p")] {
        server.cli(&["PUBLISH", &channel, &format!("p {told} cancelled")]);
    }
    ended(&tasks, told).await;
    tasks.cancel(&cancelled).await.unwrap();
    eventually("its place is free", async || tasks.stats().await.unwrap().running.is_empty()).await;
    // Its thread has ended, or it would be waited for.
    tokio::time::timeout(Duration::from_secs(20), tasks.drain()).await.unwrap();
    assert_eq!(state(cancelled).await, TaskState::Cancelled);
}

#[tokio::test]
async fn who_says_that_there_is_something_makes_no_storm_of_looks() {
    let server = TestRedis::start();
    let (_, tasks) = worker(&server, "w", &[]).await;
    tasks.start();
    eventually("it waits", async || idle(&server, "a") == 1).await;
    let worker = server.cli(&["ZRANGE", &task_keys::task_idle_workers("p", "a"), "0", "0"]);
    server.cli(&["CONFIG", "RESETSTAT"]);
    let begun = Instant::now();
    for _ in 0..300 {
        server.cli(&["PUBLISH", &NotificationChannel::worker(&worker).name("p"), "t a"]);
    }
    let most = begun.elapsed().as_millis() / 20 + 10;
    assert!(u128::from(function_calls(&server)) <= most, "{} looks, at most {most}", function_calls(&server));
}
