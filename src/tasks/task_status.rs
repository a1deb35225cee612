//! A task's status in Redis: a hash of one-letter fields, listed at the head of `migrations/0019_regatta_task_v3.lua`.

use std::fmt;
use std::str::FromStr;

use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::redis::RedisError;
use crate::redis::wire::Value;
use crate::units;

/// A task's id: 128 random bits, so that only those who were given it can read the task. Shown as 32 hexadecimal
/// digits.
///
/// ```
/// use regatta::task::TaskId;
///
/// let id: TaskId = "000102030405060708090a0b0c0d0e0f".parse()?;
/// assert_eq!(id.to_string(), "000102030405060708090a0b0c0d0e0f");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(u128);

/// A text that is no [`TaskId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a task's id has 32 hexadecimal digits, in small letters")]
pub struct InvalidTaskId;

/// The operating system gave no random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operating system has no random bytes")]
pub struct TaskRandomSourceError;

impl TaskId {
    /// Digits of its text.
    pub const LENGTH: usize = 32;

    /// The id of no task.
    pub(super) const ZERO: Self = Self(0);

    /// A new id.
    ///
    /// # Errors
    /// When the operating system has no random bytes.
    pub fn new() -> Result<Self, TaskRandomSourceError> {
        let mut bytes = [0; 16];
        SystemRandom::new().fill(&mut bytes).map_err(|_| TaskRandomSourceError)?;
        Ok(Self(u128::from_le_bytes(bytes)))
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for TaskId {
    type Err = InvalidTaskId;

    fn from_str(text: &str) -> Result<Self, InvalidTaskId> {
        let plain = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if text.len() != Self::LENGTH || !plain {
            return Err(InvalidTaskId);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| InvalidTaskId)
    }
}

impl<'de> Deserialize<'de> for TaskId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for TaskId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The state of a task.
///
/// ```
/// use regatta::task::TaskState;
///
/// assert!(TaskState::Done.is_final() && !TaskState::Running.is_final());
/// assert_eq!(TaskState::Waiting.name(), "waiting");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum TaskState {
    /// It waits for its time: it was delayed, or is to be tried again.
    Scheduled,
    /// It waits for a worker.
    Waiting,
    /// A worker has started it.
    Running,
    /// It has a result.
    Done,
    /// It failed.
    Failed,
    /// Its attempts are used up, or it was not claimed in time.
    Dead,
    /// It was cancelled.
    Cancelled,
}

impl TaskState {
    /// Every state, with its name.
    const ALL: [(Self, &'static str); 7] = [
        (Self::Scheduled, "scheduled"),
        (Self::Waiting, "waiting"),
        (Self::Running, "running"),
        (Self::Done, "done"),
        (Self::Failed, "failed"),
        (Self::Dead, "dead"),
        (Self::Cancelled, "cancelled"),
    ];

    /// Its name: `waiting`, `running`, ….
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// Whether no other state follows.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Scheduled | Self::Waiting | Self::Running)
    }

    /// Reads a record's word. One that waits is `queued` there, as releases before this one expect, whether its time has
    /// come or not.
    fn parse(text: &str) -> Option<Self> {
        let text = if text == "queued" { "waiting" } else { text };
        Self::ALL.iter().find(|(_, name)| *name == text).map(|(state, _)| *state)
    }
}

/// A task at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct TaskStatus {
    /// Its id.
    pub id: TaskId,
    /// Its kind.
    pub kind: String,
    /// Its state.
    pub state: TaskState,
    /// Its progress, 0 to 100, as reported by its job.
    pub percent: u8,
    /// The worker that runs it, or ran it last: host and process.
    pub worker: Option<String>,
    /// How often it was started; attempts that a leaving worker released are not counted.
    pub attempts: u64,
    /// Its result.
    pub result: Option<Box<RawValue>>,
    /// Why it failed, died or was cancelled, or why its last attempt failed.
    pub error: Option<String>,
    /// When it was enqueued, Unix ms by Redis's clock.
    #[serde(rename = "created_at", serialize_with = "units::rfc3339_ms::serialize")]
    pub created_ms: u64,
    /// When it was last started.
    #[serde(rename = "started_at", serialize_with = "units::optional_rfc3339_ms::serialize")]
    pub started_ms: Option<u64>,
    /// When it finished.
    #[serde(rename = "finished_at", serialize_with = "units::optional_rfc3339_ms::serialize")]
    pub finished_ms: Option<u64>,
}

/// The fields of the hash, in the order in which they are read.
pub(super) const STATUS_FIELDS: [&str; 10] = ["k", "s", "p", "w", "a", "r", "e", "c", "b", "f"];

impl TaskStatus {
    /// Reads the values of [`STATUS_FIELDS`]; `None` if there is no task.
    ///
    /// # Errors
    /// `Protocol` when the values have another form.
    pub(super) fn from_values(id: TaskId, values: &[Value]) -> Result<Option<Self>, RedisError> {
        let text = |at: usize| values.get(at).and_then(Value::as_string);
        let number = |at: usize| values.get(at).and_then(Value::as_u64);
        if values.iter().all(Value::is_null) {
            return Ok(None);
        }
        let odd = || RedisError::protocol("what lies under a task's key is none");
        let (Some(kind), Some(state), Some(created_ms)) = (text(0), text(1), number(7)) else {
            return Err(odd());
        };
        let state = TaskState::parse(&state).ok_or_else(odd)?;
        let result = text(5).map(RawValue::from_string).transpose().map_err(|_| odd())?;
        // A done task is shown as complete, whatever progress it reported last.
        let percent = if state == TaskState::Done { 100 } else { number(2).unwrap_or(0).min(100) };
        Ok(Some(Self {
            id,
            kind,
            state,
            percent: u8::try_from(percent).unwrap_or(100),
            worker: text(3),
            attempts: number(4).unwrap_or(0),
            result,
            error: text(6),
            created_ms,
            started_ms: number(8),
            finished_ms: number(9),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_a_round_trip_and_other_texts_are_rejected() {
        let id = TaskId::new().unwrap();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_ne!(TaskId::new().unwrap(), id);
        assert_eq!(TaskId(10).to_string(), "0000000000000000000000000000000a");
        for odd in ["", "a", "+000000000000000000000000000000a", "0000000000000000000000000000000A"] {
            assert_eq!(odd.parse::<TaskId>(), Err(InvalidTaskId), "{odd}");
        }
    }

    #[test]
    fn states_have_their_names() {
        for (index, (state, name)) in TaskState::ALL.iter().enumerate() {
            assert_eq!((*state as usize, TaskState::parse(name), state.name()), (index, Some(*state), *name));
            assert_eq!(serde_json::to_string(state).unwrap(), format!("\"{name}\""));
        }
    }

    #[test]
    fn a_task_is_decoded_and_other_values_are_rejected() {
        let id = TaskId(1);
        let values = |texts: [&str; 10]| {
            texts.map(|text| if text.is_empty() { Value::Null } else { Value::from(text) })
        };
        let done = values(["fib", "done", "40", "web:1", "2", "12345678901234567890123", "", "5", "6", "7"]);
        let task = TaskStatus::from_values(id, &done).unwrap().unwrap();
        assert_eq!(
            (task.state, task.percent, task.attempts, task.finished_ms),
            (TaskState::Done, 100, 2, Some(7))
        );
        let json = serde_json::to_string(&task).unwrap();
        assert!(json.contains("\"result\":12345678901234567890123,\"error\":null"), "{json}");
        let times = [("created", "005"), ("started", "006"), ("finished", "007")];
        for (name, ms) in times {
            assert!(json.contains(&format!("\"{name}_at\":\"1970-01-01T00:00:00.{ms}Z\"")), "{json}");
        }
        assert!(TaskStatus::from_values(id, &values([""; 10])).unwrap().is_none());
        assert!(
            TaskStatus::from_values(id, &values(["fib", "lost", "", "", "", "", "", "5", "", ""])).is_err()
        );
        assert!(
            TaskStatus::from_values(id, &values(["fib", "done", "", "", "", "}", "", "5", "", ""])).is_err()
        );
    }
}
