//! Verbs for a running fleet: asks, shows how far it is, and ends with the fleet's own sentence and exit code.

use std::io;
use std::io::{IsTerminal, Write};
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};

use crate::bootstrap::exit_code;
use crate::bootstrap::exit_code::{CommandFailure, print_line};
use crate::cli::args::{ControlCommand, WaitOptions};
use crate::cli::events;
use crate::config::ConfigInputs;
use crate::control::client::{ControlClient, ControlError};
use crate::control::protocol;
use crate::control::protocol::{CommandProgress, CommandResult, ControlReply, ControlRequest};
use crate::sys::clock;
use crate::{config, logging};

/// How the bar of a rollout looks; a total of 0 is not known yet.
const BAR: &str = "{bar:30} {pos}/{len}  {msg}";

/// Has the running fleet do it.
pub(super) fn run(inputs: &ConfigInputs, verb: ControlCommand) -> Result<u8, CommandFailure> {
    let run_dir = config::run_dir(inputs).map_err(|error| CommandFailure::new(exit_code::USAGE, &error))?;
    let (request, options) = match verb {
        ControlCommand::Events { follow, after, json } => {
            return events::events(&run_dir, follow, after, json);
        }
        ControlCommand::Reload { options } => (ControlRequest::Reload { wait: !options.no_wait }, options),
        ControlCommand::Upgrade { binary, options } => {
            // The fleet has a working folder of its own.
            let binary = binary.map(|binary| config::path::absolute(&binary, &inputs.folder));
            (ControlRequest::Upgrade { binary, wait: !options.no_wait }, options)
        }
        ControlCommand::Scale { count, options } => {
            (ControlRequest::Scale { workers: count.into(), wait: !options.no_wait }, options)
        }
        ControlCommand::Restart { slot, options } => {
            (ControlRequest::Restart { slot: slot.into(), wait: !options.no_wait }, options)
        }
        ControlCommand::Stop { now, options } => {
            (ControlRequest::Stop { now, wait: !options.no_wait }, options)
        }
    };
    let mut display = ProgressDisplay::new(options.json);
    match send_and_wait(&run_dir, &request, &options, &mut display) {
        Ok(result) => display.finish(result),
        Err(error) => {
            let failure = explain_error(&error, &request, &options);
            match display {
                ProgressDisplay::Json => display.finish(CommandResult {
                    exit_code: failure.code,
                    ..CommandResult::failed(failure.message)
                }),
                ProgressDisplay::Bar(_) | ProgressDisplay::Lines => Err(failure),
            }
        }
    }
}

/// Asks and waits for the result.
fn send_and_wait(
    run_dir: &Path,
    request: &ControlRequest,
    options: &WaitOptions,
    display: &mut ProgressDisplay,
) -> Result<CommandResult, ControlError> {
    let deadline = clock::monotonic() + options.timeout;
    let mut client = ControlClient::connect(run_dir)?;
    client.send(request)?;
    let result = loop {
        match client.receive(Some(deadline))? {
            ControlReply::Result(result) => break result,
            other => display.show_reply(&other),
        }
    };
    if result.ok && matches!(request, ControlRequest::Stop { wait: true, .. }) {
        // The supervisor has said its last word; it has ended when the kernel closes its end.
        while client.receive(Some(deadline)).is_ok() {}
    }
    Ok(result)
}

/// What to tell the operator if a request has no result.
pub(super) fn explain_error(
    error: &ControlError,
    request: &ControlRequest,
    options: &WaitOptions,
) -> CommandFailure {
    let verb = request.command();
    match error {
        ControlError::NotRunning { .. } => CommandFailure::new(exit_code::UNAVAILABLE, error),
        ControlError::Timeout => CommandFailure {
            code: exit_code::FAILED,
            message: format!(
                "no result within {}; the {verb} goes on in the fleet, `events --follow` shows how",
                humantime::format_duration(options.timeout)
            ),
        },
        ControlError::Disconnected => CommandFailure {
            code: exit_code::FAILED,
            message: format!("the fleet ended before the {verb} had a result; its log says why"),
        },
        other => CommandFailure::new(exit_code::FAILED, other),
    }
}

/// Where replies are shown until the result comes.
enum ProgressDisplay {
    /// Each as a line of JSON.
    Json,
    /// On a terminal.
    Bar(ProgressBar),
    /// Lines beside the result, for a log.
    Lines,
}

impl ProgressDisplay {
    fn new(json: bool) -> Self {
        if json {
            return Self::Json;
        }
        if !io::stderr().is_terminal() {
            return Self::Lines;
        }
        let style = ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
        // It draws on standard error, which leaves standard output to the result.
        Self::Bar(ProgressBar::new(0).with_style(style))
    }

    fn show_reply(&mut self, reply: &ControlReply) {
        match (self, reply) {
            (Self::Json, reply) => print(reply),
            (
                Self::Bar(bar),
                ControlReply::Progress(CommandProgress { completed: done, total, message: text }),
            ) => {
                bar.set_length(*total as u64);
                bar.set_position(*done as u64);
                bar.set_message(logging::escape_for_terminal(text));
            }
            (
                Self::Lines,
                ControlReply::Progress(CommandProgress { completed: done, total, message: text }),
            ) => {
                let _ = writeln!(io::stderr(), "{done}/{total} {}", logging::escape_for_terminal(text));
            }
            (Self::Bar(_) | Self::Lines, _) => {}
        }
    }

    fn finish(self, result: CommandResult) -> Result<u8, CommandFailure> {
        if let Self::Bar(bar) = &self {
            bar.finish_and_clear();
        }
        match self {
            Self::Json => {
                let code = result.exit_code;
                print(&ControlReply::Result(result));
                Ok(code)
            }
            Self::Bar(_) | Self::Lines if result.ok => {
                print_line(logging::escape_for_terminal(&result.message));
                Ok(exit_code::OK)
            }
            // A result that is not ok never has the exit code of success.
            Self::Bar(_) | Self::Lines => {
                Err(CommandFailure { code: result.exit_code.max(exit_code::FAILED), message: result.message })
            }
        }
    }
}

/// A reply as a line of JSON, as the fleet sent it.
fn print(reply: &ControlReply) {
    if let Ok(line) = protocol::encode_reply(reply) {
        // A reader that has left is no reason to fail.
        let _ = io::stdout().write_all(&line);
    }
}
