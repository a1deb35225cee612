//! Counters, broadcasts and tasks of a program that is no fleet and serves nothing.

use std::fmt::Debug;
use std::time::Duration;

use regatta::broadcast::{Broadcast, Presence};
use regatta::counter::Counters;
use regatta::rate_limit::{Key, Quota, RateLimitLayer, RateLimiter};
use regatta::session::SessionLayer;
use regatta::task::{self, Task, TaskContext, TaskQueue, TaskRunner, TaskState};
use regatta::{LastEventId, Redis, TrustedProxies};
use serde::{Deserialize, Serialize};

use crate::fast::standalone::program;
use crate::support::redis::TestRedis;

/// Longest wait for a message.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Serialize, Deserialize)]
struct Thumbnails(String);

impl Task for Thumbnails {
    const NAME: &'static str = "thumbnails";
    type Output = u32;
}

#[derive(Debug, Serialize, Deserialize)]
struct Misnamed;

impl Task for Misnamed {
    const NAME: &'static str = "No kind";
    type Output = ();
}

#[test]
fn every_handle_can_be_cloned_sent_shared_and_shown() {
    fn is_handle<T: Clone + Send + Sync + Debug>() {}
    is_handle::<Redis>();
    is_handle::<SessionLayer>();
    is_handle::<RateLimitLayer>();
    is_handle::<RateLimiter>();
    is_handle::<Key>();
    is_handle::<Quota>();
    is_handle::<TrustedProxies>();
    is_handle::<Counters>();
    is_handle::<Broadcast>();
    is_handle::<TaskQueue>();
}

/// Waits until one subscribes.
async fn wait_for_one(presence: &mut Presence) {
    let found = async { while presence.next().await != 1 {} };
    tokio::time::timeout(PATIENCE, found).await.unwrap();
}

#[test]
fn what_is_made_of_a_connection_keeps_it() {
    let server = TestRedis::start();
    program::runtime().block_on(async {
        let other = program::connect(server.url().expose(), "kept").await.unwrap();
        let (mut heard, mut presence, mut watch) = {
            let redis = program::connect(server.url().expose(), "kept").await.unwrap();
            let topic = Broadcast::new(&redis).topic("news").unwrap();
            let tasks = TaskQueue::new(&redis);
            let id = tasks.enqueue(Thumbnails("album".to_owned())).await.unwrap().id();
            let heard = topic.subscribe(LastEventId::none()).await.unwrap();
            (heard, topic.presence(), tasks.watch(id).await.unwrap())
        };
        let id = watch.next().await.unwrap().id();
        Broadcast::new(&other).topic("news").unwrap().publish("ahoy").await.unwrap();
        TaskQueue::new(&other).cancel(id).await.unwrap();
        let event = tokio::time::timeout(PATIENCE, heard.next()).await.unwrap();
        assert!(format!("{event:?}").starts_with("Some(Message("), "{event:?}");
        wait_for_one(&mut presence).await;
        let task = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
        assert_eq!(task.state(), TaskState::Cancelled);
    });
}

#[test]
fn a_handle_can_be_made_outside_a_runtime_at_any_time() {
    let server = TestRedis::start();
    let runtime = program::runtime();
    let redis = runtime.block_on(program::connect(server.url().expose(), "outside")).unwrap();
    let topic = Broadcast::new(&redis).topic("news").unwrap();
    // The connection has begun, and this thread is in no runtime.
    let mut presence = topic.presence();
    runtime.block_on(async {
        let _heard = topic.subscribe(LastEventId::none()).await.unwrap();
        wait_for_one(&mut presence).await;
    });
}

#[test]
fn batched_additions_are_sent_at_once() {
    let server = TestRedis::start();
    program::runtime().block_on(async {
        let [redis, other] = [(); 2].map(|()| Redis::builder().url(server.url().expose()).prefix("handles"));
        let (redis, other) = (redis.connect().await.unwrap(), other.connect().await.unwrap());
        let hits = Counters::new(&redis).batched("hits");
        hits.add(2).await.unwrap();
        hits.add(3).await.unwrap();
        assert_eq!(Counters::new(&other).get("hits").await.unwrap(), 5);
        let read = hits.value().await.unwrap();
        assert_eq!((read.value(), read.staleness()), (5, Duration::ZERO));
    });
}

#[test]
fn bounded_and_distinct_counters_work_without_a_request() {
    let server = TestRedis::start();
    program::runtime().block_on(async {
        let redis = program::connect(server.url().expose(), "handles").await.unwrap();
        let counters = Counters::new(&redis);
        let seats = counters.bounded("seats", 2);
        assert!(seats.try_take(2).await.unwrap().is_granted());
        assert!(!seats.try_take(1).await.unwrap().is_granted());
        let visitors = counters.distinct("visitors");
        visitors.insert("ann").await.unwrap();
        assert_eq!(visitors.insert("ann").await.unwrap().count(), 1);
    });
}

#[test]
fn a_message_reaches_subscribers_of_another_program() {
    let server = TestRedis::start();
    program::runtime().block_on(async {
        let redis = program::connect(server.url().expose(), "handles").await.unwrap();
        let other = program::connect(server.url().expose(), "handles").await.unwrap();
        let topic = |redis: &Redis| Broadcast::new(redis).topic("news").unwrap();
        let mut heard = topic(&other).subscribe(LastEventId::none()).await.unwrap();
        let id = topic(&redis).publish("ahoy").await.unwrap();
        let event = tokio::time::timeout(PATIENCE, heard.next()).await.unwrap();
        assert!(
            format!("{event:?}").starts_with("Some(Message(") && heard.last_id() == Some(id),
            "{event:?}"
        );
    });
}

#[test]
fn a_program_without_jobs_queues_tasks_for_those_that_have_them() {
    let server = TestRedis::start();
    program::runtime().block_on(async {
        let redis = program::connect(server.url().expose(), "handles").await.unwrap();
        let tasks = TaskQueue::new(&redis);
        // The queue keeps the connection.
        drop(redis);
        assert!(matches!(tasks.enqueue(Misnamed).await, Err(task::Error::UnknownKind(_))));
        let id = tasks.enqueue(Thumbnails("album".to_owned())).await.unwrap().id();
        let status = tasks.status(id).await.unwrap().unwrap();
        assert_eq!(status.state(), TaskState::Waiting);
        let mut watch = tasks.watch(id).await.unwrap();
        assert!(watch.next().await.is_some());
        tasks.cancel(id).await.unwrap();
        let ended = tokio::time::timeout(PATIENCE, async {
            let mut last = None;
            while let Some(status) = watch.next().await {
                last = Some(status.state());
            }
            last
        });
        assert_eq!(ended.await.unwrap(), Some(TaskState::Cancelled));
    });
}

#[test]
fn a_program_without_a_fleet_does_tasks_until_its_shutdown() {
    let server = TestRedis::start();
    program::runtime().block_on(async {
        let redis = program::connect(server.url().expose(), "runner").await.unwrap();
        let tasks = TaskQueue::new(&program::connect(server.url().expose(), "runner").await.unwrap());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let runner = TaskRunner::new(&redis)
            .blocking_task(|Thumbnails(album): Thumbnails, _: TaskContext| u32::try_from(album.len()));
        let running = tokio::spawn(runner.run(async { stopped.await.unwrap_or_default() }));
        let task = tasks.enqueue(Thumbnails("album".to_owned())).await.unwrap();
        assert_eq!(tokio::time::timeout(PATIENCE, task.output()).await.unwrap().unwrap(), 5);
        stop.send(()).unwrap();
        tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
        let left = tasks.enqueue(Thumbnails("later".to_owned())).await.unwrap();
        assert_eq!(left.status().await.unwrap().unwrap().state(), TaskState::Waiting);
        let twice = |Thumbnails(_): Thumbnails, _: TaskContext| Ok::<_, String>(1);
        let wrong = TaskRunner::new(&redis).blocking_task(twice).run(std::future::pending());
        assert!(matches!(wrong.await, Err(task::Error::Handlers(_))));
    });
}
