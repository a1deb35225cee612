//! The program's function, without its types: settings and handle in, application out.

use std::any::Any;
use std::fmt;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use axum::BoxError;
use serde::de::DeserializeOwned;

use crate::application::app::App;
use crate::application::context::Context;
use crate::application::into_app::IntoApp;
use crate::config::ConfigError;
use crate::config::settings::AppSettings;
use crate::http::{FleetHandle, Worker};
use crate::panics::panic_message;

type Building = Pin<Box<dyn Future<Output = Result<App, BoxError>> + Send>>;
type AfterFork = dyn Fn(&Worker) -> Result<(), BoxError> + Send + Sync;
type Build = dyn Fn(&AppSettings, FleetHandle) -> Result<Building, ConfigError> + Send + Sync;

/// Builds what a worker serves, once in each worker; clones are the same one.
#[derive(Clone)]
pub struct AppFactory {
    build: Arc<Build>,
    after_fork: Vec<Arc<AfterFork>>,
    check: fn(&AppSettings) -> Result<(), ConfigError>,
}

/// Why an application could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppError {
    /// A value under `[app]` is not what the program wants.
    #[error(transparent)]
    Settings(#[from] ConfigError),
    /// The application returned this error; the text has all its sources.
    #[error("the application cannot start: {0}")]
    Failed(String),
    /// The application panicked with this message.
    #[error("the application panicked while it was built: {0}")]
    Panicked(String),
}

impl AppFactory {
    /// The factory behind `Fleet::new`.
    pub fn new<F, Fut, S>(app: F) -> Self
    where
        F: Fn(Context<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output: IntoApp> + Send + 'static,
        S: DeserializeOwned + Send + Sync + 'static,
    {
        let build = move |settings: &AppSettings, fleet: FleetHandle| -> Result<Building, ConfigError> {
            let building = app(Context::new(settings.deserialize::<S>()?, fleet));
            Ok(Box::pin(async move { building.await.into_app() }))
        };
        Self {
            build: Arc::new(build),
            after_fork: Vec::new(),
            check: |settings| settings.deserialize::<S>().map(drop),
        }
    }

    /// Adds a hook that runs in each worker before its runtime.
    pub(crate) fn add_after_fork<F, E>(&mut self, hook: F)
    where
        F: Fn(&Worker) -> Result<(), E> + Send + Sync + 'static,
        E: Into<BoxError>,
    {
        self.after_fork.push(Arc::new(move |worker| hook(worker).map_err(Into::into)));
    }

    /// Runs the hooks that come before the runtime, in the order in which they were added.
    ///
    /// # Errors
    /// The first one's error or panic.
    pub fn run_after_fork(&self, worker: &Worker) -> Result<(), AppError> {
        let run = || self.after_fork.iter().try_for_each(|hook| hook(worker));
        let done = catch_unwind(AssertUnwindSafe(run)).map_err(|panic| panicked(&*panic))?;
        done.map_err(|error| AppError::Failed(with_sources(&*error)))
    }

    /// Whether `[app]` is what the program wants.
    ///
    /// # Errors
    /// The first mistake, with the setting's path and its source.
    pub fn check_settings(&self, settings: &AppSettings) -> Result<(), ConfigError> {
        (self.check)(settings)
    }

    /// Builds the application.
    ///
    /// # Errors
    /// See [`AppError`]; a panic of the application is one of them.
    ///
    /// # Cancel safety
    /// Dropping the future drops what the application has made so far.
    pub async fn build(&self, settings: &AppSettings, fleet: FleetHandle) -> Result<App, AppError> {
        let lent = fleet.clone();
        let begun = catch_unwind(AssertUnwindSafe(|| (self.build)(settings, fleet)));
        let mut building = begun.map_err(|panic| panicked(&*panic))??;
        let built =
            poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| building.as_mut().poll(context))) {
                Ok(Poll::Pending) => Poll::Pending,
                Ok(Poll::Ready(built)) => Poll::Ready(Ok(built)),
                Err(panic) => Poll::Ready(Err(panic)),
            });
        let built = built.await.map_err(|panic| panicked(&*panic))?;
        let app = built.map_err(|error| AppError::Failed(with_sources(&*error)))?;
        match lent.end_build() {
            Some(mistake) => Err(AppError::Failed(mistake)),
            None => Ok(app),
        }
    }
}

fn panicked(panic: &(dyn Any + Send)) -> AppError {
    AppError::Panicked(panic_message(panic).to_owned())
}

/// The error and all its causes in one sentence.
fn with_sources(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl fmt::Debug for AppFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppFactory").finish_non_exhaustive()
    }
}
