//! What can be typed: every command and flag. Only it and `complaint` name clap.

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::bootstrap::exit_code;
use crate::bootstrap::fleet::program_name;
use crate::cli::{nginx, usage_error, watch};
use crate::config::ConfigInputs;
use crate::sys::executable;

const ABOUT: &str = "Runs an axum application as a fleet of worker processes, one per core, with its sessions, \
                     counters and rate limits in Redis.";

const AFTER: &str = "Every setting can be given as a flag (--set), an environment variable (REGATTA_ and its path, for \
                     example REGATTA_WORKERS__COUNT), or in regatta.toml; `settings` lists them all.";

/// The command line of a fleet.
#[derive(Debug, Parser)]
#[command(version, about = ABOUT, after_help = AFTER, args_conflicts_with_subcommands = false)]
pub(super) struct CommandLine {
    #[command(flatten)]
    pub(super) settings: SettingFlags,
    #[command(subcommand)]
    pub(super) command: Option<Command>,
}

/// Flags that stand for settings, before or after the command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Settings")]
pub struct SettingFlags {
    /// Configuration file [default: regatta.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Public address: 0.0.0.0:3000, or a Unix socket as `unix:/run/shop.sock`; may be repeated
    #[arg(long, global = true, value_name = "ADDRESS")]
    listen: Vec<String>,
    /// Operators' address [default: 127.0.0.1:3001]; may be repeated
    #[arg(long, global = true, value_name = "ADDRESS")]
    admin_listen: Vec<String>,
    /// Number of workers [default: one per core]
    #[arg(long, short, global = true, value_name = "N")]
    workers: Option<String>,
    /// The shared Redis [default: a private one]
    #[arg(long, global = true, value_name = "URL")]
    redis_url: Option<String>,
    /// Folder of the fleet's lock and control socket: which fleet is meant
    #[arg(long, global = true, value_name = "DIR")]
    run_dir: Option<String>,
    /// Any other setting, for example --set drain.grace=5s
    #[arg(long = "set", global = true, value_name = "SETTING=VALUE")]
    set: Vec<String>,
}

/// What to do.
#[derive(Debug, Subcommand)]
#[non_exhaustive]
pub enum Command {
    /// Run the fleet (the default)
    Serve {
        /// For development: another binary on disk is an upgrade, another configuration file a reload
        #[arg(long)]
        watch: bool,
    },
    /// Say what would be started, and whether it could be: settings, ports, Redis
    Check {
        /// Only say whether this program could take over the fleet whose state is behind this descriptor
        #[arg(long, hide = true, alias = "handoff", value_name = "FD")]
        preflight: Option<RawFd>,
    },
    /// Show how a running fleet is: slots, workers, rates, totals
    Status {
        /// One JSON object, versioned
        #[arg(long)]
        json: bool,
        /// Every instance of the fleet, as their heartbeats in Redis report it
        #[arg(long)]
        all: bool,
        /// Longest wait for the answer
        #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_timeout)]
        timeout: Duration,
    },
    /// Watch a running fleet live; keys reload it or replace a worker
    Top {
        /// Time between two pictures
        #[arg(long, short, value_name = "DURATION", default_value = "1s", value_parser = parse_timeout)]
        interval: Duration,
        /// Print one picture and end; needs no terminal
        #[arg(long)]
        once: bool,
    },
    /// Ask a running fleet to do something
    #[command(flatten)]
    Control(ControlCommand),
    /// Ask a running fleet whether it is alive; exit code 0 or 1, for container health checks
    Health {
        /// What to ask [default: /livez at the operators' address]
        url: Option<String>,
    },
    /// Apply the pending migrations to Redis
    Migrate(MigrateOptions),
    /// Show what is left under a rate limit, or reset it
    #[command(subcommand)]
    Limits(LimitsCommand),
    /// Print the nginx upstream of all live hosts, or keep it in a file
    Nginx(UpstreamOptions),
    /// Follow a program and a configuration file for the fleet that started this process
    #[command(name = watch::VERB, hide = true)]
    WatchFiles {
        /// The fleet's program
        program: PathBuf,
        /// Its configuration file
        configuration: PathBuf,
    },
    /// List every setting, its default and what is allowed
    Settings,
    /// List the signals the supervisor takes
    Signals,
}

/// What is to be done with the migrations.
#[derive(Debug, Args)]
pub struct MigrateOptions {
    /// Only say whether any are pending; exit code 3 if so
    #[arg(long, conflicts_with_all = ["dry_run", "repair"])]
    pub(super) check: bool,
    /// Only say what would be done, to how many keys, and how long it would take
    #[arg(long, conflicts_with = "repair")]
    pub(super) dry_run: bool,
    /// Put right what unfinished or unreleased migrations left behind, after a question
    #[arg(long)]
    pub(super) repair: bool,
    /// Repair without a question
    #[arg(long, requires = "repair")]
    pub(super) yes: bool,
    /// Print one line of JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// What can be done about a limit. A subject is whatever the policy counts by: an address, a session's digest, a
/// user's tag, a header's value; none for a policy that counts all clients together.
#[derive(Debug, Subcommand)]
pub enum LimitsCommand {
    /// What is left under a policy, and when it is as if never used
    Show {
        /// The policy's name
        policy: String,
        /// Whose: an address, a session's digest, a user's tag or a header's value
        subject: Option<String>,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Make a limit as if never used; every worker knows at once
    Reset {
        /// The policy's name
        policy: String,
        /// Whose: an address, a session's digest, a user's tag or a header's value
        subject: Option<String>,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

/// What a running fleet can be asked to do, and what it did.
#[derive(Debug, Subcommand)]
pub enum ControlCommand {
    /// Replace every worker by one with the present configuration, losing no request
    Reload {
        #[command(flatten)]
        options: WaitOptions,
    },
    /// Go on as the new program, with the same pid and sockets, losing no request
    Upgrade {
        /// The program to become [default: the file that was started]
        #[arg(long, value_name = "PATH")]
        binary: Option<PathBuf>,
        #[command(flatten)]
        options: WaitOptions,
    },
    /// Run this number of workers
    Scale {
        /// Workers wanted, 1 to 1024
        // Not `workers`: clap knows the flag of a fleet to be started by that name.
        #[arg(value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u16).range(1..=1024))]
        count: u16,
        #[command(flatten)]
        options: WaitOptions,
    },
    /// Replace the worker of one slot, losing no request
    Restart {
        /// Index of the slot, from 0; `status` lists them
        #[arg(value_name = "SLOT", allow_negative_numbers = true, value_parser = clap::value_parser!(u16).range(0..=1023))]
        slot: u16,
        #[command(flatten)]
        options: WaitOptions,
    },
    /// Drain every worker, then end the fleet
    Stop {
        /// End every worker at once, with the requests it has
        #[arg(long)]
        now: bool,
        #[command(flatten)]
        options: WaitOptions,
    },
    /// Print what happened in the fleet
    Events {
        /// Go on with what happens from now on
        #[arg(long, short)]
        follow: bool,
        /// Only events later than number SEQ
        #[arg(long, value_name = "SEQ")]
        after: Option<u64>,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
}

/// Which upstream, and what becomes of it.
#[derive(Debug, Args)]
pub struct UpstreamOptions {
    /// Name of the upstream block
    #[arg(long, value_name = "NAME", default_value = "regatta", value_parser = parse_upstream_name)]
    pub(super) upstream: String,
    /// Write it there, and only when it is another one
    #[arg(long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// Only say whether FILE is as it would be written; exit code 1 if not
    #[arg(long, requires = "output", conflicts_with_all = ["watch", "reload"])]
    pub(super) check: bool,
    /// Go on until TERM: write FILE whenever a host comes or goes
    #[arg(long, requires = "output")]
    pub(super) watch: bool,
    /// Shell command to be run after FILE was written, for example 'nginx -t && nginx -s reload'
    #[arg(long, value_name = "COMMAND", requires = "output")]
    pub(super) reload: Option<String>,
    /// Time between two checks
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = parse_timeout)]
    pub(super) interval: Duration,
}

fn parse_upstream_name(text: &str) -> Result<String, String> {
    match nginx::is_name(text) {
        true => Ok(text.to_owned()),
        false => Err("it is made of 1 to 64 letters, digits, - _ or .".into()),
    }
}

/// How an answer is waited for and shown.
#[derive(Debug, Args)]
pub struct WaitOptions {
    /// Print every reply as a line of JSON; the last is the result
    #[arg(long)]
    pub(super) json: bool,
    /// Longest wait for the result; the fleet goes on beyond it
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_timeout)]
    pub(super) timeout: Duration,
    /// Return as soon as the fleet has accepted
    #[arg(long)]
    pub(super) no_wait: bool,
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("it is no time at all".into()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; write it as 30s or 5m")),
    }
}

/// What was typed, or the code to end with because help was wanted or a mistake was made.
pub(super) fn parse(arguments: &[OsString]) -> Result<CommandLine, u8> {
    read(arguments).map_err(|error| {
        // Help goes to standard output, mistakes to standard error; a reader that has left is no reason to fail.
        match error.kind() {
            ErrorKind::DisplayHelp => {
                let _ = error.print();
                exit_code::OK
            }
            ErrorKind::DisplayVersion => {
                let line = version_line(&program_name(arguments), executable::own_version());
                let _ = writeln!(std::io::stdout(), "{line}");
                exit_code::OK
            }
            _ => {
                let _ = std::io::stderr().write_all(usage_error::usage_error(&error, arguments).as_bytes());
                exit_code::USAGE
            }
        }
    })
}

/// What `--version` prints: a program that says no version of its own does not pass the library's off as one.
fn version_line(program: &str, version: Option<&str>) -> String {
    match version {
        Some(version) => format!("{program} {version}"),
        None => format!("{program} (regatta {})", executable::LIBRARY_VERSION),
    }
}

/// The settings by which a fleet is to be taken over that was started with these words; a mistake is one sentence.
pub(super) fn parse_start_arguments(arguments: &[OsString]) -> Result<ConfigInputs, String> {
    let line = read(arguments).map_err(|error| {
        let text = usage_error::usage_error(&error, arguments);
        text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
    })?;
    match line.command {
        None | Some(Command::Serve { .. }) => line.settings.inputs(),
        Some(_) => Err("these words do not start a fleet".to_owned()),
    }
}

pub(super) fn read(arguments: &[OsString]) -> Result<CommandLine, clap::Error> {
    let version = executable::program_version();
    let matches = CommandLine::command().version(version).try_get_matches_from(arguments)?;
    CommandLine::from_arg_matches(&matches)
}

impl SettingFlags {
    /// The flags laid over this process's environment; a `--set` without `=` is returned as the mistake it is.
    pub(super) fn inputs(self) -> Result<ConfigInputs, String> {
        let mut inputs = ConfigInputs::from_process();
        inputs.file = self.config;
        let joined = |all: Vec<String>| (!all.is_empty()).then(|| all.join(","));
        let named = [
            ("listen", "--listen", joined(self.listen)),
            ("admin.listen", "--admin-listen", joined(self.admin_listen)),
            ("workers.count", "--workers", self.workers),
            ("redis.url", "--redis-url", self.redis_url),
            ("run_dir", "--run-dir", self.run_dir),
        ];
        for (path, flag, value) in named {
            inputs.flags.extend(value.map(|value| (path.to_owned(), value, flag.to_owned())));
        }
        for pair in self.set {
            let Some((path, value)) = pair.split_once('=') else {
                let name = usage_error::leading_name(&pair);
                return Err(format!("--set {name} has no value: write it as --set {name}=VALUE"));
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
        CommandLine::command().debug_assert();
    }

    #[test]
    fn a_version_is_that_of_what_says_it() {
        assert_eq!(version_line("shop", Some("1.2.3")), "shop 1.2.3");
        let library = env!("CARGO_PKG_VERSION");
        assert_eq!(version_line("shop", None), format!("shop (regatta {library})"));
    }

    #[test]
    fn flags_may_stand_before_or_after_the_command() {
        for line in [["regatta", "--workers", "3", "check"], ["regatta", "check", "--workers", "3"]] {
            let line = parse(&line.map(OsString::from)).unwrap();
            assert_eq!(line.settings.workers.as_deref(), Some("3"));
            assert!(matches!(line.command, Some(Command::Check { preflight: None })));
        }
    }

    #[test]
    fn a_verb_takes_only_what_a_fleet_can_do() {
        let refused = [
            &["scale"][..],
            &["scale", "0"],
            &["scale", "-1"],
            &["scale", "1025"],
            &["scale", "many"],
            &["restart", "-1"],
            &["restart", "1024"],
            &["reload", "--timeout", "0s"],
            &["reload", "--timeout", "soon"],
            &["upgrade", "path"],
            &["events", "--after", "-1"],
        ];
        let typed = |words: &[&str]| {
            let words: Vec<_> = ["regatta"].iter().chain(words).map(OsString::from).collect();
            parse(&words)
        };
        for words in refused {
            assert_eq!(typed(words).unwrap_err(), exit_code::USAGE, "{words:?}");
        }
        let line = typed(&["scale", "1024", "--json", "--timeout", "90s"]).unwrap();
        let Some(Command::Control(ControlCommand::Scale { count: 1024, options })) = line.command else {
            panic!()
        };
        assert!(options.json && !options.no_wait && options.timeout == Duration::from_secs(90));
    }
}
