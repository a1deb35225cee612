//! Each step of a task's life on a real server, in both forms of its code: what is told, and what stays true.

use std::time::Duration;

use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::tasks::{Cancelled, EnqueueOutcome, ExecutionResult, StartOutcome};

use regatta::task::{TaskId, TaskState};

use crate::support::redis::eventually;
use crate::support::task_steps::{MODES, RULES, begin, make, run, setting, state, take, take_over};
use crate::support::wait;

#[tokio::test]
async fn a_task_goes_its_way_and_every_step_may_be_said_twice() {
    for mode in MODES {
        let (server, redis) = setting(mode).await;
        assert_eq!(take(&redis, &["a", "b"]).await, None);
        let id = make(&redis, "a").await;
        assert_eq!(redis.enqueue_task(id, "a", "8", &RULES).await, Ok(EnqueueOutcome::Queued));
        assert_eq!(state(&redis, id).await, (TaskState::Waiting, 0));
        let taken = take(&redis, &["b", "a"]).await.unwrap();
        assert_eq!((taken.id, taken.kind.as_str()), (id, "a"));
        assert_eq!(take(&redis, &["a"]).await, None, "{mode:?}: it was taken twice");
        let (execution, begun) = begin(&redis, taken).await;
        assert_eq!(begun, run(1));
        assert_eq!(redis.start_task(&execution, "web:1", &RULES).await, Ok(run(1)), "said once more");
        assert_eq!(redis.renew_task(&execution, Some(40)).await, Ok(true));
        assert_eq!(redis.renew_task(&execution, Some(30)).await, Ok(true));
        let survey = redis.task_stats().await.unwrap();
        assert_eq!((survey.waiting, survey.running[0].percent, survey.running[0].id), (0, 40, id));
        for _ in 0..2 {
            assert_eq!(
                redis.finish_task(&execution, &ExecutionResult::Done("42".into()), &RULES).await,
                Ok(true)
            );
        }
        assert_eq!(redis.renew_task(&execution, None).await, Ok(false));
        let task = redis.get_task(id).await.unwrap().unwrap();
        assert_eq!((task.state, task.percent, task.result.unwrap().get()), (TaskState::Done, 100, "42"));
        assert_eq!((task.attempts, task.worker.as_deref(), task.kind.as_str()), (1, Some("web:1"), "a"));
        let survey = redis.task_stats().await.unwrap();
        assert_eq!((survey.waiting, survey.running.len(), survey.totals.done), (0, 0, 1));
        assert_eq!(server.cli(&["XLEN", "p:{t}:queue:a"]), "0");
        assert_eq!(server.cli(&["XPENDING", "p:{t}:queue:a", "workers"]).lines().next(), Some("0"));
        assert_eq!(redis.get_task(TaskId::new().unwrap()).await.unwrap().map(|task| task.id), None);
        for key in server.keys().iter().filter(|key| key.contains("{t}")) {
            assert_ne!(server.cli(&["TTL", key]), "-1", "{key} stays for ever");
        }
    }
}

#[tokio::test]
async fn only_the_present_execution_may_renew_and_end() {
    for mode in MODES {
        let (_server, redis) = setting(mode).await;
        let id = make(&redis, "a").await;
        let taken = take(&redis, &["a"]).await.unwrap();
        let (first, _) = begin(&redis, taken).await;
        let taken = take_over(&redis).await;
        assert_eq!(redis.renew_task(&first, None).await, Ok(true), "nobody else has begun yet");
        let (second, begun) = begin(&redis, taken).await;
        assert_eq!(begun, run(2));
        assert_eq!(redis.renew_task(&first, Some(50)).await, Ok(false));
        for outcome in [
            ExecutionResult::Done("1".into()),
            ExecutionResult::Failed("x".into()),
            ExecutionResult::Released,
        ] {
            assert_eq!(redis.finish_task(&first, &outcome, &RULES).await, Ok(false), "{outcome:?}");
        }
        assert_eq!(state(&redis, id).await, (TaskState::Running, 2));
        assert_eq!(redis.finish_task(&second, &ExecutionResult::Done("2".into()), &RULES).await, Ok(true));
        assert_eq!(redis.finish_task(&first, &ExecutionResult::Done("1".into()), &RULES).await, Ok(false));
        let task = redis.get_task(id).await.unwrap().unwrap();
        assert_eq!(task.result.unwrap().get(), "2", "{mode:?}");
        let totals = redis.task_stats().await.unwrap().totals;
        assert_eq!((totals.done, totals.reclaimed, totals.failed), (1, 1, 0));
    }
}

#[tokio::test]
async fn who_renews_is_not_taken_over_and_what_was_taken_only_is_no_attempt() {
    for mode in MODES {
        let (_server, redis) = setting(mode).await;
        let id = make(&redis, "a").await;
        assert!(take(&redis, &["a"]).await.is_some(), "whoever took it is gone");
        let taken = take_over(&redis).await;
        let (execution, begun) = begin(&redis, taken).await;
        assert_eq!((begun, state(&redis, id).await.1), (run(1), 1));
        for _ in 0..10 {
            wait::paced(RULES.lease / 6).await;
            assert_eq!(redis.renew_task(&execution, None).await, Ok(true));
            assert_eq!(take(&redis, &["a"]).await, None, "{mode:?}");
        }
        // Without a lease nothing is overdue.
        wait::pass(RULES.lease * 2).await;
        assert_eq!(redis.claim_task(&["a"], None).await, Ok(None));
        assert!(take(&redis, &["a"]).await.is_some());
    }
}

#[tokio::test]
async fn a_task_whose_attempts_are_used_up_is_dead_and_listed() {
    for mode in MODES {
        let (_server, redis) = setting(mode).await;
        let lost = make(&redis, "a").await;
        for attempt in 1..=2 {
            let taken = take_over(&redis).await;
            assert_eq!(begin(&redis, taken).await.1, run(attempt));
        }
        let taken = take_over(&redis).await;
        assert_eq!(begin(&redis, taken).await.1, StartOutcome::Dead);
        let retried = make(&redis, "a").await;
        for attempt in 1..=2 {
            let taken = take_over(&redis).await;
            let (execution, begun) = begin(&redis, taken).await;
            assert_eq!(begun, run(attempt));
            let again = ExecutionResult::Retry("it rains".into(), RULES.lease / 3);
            for _ in 0..2 {
                assert_eq!(redis.finish_task(&execution, &again, &RULES).await, Ok(true));
            }
        }
        assert_eq!(take(&redis, &["a"]).await, None);
        assert_eq!(
            (state(&redis, lost).await.0, state(&redis, retried).await.0),
            (TaskState::Dead, TaskState::Dead)
        );
        let survey = redis.task_stats().await.unwrap();
        let dead: Vec<_> =
            survey.dead.iter().map(|dead| (dead.id, dead.attempts, dead.reason.as_str())).collect();
        let reason = "its worker was lost while it ran: web:1, at 0 %";
        assert_eq!(dead, [(retried, 2, "it rains"), (lost, 2, reason)], "{mode:?}");
        assert_eq!((survey.totals.dead, survey.totals.retried, survey.totals.reclaimed), (2, 1, 2));
    }
}

#[tokio::test]
async fn what_was_given_back_is_taken_first_and_not_counted() {
    for mode in MODES {
        let (_server, redis) = setting(mode).await;
        let first = make(&redis, "a").await;
        make(&redis, "a").await;
        for _ in 0..3 {
            let taken = take(&redis, &["a"]).await.unwrap();
            assert_eq!(taken.id, first, "{mode:?}: it lost its place");
            let (execution, begun) = begin(&redis, taken).await;
            assert_eq!(begun, run(1));
            assert_eq!(redis.finish_task(&execution, &ExecutionResult::Released, &RULES).await, Ok(true));
            assert_eq!(state(&redis, first).await, (TaskState::Waiting, 0));
        }
        assert_eq!(redis.task_stats().await.unwrap().waiting, 2);
    }
}

#[tokio::test]
async fn what_was_cancelled_is_never_begun_and_its_result_is_dropped() {
    for mode in MODES {
        let (_server, redis) = setting(mode).await;
        let queued = make(&redis, "a").await;
        assert_eq!(redis.cancel_task(queued, "a", &RULES).await, Ok(Some(Cancelled::Waiting)));
        assert_eq!(take(&redis, &["a"]).await, None);
        let between = make(&redis, "a").await;
        let taken = take(&redis, &["a"]).await.unwrap();
        assert_eq!(redis.cancel_task(between, "a", &RULES).await, Ok(Some(Cancelled::Waiting)));
        assert_eq!(begin(&redis, taken).await.1, StartOutcome::NothingToDo);
        let running = make(&redis, "a").await;
        let taken = take(&redis, &["a"]).await.unwrap();
        let (execution, _) = begin(&redis, taken).await;
        assert_eq!(redis.cancel_task(running, "a", &RULES).await, Ok(Some(Cancelled::Running)));
        assert_eq!(redis.cancel_task(running, "a", &RULES).await, Ok(Some(Cancelled::Late)));
        assert_eq!(redis.renew_task(&execution, None).await, Ok(false));
        assert_eq!(
            redis.finish_task(&execution, &ExecutionResult::Done("1".into()), &RULES).await,
            Ok(false)
        );
        let task = redis.get_task(running).await.unwrap().unwrap();
        assert_eq!((task.state, task.result.is_none()), (TaskState::Cancelled, true), "{mode:?}");
        assert_eq!(redis.cancel_task(TaskId::new().unwrap(), "a", &RULES).await, Ok(None));
        let survey = redis.task_stats().await.unwrap();
        assert_eq!((survey.waiting, survey.running.len(), survey.totals.cancelled), (0, 0, 3));
    }
}

#[tokio::test]
async fn the_oldest_of_all_kinds_comes_first_and_unknown_kinds_stay() {
    for mode in MODES {
        let (_server, redis) = setting(mode).await;
        let mut made = Vec::new();
        for kind in ["a", "b", "new", "b", "a"] {
            made.push(make(&redis, kind).await);
            // Entries of one millisecond have no order among queues.
            wait::paced(Duration::from_millis(2)).await;
        }
        let unknown = made.remove(2);
        for id in made {
            assert_eq!(take(&redis, &["b", "a"]).await.map(|taken| taken.id), Some(id), "{mode:?}");
        }
        assert_eq!(take(&redis, &["b", "a"]).await, None);
        assert_eq!(take(&redis, &["new"]).await.map(|taken| taken.id), Some(unknown));
    }
}

#[tokio::test]
async fn no_more_wait_than_may_and_what_waits_too_long_is_given_up() {
    for mode in MODES {
        let (server, redis) = setting(mode).await;
        let mut made = Vec::new();
        for _ in 0..10 {
            made.push(make(&redis, "a").await);
        }
        let one_more = redis.enqueue_task(TaskId::new().unwrap(), "b", "1", &RULES).await;
        assert_eq!(one_more, Ok(EnqueueOutcome::QueueFull));
        assert!(take(&redis, &["a"]).await.is_some(), "what was only taken still waits");
        let one_more = redis.enqueue_task(TaskId::new().unwrap(), "b", "1", &RULES).await;
        assert_eq!(one_more, Ok(EnqueueOutcome::QueueFull));
        let hour = Duration::from_secs(3600);
        assert_eq!(redis.overdue_tasks(hour).await, Ok(Vec::new()));
        assert_eq!(redis.expire_task(made[0], "a", (hour, "x"), &RULES).await, Ok(false));
        let (now, why) = (Duration::from_millis(1), "nobody came");
        eventually("all have waited for a millisecond", async || {
            redis.overdue_tasks(now).await.is_ok_and(|overdue| overdue.len() == made.len())
        })
        .await;
        let overdue = redis.overdue_tasks(now).await.unwrap();
        let mut ids: Vec<_> = overdue.iter().map(|(id, _)| *id).collect();
        // Those of one millisecond have no order.
        ids.sort();
        let lost = made[9];
        made.sort();
        assert_eq!(ids, made);
        server.cli(&["DEL", &format!("p:{{t}}:task:{lost}")]);
        for (id, kind) in overdue {
            let expired = redis.expire_task(id, &kind, (now, why), &RULES).await.unwrap();
            assert_eq!(expired, id != lost, "{mode:?}");
        }
        assert_eq!(redis.overdue_tasks(now).await, Ok(Vec::new()));
        let other = made.iter().find(|id| **id != lost).unwrap();
        assert_eq!(state(&redis, *other).await.0, TaskState::Dead);
        assert_eq!(redis.task_stats().await.unwrap().dead[0].reason, why);
        // The entry of the one that is no longer there is passed over.
        let taken = take(&redis, &["a"]).await.unwrap();
        assert_eq!((taken.id, begin(&redis, taken).await.1), (lost, StartOutcome::NothingToDo));
        assert_eq!(take(&redis, &["a"]).await, None);
    }
}

#[tokio::test]
async fn without_server_side_code_there_are_no_tasks() {
    let (_server, redis) = setting(ScriptingMode::Plain).await;
    let id = TaskId::new().unwrap();
    let unsupported = regatta::__internals::redis::RedisError::Unsupported { what: "tasks" };
    assert_eq!(redis.get_task(id).await.map(|_| ()), Err(unsupported));
    assert!(matches!(
        redis.enqueue_task(id, "a", "1", &RULES).await,
        Err(regatta::__internals::redis::RedisError::Unsupported { .. })
    ));
}
