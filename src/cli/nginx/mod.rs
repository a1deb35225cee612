//! `nginx`: the upstream of all hosts that live, printed, compared, or kept in a file for as long as this runs.

mod block;
mod file;
mod keeper;
mod watch;

use std::io;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

pub(super) use block::is_name;

use crate::cli::args::Upstream;
use crate::cli::exit;
use crate::cli::exit::Failure;
use crate::cli::exit::say;
use crate::cli::machines;
use crate::config::schema::Config;

/// What `CLIENT LIST` shows.
const NAME: &str = "regatta-nginx";

/// Longest wait for Redis at one look.
const PATIENCE: Duration = Duration::from_secs(3);

/// Prints the upstream, or does with it what is wanted.
pub(super) fn nginx(config: &Config, wanted: &Upstream) -> Result<u8, Failure> {
    if let (true, Some(output)) = (wanted.watch, &wanted.output) {
        return watch::watch(config, wanted, output);
    }
    let text = text(config, &wanted.upstream)?;
    let Some(output) = &wanted.output else {
        say(text.trim_end());
        return Ok(exit::OK);
    };
    let present = file::read(output).map_err(|error| failed(output, &error))?;
    let same = present.as_deref() == Some(text.as_str());
    let written = match (same, wanted.check) {
        (true, _) => {
            say(format_args!("{} is as it should be", output.display()));
            return Ok(exit::OK);
        }
        (false, true) => {
            let sentence = format!("{} is not as it would be written now", output.display());
            return Err(Failure { code: exit::FAILED, sentence });
        }
        (false, false) => file::write(output, &text).map_err(|error| failed(output, &error))?,
    };
    if let Some(command) = &wanted.reload {
        file::run(command).map_err(|sentence| Failure { code: exit::FAILED, sentence })?;
    }
    say(format_args!("{} written{}", output.display(), written.note()));
    Ok(exit::OK)
}

/// The block as of now.
fn text(config: &Config, upstream: &str) -> Result<String, Failure> {
    let found = machines::ask(config, NAME, PATIENCE).map_err(|error| machines::failure(config, &error))?;
    let servers = block::servers(&found.seen);
    if servers.is_empty() {
        let sentence = format!(
            "no host of the fleet serves, as far as Redis knows (redis.prefix is {})",
            config.redis.prefix
        );
        return Err(Failure { code: exit::UNAVAILABLE, sentence });
    }
    if !found.complete {
        // Not on standard output, which may be on its way into a file.
        let _ =
            writeln!(io::stderr(), "Redis has heard of this fleet for a moment only: hosts may be missing");
    }
    Ok(block::render(upstream, &config.redis.prefix, &servers))
}

fn failed(output: &Path, error: &io::Error) -> Failure {
    Failure { code: exit::FAILED, sentence: format!("{}: {error}", output.display()) }
}
