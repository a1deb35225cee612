//! Log lines: set up once, before the first fork and without a thread, so that workers inherit it.

mod file;
mod line;

use std::io;
use std::io::IsTerminal;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::schema::Log;
use crate::config::schema::LogFormat;
use file::LogFile;
use line::Form;
use line::Lines;

/// Slot of this process plus one; 0 is the supervisor. A process has one role for life, so one word is enough.
static ROLE: AtomicUsize = AtomicUsize::new(0);

/// The log's file, if it has one. A process has one log for life.
static FILE: OnceLock<LogFile> = OnceLock::new();

/// Says on every further line of this process that it is the worker of `slot`.
pub fn become_worker(slot: usize) {
    ROLE.store(slot + 1, Relaxed);
}

/// The slot whose worker this process is.
fn worker_slot() -> Option<usize> {
    ROLE.load(Relaxed).checked_sub(1)
}

/// The log cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The filter is not one.
    #[error("log.level {directives:?} is not a filter such as info or regatta=debug,fred=warn: {reason}")]
    Filter {
        /// As configured.
        directives: String,
        /// Why.
        reason: String,
    },
    /// The file cannot be opened.
    #[error("cannot open the log file {} (log.file)", path.display())]
    File {
        /// As configured.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another subscriber is installed already.
    #[error("the program has set up its own tracing subscriber")]
    Taken,
}

/// Libraries that say at ERROR what is an ordinary event here (a session that ended, Redis away), once for each
/// request. Naming them in `log.level` brings them back.
const QUIET: &str = "tower_sessions_core=off,fred=off";

/// Finds out whether [`install`] would understand the settings.
///
/// # Errors
/// See [`Error::Filter`] and [`Error::File`].
pub fn check(log: &Log) -> Result<(), Error> {
    filter(log)?;
    let Some(path) = &log.file else { return Ok(()) };
    file::check(path).map_err(|source| Error::File { path: path.clone(), source })
}

fn filter(log: &Log) -> Result<EnvFilter, Error> {
    let refused = |reason: String| Error::Filter { directives: log.level.clone(), reason };
    // A bare word that is no level names a target: a slip such as `inof` would silence everything else.
    let is_slip =
        |directive: &&str| !directive.contains(['=', ':', '[']) && directive.parse::<LevelFilter>().is_err();
    if let Some(slip) = log.level.split(',').map(str::trim).find(|part| !part.is_empty() && is_slip(part)) {
        return Err(refused(format!("{slip} is neither a level nor TARGET=LEVEL")));
    }
    EnvFilter::try_new(format!("{QUIET},{}", log.level)).map_err(|source| refused(source.to_string()))
}

/// Sends every event of this process, and of all it forks, to the log's file, or to standard error if it has none.
///
/// # Errors
/// See [`Error`].
pub fn install(log: &Log) -> Result<(), Error> {
    let filter = filter(log)?;
    let file = log.file.as_deref().map(|path| {
        let opened = LogFile::open(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
        Ok(FILE.get_or_init(|| opened))
    });
    let file = file.transpose()?;
    let terminal = file.is_none() && io::stderr().is_terminal();
    let form = match (log.format, terminal) {
        (LogFormat::Json, _) | (LogFormat::Auto, false) => Form::Json,
        (LogFormat::Pretty, colours) => Form::Pretty { colours },
        (LogFormat::Auto, true) => Form::Pretty { colours: true },
    };
    let writer = match file {
        Some(file) => BoxMakeWriter::new(file),
        None => BoxMakeWriter::new(io::stderr),
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).event_format(Lines::new(form));
    tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(|_| Error::Taken)
}

/// Opens the log's file again, after somebody has renamed it; each process of a fleet does so for itself.
///
/// When the path cannot be opened, the old file stays in use and the log says so. Without a file nothing is done.
pub fn reopen() {
    let Some(file) = FILE.get() else { return };
    let path = file.path().display();
    match file.reopen() {
        Ok(()) => tracing::debug!(file = %path, "log file opened again"),
        Err(error) => {
            tracing::error!(file = %path, %error, "cannot open the log file again, writing on to the old one: {error}");
        }
    }
}

/// The descriptor of the log's file, which a worker keeps when it closes what it inherited.
pub fn descriptor() -> Option<RawFd> {
    FILE.get().map(LogFile::descriptor)
}
