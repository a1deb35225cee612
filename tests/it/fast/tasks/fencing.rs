//! What is said too late, and what a full server takes: a healthy execution of a task is no one else's, in both forms.

use std::time::Duration;

use regatta::__internals::tasks::{Cancelled, ExecutionResult, StartOutcome, TaskExecution, TaskPolicy};
use regatta::task::{TaskId, TaskState};

use crate::support::task_steps::{MODES, RULES, begin, make, run, setting, state, take, take_over};
use crate::support::wait;

#[tokio::test]
async fn a_late_begin_neither_steals_nor_kills_a_healthy_execution() {
    for mode in MODES {
        let (_server, redis) = setting(mode).await;
        let id = make(&redis, "a").await;
        let late = TaskExecution::new(take(&redis, &["a"]).await.unwrap()).unwrap();
        let lost = TaskExecution::new(take_over(&redis).await).unwrap();
        let taken = take_over(&redis).await;
        assert_eq!((late.delivery.delivery_count, taken.delivery_count), (1, 3));
        assert_eq!(
            redis.start_task(&late, "web:1", &RULES).await,
            Ok(StartOutcome::NothingToDo),
            "others hold the entry"
        );
        let (first, begun) = begin(&redis, taken).await;
        assert_eq!(begun, run(1));
        assert_eq!(redis.start_task(&late, "web:1", &RULES).await, Ok(StartOutcome::NothingToDo), "{mode:?}");
        assert_eq!(redis.renew_task(&first, None).await, Ok(true), "{mode:?}: it was stolen");
        let (last, begun) = begin(&redis, take_over(&redis).await).await;
        assert_eq!(begun, run(2));
        for late in [&late, &lost, &first] {
            assert_eq!(
                redis.start_task(late, "web:1", &RULES).await,
                Ok(StartOutcome::NothingToDo),
                "{mode:?}"
            );
            assert_eq!(redis.finish_task(late, &ExecutionResult::Done("1".into()), &RULES).await, Ok(false));
        }
        assert_eq!(state(&redis, id).await, (TaskState::Running, 2), "{mode:?}: it was killed");
        assert_eq!(redis.finish_task(&last, &ExecutionResult::Done("2".into()), &RULES).await, Ok(true));
    }
}

#[tokio::test]
async fn an_end_is_taken_only_as_it_was_said() {
    for mode in MODES {
        let (_server, redis) = setting(mode).await;
        let id = make(&redis, "b").await;
        let rules = TaskPolicy { max_attempts: 1, ..RULES };
        let (lost, _) = begin(&redis, take(&redis, &["b"]).await.unwrap()).await;
        wait::pass(RULES.lease * 2).await;
        let next = TaskExecution::new(take(&redis, &["b"]).await.unwrap()).unwrap();
        assert_eq!(redis.start_task(&next, "web:2", &rules).await, Ok(StartOutcome::Dead));
        for outcome in [
            ExecutionResult::Done("1".into()),
            ExecutionResult::Retry("x".into(), Duration::ZERO),
            ExecutionResult::Released,
        ] {
            assert_eq!(redis.finish_task(&lost, &outcome, &RULES).await, Ok(false), "{mode:?} {outcome:?}");
        }
        assert_eq!(state(&redis, id).await.0, TaskState::Dead);
        // Given back, it is not begun by what was said before.
        make(&redis, "c").await;
        let (back, _) = begin(&redis, take(&redis, &["c"]).await.unwrap()).await;
        assert_eq!(redis.finish_task(&back, &ExecutionResult::Released, &RULES).await, Ok(true));
        assert_eq!(redis.start_task(&back, "web:1", &RULES).await, Ok(StartOutcome::NothingToDo));
        assert_eq!(redis.finish_task(&back, &ExecutionResult::Done("1".into()), &RULES).await, Ok(false));
        // Done after all, it has no reason any more.
        let (again, _) = begin(&redis, take(&redis, &["c"]).await.unwrap()).await;
        let rain = ExecutionResult::Retry("it rains".into(), Duration::ZERO);
        assert_eq!(redis.finish_task(&again, &rain, &RULES).await, Ok(true));
        let (done, begun) = begin(&redis, take(&redis, &["c"]).await.unwrap()).await;
        assert_eq!(begun, run(2));
        assert_eq!(redis.finish_task(&done, &ExecutionResult::Done("3".into()), &RULES).await, Ok(true));
        let task = redis.get_task(done.delivery.id).await.unwrap().unwrap();
        assert_eq!((task.result.unwrap().get(), task.error), ("3", None), "{mode:?}");
    }
}

#[tokio::test]
async fn a_full_server_ends_gives_back_cancels_and_tells() {
    for mode in MODES {
        let (server, redis) = setting(mode).await;
        let mut running = Vec::new();
        for _ in 0..4 {
            make(&redis, "a").await;
            running.push(begin(&redis, take(&redis, &["a"]).await.unwrap()).await.0);
        }
        let [waits, expires] = [make(&redis, "a").await, make(&redis, "a").await];
        wait::pass(Duration::from_millis(5)).await;
        server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
        // Until the breaker of writes has opened.
        for _ in 0..20 {
            let full = redis.enqueue_task(TaskId::new().unwrap(), "a", "7", &RULES).await;
            assert!(
                matches!(full, Err(regatta::__internals::redis::RedisError::Rejected { .. })),
                "{mode:?} {full:?}"
            );
        }
        let [done, failed, retried, back] = &running[..] else { panic!() };
        assert_eq!(redis.renew_task(done, Some(50)).await, Ok(true), "{mode:?}");
        assert_eq!(
            redis.finish_task(done, &ExecutionResult::Done("2".into()), &RULES).await,
            Ok(true),
            "{mode:?}"
        );
        assert_eq!(redis.finish_task(failed, &ExecutionResult::Failed("x".into()), &RULES).await, Ok(true));
        let rain = ExecutionResult::Retry("it rains".into(), Duration::ZERO);
        assert_eq!(redis.finish_task(retried, &rain, &RULES).await, Ok(true));
        assert_eq!(redis.finish_task(back, &ExecutionResult::Released, &RULES).await, Ok(true));
        assert_eq!(redis.cancel_task(waits, "a", &RULES).await, Ok(Some(Cancelled::Waiting)));
        let moment = Duration::from_millis(1);
        assert!(redis.overdue_tasks(moment).await.unwrap().iter().any(|(id, _)| *id == expires));
        assert_eq!(redis.expire_task(expires, "a", (moment, "x"), &RULES).await, Ok(true));
        let survey = redis.task_stats().await.unwrap();
        assert_eq!((survey.waiting, survey.running.len(), survey.totals.done), (2, 0, 1), "{mode:?}");
        // A replica takes no writes, and tells all the same.
        server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
        server.cli(&["REPLICAOF", "127.0.0.1", "1"]);
        server.cli(&["CONFIG", "SET", "replica-serve-stale-data", "yes"]);
        assert_eq!(redis.task_stats().await.map(|survey| survey.waiting), Ok(2), "{mode:?}");
        assert_eq!(redis.overdue_tasks(moment).await.map(|tasks| tasks.len()), Ok(2), "{mode:?}");
    }
}
