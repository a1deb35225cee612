//! Log lines: set up once, before the first fork and without a thread, so that workers inherit it.
//!
//! No line ever makes its writer wait: what the log's reader does not take at once waits in bounded memory, and what is
//! dropped is counted and reported. The room writes lines; it does not know what they are about.

mod backlog;
mod dropped_lines;
mod formatter;
mod log_output;
mod panic_hook;
mod role;
mod terminal_escape;

use std::io;
use std::io::IsTerminal;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use formatter::{LineFormat, LineFormatter};
use log_output::LogOutput;
pub use log_output::LogWait;
pub use terminal_escape::escape_for_terminal;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::settings::{LogConfig, LogFormat};
use crate::scoreboard::Scoreboard;
use crate::sys::{path, signal};

/// The log's output. A process has one log.
static LOG_OUTPUT: OnceLock<LogOutput> = OnceLock::new();

/// How long a process that ends tries to write what still waits.
const FINISH_TIMEOUT: Duration = Duration::from_millis(100);

/// Marks every further line of this process as the worker's of `slot`. What its supervisor has not written yet is left to
/// the supervisor.
pub fn set_worker_slot(slot: usize) {
    role::set_worker_slot(slot);
    if let Some(outlet) = LOG_OUTPUT.get() {
        outlet.after_fork();
    }
}

/// The log cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// The filter is not one.
    #[error("log.filter {directives:?} is not a filter such as info or regatta=debug,fred=warn: {reason}")]
    InvalidFilter {
        /// As configured.
        directives: String,
        /// Why.
        reason: String,
    },
    /// The file cannot be opened.
    #[error("cannot open the log file {} (log.file)", path.display())]
    OpenFile {
        /// As configured.
        path: PathBuf,
        /// Why.
        source: path::PathError,
    },
    /// Another subscriber is installed already.
    #[error("the program has set up its own tracing subscriber")]
    AlreadyInstalled,
}

/// Libraries that say at ERROR what is an ordinary event here (a session that ended, Redis away), once for each
/// request. Naming them in `log.filter` brings them back.
const QUIET_TARGETS: &str = "tower_sessions_core=off,fred=off";

/// Checks whether [`install`] would accept the settings.
///
/// # Errors
/// See [`TelemetryError::InvalidFilter`] and [`TelemetryError::OpenFile`].
pub fn check(log: &LogConfig) -> Result<(), TelemetryError> {
    parse_filter(log)?;
    let Some(path) = &log.file else { return Ok(()) };
    check_log_file_owner(log)?;
    log_output::check(path)
        .map_err(|source| TelemetryError::OpenFile { path: path.clone(), source: source.into() })
}

/// Where root writes, no other user may have chosen what is written to.
fn check_log_file_owner(log: &LogConfig) -> Result<(), TelemetryError> {
    let Some(path) = &log.file else { return Ok(()) };
    match path::check_log_path(path) {
        Err(source @ path::PathError::NotPrivate(_)) => {
            Err(TelemetryError::OpenFile { path: path.clone(), source })
        }
        // What else is wrong is found out by opening it.
        _ => Ok(()),
    }
}

fn parse_filter(log: &LogConfig) -> Result<EnvFilter, TelemetryError> {
    let refused = |reason: String| TelemetryError::InvalidFilter { directives: log.filter.clone(), reason };
    // A bare word that is no level names a target: a slip such as `inof` would silence everything else.
    let is_slip =
        |directive: &&str| !directive.contains(['=', ':', '[']) && directive.parse::<LevelFilter>().is_err();
    if let Some(slip) = log.filter.split(',').map(str::trim).find(|part| !part.is_empty() && is_slip(part)) {
        return Err(refused(format!("{slip} is neither a level nor TARGET=LEVEL")));
    }
    EnvFilter::try_new(format!("{QUIET_TARGETS},{}", log.filter))
        .map_err(|source| refused(source.to_string()))
}

/// Sends every event of this process, and of all it forks, to the log's file, or to standard error if it has none.
///
/// No line ever waits for its reader: what is not taken at once waits in memory, as far as there is room, and what is
/// dropped is counted. Panics are lines of the log as well.
///
/// # Errors
/// See [`TelemetryError`].
pub fn install(log: &LogConfig) -> Result<(), TelemetryError> {
    let filter = parse_filter(log)?;
    check_log_file_owner(log)?;
    let terminal = log.file.is_none() && io::stderr().is_terminal();
    let form = match (log.format, terminal) {
        (LogFormat::Json, _) | (LogFormat::Auto, false) => LineFormat::Json,
        (LogFormat::Pretty, colours) => LineFormat::Pretty { colours },
        (LogFormat::Auto, true) => LineFormat::Pretty { colours: true },
    };
    let opened = LogOutput::open(log.file.as_deref(), form);
    let path = || log.file.clone().unwrap_or_default();
    let opened = opened.map_err(|source| TelemetryError::OpenFile { path: path(), source: source.into() })?;
    let outlet: &'static LogOutput = LOG_OUTPUT.get_or_init(|| opened);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(outlet)
        .event_format(LineFormatter::new(form))
        .log_internal_errors(false);
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(|_| TelemetryError::AlreadyInstalled)?;
    panic_hook::install_hook();
    if let Err(error) = signal::disarm_file_size_signal() {
        tracing::debug!(%error, "a limit on the size of files would end this process");
    }
    Ok(())
}

/// Counts lines that are dropped from now on, and those dropped before, in the scoreboard; reports those that the
/// program before this one could not report.
pub fn count_dropped_in(scoreboard: &Arc<Scoreboard>) {
    if dropped_lines::count_in(scoreboard) {
        report_missing_lines();
    }
}

/// Has `wake` called whenever lines begin to wait; [`pending`] returns what for. It must not log.
pub fn on_backlog(wake: impl Fn() + Send + Sync + 'static) {
    log_output::on_backlog(Box::new(wake));
}

/// What this process waits for before it calls [`flush`]; none while no line waits.
pub fn pending() -> Option<LogWait> {
    LOG_OUTPUT.get()?.pending()
}

/// Writes some of the lines that wait, because there is room for them or it is time to look.
pub fn flush() {
    if let Some(outlet) = LOG_OUTPUT.get() {
        outlet.flush();
    }
}

/// This process ends, or another program takes its place: what waits is written if that takes but a moment, else it is
/// counted, and left to the supervisor to report.
pub fn finish() {
    let Some(outlet) = LOG_OUTPUT.get() else { return };
    outlet.finish(FINISH_TIMEOUT);
    let unreported = outlet.abandon();
    if let Some(scoreboard) = dropped_lines::scoreboard() {
        scoreboard.add_unreported_log_lines(unreported);
    }
}

/// Reports what was left by [`finish`] in a worker, in the program before this one, or in this one if it could not become
/// another.
pub fn report_missing_lines() {
    if let (Some(outlet), Some(scoreboard)) = (LOG_OUTPUT.get(), dropped_lines::scoreboard()) {
        outlet.add_missing(scoreboard.take_unreported_log_lines());
    }
}

/// Opens the log's file again, after it was renamed; each process of a fleet does so for itself.
///
/// When the path cannot be opened, the old file stays in use and an error is logged. Without a file nothing is done.
pub fn reopen() {
    let Some((outlet, path)) = LOG_OUTPUT.get().and_then(|outlet| Some((outlet, outlet.path()?))) else {
        return;
    };
    let file = path.display();
    match outlet.reopen() {
        Ok(()) => tracing::debug!(%file, "log file opened again"),
        Err(error) => {
            tracing::error!(%file, %error, "cannot open the log file again, writing on to the old one: {error}");
        }
    }
}

/// The descriptor of the log, beside the standard ones, which a worker keeps when it closes what it inherited.
pub fn log_fd() -> Option<RawFd> {
    LOG_OUTPUT.get().and_then(LogOutput::log_fd)
}
