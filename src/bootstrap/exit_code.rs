//! Exit codes, a contract with scripts and service managers; sysexits(3) where it has a word.

use std::fmt::Display;
use std::io;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use crate::logging;
use crate::sys::sink::NonblockingSink;

/// Done as asked.
pub const OK: u8 = 0;
/// The operation failed.
pub const FAILED: u8 = 1;
/// Migrations are pending (`migrate --check`).
pub const PENDING: u8 = 3;
/// Bad usage or configuration; nothing was started.
pub const USAGE: u8 = 64;
/// A needed service is missing.
pub const UNAVAILABLE: u8 = 69;
/// No worker could be brought up.
pub const BOOT: u8 = 70;
/// Something around it is not ready, and may be later: nothing was started, and to try again is right.
pub const TEMPORARY: u8 = 75;

/// Every exit code: what it says of `serve`, and what of other commands, as the reference has it.
pub const EXIT_CODES: &[(u8, &str, &str)] = &[
    (OK, "ended as asked", "done"),
    (FAILED, "the supervisor failed", "tried and failed, or superseded; no reply in time"),
    (PENDING, "", "`migrate --check`: migrations are pending"),
    (
        USAGE,
        "the command line or the configuration is wrong, or a folder is in another user's hands; trying again does not help",
        "the command line or the configuration is wrong; nothing was changed",
    ),
    (
        UNAVAILABLE,
        "a needed service is missing, such as a Redis to start",
        "no instance runs in this `run_dir`; Redis is unavailable; no instance is alive; the program was built without the feature",
    ),
    (BOOT, "no worker could be brought up; the reason is the last worker's", ""),
    (
        TEMPORARY,
        "something around it is not ready and may be later: a port, `run_dir` or `data_dir` is in use, an address is not \
         there yet, a folder cannot be made",
        "",
    ),
];

/// A sentence for the operator and the code for the caller.
#[derive(Debug)]
pub struct CommandFailure {
    /// What the process ends with.
    pub code: u8,
    /// What the operator reads.
    pub message: String,
}

impl CommandFailure {
    /// The error and all its causes in one sentence.
    pub fn new(code: u8, error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            message.push_str(": ");
            message.push_str(&error.to_string());
            cause = error.source();
        }
        Self { code, message }
    }
}

/// Prints a line for the operator. A reader that has left (`| head -1`) is no reason to fail.
pub fn print_line(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// How long the end of this process waits for a standard error that no process reads.
const LAST_TRY: Duration = Duration::from_millis(100);

/// Says the failure, if it is one, on standard error.
pub fn report(name: &str, result: Result<u8, CommandFailure>) -> ExitCode {
    // What a fleet has logged comes first.
    logging::finish();
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            let line = format!(
                "{}: {}\n",
                logging::escape_for_terminal(name),
                logging::escape_for_terminal(&failure.message)
            );
            NonblockingSink::standard_error().write_within(line.as_bytes(), LAST_TRY);
            ExitCode::from(failure.code)
        }
    }
}
