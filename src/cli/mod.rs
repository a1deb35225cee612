//! The command line of any program built on the library: what can be typed, and one file for each verb.
//!
//! Guarantees that a verb asks a running fleet through its control socket or its addresses alone, and that no failure
//! ends without a sentence and its exit code.

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

use args::Command;
#[cfg(feature = "top")]
use top::top;

use crate::bootstrap::exit_code::CommandFailure;
use crate::bootstrap::fleet::{Fleet, program_name, take_over_or_prepare};
use crate::bootstrap::{exit_code, takeover};
use crate::{bootstrap, config};

impl Fleet {
    /// Does what the command line says (`serve` if it says nothing) and returns the exit code.
    ///
    /// Call it first thing in `main`: the supervisor must be the only thread of its process and must not have used
    /// tokio, because it forks its workers; where that is broken it says so and ends.
    pub fn run(self) -> ExitCode {
        let arguments: Vec<OsString> = std::env::args_os().collect();
        let name = program_name(&arguments);
        match take_over_or_prepare(&arguments, self.app_definition(args::parse_start_arguments)) {
            Ok(Some(code)) => return exit_code::report(&name, Ok(code)),
            Ok(None) => {}
            Err(failure) => return exit_code::report(&name, Err(failure)),
        }
        match args::parse(&arguments) {
            Ok(line) => exit_code::report(&name, self.execute(line, &arguments)),
            Err(code) => ExitCode::from(code),
        }
    }

    fn execute(self, line: args::CommandLine, arguments: &[OsString]) -> Result<u8, CommandFailure> {
        match &line.command {
            Some(Command::Signals) => return Ok(reference::signals()),
            Some(Command::Settings) => return Ok(reference::settings()),
            Some(Command::Check { preflight: Some(state) }) => {
                return takeover::run_preflight(*state, self.app_definition(args::parse_start_arguments));
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
        match line.command {
            None => bootstrap::serve(config, &inputs, arguments, &self.app),
            Some(Command::Serve { watch }) => {
                if watch {
                    watch::start(arguments, &inputs, &config.run_dir)?;
                }
                bootstrap::serve(config, &inputs, arguments, &self.app)
            }
            Some(Command::Check { .. }) => {
                let settings = self.app.check_settings(&config.app);
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
            Some(_) => Ok(exit_code::OK),
        }
    }
}

/// Says what is missing.
#[cfg(not(feature = "top"))]
fn top(_: &config::ConfigInputs, _: std::time::Duration, _: bool) -> Result<u8, CommandFailure> {
    let message = "top is not part of this program: build it with the feature `top` of regatta".to_owned();
    Err(CommandFailure { code: exit_code::UNAVAILABLE, message })
}
