//! `nginx`: the upstream of all hosts that live, printed, compared, or kept in a file for as long as this runs.

mod atomic_file;
mod instances;
mod reconciler;
mod upstream;
mod watch;

use std::io;
use std::io::Write;
use std::path::Path;

pub(super) use upstream::is_name;

use crate::bootstrap::exit_code;
use crate::bootstrap::exit_code::{CommandFailure, print_line};
use crate::cli::args::UpstreamOptions;
use crate::cli::status::fleet;
use crate::config::settings::Config;
use crate::sys::process;

/// Prints the upstream, or does with it what is wanted.
pub(super) fn nginx(config: &Config, options: &UpstreamOptions) -> Result<u8, CommandFailure> {
    if let (true, Some(output)) = (options.watch, &options.output) {
        return watch::run(config, options, output);
    }
    let text = upstream_text(config, &options.upstream)?;
    let Some(output) = &options.output else {
        print_line(text.trim_end());
        return Ok(exit_code::OK);
    };
    let present = atomic_file::read(output).map_err(|error| failed(output, &error))?;
    let same = present.as_deref() == Some(text.as_str());
    let written = match (same, options.check) {
        (true, _) => {
            print_line(format_args!("{} is as it should be", output.display()));
            return Ok(exit_code::OK);
        }
        (false, true) => {
            let message = format!("{} is not as it would be written now", output.display());
            return Err(CommandFailure { code: exit_code::FAILED, message });
        }
        (false, false) => atomic_file::write(output, &text).map_err(|error| failed(output, &error))?,
    };
    if let Some(command) = &options.reload {
        atomic_file::run_command(command)
            .map_err(|message| CommandFailure { code: exit_code::FAILED, message })?;
    }
    print_line(format_args!("{} written{}", output.display(), written.remark()));
    Ok(exit_code::OK)
}

/// The block as of now.
fn upstream_text(config: &Config, upstream: &str) -> Result<String, CommandFailure> {
    let found = instances::fetch(config).map_err(|error| fleet::to_failure(config, &error))?;
    let servers = upstream::upstream_servers(&found.instances, &process::hostname());
    if servers.is_empty() {
        let message = format!(
            "no host of the fleet serves, as far as Redis knows (redis.prefix is {})",
            config.redis.prefix
        );
        return Err(CommandFailure { code: exit_code::UNAVAILABLE, message });
    }
    if !found.complete {
        // Not on standard output, which may be on its way into a file.
        let _ = writeln!(io::stderr(), "the list of instances is not complete yet: hosts may be missing");
    }
    Ok(upstream::render_upstream(upstream, &config.redis.prefix, &servers))
}

fn failed(output: &Path, error: &io::Error) -> CommandFailure {
    CommandFailure { code: exit_code::FAILED, message: format!("{}: {error}", output.display()) }
}
