//! The fleet's tasks as the page shows them. Pure.

use crate::http::dashboard::view::DeadRow;
use crate::http::dashboard::view::TaskRow;
use crate::http::dashboard::words;
use crate::redis::task::DeadTask;
use crate::redis::task::RunningTask;
use crate::redis::task::Survey;
use crate::redis::task::TaskId;

/// Tasks that are shown in each list.
const SHOWN: usize = 20;

/// Letters of a task's name that tell it from others here. All of it would be as good as a password.
const NAME: usize = 8;

/// What is known of the queue, or why nothing is.
pub(super) type Work = Result<Survey, String>;

/// The queue in a sentence.
pub(super) fn sentence(work: &Work) -> String {
    let survey = match work {
        Err(reason) => return format!("The queue is not known now: {reason}."),
        Ok(survey) => survey,
    };
    let waiting = match survey.waiting {
        0 => "Nothing waits".to_owned(),
        some => {
            let oldest = words::age(survey.oldest_ms / 1000);
            format!("{} waiting, the oldest for {oldest}", words::count(some))
        }
    };
    let running = words::some(survey.running.len(), "task runs", "tasks run");
    match survey.dead.len() {
        0 => format!("{waiting}; {running}."),
        dead => format!("{waiting}; {running}; {} up.", words::some(dead, "was given", "were given")),
    }
}

/// Tasks that run.
pub(super) fn running(work: &Work) -> Vec<TaskRow> {
    let row = |task: &RunningTask| TaskRow {
        key: name(&task.id),
        kind: task.kind.clone(),
        percent: u64::from(task.percent.min(100)),
        percent_text: format!("{}\u{2009}%", task.percent.min(100)),
        text: match (task.attempt, words::age(task.running_ms / 1000)) {
            (0 | 1, age) => format!("on {} for {age}", task.worker),
            (more, age) => format!("on {} for {age}, attempt {more}", task.worker),
        },
    };
    work.iter().flat_map(|survey| &survey.running).take(SHOWN).map(row).collect()
}

/// Tasks that were given up, and how long ago by Redis's clock, which said when.
pub(super) fn dead(work: &Work) -> Vec<DeadRow> {
    let now_ms = work.as_ref().map_or(0, |survey| survey.now_ms);
    let row = |task: &DeadTask| DeadRow {
        key: name(&task.id),
        kind: task.kind.clone(),
        at: format!("{} ago", words::age(now_ms.saturating_sub(task.ended_ms) / 1000)),
        text: match task.attempts {
            1 => format!("{} (begun once)", task.reason),
            more => format!("{} (begun {more} times)", task.reason),
        },
    };
    work.iter().flat_map(|survey| &survey.dead).take(SHOWN).map(row).collect()
}

fn name(id: &TaskId) -> String {
    id.to_string().chars().take(NAME).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_is_told_in_a_sentence_and_no_task_by_its_whole_name() {
        assert_eq!(sentence(&Ok(Survey::default())), "Nothing waits; 0 tasks run.");
        assert!(sentence(&Err("away".into())).contains("away"));
        let id: TaskId = "0123456789abcdef0123456789abcdef".parse().unwrap();
        let (kind, worker) = ("primes".to_owned(), "web-1:42".to_owned());
        let task = RunningTask { id, kind, percent: 40, running_ms: 61_000, attempt: 2, worker };
        let work = Ok(Survey { waiting: 3, oldest_ms: 61_000, running: vec![task], ..Survey::default() });
        assert_eq!(sentence(&work), "3 waiting, the oldest for 1\u{2009}min; 1 task runs.");
        let row = &running(&work)[0];
        assert_eq!((row.key.as_str(), row.percent), ("01234567", 40));
        assert_eq!(row.text, "on web-1:42 for 1\u{2009}min, attempt 2");
    }

    #[test]
    fn how_long_ago_a_task_died_is_by_the_clock_that_said_when() {
        let id: TaskId = "0123456789abcdef0123456789abcdef".parse().unwrap();
        let (kind, reason) = ("primes".to_owned(), "it panicked".to_owned());
        let task = DeadTask { id, kind, attempts: 3, ended_ms: 1_000, reason };
        let work = Ok(Survey { now_ms: 62_000, dead: vec![task], ..Survey::default() });
        let row = &dead(&work)[0];
        assert_eq!((row.at.as_str(), row.text.as_str()), ("1\u{2009}min ago", "it panicked (begun 3 times)"));
    }
}
