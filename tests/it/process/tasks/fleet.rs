//! Tasks over a real fleet: workers are killed, leave, hang and lose Redis, and each task has one end.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use regatta::__internals::tasks::{Cancelled, TaskStatus};
use regatta::task::{TaskId, TaskState};

use crate::support::client::{Connection, Request};
use crate::support::exposition::sum;
use crate::support::redis::TestRedis;
use crate::support::task_fleet::{client, ended, look, pid_of, plan, runs, until};
use crate::support::{process, soak, wait};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_tasks_among_random_kills_are_finished_once_each() {
    let redis = TestRedis::start();
    let fleet =
        plan(&redis, 4).set("REGATTA_TASKS__MAX_ATTEMPTS", "50").set("REGATTA_TASKS__LEASE", "1s").start();
    let tasks = client(&redis, &fleet).await;
    let mut ids = Vec::new();
    for _ in 0..1000 {
        ids.push(tasks.enqueue("nap", &40).await.unwrap());
    }
    let (begun, mut kills) = (Instant::now(), 0);
    let mut random = u64::from(fleet.pid());
    loop {
        let survey = tasks.stats().await.unwrap();
        if survey.totals.done + survey.totals.failed + survey.totals.dead >= 1000 {
            break;
        }
        assert!(begun.elapsed() < 6 * wait::LONG, "{survey:?}");
        // A worker that serves for less than a second makes its slot wait: the subject is not that.
        wait::paced(Duration::from_millis(900)).await;
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let workers = fleet.workers();
        if let Some(pid) = workers.get((random >> 33) as usize % workers.len().max(1)) {
            process::signal(*pid, Signal::SIGKILL);
            kills += 1;
        }
    }
    let took = begun.elapsed();
    let mut begins = 0;
    for id in ids {
        let task = look(&tasks, id).await;
        assert_eq!(task.state, TaskState::Done, "{task:?}");
        begins += task.attempts;
    }
    let survey = tasks.stats().await.unwrap();
    let totals = survey.totals;
    assert_eq!((totals.done, totals.failed, totals.dead), (1000, 0, 0), "each was finished once");
    assert_eq!((survey.waiting, survey.running.len()), (0, 0));
    assert!(kills >= 3, "{kills} kills");
    let took_over = totals.reclaimed;
    soak::log(
        "tasks among kills",
        &format!("{took:?}, {kills} kills, {begins} begins, {took_over} taken over"),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_workers_task_is_taken_over_within_five_seconds() {
    let redis = TestRedis::start();
    let fleet = plan(&redis, 2).start();
    let tasks = client(&redis, &fleet).await;
    let id = tasks.enqueue("nap", &4000).await.unwrap();
    let (_, pid) = runs(&tasks, id).await;
    process::signal(pid, Signal::SIGKILL);
    let killed = Instant::now();
    let second = until(&tasks, id, wait::LONG, "it is begun again", |task| task.attempts == 2).await;
    let took = killed.elapsed();
    soak::log("taken over", &format!("{took:?} after the kill"));
    // A machine under load gets the promise's time twice.
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_ne!(pid_of(&second), pid);
    let task = ended(&tasks, id).await;
    assert_eq!((task.state, task.attempts, pid_of(&task)), (TaskState::Done, 2, pid_of(&second)));
    assert_eq!(tasks.stats().await.unwrap().totals.reclaimed, 1);
    let metrics = fleet.operator("/metrics").text();
    assert_eq!(sum(&metrics, "regatta_tasks_reclaimed_total", &[]), 1.0);
    assert_eq!(sum(&metrics, "regatta_tasks_finished_total", &["state=\"done\""]), 1.0);
    assert_eq!(sum(&metrics, "regatta_task_queue_latency_seconds", &[]), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poisonous_task_dies_after_its_attempts_and_the_fleet_lives() {
    let redis = TestRedis::start();
    let fleet =
        plan(&redis, 2).set("REGATTA_TASKS__MAX_ATTEMPTS", "2").set("REGATTA_TASKS__LEASE", "1s").start();
    let tasks = client(&redis, &fleet).await;
    for how in ["abort", "overflow"] {
        let poison = tasks.enqueue("mishap", how).await.unwrap();
        let task = ended(&tasks, poison).await;
        assert_eq!((task.state, task.attempts), (TaskState::Dead, 2), "{how}: {task:?}");
        assert!(task.error.as_ref().unwrap().starts_with("its worker was lost while it ran: "), "{task:?}");
        let survey = tasks.stats().await.unwrap();
        assert_eq!((survey.dead[0].id, survey.dead[0].kind.as_str()), (poison, "mishap"));
    }
    let good = tasks.enqueue("nap", &1).await.unwrap();
    assert_eq!(ended(&tasks, good).await.state, TaskState::Done);
    wait::until("both slots serve", wait::LONG, || fleet.workers().len() == 2);
    assert_eq!(fleet.get("/hello").status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_are_final_and_panics_and_those_that_say_so_are_tried_again() {
    let redis = TestRedis::start();
    let fleet = plan(&redis, 1).set("REGATTA_TASKS__MAX_ATTEMPTS", "2").start();
    let tasks = client(&redis, &fleet).await;
    let mut ids = Vec::new();
    for how in ["no wind", "again", "panic", "once"] {
        ids.push(tasks.enqueue("mishap", how).await.unwrap());
    }
    let nap = tasks.enqueue("nap", &"soon").await.unwrap();
    let expected = [
        (TaskState::Failed, 1, Some("no wind")),
        (TaskState::Dead, 2, Some("attempt 2")),
        (TaskState::Dead, 2, Some("it panicked: man overboard")),
        // What went wrong before is of no interest any more.
        (TaskState::Done, 2, None),
    ];
    for (id, expected) in ids.into_iter().zip(expected) {
        let task = ended(&tasks, id).await;
        assert_eq!((task.state, task.attempts, task.error.as_deref()), expected, "{task:?}");
    }
    let task = ended(&tasks, nap).await;
    let reason = task.error.unwrap();
    assert!(task.state == TaskState::Failed && reason.starts_with("its input cannot be read"), "{reason}");
    assert_eq!(fleet.workers().len(), 1, "nothing of it cost the worker");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cancelled_is_not_begun_or_stops_and_its_place_is_free() {
    let redis = TestRedis::start();
    let fleet = plan(&redis, 1).start();
    let tasks = client(&redis, &fleet).await;
    let running = tasks.enqueue("nap", &120_000).await.unwrap();
    runs(&tasks, running).await;
    let queued = tasks.enqueue("nap", &1).await.unwrap();
    let next = tasks.enqueue("nap", &1).await.unwrap();
    assert_eq!(tasks.cancel(&queued).await, Ok(Some(Cancelled::Waiting)));
    assert_eq!(tasks.cancel(&running).await, Ok(Some(Cancelled::Running)));
    assert_eq!(look(&tasks, running).await.state, TaskState::Cancelled);
    assert_eq!(ended(&tasks, next).await.state, TaskState::Done, "the place is free again");
    assert_eq!(tasks.cancel(&next).await, Ok(Some(Cancelled::Late)));
    assert_eq!(tasks.cancel(&TaskId::new().unwrap()).await, Ok(None));
    for id in [running, queued] {
        let task = look(&tasks, id).await;
        assert_eq!((task.state, task.result.is_none()), (TaskState::Cancelled, true));
    }
    assert_eq!(look(&tasks, queued).await.attempts, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_leaves_lets_a_short_task_end_and_gives_a_long_one_back() {
    let redis = TestRedis::start();
    let fleet = plan(&redis, 1).set("REGATTA_DRAIN__TIMEOUT", "2s").start();
    let tasks = client(&redis, &fleet).await;
    let short = tasks.enqueue("nap", &1500).await.unwrap();
    let (_, pid) = runs(&tasks, short).await;
    process::signal(pid, Signal::SIGTERM);
    let task = ended(&tasks, short).await;
    assert_eq!((task.state, task.attempts, pid_of(&task)), (TaskState::Done, 1, pid));
    let long = tasks.enqueue("nap", &60_000).await.unwrap();
    let (_, pid) = runs(&tasks, long).await;
    process::signal(pid, Signal::SIGTERM);
    let moved = |task: &TaskStatus| task.state == TaskState::Running && pid_of(task) != pid;
    let task = until(&tasks, long, wait::LONG, "another worker runs it", moved).await;
    assert_eq!(task.attempts, 1, "a worker that leaves costs no attempt");
    let totals = tasks.stats().await.unwrap().totals;
    assert_eq!((totals.released, totals.reclaimed), (1, 0));
    tasks.cancel(&long).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orphan_takes_no_task_although_a_request_keeps_it() {
    let redis = TestRedis::start();
    let fleet = plan(&redis, 1).start();
    let tasks = client(&redis, &fleet).await;
    let mut request = Connection::open(fleet.listen).unwrap();
    request.send(&Request::get("/slow/5000").bytes()).unwrap();
    let mut ids = Vec::new();
    for _ in 0..100 {
        ids.push(tasks.enqueue("nap", &300).await.unwrap());
    }
    let (_, pid) = runs(&tasks, ids[0]).await;
    process::signal(fleet.pid(), Signal::SIGKILL);
    wait::until("the orphan is gone", wait::LONG, || !process::alive(pid));
    let survey = tasks.stats().await.unwrap();
    // It had twice the time that a nap takes: the one that ran has ended, and no other had to be given back.
    let totals = survey.totals;
    assert_eq!((totals.released, survey.running.len()), (0, 0), "{totals:?}");
    assert_eq!(totals.done + survey.waiting, 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_away_for_longer_than_a_lease_costs_no_task_and_no_attempt() {
    let mut redis = TestRedis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let fleet = plan(&redis, 3).set("REGATTA_TASKS__LEASE", "1s").start();
    let tasks = client(&redis, &fleet).await;
    let mut ids = Vec::new();
    // Two that run through the outage or end in it, and some that wait.
    for millis in [6000, 1500] {
        let id = tasks.enqueue("nap", &millis).await.unwrap();
        runs(&tasks, id).await;
        ids.push(id);
    }
    redis.kill();
    wait::let_pass(Duration::from_millis(2500));
    redis.restart();
    for id in ids {
        let task = ended(&tasks, id).await;
        assert_eq!((task.state, task.attempts), (TaskState::Done, 1), "{task:?}");
    }
    let begun = Instant::now();
    let id = loop {
        // The first calls may still meet the breaker.
        match tasks.enqueue("nap", &10).await {
            Ok(id) => break id,
            Err(error) => assert!(begun.elapsed() < wait::LONG, "{error}"),
        }
        wait::paced(Duration::from_millis(20)).await;
    };
    assert_eq!(ended(&tasks, id).await.state, TaskState::Done);
    let totals = tasks.stats().await.unwrap().totals;
    assert_eq!((totals.done, totals.reclaimed), (3, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_does_not_stop_fails_in_time_and_its_worker_is_replaced() {
    let redis = TestRedis::start();
    let fleet = plan(&redis, 1).set("REGATTA_TASKS__TIMEOUT", "1s").start();
    let tasks = client(&redis, &fleet).await;
    let deaf = tasks.enqueue("deaf", &120_000).await.unwrap();
    let (_, pid) = runs(&tasks, deaf).await;
    let task = ended(&tasks, deaf).await;
    assert_eq!(
        (task.state, task.error.as_deref()),
        (TaskState::Failed, Some("it ran for longer than 1s (tasks.timeout)"))
    );
    let next = tasks.enqueue("nap", &1).await.unwrap();
    let task = ended(&tasks, next).await;
    assert_eq!(task.state, TaskState::Done);
    assert_ne!(pid_of(&task), pid);
    assert_eq!(fleet.log_lines("all task permits held by hung jobs").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_takes_no_more_than_it_has_places_for() {
    let redis = TestRedis::start();
    let fleet = plan(&redis, 2).set("REGATTA_TASKS__CONCURRENCY", "2").start();
    let tasks = client(&redis, &fleet).await;
    let mut ids = Vec::new();
    for _ in 0..12 {
        ids.push(tasks.enqueue("nap", &400).await.unwrap());
    }
    let mut most = 0;
    let begun = Instant::now();
    loop {
        let survey = tasks.stats().await.unwrap();
        most = most.max(survey.running.len());
        let mut by_worker = std::collections::BTreeMap::new();
        for task in &survey.running {
            *by_worker.entry(task.worker.as_str()).or_insert(0) += 1;
        }
        assert!(by_worker.values().all(|count| *count <= 2), "{survey:?}");
        if survey.totals.done == 12 {
            break;
        }
        assert!(begun.elapsed() < wait::LONG, "{survey:?}");
        wait::paced(Duration::from_millis(10)).await;
    }
    assert_eq!(most, 4, "every place was used");
    // In the order in which they were made: the last one began after the first ones had ended.
    let begun = |task: &TaskStatus| task.started_ms.unwrap();
    let (first, last) = (look(&tasks, ids[0]).await, look(&tasks, ids[11]).await);
    assert!(begun(&last) >= first.finished_ms.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_worker_does_its_tasks_in_their_order() {
    let redis = TestRedis::start();
    let fleet = plan(&redis, 1).start();
    let tasks = client(&redis, &fleet).await;
    let (count, begun) = (soak::length(200, 5000), Instant::now());
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(tasks.enqueue("deaf", &0).await.unwrap());
    }
    let made = begun.elapsed();
    ended(&tasks, ids[count - 1]).await;
    soak::log(
        "tasks that do nothing",
        &format!("{count} made in {made:?}, ended after {:?}", begun.elapsed()),
    );
    let mut last = 0;
    for id in ids {
        let task = look(&tasks, id).await;
        assert_eq!(task.state, TaskState::Done);
        let started = task.started_ms.unwrap();
        assert!(started >= last, "one that was made later was begun earlier");
        last = started;
    }
    assert_eq!(tasks.stats().await.unwrap().totals.done, count as u64);
}
