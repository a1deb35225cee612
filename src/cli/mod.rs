//! The command line of any program built on the library, and the one place where all rooms meet.

mod args;
mod bootstrap;
mod check;
mod control;
mod events;
mod exit_code;
mod fetch;
mod health;
mod limits;
mod migrate;
mod nginx;
mod reference;
mod status;
#[cfg(test)]
mod test_fixtures;
mod top;
mod units;
mod usage_error;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use args::Command;
use exit_code::CommandFailure;

use crate::http::{AppFactory, FleetHandle, Router};
use crate::sys::{signal, startup};

/// A fleet of workers that serve one application.
///
/// ```no_run
/// fn main() -> std::process::ExitCode {
///     regatta::Fleet::new(|_: regatta::State| {
///         axum::Router::new().route("/", axum::routing::get(|| async { "hello\n" }))
///     })
///     .run()
/// }
/// ```
pub struct Fleet {
    app: AppFactory,
    defaults: String,
}

impl std::fmt::Debug for Fleet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fleet").finish_non_exhaustive()
    }
}

impl Fleet {
    /// A fleet whose workers each build their router with `app`, once, after the fork and inside their runtime.
    ///
    /// A panic in `app` is a boot failure of that worker: it is tried again, and a fleet of which no worker ever
    /// boots ends with exit code 70 and the panic's message.
    ///
    /// What the program made before [`Fleet::run`], each worker has a copy of, as fork(2) makes it. Files and sockets
    /// that were open stay open and are *shared*: all workers write to one position of a file, and answers on one
    /// connection come to whichever worker reads first. So an append-only file or a UDP socket is fine there; a
    /// connection with an order of questions and answers, a lock or a generator of random numbers belongs into `app`,
    /// which runs in each worker. A worker begins in a new thread, so that nothing that libraries keep per thread is a
    /// copy, thread generators and the keys of hash tables among it; but a generator that the program holds itself (a
    /// `StdRng` in a `static`, or what `app` has captured) draws the same numbers in each.
    pub fn new(app: impl Fn(FleetHandle) -> Router + Send + Sync + 'static) -> Self {
        Self { app: Arc::new(app), defaults: String::new() }
    }

    /// Settings that the application brings along, as in the configuration file: defaults of its own, such as the limits
    /// that its routes need. Whatever an operator gives is stronger.
    ///
    /// ```no_run
    /// # fn router(_: regatta::State) -> axum::Router { axum::Router::new() }
    /// regatta::Fleet::new(router)
    ///     .defaults("[limits.signup]\nrate = '6/min'\nroutes = '/signup'\nmethods = 'POST'")
    ///     .run();
    /// ```
    #[must_use]
    pub fn defaults(mut self, toml: &str) -> Self {
        toml.clone_into(&mut self.defaults);
        self
    }

    /// Does what the command line says (`serve` if it says nothing) and returns the exit code.
    ///
    /// Call it first thing in `main`: the supervisor must be the only thread of its process and must not have used
    /// tokio, because it forks its workers; where that is broken it says so and ends.
    pub fn run(self) -> ExitCode {
        let arguments: Vec<OsString> = std::env::args_os().collect();
        let name = arguments.first().and_then(|program| Path::new(program).file_name());
        let name = name.map_or("regatta".into(), |name| name.to_string_lossy().into_owned());
        if let Err(error) = startup::prepare_process() {
            let message = format!("cannot begin: {error}");
            return exit_code::report(&name, Err(CommandFailure { code: exit_code::FAILED, message }));
        }
        if let Some(takeover) = bootstrap::takeover::takeover_env() {
            return exit_code::report(
                &name,
                bootstrap::takeover::take_over(&takeover, &arguments, self.app_definition()),
            );
        }
        // Only a program that takes a fleet over needs the signals blocked that came meanwhile.
        if let Err(error) = signal::unblock_all() {
            let message = format!("cannot unblock signals: {error}");
            return exit_code::report(&name, Err(CommandFailure { code: exit_code::FAILED, message }));
        }
        match args::parse(&arguments) {
            Ok(line) => exit_code::report(&name, self.execute(line, &arguments)),
            Err(code) => ExitCode::from(code),
        }
    }

    fn app_definition(&self) -> bootstrap::takeover::AppDefinition<'_> {
        bootstrap::takeover::AppDefinition { app: &self.app, defaults: &self.defaults }
    }

    fn execute(self, line: args::CommandLine, arguments: &[OsString]) -> Result<u8, CommandFailure> {
        match &line.command {
            Some(Command::Signals) => return Ok(reference::signals()),
            Some(Command::Settings) => return Ok(reference::settings()),
            Some(Command::Check { handoff: Some(state) }) => {
                return bootstrap::takeover::run_preflight(*state, &self.defaults);
            }
            _ => {}
        }
        let mut inputs =
            line.settings.inputs().map_err(|message| CommandFailure { code: exit_code::USAGE, message })?;
        inputs.application.clone_from(&self.defaults);
        match line.command {
            Some(Command::Control(verb)) => return control::run(&inputs, verb),
            Some(Command::Status { json, all: false, timeout }) => {
                return status::status(&inputs, json, timeout);
            }
            Some(Command::Top { interval, once }) => return top::top(&inputs, interval, once),
            _ => {}
        }
        let inputs = inputs.capture_file().map_err(|error| CommandFailure::new(exit_code::USAGE, &error))?;
        let config =
            crate::config::load(&inputs).map_err(|error| CommandFailure::new(exit_code::USAGE, &error))?;
        match line.command {
            None => bootstrap::serve(config, &inputs, arguments, false, &self.app),
            Some(Command::Serve { watch }) => bootstrap::serve(config, &inputs, arguments, watch, &self.app),
            Some(Command::Check { .. }) => check::check(&config, &inputs),
            Some(Command::Health { url }) => health::health(&config, url.as_deref()),
            Some(Command::Limits(action)) => limits::limits(&config, &action),
            Some(Command::Status { json, all: true, timeout }) => {
                status::fleet::fleet_status(&config, json, timeout)
            }
            Some(Command::Nginx(options)) => nginx::nginx(&config, &options),
            Some(Command::Migrate(order)) => migrate::migrate(&config, &order),
            // Answered above: none of them needs the whole configuration to be right.
            Some(_) => Ok(exit_code::OK),
        }
    }
}
