//! The fleet's tasks as the page shows them. Pure.

use crate::http::dashboard::formatting;
use crate::http::dashboard::view_model::{DeadTaskView, TaskView};
use crate::tasks::{DeadTask, RunningTask, TaskId, TaskQueueStats};

/// Tasks that are shown in each list.
const TASKS_SHOWN: usize = 20;

/// Letters of a task's name that tell it from others here. All of it would be as good as a password.
const SHORT_ID_LENGTH: usize = 8;

/// What is known of the queue, or why nothing is.
pub(super) type QueueFacts = Result<TaskQueueStats, String>;

/// The queue in one sentence.
pub(super) fn queue_summary(facts: &QueueFacts) -> String {
    let stats = match facts {
        Err(reason) => return format!("The queue is unknown: {reason}."),
        Ok(stats) => stats,
    };
    let waiting = match stats.waiting {
        0 => "Nothing waits".to_owned(),
        some => {
            let oldest = formatting::age(stats.oldest_ms / 1000);
            format!("{} waiting, the oldest for {oldest}", formatting::count(some))
        }
    };
    let running = formatting::counted(stats.running.len(), "task runs", "tasks run");
    match stats.dead.len() {
        0 => format!("{waiting}; {running}."),
        dead => format!("{waiting}; {running}; {}.", formatting::counted(dead, "is dead", "are dead")),
    }
}

/// Tasks that run.
pub(super) fn running_tasks(facts: &QueueFacts) -> Vec<TaskView> {
    let row = |task: &RunningTask| TaskView {
        key: short_id(&task.id),
        kind: task.kind.clone(),
        percent: u64::from(task.percent.min(100)),
        percent_text: format!("{}\u{2009}%", task.percent.min(100)),
        text: match (task.attempt, formatting::age(task.running_ms / 1000)) {
            (0 | 1, age) => format!("on {} for {age}", task.worker),
            (more, age) => format!("on {} for {age}, attempt {more}", task.worker),
        },
    };
    facts.iter().flat_map(|stats| &stats.running).take(TASKS_SHOWN).map(row).collect()
}

/// Dead tasks, and how long ago by the clock of Redis, which dated them.
pub(super) fn dead_tasks(facts: &QueueFacts) -> Vec<DeadTaskView> {
    let now_ms = facts.as_ref().map_or(0, |stats| stats.now_ms);
    let row = |task: &DeadTask| DeadTaskView {
        key: short_id(&task.id),
        kind: task.kind.clone(),
        at: format!("{} ago", formatting::age(now_ms.saturating_sub(task.finished_ms) / 1000)),
        text: match task.attempts {
            1 => format!("{} (1 attempt)", task.reason),
            more => format!("{} ({more} attempts)", task.reason),
        },
    };
    facts.iter().flat_map(|stats| &stats.dead).take(TASKS_SHOWN).map(row).collect()
}

fn short_id(id: &TaskId) -> String {
    id.to_string().chars().take(SHORT_ID_LENGTH).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_is_summarized_and_no_task_id_is_shown_whole() {
        assert_eq!(queue_summary(&Ok(TaskQueueStats::default())), "Nothing waits; 0 tasks run.");
        assert!(queue_summary(&Err("unavailable".into())).contains("unavailable"));
        let id: TaskId = "0123456789abcdef0123456789abcdef".parse().unwrap();
        let (kind, worker) = ("primes".to_owned(), "web-1:42".to_owned());
        let task = RunningTask { id, kind, percent: 40, running_ms: 61_000, attempt: 2, worker };
        let queue = Ok(TaskQueueStats {
            waiting: 3,
            oldest_ms: 61_000,
            running: vec![task],
            ..TaskQueueStats::default()
        });
        assert_eq!(queue_summary(&queue), "3 waiting, the oldest for 1\u{2009}min; 1 task runs.");
        let row = &running_tasks(&queue)[0];
        assert_eq!((row.key.as_str(), row.percent), ("01234567", 40));
        assert_eq!(row.text, "on web-1:42 for 1\u{2009}min, attempt 2");
    }

    #[test]
    fn the_age_of_a_dead_task_is_by_the_clock_of_redis() {
        let id: TaskId = "0123456789abcdef0123456789abcdef".parse().unwrap();
        let (kind, reason) = ("primes".to_owned(), "it panicked".to_owned());
        let task = DeadTask { id, kind, attempts: 3, finished_ms: 1_000, reason };
        let queue = Ok(TaskQueueStats { now_ms: 62_000, dead: vec![task], ..TaskQueueStats::default() });
        let row = &dead_tasks(&queue)[0];
        assert_eq!((row.at.as_str(), row.text.as_str()), ("1\u{2009}min ago", "it panicked (3 attempts)"));
    }
}
