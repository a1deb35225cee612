//! What can be typed: every command and flag. The only file that names clap.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::Args;
use clap::CommandFactory;
use clap::FromArgMatches;
use clap::Parser;
use clap::Subcommand;
use clap::error::ErrorKind;

use crate::cli::exit;
use crate::config::Inputs;

const ABOUT: &str = "Runs an axum application as a fleet of worker processes, one per core, with its sessions, \
                     counters and rate limits in Redis.";

const AFTER: &str = "Every setting can be given as a flag (--set), an environment variable (REGATTA_ and its path, for \
                     example REGATTA_WORKERS__COUNT), or in regatta.toml; `settings` lists them all.";

/// The command line of a fleet.
#[derive(Debug, Parser)]
#[command(version, about = ABOUT, after_help = AFTER, args_conflicts_with_subcommands = false)]
pub(super) struct Line {
    #[command(flatten)]
    pub(super) settings: Settings,
    #[command(subcommand)]
    pub(super) command: Option<Command>,
}

/// Flags that stand for settings, before or after the command.
#[derive(Debug, Args)]
pub(super) struct Settings {
    /// Configuration file [default: regatta.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Public addresses, for example 0.0.0.0:3000
    #[arg(long, global = true, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Operators' address [default: 127.0.0.1:3001]
    #[arg(long, global = true, value_name = "ADDRESS")]
    admin_listen: Option<String>,
    /// Number of workers [default: one per core]
    #[arg(long, short, global = true, value_name = "N")]
    workers: Option<String>,
    /// The shared Redis [default: a private one]
    #[arg(long, global = true, value_name = "URL")]
    redis_url: Option<String>,
    /// Any other setting, for example --set drain.grace=5s
    #[arg(long = "set", global = true, value_name = "SETTING=VALUE")]
    set: Vec<String>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the fleet (the default)
    Serve,
    /// Say what would be started, and whether it could be: settings, ports, Redis
    Check {
        /// Only say whether this program could take over the fleet whose state is behind this descriptor
        #[arg(long, hide = true, value_name = "FD")]
        handoff: Option<RawFd>,
    },
    /// Ask a running fleet whether it is alive; exit code 0 or 1, for container health checks
    Health {
        /// What to ask [default: /livez at the operators' address]
        url: Option<String>,
    },
    /// Apply the pending migrations to Redis
    Migrate {
        /// Only say whether any are pending; exit code 3 if so
        #[arg(long, conflicts_with = "dry_run")]
        check: bool,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// List every setting, its default and what is allowed
    Settings,
    /// List the signals the supervisor takes
    Signals,
}

/// What was typed, or the code to end with because help was wanted or a mistake was made.
pub(super) fn parse(arguments: &[OsString]) -> Result<Line, u8> {
    read(arguments).map_err(|error| {
        // Help goes to standard output, mistakes to standard error; a reader that has left is no reason to fail.
        let _ = error.print();
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => exit::OK,
            _ => exit::USAGE,
        }
    })
}

/// The settings by which a fleet is to be taken over that was started with these words; a mistake is one sentence.
pub(super) fn parse_serve(arguments: &[OsString]) -> Result<Inputs, String> {
    let line = read(arguments).map_err(|error| {
        let text = error.to_string();
        text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
    })?;
    match line.command {
        None | Some(Command::Serve) => line.settings.inputs(),
        Some(_) => Err("these words do not start a fleet".to_owned()),
    }
}

fn read(arguments: &[OsString]) -> Result<Line, clap::Error> {
    let matches = Line::command().try_get_matches_from(arguments)?;
    Line::from_arg_matches(&matches)
}

impl Settings {
    /// The flags laid over this process's environment; a `--set` without `=` is returned as the mistake it is.
    pub(super) fn inputs(self) -> Result<Inputs, String> {
        let mut inputs = Inputs::of_process();
        inputs.file = self.config;
        let named = [
            ("listen", "--listen", self.listen),
            ("admin.listen", "--admin-listen", self.admin_listen),
            ("workers.count", "--workers", self.workers),
            ("redis.url", "--redis-url", self.redis_url),
        ];
        for (path, flag, value) in named {
            inputs.flags.extend(value.map(|value| (path.to_owned(), value, flag.to_owned())));
        }
        for pair in self.set {
            let Some((path, value)) = pair.split_once('=') else {
                return Err(format!("--set {pair} has no value: write it as --set {pair}=VALUE"));
            };
            inputs.flags.push((path.trim().to_owned(), value.to_owned(), "--set".to_owned()));
        }
        Ok(inputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Line::command().debug_assert();
    }

    #[test]
    fn flags_may_stand_before_or_after_the_command() {
        for line in [["regatta", "--workers", "3", "check"], ["regatta", "check", "--workers", "3"]] {
            let line = parse(&line.map(OsString::from)).unwrap();
            assert_eq!(line.settings.workers.as_deref(), Some("3"));
            assert!(matches!(line.command, Some(Command::Check { handoff: None })));
        }
    }
}
