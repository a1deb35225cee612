//! The kinds of tasks that a program knows: typed for the one who writes the job, JSON for the one who runs it.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::task::progress::Progress;

/// Largest result of a job, bytes of JSON.
pub const RESULT_MAX: usize = 256 * 1024;

/// Longest reason that is kept, bytes.
const REASON_MAX: usize = 1024;

/// Longest name of a kind.
const NAME_MAX: usize = 32;

/// Why a job has no result.
///
/// Everything that can be shown is one, and final: [`Failure::again`] is for what may succeed another time. It does not
/// implement `Display` itself, so that the first sentence can be true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    reason: String,
    again: bool,
}

impl Failure {
    /// It may succeed another time: the task is begun again after a pause, as often as `tasks.attempts` allows.
    pub fn again(reason: impl Display) -> Self {
        Self { reason: reason.to_string(), again: true }
    }
}

impl<E: Display> From<E> for Failure {
    fn from(reason: E) -> Self {
        Self { reason: reason.to_string(), again: false }
    }
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ended {
    /// With this result, JSON.
    Done(String),
    /// For good, for this reason.
    Failed(String),
    /// For this reason, but it may be tried again.
    Again(String),
}

/// A job whose types are forgotten: JSON in, JSON out. It never unwinds.
pub(super) type Job = Arc<dyn Fn(&str, &Progress) -> Ended + Send + Sync>;

/// All kinds of a program, by name.
pub(super) type Kinds = BTreeMap<&'static str, Job>;

/// Whether a kind may have this name.
pub(super) fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(allowed)
}

/// A job without its types.
pub(super) fn erase<I, O, E>(job: impl Fn(I, &Progress) -> Result<O, E> + Send + Sync + 'static) -> Job
where
    I: DeserializeOwned,
    O: Serialize,
    E: Into<Failure>,
{
    Arc::new(move |input, progress| {
        // The job's own state may be torn; the one who writes one that has any makes it bear that.
        let run = AssertUnwindSafe(|| work(&job, input, progress));
        catch_unwind(run)
            .unwrap_or_else(|panic| Ended::Again(format!("it panicked: {}", words(&*panic))))
            .short()
    })
}

fn work<I, O, E>(job: &impl Fn(I, &Progress) -> Result<O, E>, input: &str, progress: &Progress) -> Ended
where
    I: DeserializeOwned,
    O: Serialize,
    E: Into<Failure>,
{
    let input = match serde_json::from_str(input) {
        Ok(input) => input,
        Err(error) => return Ended::Failed(format!("its input cannot be read: {error}")),
    };
    let output = match job(input, progress).map_err(Into::into) {
        Ok(output) => output,
        Err(Failure { reason, again: false }) => return Ended::Failed(reason),
        Err(Failure { reason, again: true }) => return Ended::Again(reason),
    };
    match serde_json::to_string(&output) {
        Ok(json) if json.len() <= RESULT_MAX => Ended::Done(json),
        Ok(json) => Ended::Failed(format!("its result has {} bytes; allowed: {RESULT_MAX}", json.len())),
        Err(error) => Ended::Failed(format!("its result cannot be written: {error}")),
    }
}

/// What a panic said.
fn words(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it did not say why")
}

impl Ended {
    /// The same with a reason of bounded length.
    fn short(self) -> Self {
        match self {
            Self::Done(json) => Self::Done(json),
            Self::Failed(reason) => Self::Failed(cut(reason)),
            Self::Again(reason) => Self::Again(cut(reason)),
        }
    }
}

fn cut(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(REASON_MAX));
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<O: Serialize + 'static, E: Into<Failure> + 'static>(
        job: fn(u64, &Progress) -> Result<O, E>,
        input: &str,
    ) -> Ended {
        erase(job)(input, &Progress::default())
    }

    #[test]
    fn whatever_a_job_does_is_an_end() {
        let double = |n: u64, _: &Progress| Ok::<_, String>(n * 2);
        assert_eq!(run(double, "21"), Ended::Done("42".to_owned()));
        let Ended::Failed(reason) = run(double, "\"x\"") else { panic!("it read a text as a number") };
        assert!(reason.starts_with("its input cannot be read: invalid type"), "{reason}");
        assert_eq!(run(|_, _| Err::<(), _>("no"), "1"), Ended::Failed("no".to_owned()));
        assert_eq!(run(|_, _| Err::<(), _>(Failure::again("busy")), "1"), Ended::Again("busy".to_owned()));
        let panicked = Ended::Again("it panicked: on purpose 1".to_owned());
        assert_eq!(run(|n, _| -> Result<(), String> { panic!("on purpose {n}") }, "1"), panicked);
        let Ended::Failed(reason) = run(|_, _| Ok::<_, String>("x".repeat(RESULT_MAX)), "1") else {
            panic!("too large a result was kept")
        };
        assert_eq!(reason, "its result has 262146 bytes; allowed: 262144");
        let Ended::Failed(reason) = run(|_, _| Err::<(), _>("é".repeat(1000)), "1") else {
            panic!("no end")
        };
        assert_eq!(reason.len(), REASON_MAX);
    }

    #[test]
    fn names_are_short_and_plain() {
        assert!(is_name("fibonacci") && is_name("a-b_9"));
        assert!(
            !is_name("")
                && !is_name("Fib")
                && !is_name("a b")
                && !is_name("a:b")
                && !is_name(&"a".repeat(33))
        );
    }
}
