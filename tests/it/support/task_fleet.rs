//! A fleet whose workers take tasks, and a program that looks at them from outside.

use std::time::{Duration, Instant};

use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::tasks::TaskQueue;
use regatta::__internals::tasks::TaskStatus;
use regatta::task::{TaskContext, TaskId, TaskState};

use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::{TestRedis, connect};
use crate::support::task_steps::settings;
use crate::support::wait;

/// A fleet of the example whose workers take tasks.
pub(crate) fn plan(redis: &TestRedis, workers: usize) -> TestFleetBuilder {
    TestFleetBuilder::on(redis).example("faulty").workers(workers).set("REGATTA_TASKS__CONCURRENCY", "1")
}

/// A program that makes tasks and looks at them from outside: it knows the kinds and does none.
pub(crate) async fn client(redis: &TestRedis, fleet: &TestFleet) -> TaskQueue {
    let connection = connect(redis, fleet.plan().prefix(), ScriptingMode::Auto).await;
    let tasks =
        TaskQueue::with_client(connection.redis().clone(), &settings(&[("max_queued", "5000")]), "client");
    for kind in ["nap", "deaf", "mishap"] {
        tasks.register(kind, |_: (), _: &TaskContext| Ok::<_, String>(())).unwrap();
    }
    tasks
}

pub(crate) async fn look(tasks: &TaskQueue, id: TaskId) -> TaskStatus {
    let begun = Instant::now();
    loop {
        match tasks.status(&id).await {
            Ok(task) => return task.expect("the task is there"),
            // Where a test takes Redis away.
            Err(error) => assert!(begun.elapsed() < wait::LONG, "{error}"),
        }
        wait::paced(Duration::from_millis(20)).await;
    }
}

/// Waits for a task to be as wanted.
pub(crate) async fn until(
    tasks: &TaskQueue,
    id: TaskId,
    within: Duration,
    what: &str,
    is: impl Fn(&TaskStatus) -> bool,
) -> TaskStatus {
    let begun = Instant::now();
    loop {
        let task = look(tasks, id).await;
        if is(&task) {
            return task;
        }
        assert!(begun.elapsed() < within, "not within {within:?}: {what}; it is {task:?}");
        wait::paced(Duration::from_millis(10)).await;
    }
}

pub(crate) async fn ended(tasks: &TaskQueue, id: TaskId) -> TaskStatus {
    until(tasks, id, 3 * wait::LONG, "the task ends", |task| task.state.is_final()).await
}

pub(crate) async fn runs(tasks: &TaskQueue, id: TaskId) -> (TaskStatus, u32) {
    let task = until(tasks, id, wait::LONG, "it runs", |task| task.state == TaskState::Running).await;
    let pid = pid_of(&task);
    (task, pid)
}

pub(crate) fn pid_of(task: &TaskStatus) -> u32 {
    task.worker.as_ref().unwrap().rsplit_once(':').unwrap().1.parse().unwrap()
}
