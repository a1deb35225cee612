//! The jobs of a program by the kinds of their tasks: typed for applications, JSON for executions.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::tasks::context::TaskContext;

/// Largest result of a job, bytes of JSON.
const RESULT_MAX: usize = 256 * 1024;

/// Longest reason of a failure, bytes; a longer one is cut.
const REASON_MAX: usize = 1024;

/// Longest name of a kind.
const NAME_MAX: usize = 32;

/// Why a job has no result.
///
/// Everything that implements `Display` converts into a final failure; [`TaskFailure::retry`] makes one that may succeed
/// at another attempt. The type does not implement `Display` itself, or the conversion could not exist.
///
/// ```
/// use regatta::task::TaskFailure;
///
/// fn fetch(url: &str) -> Result<Vec<u8>, TaskFailure> {
///     if url.is_empty() {
///         return Err(TaskFailure::fail("there is nothing to fetch"));
///     }
///     std::fs::read(url).map_err(TaskFailure::retry)
/// }
/// # let _ = fetch;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskFailure {
    reason: String,
    retry: bool,
}

impl TaskFailure {
    /// A failure that may succeed later: another attempt follows after a delay, as often as the settings allow.
    pub fn retry(reason: impl Display) -> Self {
        Self { reason: reason.to_string(), retry: true }
    }

    /// A failure that is final.
    pub fn fail(reason: impl Display) -> Self {
        Self { reason: reason.to_string(), retry: false }
    }
}

impl<E: Display> From<E> for TaskFailure {
    fn from(reason: E) -> Self {
        Self { reason: reason.to_string(), retry: false }
    }
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum JobOutcome {
    /// A result, JSON.
    Done(String),
    /// A final failure and its reason.
    Failed(String),
    /// A failure that another attempt may follow.
    Retry(String),
}

/// A job without its types: JSON in, JSON out. It never unwinds.
pub(super) type Job = Arc<dyn Fn(&str, &TaskContext) -> JobOutcome + Send + Sync>;

/// The jobs of a program, by kind.
pub(super) type JobTable = BTreeMap<&'static str, Job>;

/// Whether this is a valid name of a kind.
pub(super) fn is_valid_kind(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(allowed)
}

/// Wraps a job as a [`Job`].
pub(super) fn type_erase<I, O, E>(
    job: impl Fn(I, &TaskContext) -> Result<O, E> + Send + Sync + 'static,
) -> Job
where
    I: DeserializeOwned,
    O: Serialize,
    E: Into<TaskFailure>,
{
    Arc::new(move |input, context| {
        // A panic may leave the job's own state inconsistent: jobs with shared state have to allow for that.
        let run = AssertUnwindSafe(|| run_job(&job, input, context));
        catch_unwind(run)
            .unwrap_or_else(|panic| JobOutcome::Retry(format!("it panicked: {}", panic_message(&*panic))))
            .truncated()
    })
}

fn run_job<I, O, E>(
    job: &impl Fn(I, &TaskContext) -> Result<O, E>,
    input: &str,
    context: &TaskContext,
) -> JobOutcome
where
    I: DeserializeOwned,
    O: Serialize,
    E: Into<TaskFailure>,
{
    let input = match serde_json::from_str(input) {
        Ok(input) => input,
        Err(error) => return JobOutcome::Failed(format!("its input cannot be read: {error}")),
    };
    let output = match job(input, context).map_err(Into::into) {
        Ok(output) => output,
        Err(TaskFailure { reason, retry: false }) => return JobOutcome::Failed(reason),
        Err(TaskFailure { reason, retry: true }) => return JobOutcome::Retry(reason),
    };
    match serde_json::to_string(&output) {
        Ok(json) if json.len() <= RESULT_MAX => JobOutcome::Done(json),
        Ok(json) => JobOutcome::Failed(format!("its result has {} bytes; allowed: {RESULT_MAX}", json.len())),
        Err(error) => JobOutcome::Failed(format!("its result cannot be written: {error}")),
    }
}

/// The message of a panic.
fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it did not say why")
}

impl JobOutcome {
    /// Cuts the reason to its longest length.
    fn truncated(self) -> Self {
        match self {
            Self::Done(json) => Self::Done(json),
            Self::Failed(reason) => Self::Failed(truncate_reason(reason)),
            Self::Retry(reason) => Self::Retry(truncate_reason(reason)),
        }
    }
}

fn truncate_reason(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(REASON_MAX));
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<O: Serialize + 'static, E: Into<TaskFailure> + 'static>(
        job: fn(u64, &TaskContext) -> Result<O, E>,
        input: &str,
    ) -> JobOutcome {
        type_erase(job)(input, &TaskContext::default())
    }

    #[test]
    fn every_end_of_a_job_is_an_outcome() {
        let double = |n: u64, _: &TaskContext| Ok::<_, String>(n * 2);
        assert_eq!(run(double, "21"), JobOutcome::Done("42".to_owned()));
        let JobOutcome::Failed(reason) = run(double, "\"x\"") else { panic!("it read a text as a number") };
        assert!(reason.starts_with("its input cannot be read: invalid type"), "{reason}");
        assert_eq!(run(|_, _| Err::<(), _>("no"), "1"), JobOutcome::Failed("no".to_owned()));
        assert_eq!(
            run(|_, _| Err::<(), _>(TaskFailure::retry("busy")), "1"),
            JobOutcome::Retry("busy".to_owned())
        );
        let panicked = JobOutcome::Retry("it panicked: on purpose 1".to_owned());
        assert_eq!(run(|n, _| -> Result<(), String> { panic!("on purpose {n}") }, "1"), panicked);
        let JobOutcome::Failed(reason) = run(|_, _| Ok::<_, String>("x".repeat(RESULT_MAX)), "1") else {
            panic!("too large a result was kept")
        };
        assert_eq!(reason, "its result has 262146 bytes; allowed: 262144");
        let JobOutcome::Failed(reason) = run(|_, _| Err::<(), _>("é".repeat(1000)), "1") else {
            panic!("no end")
        };
        assert_eq!(reason.len(), REASON_MAX);
    }

    #[test]
    fn names_are_short_and_plain() {
        assert!(is_valid_kind("fibonacci") && is_valid_kind("a-b_9"));
        assert!(
            !is_valid_kind("")
                && !is_valid_kind("Fib")
                && !is_valid_kind("a b")
                && !is_valid_kind("a:b")
                && !is_valid_kind(&"a".repeat(33))
        );
    }
}
