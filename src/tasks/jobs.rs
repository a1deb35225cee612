//! The jobs of a program by the kinds of their tasks: typed for applications, JSON for executions.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::tasks::context::TaskContext;
use crate::tasks::task::TaskOptions;

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

/// A running async job.
pub(super) type JobFuture = Pin<Box<dyn Future<Output = JobOutcome> + Send>>;

type BlockingJob = dyn Fn(&str, &TaskContext) -> JobOutcome + Send + Sync;
type AsyncJob = dyn Fn(&str, &TaskContext) -> JobFuture + Send + Sync;

/// A job without its types: JSON in, JSON out. It never unwinds.
#[derive(Clone)]
pub(super) enum Job {
    /// On a thread of its own.
    Blocking(Arc<BlockingJob>),
    /// On the worker's event loop.
    Async(Arc<AsyncJob>),
}

/// A job, and what holds for its kind.
#[derive(Clone)]
pub(super) struct RegisteredJob {
    pub(super) job: Job,
    pub(super) options: TaskOptions,
}

/// The jobs of a program, by kind.
pub(super) type JobTable = BTreeMap<&'static str, RegisteredJob>;

/// Whether this is a valid name of a kind.
pub(super) fn is_valid_kind(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(allowed)
}

/// A job that runs on a thread.
pub(super) fn blocking<I, O, E>(job: impl Fn(I, &TaskContext) -> Result<O, E> + Send + Sync + 'static) -> Job
where
    I: DeserializeOwned,
    O: Serialize,
    E: Into<TaskFailure>,
{
    Job::Blocking(Arc::new(move |input, context| {
        // A panic may leave the job's own state inconsistent: jobs with shared state have to allow for that.
        let run = AssertUnwindSafe(|| match read_input(input) {
            Ok(input) => outcome(job(input, context)),
            Err(failed) => failed,
        });
        catch_unwind(run).unwrap_or_else(|panic| panicked(&*panic)).truncated()
    }))
}

/// A job that runs on the event loop.
pub(super) fn asynchronous<I, O, E, Fut>(job: impl Fn(I, TaskContext) -> Fut + Send + Sync + 'static) -> Job
where
    I: DeserializeOwned,
    O: Serialize,
    E: Into<TaskFailure>,
    Fut: Future<Output = Result<O, E>> + Send + 'static,
{
    Job::Async(Arc::new(move |input, context| {
        // The handler's part before its first await may panic, too.
        let begun =
            catch_unwind(AssertUnwindSafe(|| read_input(input).map(|input| job(input, context.clone()))));
        let running = match begun {
            Ok(Ok(running)) => running,
            Ok(Err(failed)) => return Box::pin(std::future::ready(failed.truncated())),
            Err(panic) => return Box::pin(std::future::ready(panicked(&*panic).truncated())),
        };
        let mut running = Box::pin(running);
        Box::pin(poll_fn(move |waker| {
            let polled = catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(waker)));
            match polled {
                Ok(Poll::Pending) => Poll::Pending,
                Ok(Poll::Ready(result)) => Poll::Ready(outcome(result).truncated()),
                Err(panic) => Poll::Ready(panicked(&*panic).truncated()),
            }
        }))
    }))
}

fn read_input<I: DeserializeOwned>(input: &str) -> Result<I, JobOutcome> {
    serde_json::from_str(input)
        .map_err(|error| JobOutcome::Failed(format!("its input cannot be read: {error}")))
}

fn outcome<O: Serialize, E: Into<TaskFailure>>(result: Result<O, E>) -> JobOutcome {
    let output = match result.map_err(Into::into) {
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

fn panicked(panic: &(dyn std::any::Any + Send)) -> JobOutcome {
    JobOutcome::Retry(format!("it panicked: {}", panic_message(panic)))
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
    use futures_util::FutureExt;

    use super::*;

    fn run<O: Serialize + 'static, E: Into<TaskFailure> + 'static>(
        job: fn(u64, &TaskContext) -> Result<O, E>,
        input: &str,
    ) -> JobOutcome {
        let Job::Blocking(job) = blocking(job) else { panic!("it is no blocking job") };
        job(input, &TaskContext::detached())
    }

    fn run_async<O: Serialize + 'static, Fut: Future<Output = Result<O, TaskFailure>> + Send + 'static>(
        job: fn(u64, TaskContext) -> Fut,
        input: &str,
    ) -> JobOutcome {
        let Job::Async(job) = asynchronous(job) else { panic!("it is no async job") };
        job(input, &TaskContext::detached()).now_or_never().expect("it waits for nothing")
    }

    #[test]
    fn every_end_of_an_async_job_is_an_outcome() {
        let double = |n: u64, _: TaskContext| async move { Ok::<_, TaskFailure>(n * 2) };
        assert_eq!(run_async(double, "21"), JobOutcome::Done("42".to_owned()));
        let JobOutcome::Failed(reason) = run_async(double, "\"x\"") else { panic!("a text is no number") };
        assert!(reason.starts_with("its input cannot be read"), "{reason}");
        let busy = |_: u64, _: TaskContext| async { Err::<(), _>(TaskFailure::retry("busy")) };
        assert_eq!(run_async(busy, "1"), JobOutcome::Retry("busy".to_owned()));
        let late = |n: u64, _: TaskContext| async move {
            std::future::ready(()).await;
            assert_ne!(n, 1, "on purpose");
            Ok::<_, TaskFailure>(())
        };
        let JobOutcome::Retry(reason) = run_async(late, "1") else { panic!("the panic is lost") };
        assert!(reason.starts_with("it panicked: ") && reason.contains("on purpose"), "{reason}");
        let early =
            |n: u64, _: TaskContext| -> std::future::Ready<Result<(), TaskFailure>> { panic!("at once {n}") };
        assert_eq!(run_async(early, "1"), JobOutcome::Retry("it panicked: at once 1".to_owned()));
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
