//! The fleet's tasks as the page shows them. Pure.

use crate::http::dashboard::view::DeadRow;
use crate::http::dashboard::view::TaskRow;
use crate::http::dashboard::words;

/// Tasks that are shown of each kind of list.
pub(super) const SHOWN: usize = 20;

/// What is known of the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Work {
    /// Nothing, for this reason.
    Unknown(String),
    /// All of it.
    Known(Queue),
}

/// The queue at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Queue {
    /// Tasks that wait.
    pub(super) waiting: u64,
    /// How long the oldest of them has waited, milliseconds.
    pub(super) oldest_ms: Option<u64>,
    pub(super) running: Vec<Running>,
    pub(super) dead: Vec<Dead>,
}

/// A task that runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Running {
    pub(super) id: String,
    pub(super) kind: String,
    pub(super) percent: u64,
    pub(super) worker: String,
    pub(super) attempts: u64,
}

/// A task that was given up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Dead {
    pub(super) id: String,
    pub(super) kind: String,
    pub(super) reason: String,
    pub(super) at_ms: u64,
    pub(super) attempts: u64,
}

impl Work {
    /// The queue in a sentence.
    pub(super) fn sentence(&self) -> String {
        let queue = match self {
            Self::Unknown(reason) => return format!("The queue is not known now: {reason}."),
            Self::Known(queue) => queue,
        };
        let waiting = match (queue.waiting, queue.oldest_ms) {
            (0, _) => "Nothing waits".to_owned(),
            (some, None) => format!("{} waiting", words::count(some)),
            (some, Some(ms)) => {
                format!("{} waiting, the oldest for {}", words::count(some), words::age(ms / 1000))
            }
        };
        let running = words::some(queue.running.len(), "task runs", "tasks run");
        match queue.dead.len() {
            0 => format!("{waiting}; {running}."),
            dead => format!("{waiting}; {running}; {} up.", words::some(dead, "was given", "were given")),
        }
    }

    pub(super) fn running(&self) -> Vec<TaskRow> {
        let Self::Known(queue) = self else { return Vec::new() };
        let row = |task: &Running| TaskRow {
            key: task.id.clone(),
            kind: task.kind.clone(),
            percent: task.percent.min(100),
            percent_text: format!("{}\u{2009}%", task.percent.min(100)),
            text: match task.attempts {
                0 | 1 => format!("on {}", task.worker),
                more => format!("on {}, attempt {more}", task.worker),
            },
        };
        queue.running.iter().take(SHOWN).map(row).collect()
    }

    pub(super) fn dead(&self, unix_ms: u64) -> Vec<DeadRow> {
        let Self::Known(queue) = self else { return Vec::new() };
        let row = |task: &Dead| DeadRow {
            key: task.id.clone(),
            kind: task.kind.clone(),
            at: format!("{} ago", words::age(unix_ms.saturating_sub(task.at_ms) / 1000)),
            text: format!(
                "{}; {}",
                task.reason,
                words::some(usize::try_from(task.attempts).unwrap_or(0), "attempt", "attempts")
            ),
        };
        queue.dead.iter().take(SHOWN).map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_is_told_in_a_sentence() {
        let sentence = |queue: Queue| Work::Known(queue).sentence();
        assert_eq!(sentence(Queue::default()), "Nothing waits; 0 tasks run.");
        let queue = Queue {
            waiting: 3,
            oldest_ms: Some(61_000),
            running: vec![Running { percent: 140, ..Running::default() }],
            dead: vec![Dead::default()],
        };
        assert_eq!(Work::Known(queue.clone()).running()[0].percent, 100);
        assert_eq!(sentence(queue), "3 waiting, the oldest for 1\u{2009}min; 1 task runs; 1 was given up.");
        assert!(Work::Unknown("away".into()).sentence().contains("away"));
    }
}
