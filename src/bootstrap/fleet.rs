//! What a program begins with.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use serde::de::DeserializeOwned;

use crate::application::{AppFactory, Context, IntoApp};
use crate::bootstrap::exit_code::CommandFailure;
use crate::bootstrap::takeover::{AppDefinition, ArgumentParser};
use crate::bootstrap::{exit_code, serve, takeover};
use crate::config;
use crate::config::ConfigInputs;
use crate::sys::{signal, startup};

/// A fleet of workers that serve one application.
///
/// ```no_run
/// fn main() -> std::process::ExitCode {
///     regatta::Fleet::new(app).run()
/// }
///
/// async fn app(_: regatta::Context) -> axum::Router {
///     axum::Router::new().route("/", axum::routing::get(|| async { "hello\n" }))
/// }
/// ```
pub struct Fleet {
    pub(crate) app: AppFactory,
    pub(crate) defaults: String,
}

impl std::fmt::Debug for Fleet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fleet").finish_non_exhaustive()
    }
}

impl Fleet {
    /// A fleet whose workers each build what they serve with `app`, once, after the fork and inside their runtime.
    ///
    /// A worker is READY when `app` has returned, so what it connects to is warm. It has until `workers.boot_timeout`.
    /// An error, with all its sources, is a boot failure of that worker, and so is a panic: it is tried again, and a
    /// fleet of which no worker ever boots ends with exit code 70 and that text; a reload is rolled back.
    ///
    /// What the program made before `Fleet::run` or [`Fleet::serve`], each worker has a copy of, as fork(2) makes it. Files and sockets
    /// that were open stay open and are *shared*: all workers write to one position of a file, and answers on one
    /// connection come to whichever worker reads first. So an append-only file or a UDP socket is fine there; a
    /// connection with an order of questions and answers, a lock or a generator of random numbers belongs into `app`,
    /// which runs in each worker. A worker begins in a new thread, so that nothing that libraries keep per thread is a
    /// copy, thread generators and the keys of hash tables among it; but a generator that the program holds itself (a
    /// `StdRng` in a `static`, or what `app` has captured) draws the same numbers in each.
    pub fn new<F, Fut, S>(app: F) -> Self
    where
        F: Fn(Context<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output: IntoApp> + Send + 'static,
        S: DeserializeOwned + Send + Sync + 'static,
    {
        Self { app: AppFactory::new(app), defaults: String::new() }
    }

    /// Settings that the application brings along, as in the configuration file: defaults of its own, such as the limits
    /// that its routes need. Whatever an operator gives is stronger.
    ///
    /// ```no_run
    /// # async fn app(_: regatta::Context) -> axum::Router { axum::Router::new() }
    /// regatta::Fleet::new(app)
    ///     .defaults("[limits.signup]\nrate = '6/min'\nroutes = '/signup'\nmethods = 'POST'")
    ///     .run();
    /// ```
    #[must_use]
    pub fn defaults(mut self, toml: &str) -> Self {
        toml.clone_into(&mut self.defaults);
        self
    }

    /// Runs the fleet, with settings from the environment and `regatta.toml` alone, and returns the exit code.
    ///
    /// It reads no argument, so that the program's command line is its own. Call it before the program has a second
    /// thread or has used tokio: the supervisor forks its workers.
    pub fn serve(self) -> ExitCode {
        let arguments: Vec<OsString> = std::env::args_os().collect();
        let name = program_name(&arguments);
        exit_code::report(&name, self.serve_without_arguments(&arguments))
    }

    fn serve_without_arguments(&self, arguments: &[OsString]) -> Result<u8, CommandFailure> {
        let app_definition = self.app_definition(|_| Ok(ConfigInputs::from_process()));
        if let Some(code) = take_over_or_prepare(arguments, app_definition)? {
            return Ok(code);
        }
        if let Some(state) = takeover::preflight_fd() {
            return takeover::run_preflight(state, app_definition);
        }
        let usage = |error: config::ConfigError| CommandFailure::new(exit_code::USAGE, &error);
        let mut inputs = ConfigInputs::from_process();
        inputs.application.clone_from(&self.defaults);
        let inputs = inputs.capture_file().map_err(usage)?;
        let config = config::load(&inputs).map_err(usage)?;
        serve(config, &inputs, arguments, &self.app)
    }

    pub(crate) fn app_definition(&self, parse: ArgumentParser) -> AppDefinition<'_> {
        AppDefinition { app: &self.app, defaults: &self.defaults, parse }
    }
}

/// The name under which the program was started.
pub fn program_name(arguments: &[OsString]) -> String {
    let name = arguments.first().and_then(|program| Path::new(program).file_name());
    name.map_or("regatta".into(), |name| name.to_string_lossy().into_owned())
}

/// Readies the process, and goes on with the fleet that a program before this one has left in it, until that ends.
///
/// `None`: there is none, and the program may begin.
///
/// # Errors
/// When the process cannot be readied, or the fleet ended in a failure.
pub fn take_over_or_prepare(
    arguments: &[OsString],
    app_definition: AppDefinition<'_>,
) -> Result<Option<u8>, CommandFailure> {
    let failed = |message| CommandFailure { code: exit_code::FAILED, message };
    startup::prepare_process().map_err(|error| failed(format!("cannot begin: {error}")))?;
    if let Some(env) = takeover::takeover_env() {
        return takeover::take_over(&env, arguments, app_definition).map(Some);
    }
    // Only a program that takes a fleet over needs the signals blocked that came meanwhile.
    signal::unblock_all().map_err(|error| failed(format!("cannot unblock signals: {error}")))?;
    Ok(None)
}
