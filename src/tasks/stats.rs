//! The state of the fleet's tasks, as one function of `migrations/0019_regatta_task_v3.lua` reports it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::redis::RedisError;
use crate::redis::wire::Value;
use crate::tasks::task_status::TaskId;
use crate::units;

/// The state of the tasks of all instances.
#[derive(Debug, Clone, Default, Serialize)]
pub struct TaskQueueStats {
    /// Redis's clock, Unix ms, by which everything here is measured.
    #[serde(rename = "timestamp", serialize_with = "units::rfc3339_ms::serialize")]
    pub now_ms: u64,
    /// Waiting tasks.
    pub waiting: u64,
    /// How long the oldest of them has waited, ms; 0 if none waits.
    #[serde(rename = "latency_seconds", serialize_with = "units::millis::serialize")]
    pub oldest_ms: u64,
    /// Running tasks, the longest first.
    pub running: Vec<RunningTask>,
    /// The last hundred dead tasks of a week, the latest first.
    pub dead: Vec<DeadTask>,
    /// Totals of all tasks so far.
    pub totals: TaskTotals,
}

/// A running task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RunningTask {
    /// Its id; knowing it is the right to read the task.
    pub id: TaskId,
    /// Its kind.
    pub kind: String,
    /// Its progress, 0 to 100.
    pub percent: u8,
    /// How long this execution has run, ms.
    #[serde(rename = "running_seconds", serialize_with = "units::millis::serialize")]
    pub running_ms: u64,
    /// Number of the attempt, from 1.
    pub attempt: u64,
    /// The worker that runs it: host and process.
    pub worker: String,
}

/// A dead task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeadTask {
    /// Its id.
    pub id: TaskId,
    /// Its kind.
    pub kind: String,
    /// How often it was started.
    pub attempts: u64,
    /// When it died, Unix ms by Redis's clock.
    #[serde(rename = "finished_at", serialize_with = "units::rfc3339_ms::serialize")]
    pub finished_ms: u64,
    /// Why.
    pub reason: String,
}

/// Numbers of tasks since counting began; they expire a month after the last task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct TaskTotals {
    /// Finished with a result.
    pub done: u64,
    /// Failed.
    pub failed: u64,
    /// Dead.
    pub dead: u64,
    /// Were cancelled.
    pub cancelled: u64,
    /// Attempts that failed and were followed by another one.
    pub retried: u64,
    /// Times that a worker was lost, or silent for too long, and its task claimed by another one.
    pub reclaimed: u64,
    /// Times that a leaving worker released a task.
    pub released: u64,
}

impl TaskTotals {
    /// All that have come to an end, whatever it was.
    pub fn ended(&self) -> u64 {
        self.done + self.failed + self.dead + self.cancelled
    }
}

fn texts(value: Option<&Value>) -> Vec<String> {
    match value {
        Some(Value::Array(parts)) => parts.iter().filter_map(Value::as_string).collect(),
        _ => Vec::new(),
    }
}

impl TaskQueueStats {
    /// Reads the function's reply.
    ///
    /// # Errors
    /// `Protocol` when it has another form.
    pub(super) fn decode(reply: &Value) -> Result<Self, RedisError> {
        let Value::Array(parts) = reply else {
            return Err(RedisError::protocol("survey did not answer with a list"));
        };
        let number = |at: usize| parts.get(at).and_then(Value::as_u64);
        let (Some(now_ms), Some(waiting)) = (number(0), number(1)) else {
            return Err(RedisError::protocol("survey did not answer with numbers"));
        };
        let running = texts(parts.get(3));
        let mut running: Vec<_> = running
            .chunks_exact(2)
            .filter_map(|pair| RunningTask::decode(&pair[0], &pair[1], now_ms))
            .collect();
        running.sort_by_key(|task| std::cmp::Reverse(task.running_ms));
        Ok(Self {
            now_ms,
            waiting,
            oldest_ms: number(2).map_or(0, |since_ms| now_ms.saturating_sub(since_ms)),
            running,
            dead: texts(parts.get(4)).iter().filter_map(|text| DeadTask::decode(text)).collect(),
            totals: TaskTotals::decode(&texts(parts.get(5))),
        })
    }
}

impl RunningTask {
    fn decode(id: &str, text: &str, now_ms: u64) -> Option<Self> {
        let mut notification = text.splitn(5, ' ');
        let (kind, percent) = (notification.next()?.to_owned(), notification.next()?.parse().ok()?);
        let started_ms: u64 = notification.next()?.parse().ok()?;
        let attempt = notification.next()?.parse().ok()?;
        let (id, running_ms) = (id.parse().ok()?, now_ms.saturating_sub(started_ms));
        Some(Self { id, kind, percent, running_ms, attempt, worker: notification.next()?.to_owned() })
    }
}

impl DeadTask {
    fn decode(text: &str) -> Option<Self> {
        let mut notification = text.splitn(5, ' ');
        Some(Self {
            id: notification.next()?.parse().ok()?,
            kind: notification.next()?.to_owned(),
            attempts: notification.next()?.parse().ok()?,
            finished_ms: notification.next()?.parse().ok()?,
            reason: notification.next()?.to_owned(),
        })
    }
}

impl TaskTotals {
    fn decode(pairs: &[String]) -> Self {
        let pairs = pairs.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].parse().unwrap_or(0)));
        let numbers: BTreeMap<&str, u64> = pairs.collect();
        let number = |name: &str| numbers.get(name).copied().unwrap_or(0);
        Self {
            done: number("done"),
            failed: number("failed"),
            dead: number("dead"),
            cancelled: number("cancelled"),
            retried: number("retried"),
            reclaimed: number("taken_over"),
            released: number("given_back"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0000000000000000000000000000000a";

    fn list(texts: &[&str]) -> Value {
        Value::Array(texts.iter().map(|text| Value::from(*text)).collect())
    }

    #[test]
    fn stats_are_decoded_and_malformed_parts_are_skipped() {
        let running = list(&[ID, "fib 5 9000 1 web 1:7", "x", "fib 5 9000 1 web", ID, "fib"]);
        let dead = list(&["who knows", &format!("{ID} fib 3 8000 its worker was lost")]);
        let totals = list(&["done", "7", "later", "1", "taken_over", "2"]);
        let head = [Value::from("10000"), Value::from(2), Value::from("9500")];
        let reply = Value::Array(head.into_iter().chain([running, dead, totals]).collect());
        let survey = TaskQueueStats::decode(&reply).unwrap();
        assert_eq!((survey.waiting, survey.oldest_ms, survey.running.len()), (2, 500, 1));
        assert_eq!(survey.now_ms, 10_000);
        assert_eq!((survey.running[0].running_ms, survey.running[0].worker.as_str()), (1000, "web 1:7"));
        assert_eq!((survey.dead.len(), survey.dead[0].reason.as_str()), (1, "its worker was lost"));
        assert_eq!((survey.totals.done, survey.totals.reclaimed, survey.totals.dead), (7, 2, 0));
        assert!(TaskQueueStats::decode(&Value::Null).is_err());
    }
}
