//! The command line of any program built on the library: what can be typed, and one file for each verb.
//!
//! Guarantees that a verb asks a running fleet through its control socket or its addresses alone, and that no failure
//! ends without a sentence and its exit code.
//!
//! ```no_run
//! use clap::Parser;
//! use regatta::cli::{Args, Command};
//!
//! /// A parser of your own; `Fleet::execute` does what it says.
//! #[derive(Parser)]
//! struct Shop {
//!     #[command(flatten)]
//!     fleet: Args,
//!     #[command(subcommand)]
//!     command: Option<Command>,
//! }
//!
//! # async fn app(_: regatta::Context) -> axum::Router { axum::Router::new() }
//! let shop = Shop::parse();
//! regatta::Fleet::new(app).execute(shop.fleet, shop.command);
//! ```

mod args;
mod check;
mod control;
mod events;
mod fetch;
mod health;
mod limits;
mod migrate;
mod nginx;
mod reference;
mod status;
#[cfg(test)]
mod test_fixtures;
#[cfg(feature = "top")]
mod top;
mod units;
mod usage_error;
mod watch;

use std::ffi::OsString;
use std::process::ExitCode;

pub use args::{Command, SettingFlags as Args};
#[cfg(feature = "top")]
use top::top;

use crate::bootstrap::app_definition::AppDefinition;
use crate::bootstrap::exit_code::CommandFailure;
use crate::bootstrap::fleet::{Fleet, answer_preflight, begin, program_name, take_over_or_prepare};
use crate::bootstrap::{exit_code, takeover};
use crate::config;
use crate::supervisor::ProbeWords;

impl Fleet {
    /// Does what the command line says (`serve` if it says nothing) and returns the exit code.
    ///
    /// Call it first thing in `main`: the supervisor must be the only thread of its process and must not have used
    /// tokio, because it forks its workers; where that is broken it says so and ends.
    pub fn run(self) -> ExitCode {
        let arguments: Vec<OsString> = std::env::args_os().collect();
        let name = program_name(&arguments);
        let definition = self.definition(&args::parse_start_arguments, ProbeWords::Check);
        match take_over_or_prepare(&arguments, definition) {
            Ok(Some(code)) => return exit_code::report(&name, Ok(code)),
            Ok(None) => {}
            Err(failure) => return exit_code::report(&name, Err(failure)),
        }
        let line = match args::parse(&arguments) {
            Ok(line) => line,
            Err(code) => return ExitCode::from(code),
        };
        let names_state = matches!(line.command, Some(Command::Check { preflight: Some(_) }));
        let done = match if names_state { Ok(None) } else { answer_preflight(definition) } {
            Ok(Some(code)) => Ok(code),
            Ok(None) => command(&self, line.settings, line.command, (&arguments, definition)),
            Err(failure) => Err(failure),
        };
        exit_code::report(&name, done)
    }

    /// Does what a part of the program's own command line says (`serve` if it says nothing) and returns the exit code.
    ///
    /// The program flattens [`Args`] and [`Command`] into its parser. Call it before the program has a second thread or
    /// has used tokio, and print nothing after it: when an upgrade asks a program whether it could take over, the answer
    /// is the program's last line.
    ///
    /// ```no_run
    /// use clap::Parser;
    ///
    /// #[derive(Parser)]
    /// struct Shop {
    ///     #[command(flatten)]
    ///     fleet: regatta::cli::Args,
    ///     #[command(subcommand)]
    ///     command: Option<ShopCommand>,
    /// }
    ///
    /// #[derive(clap::Subcommand)]
    /// enum ShopCommand {
    ///     /// Fill the database
    ///     Seed,
    ///     #[command(flatten)]
    ///     Fleet(regatta::cli::Command),
    /// }
    ///
    /// # async fn app(_: regatta::Context) -> axum::Router { axum::Router::new() }
    /// fn main() -> std::process::ExitCode {
    ///     let shop = Shop::parse();
    ///     match shop.command {
    ///         Some(ShopCommand::Seed) => std::process::ExitCode::SUCCESS,
    ///         Some(ShopCommand::Fleet(command)) => regatta::Fleet::new(app).execute(shop.fleet, Some(command)),
    ///         None => regatta::Fleet::new(app).execute(shop.fleet, None),
    ///     }
    /// }
    /// ```
    #[allow(clippy::needless_pass_by_value, reason = "the program has no use for them afterwards")]
    pub fn execute(self, args: Args, command: Option<Command>) -> ExitCode {
        let arguments: Vec<OsString> = std::env::args_os().collect();
        let name = program_name(&arguments);
        // The program has parsed the words of its start already, be it to take a fleet over.
        let parse = |_: &[OsString]| args.clone().inputs();
        let definition = self.definition(&parse, ProbeWords::OwnArguments);
        let done = match begin(&arguments, definition) {
            Ok(Some(code)) => Ok(code),
            Ok(None) => self::command(&self, args.clone(), command, (&arguments, definition)),
            Err(failure) => Err(failure),
        };
        exit_code::report(&name, done)
    }
}

/// Does what a command line says that was read.
fn command(
    fleet: &Fleet,
    settings: Args,
    command: Option<Command>,
    (arguments, definition): (&[OsString], AppDefinition<'_>),
) -> Result<u8, CommandFailure> {
    match &command {
        Some(Command::Signals) => return Ok(reference::signals()),
        Some(Command::Settings) => return Ok(reference::settings()),
        Some(Command::Check { preflight: Some(state) }) => {
            let parse = &args::parse_start_arguments;
            return takeover::run_preflight(*state, AppDefinition { parse, ..definition });
        }
        _ => {}
    }
    let given = settings.inputs().map_err(|message| CommandFailure { code: exit_code::USAGE, message })?;
    let inputs = fleet.inputs(given.clone());
    match command {
        None | Some(Command::Serve { watch: false }) => {
            return fleet.serve_with(given, arguments, definition);
        }
        Some(Command::Control(verb)) => return control::run(&inputs, verb),
        Some(Command::Status { json, all: false, timeout }) => {
            return status::status(&inputs, json, timeout);
        }
        Some(Command::WatchFiles { program, configuration }) => {
            let run_dir = config::run_dir(&inputs);
            let run_dir = run_dir.map_err(|error| CommandFailure::new(exit_code::USAGE, &error))?;
            return watch::run(&run_dir, &program, &configuration);
        }
        Some(Command::Top { interval, once }) => return top(&inputs, interval, once),
        _ => {}
    }
    let inputs = inputs.capture_file().map_err(|error| CommandFailure::new(exit_code::USAGE, &error))?;
    let config = config::load(&inputs).map_err(|error| CommandFailure::new(exit_code::USAGE, &error))?;
    match command {
        Some(Command::Serve { .. }) => {
            watch::start(arguments, &inputs, &config.run_dir)?;
            // With the file's text in them, so that it is not read again.
            fleet.serve_with(inputs, arguments, definition)
        }
        Some(Command::Check { .. }) => {
            let settings = fleet.app.check_settings(&config.app);
            settings.map_err(|error| CommandFailure::new(exit_code::USAGE, &error))?;
            check::check(&config, &inputs)
        }
        Some(Command::Health { url }) => health::health(&config, url.as_deref()),
        Some(Command::Limits(action)) => limits::limits(&config, &action),
        Some(Command::Status { json, all: true, timeout }) => {
            status::fleet::fleet_status(&config, json, timeout)
        }
        Some(Command::Nginx(options)) => nginx::nginx(&config, &options),
        Some(Command::Migrate(order)) => migrate::migrate(&config, &order),
        // Answered above: none of them needs the whole configuration to be right.
        Some(_) | None => Ok(exit_code::OK),
    }
}

/// Says what is missing.
#[cfg(not(feature = "top"))]
fn top(_: &config::ConfigInputs, _: std::time::Duration, _: bool) -> Result<u8, CommandFailure> {
    let message = "top is not part of this program: build it with the feature `top` of regatta".to_owned();
    Err(CommandFailure { code: exit_code::UNAVAILABLE, message })
}
