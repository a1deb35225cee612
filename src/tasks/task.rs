//! A kind of tasks as a type, and what holds for all of its tasks.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A job by its input; its handler is given to `App` or `TaskRunner`.
///
/// ```
/// use regatta::task::{Task, TaskOptions};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Thumbnails {
///     album: String,
/// }
///
/// impl Task for Thumbnails {
///     const NAME: &'static str = "thumbnails";
///     type Output = u32;
///
///     fn options() -> TaskOptions {
///         TaskOptions::default().attempts(5)
///     }
/// }
/// ```
pub trait Task: Serialize + DeserializeOwned + Send + 'static {
    /// The kind's name: 1 to 32 of `a-z`, `0-9`, `-` and `_`. It is what records in Redis say, so another name is another
    /// kind: tasks that wait under the former one are not carried out.
    const NAME: &'static str;

    /// What the job's handler returns, at most 256 KiB of JSON.
    type Output: Serialize + DeserializeOwned + Send + 'static;

    /// What holds for every task of this kind.
    fn options() -> TaskOptions {
        TaskOptions::default()
    }
}

/// What holds for a kind of tasks; what is not said here is as in the settings `tasks.*`.
///
/// ```
/// use std::time::Duration;
/// use regatta::task::TaskOptions;
///
/// let patient = TaskOptions::default()
///     .attempts(20)
///     .timeout(Duration::from_secs(60))
///     .backoff(Duration::from_secs(1), Duration::from_secs(3))
///     .keep(Duration::from_secs(3600));
/// # let _ = patient;
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use]
pub struct TaskOptions {
    pub(super) attempts: Option<u32>,
    pub(super) timeout: Option<Duration>,
    pub(super) backoff: Option<(Duration, Duration)>,
    pub(super) keep: Option<Duration>,
}

impl TaskOptions {
    /// A task is dead after so many attempts, at least 1. Default: `tasks.max_attempts`.
    pub fn attempts(mut self, most: u32) -> Self {
        self.attempts = Some(most.max(1));
        self
    }

    /// An attempt that runs for longer has failed, for good. Default: `tasks.timeout`.
    pub fn timeout(mut self, time: Duration) -> Self {
        self.timeout = Some(time.max(Duration::from_millis(1)));
        self
    }

    /// The delay before the second attempt, doubled before each later one up to `most`; neither is longer than
    /// `tasks.lease` (3 s). Default: 0.5 s, and a lease.
    pub fn backoff(mut self, first: Duration, most: Duration) -> Self {
        self.backoff = Some((first, most.max(first)));
        self
    }

    /// How long the result is kept after the end. Default: `tasks.retention`.
    pub fn keep(mut self, time: Duration) -> Self {
        self.keep = Some(time.max(Duration::from_millis(1)));
        self
    }
}
