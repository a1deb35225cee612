//! The application's own checks: what `/readyz` asks besides Redis and what guards a rollout, at most once a second.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::BoxError;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::panics::panic_message;

/// How long a result is told again, however many probes ask.
const RESULT_TTL: Duration = Duration::from_secs(1);

/// How long a check may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

type Running = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

/// When a check was run, and what is wrong since.
type CheckResult = (Instant, Option<String>);

/// One check of the application.
#[derive(Clone)]
pub struct AppCheck {
    name: &'static str,
    state: Arc<CheckState>,
}

/// How a check is run, and what it found last.
struct CheckState {
    run: Box<dyn Fn() -> Running + Send + Sync>,
    /// The last result, which holds for a while.
    last: Mutex<Option<CheckResult>>,
}

/// The checks of the application.
#[derive(Debug, Default)]
pub struct AppChecks {
    /// A failure of one of them takes the worker's instance out of service.
    pub readiness: Vec<AppCheck>,
    /// A failure of one of them is told and changes nothing.
    pub health: Vec<AppCheck>,
}

impl AppCheck {
    /// A check of this name, which probes show.
    pub fn new<F, Fut, E>(name: &'static str, check: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let run = move || -> Running {
            let checking = check();
            Box::pin(async move { checking.await.map_err(Into::into) })
        };
        Self { name, state: Arc::new(CheckState { run: Box::new(run), last: Mutex::default() }) }
    }

    /// What is wrong, if anything is; the result of the last second, if there is one.
    async fn failure(&self) -> Option<String> {
        // A task of its own: a probe that goes away must leave the result to the others, a rollout among them.
        let state = Arc::clone(&self.state);
        let found = tokio::spawn(async move { state.failure().await }).await;
        let reason = found.unwrap_or_else(|_| Some("it was cut off".to_owned()))?;
        Some(format!("check {:?} fails: {reason}", self.name))
    }
}

impl CheckState {
    async fn failure(&self) -> Option<String> {
        // Probes that come meanwhile wait here for the result of the one that runs.
        let mut last = self.last.lock().await;
        if let Some((_, known)) = last.as_ref().filter(|(at, _)| at.elapsed() < RESULT_TTL) {
            return known.clone();
        }
        let began = Instant::now();
        let failure = self.run().await.err();
        *last = Some((began, failure.clone()));
        failure
    }

    async fn run(&self) -> Result<(), String> {
        // A task of its own, whose panic the runtime catches; `run` is the application's, too.
        let checking = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| tokio::spawn((self.run)())));
        let panicked = |panic: &(dyn std::any::Any + Send)| format!("it panicked: {}", panic_message(panic));
        let mut checking = checking.map_err(|panic| panicked(&*panic))?;
        match timeout(CHECK_TIMEOUT, &mut checking).await {
            Err(_) => {
                checking.abort();
                Err(format!("it took longer than {} s", CHECK_TIMEOUT.as_secs()))
            }
            Ok(Ok(result)) => result.map_err(|error| error.to_string()),
            Ok(Err(error)) => Err(match error.try_into_panic() {
                Ok(panic) => panicked(&*panic),
                Err(_) => "it was cut off".to_owned(),
            }),
        }
    }
}

impl AppChecks {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.readiness.is_empty() && self.health.is_empty()
    }

    /// Every check by its name, and what is wrong if it fails.
    pub async fn results(&self) -> Vec<(&'static str, Option<String>)> {
        let checks = self.readiness.iter().chain(&self.health);
        futures_util::future::join_all(checks.map(|check| async { (check.name, check.failure().await) }))
            .await
    }

    /// The first readiness check that fails, by name and reason.
    pub(in crate::http) async fn unready_reason(&self) -> Option<String> {
        first_failure(&self.readiness).await
    }

    /// The first health check that fails, by name and reason.
    pub(in crate::http) async fn degraded_reason(&self) -> Option<String> {
        first_failure(&self.health).await
    }
}

async fn first_failure(checks: &[AppCheck]) -> Option<String> {
    for failure in futures_util::future::join_all(checks.iter().map(AppCheck::failure)).await {
        if failure.is_some() {
            return failure;
        }
    }
    None
}

impl fmt::Debug for AppCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppCheck").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[tokio::test]
    async fn many_probes_run_a_check_once() {
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&runs);
        let check = AppCheck::new("database", move || {
            counted.fetch_add(1, Relaxed);
            async { Err::<(), _>("no route to it") }
        });
        let checks = AppChecks { readiness: vec![check], health: Vec::new() };
        let probes = futures_util::future::join_all((0..50).map(|_| checks.unready_reason())).await;
        let expected = Some("check \"database\" fails: no route to it".to_owned());
        assert!(probes.iter().all(|reason| *reason == expected), "{probes:?}");
        assert_eq!(runs.load(Relaxed), 1);
        assert_eq!(checks.degraded_reason().await, None);
    }

    #[tokio::test]
    async fn a_probe_that_goes_away_leaves_the_result_to_the_others() {
        let check = AppCheck::new("slow", || async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok::<_, BoxError>(())
        });
        let checks = AppChecks { readiness: vec![check.clone()], health: vec![check] };
        assert!(timeout(Duration::from_millis(5), checks.unready_reason()).await.is_err());
        assert_eq!(checks.results().await, [("slow", None), ("slow", None)]);
    }

    #[tokio::test]
    async fn a_check_that_panics_or_hangs_fails() {
        let panics = AppCheck::new("a", || async { panic!("ouch") as Result<(), BoxError> });
        assert_eq!(panics.failure().await.unwrap(), "check \"a\" fails: it panicked: ouch");
        let hangs = AppCheck::new("b", std::future::pending::<Result<(), BoxError>>);
        assert_eq!(hangs.failure().await.unwrap(), "check \"b\" fails: it took longer than 1 s");
        let fine = AppCheck::new("c", || async { Ok::<_, BoxError>(()) });
        assert_eq!(fine.failure().await, None);
    }
}
