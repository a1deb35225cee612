//! The steps of a task's life, each as a worker takes it.

use std::time::Duration;

use regatta::__internals::config;
use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::config::{ConfigInputs, settings};
use regatta::__internals::redis::RedisClient;
use regatta::__internals::redis::task::{
    EnqueueOutcome, StartOutcome, TaskDelivery, TaskExecution, TaskPolicy,
};
use regatta::task::{TaskId, TaskState};

use crate::support::redis::{TestRedis, connect, eventually};

pub(crate) const MODES: [ScriptingMode; 2] = [ScriptingMode::Fcall, ScriptingMode::Evalsha];

pub(crate) const RULES: TaskPolicy = TaskPolicy {
    queue_max: 10,
    max_attempts: 2,
    max_lifetime: Duration::from_secs(1000),
    retention: Duration::from_secs(100),
    lease: Duration::from_millis(300),
};

/// A server and a worker's connection to it.
pub(crate) async fn setting(mode: ScriptingMode) -> (TestRedis, RedisClient) {
    let server = TestRedis::start();
    let redis = connect(&server, "p", mode).await;
    (server, redis)
}

pub(crate) async fn make(redis: &RedisClient, kind: &str) -> TaskId {
    let id = TaskId::new().unwrap();
    assert_eq!(redis.enqueue_task(id, kind, "7", &RULES).await, Ok(EnqueueOutcome::Queued));
    id
}

pub(crate) async fn take(redis: &RedisClient, kinds: &[&str]) -> Option<TaskDelivery> {
    redis.claim_task(kinds, Some(RULES.lease)).await.unwrap()
}

pub(crate) async fn begin(redis: &RedisClient, taken: TaskDelivery) -> (TaskExecution, StartOutcome) {
    let execution = TaskExecution::new(taken).unwrap();
    let begun = redis.start_task(&execution, "web:1", &RULES).await.unwrap();
    (execution, begun)
}

/// Waits until someone else's entry is overdue.
pub(crate) async fn take_over(redis: &RedisClient) -> TaskDelivery {
    let mut taken = None;
    eventually("the task is overdue", async || {
        taken = take(redis, &["a"]).await;
        taken.is_some()
    })
    .await;
    taken.unwrap()
}

pub(crate) async fn state(redis: &RedisClient, id: TaskId) -> (TaskState, u64) {
    let task = redis.get_task(id).await.unwrap().unwrap();
    (task.state, task.attempts)
}

pub(crate) fn run(attempt: u64) -> StartOutcome {
    StartOutcome::Started { attempt, input: "7".to_owned() }
}

/// Settings as an operator gives them.
pub(crate) fn settings(set: &[(&str, &str)]) -> settings::TasksConfig {
    let flag =
        |(name, value): &(&str, &str)| (format!("tasks.{name}"), (*value).to_owned(), "test".to_owned());
    config::load(&ConfigInputs { flags: set.iter().map(flag).collect(), ..ConfigInputs::default() })
        .unwrap()
        .tasks
}
