//! What a program begins with.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use serde::de::DeserializeOwned;

use crate::application::{AppFactory, BoxError, Context, IntoApp};
use crate::bootstrap::app_definition::{AppDefinition, ArgumentParser};
use crate::bootstrap::exit_code::CommandFailure;
use crate::bootstrap::fleet_config::Config;
use crate::bootstrap::{exit_code, serve, takeover};
use crate::config::ConfigInputs;
use crate::http::Worker;
use crate::supervisor::ProbeWords;
use crate::sys::{executable, signal, startup};
use crate::{config, logging};

/// A fleet of workers that serve one application; made in `main`, before any thread or runtime.
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
///
/// The program says what holds where an operator says nothing else:
///
/// ```no_run
/// # async fn app(_: regatta::Context) -> axum::Router { axum::Router::new() }
/// use regatta::Fleet;
///
/// Fleet::new(app)
///     .name("shop")
///     .version(env!("CARGO_PKG_VERSION"))
///     .workers(4)
///     .listen("0.0.0.0:80")
///     .after_fork(|worker| {
///         // Before the worker's runtime: reseed, start a profiler.
///         std::fs::write(format!("/run/shop-{}.pid", worker.slot()), worker.pid().to_string())
///     })
///     .run();
/// ```
#[must_use]
pub struct Fleet {
    pub(crate) app: AppFactory,
    /// The program's [`Config`], with `said` laid over its defaults.
    config: Config,
    /// Defaults that the fleet itself was told, as (setting, value).
    said: Vec<(&'static str, String)>,
    version: Option<String>,
    listen: Vec<String>,
    /// Whether the library installs its subscriber of log events.
    subscriber: bool,
}

impl std::fmt::Debug for Fleet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fleet").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Why a fleet could not be run, or ended otherwise than by an order.
///
/// ```no_run
/// use std::process::ExitCode;
///
/// use regatta::{Config, Fleet, ServeError};
/// # async fn app(_: regatta::Context) -> axum::Router { axum::Router::new() }
///
/// fn main() -> ExitCode {
///     match Fleet::new(app).config(Config::new().file("/etc/shop.toml")).serve() {
///         Ok(()) => ExitCode::SUCCESS,
///         Err(error) => {
///             if let ServeError::Busy { .. } = error {
///                 eprintln!("shop: to try again is right");
///             }
///             eprintln!("shop: {error}");
///             error.exit_code()
///         }
///     }
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub enum ServeError {
    /// A setting is wrong; nothing was started.
    Config {
        /// What is wrong, in a sentence.
        message: String,
    },
    /// A needed service is missing.
    Unavailable {
        /// What is wrong, in a sentence.
        message: String,
    },
    /// No worker could be brought up.
    Boot {
        /// The workers' reason.
        message: String,
    },
    /// An address or folder is in use, or not there yet: to try again is right.
    Busy {
        /// What is wrong, in a sentence.
        message: String,
    },
    /// Anything else, as a second thread before the fleet.
    Failed {
        /// What is wrong, in a sentence.
        message: String,
    },
}

impl ServeError {
    fn new(CommandFailure { code, message }: CommandFailure) -> Self {
        match code {
            exit_code::USAGE => Self::Config { message },
            exit_code::UNAVAILABLE => Self::Unavailable { message },
            exit_code::BOOT => Self::Boot { message },
            exit_code::TEMPORARY => Self::Busy { message },
            _ => Self::Failed { message },
        }
    }

    /// What the process should end with, for scripts and service managers.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Config { .. } => exit_code::USAGE,
            Self::Unavailable { .. } => exit_code::UNAVAILABLE,
            Self::Boot { .. } => exit_code::BOOT,
            Self::Busy { .. } => exit_code::TEMPORARY,
            Self::Failed { .. } => exit_code::FAILED,
        })
    }
}

impl Fleet {
    /// A fleet whose workers each build what they serve with `app`, once, after the fork and inside their runtime.
    ///
    /// A worker is READY when `app` has returned, so what it connects to is warm. It has until `workers.boot_timeout`.
    /// An error, with all its sources, is a boot failure of that worker, and so is a panic: it is tried again, and a
    /// fleet of which no worker ever boots ends with exit code 70 and that text; a reload is rolled back.
    ///
    /// What the program made before the fleet is run, each worker has a copy of, as fork(2) makes it. Files and sockets
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
        let app = AppFactory::new(app);
        Self {
            app,
            config: Config::new(),
            said: Vec::new(),
            version: None,
            listen: Vec::new(),
            subscriber: true,
        }
    }

    fn say(mut self, setting: &'static str, value: String) -> Self {
        self.config = self.config.set_default(setting, &value);
        self.said.push((setting, value));
        self
    }

    /// The fleet's name: the first part of every key in Redis, unless an operator gives `redis.prefix`.
    pub fn name(self, name: impl Into<String>) -> Self {
        self.say("redis.prefix", name.into())
    }

    /// The program's version, as `status` and `--version` say it; without it they say that of the library.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// Default of `workers.count`.
    pub fn workers(self, count: usize) -> Self {
        self.say("workers.count", count.to_string())
    }

    /// Default of `listen`, as `0.0.0.0:80`; may be repeated.
    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.listen.push(address.into());
        let all = self.listen.join(", ");
        self.say("listen", all)
    }

    /// Where settings come from. What [`Fleet::name`], [`Fleet::workers`] and [`Fleet::listen`] say, before or after
    /// this, is stronger than defaults of `config`.
    pub fn config(mut self, config: Config) -> Self {
        let over = |config: Config, (setting, value): &(&str, String)| config.set_default(setting, value);
        self.config = self.said.iter().fold(config, over);
        self
    }

    /// Installs no subscriber of log events: not one line of the library is written, unless the program subscribes.
    ///
    /// ```no_run
    /// # async fn app(_: regatta::Context) -> axum::Router { axum::Router::new() }
    /// use regatta::Fleet;
    ///
    /// Fleet::new(app).without_subscriber().after_fork(|_| tracing_subscriber::fmt().try_init()).run();
    /// ```
    pub fn without_subscriber(mut self) -> Self {
        self.subscriber = false;
        self
    }

    /// Runs in each worker after its fork, before its runtime: reseed, start a profiler, install a subscriber that has
    /// threads. An error, or a panic, is a boot failure of the worker.
    pub fn after_fork<F, E>(mut self, hook: F) -> Self
    where
        F: Fn(&Worker) -> Result<(), E> + Send + Sync + 'static,
        E: Into<BoxError>,
    {
        self.app.add_after_fork(hook);
        self
    }

    /// Runs the fleet, with settings from the environment and `regatta.toml` alone, until it has ended.
    ///
    /// It reads no argument, so that the program's command line is its own. Call it before the program has a second
    /// thread or has used tokio: the supervisor forks its workers. Print nothing after it: when an upgrade asks a program
    /// whether it could take over, the answer is the program's last line.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub fn serve(self) -> Result<(), ServeError> {
        let arguments: Vec<OsString> = std::env::args_os().collect();
        let served = self.serve_without_arguments(&arguments);
        logging::finish();
        served.map(drop).map_err(ServeError::new)
    }

    fn serve_without_arguments(&self, arguments: &[OsString]) -> Result<u8, CommandFailure> {
        let parse = |_: &[OsString]| Ok(ConfigInputs::from_process());
        let definition = self.definition(&parse, ProbeWords::OwnArguments);
        if let Some(code) = begin(arguments, definition)? {
            return Ok(code);
        }
        self.serve_with(ConfigInputs::from_process(), arguments, definition)
    }

    /// Runs the fleet with what was given outside of the program.
    pub(crate) fn serve_with(
        &self,
        inputs: ConfigInputs,
        arguments: &[OsString],
        definition: AppDefinition<'_>,
    ) -> Result<u8, CommandFailure> {
        let usage = |error: config::ConfigError| CommandFailure::new(exit_code::USAGE, &error);
        let inputs = self.inputs(inputs).capture_file().map_err(usage)?;
        let config = config::load(&inputs).map_err(usage)?;
        serve(config, &inputs, arguments, definition)
    }

    /// Lays what the program says under and over what was given outside of it.
    pub(crate) fn inputs(&self, given: ConfigInputs) -> ConfigInputs {
        self.config.apply(given)
    }

    pub(crate) fn definition<'a>(
        &'a self,
        parse: &'a ArgumentParser<'a>,
        probe_words: ProbeWords,
    ) -> AppDefinition<'a> {
        AppDefinition {
            app: &self.app,
            config: &self.config,
            version: self.version.as_deref(),
            parse,
            probe_words,
            subscriber: self.subscriber,
        }
    }
}

/// The name under which the program was started.
pub fn program_name(arguments: &[OsString]) -> String {
    let name = arguments.first().and_then(|program| Path::new(program).file_name());
    name.map_or("regatta".into(), |name| name.to_string_lossy().into_owned())
}

/// Readies the process, and does what a running fleet has started this program for: to take over, or to say whether it
/// could.
///
/// `None`: it was started for neither, and may begin.
///
/// # Errors
/// As [`take_over_or_prepare`] and [`answer_preflight`].
pub fn begin(arguments: &[OsString], definition: AppDefinition<'_>) -> Result<Option<u8>, CommandFailure> {
    match take_over_or_prepare(arguments, definition)? {
        Some(code) => Ok(Some(code)),
        None => answer_preflight(definition),
    }
}

/// Readies the process, and goes on with the fleet that a program before this one has left in it, until that ends.
///
/// `None`: there is none, and the program may begin.
///
/// # Errors
/// When the process cannot be readied, or the fleet ended in a failure.
pub fn take_over_or_prepare(
    arguments: &[OsString],
    definition: AppDefinition<'_>,
) -> Result<Option<u8>, CommandFailure> {
    let failed = |message| CommandFailure { code: exit_code::FAILED, message };
    definition.version.into_iter().for_each(executable::set_program_version);
    startup::prepare_process().map_err(|error| failed(format!("cannot begin: {error}")))?;
    if let Some(env) = takeover::takeover_env() {
        return takeover::take_over(&env, arguments, definition).map(Some);
    }
    // Only a program that takes a fleet over needs the signals blocked that came meanwhile.
    signal::unblock_all().map_err(|error| failed(format!("cannot unblock signals: {error}")))?;
    Ok(None)
}

/// Says to a running fleet whether this program could take it over, if that is what it was started for.
///
/// To be called when the program has read its arguments, if it reads any: those it refuses now it would refuse when it
/// takes over.
///
/// # Errors
/// Why it could not.
pub fn answer_preflight(definition: AppDefinition<'_>) -> Result<Option<u8>, CommandFailure> {
    takeover::preflight_fd().map(|state| takeover::run_preflight(state, definition)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Router;

    #[test]
    fn settings_of_the_program_hold_before_and_after_config() {
        let fleet = || Fleet::new(|_: Context| async { Router::new() });
        let given = || Config::new().defaults("[workers]\ncount = 7").set_default("redis.prefix", "boat");
        let first = fleet().name("shop").workers(3).listen("0.0.0.0:81").config(given());
        let last = fleet().config(given()).name("shop").workers(3).listen("0.0.0.0:81");
        for fleet in [first.config(given()).listen("0.0.0.0:82"), last] {
            let inputs = fleet.inputs(ConfigInputs::default());
            let config = config::load(&inputs).unwrap();
            assert_eq!((config.redis.prefix.as_str(), config.listen.len()), ("shop", fleet.listen.len()));
            assert_eq!(config.workers.count, config::settings::WorkerCount::Fixed(3));
        }
    }
}
