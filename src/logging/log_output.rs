//! Where the lines of this process leave it: never waiting, in order, and counting those that are lost.

use std::cell::Cell;
use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use crate::logging::backlog::{BacklogWait, ByteSink, LineBacklog};
use crate::logging::dropped_lines::count_dropped;
use crate::logging::formatter;
use crate::logging::formatter::LineFormat;
use crate::sys::clock;
use crate::sys::sink::{NonblockingSink, SinkError, SinkTarget};

thread_local! {
    /// Whether this thread writes a line at this moment.
    static WRITING: Cell<bool> = const { Cell::new(false) };
}

/// Called when lines begin to wait.
static WAKE: OnceLock<BacklogWaker> = OnceLock::new();

/// What is called when lines begin to wait.
pub(super) type BacklogWaker = Box<dyn Fn() + Send + Sync>;

/// Has `waker` called whenever lines begin to wait.
pub(super) fn on_backlog(waker: BacklogWaker) {
    // A process has one loop.
    let _ = WAKE.set(waker);
}

fn wake() {
    if let Some(wake) = WAKE.get() {
        wake();
    }
}

/// What a process waits for before it flushes its log.
#[derive(Debug)]
pub enum LogWait {
    /// Room there.
    Writable(SinkTarget),
    /// This moment of the monotonic clock.
    At(Duration),
}

#[derive(Debug)]
struct LineSink {
    sink: NonblockingSink,
    format: LineFormat,
}

impl ByteSink for LineSink {
    fn write_some(&mut self, bytes: &[u8]) -> Result<usize, SinkError> {
        self.sink.write(bytes)
    }

    fn is_torn(&self) -> Option<bool> {
        self.sink.ends_mid_line()
    }

    fn dropped_lines_notice(&self, missing: u64, cause: &str) -> Vec<u8> {
        formatter::dropped_lines_notice(self.format, missing, cause).into_bytes()
    }
}

#[derive(Debug)]
struct OutputState {
    line_sink: LineSink,
    backlog: LineBacklog,
}

/// The end of a process's log.
#[derive(Debug)]
pub(super) struct LogOutput {
    /// Held for some system calls that do not wait, and never across a fork: a supervisor has one thread.
    state: Mutex<OutputState>,
    /// The log's file; none: standard error.
    path: Option<PathBuf>,
    /// Lines lost where the lock could not be taken.
    lost_unlocked: AtomicU64,
}

impl LogOutput {
    /// Opens the file, and makes it if need be; none: standard error.
    pub(super) fn open(path: Option<&Path>, form: LineFormat) -> io::Result<Self> {
        let sink = path.map_or_else(|| Ok(NonblockingSink::standard_error()), NonblockingSink::file)?;
        let state =
            OutputState { line_sink: LineSink { sink, format: form }, backlog: LineBacklog::default() };
        Ok(Self {
            state: Mutex::new(state),
            path: path.map(Path::to_owned),
            lost_unlocked: AtomicU64::new(0),
        })
    }

    /// The log's file, if it has one.
    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Opens what the path names now; the old file stays in use when that fails.
    pub(super) fn reopen(&self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let fresh = NonblockingSink::file(path)?;
        let mut state = self.lock();
        state.line_sink.sink = fresh;
        state.backlog.reset_for_new_file();
        Ok(())
    }

    /// This process was just forked: what waited is its parent's to write.
    pub(super) fn after_fork(&self) {
        self.lock().backlog = LineBacklog::default();
    }

    /// Writes a line, or keeps it.
    fn log(&self, line: &[u8]) {
        // A signal's handler, or a panic, in the middle of another line: the lock is this thread's own already.
        if WRITING.replace(true) {
            self.lost_unlocked.fetch_add(1, Relaxed);
            count_dropped(1);
            return;
        }
        let mut state = self.lock();
        let OutputState { line_sink: mouth, backlog } = &mut *state;
        backlog.add_missing(self.lost_unlocked.swap(0, Relaxed));
        let waited = backlog.pending_wait().is_some();
        let lost = backlog.log(line, clock::monotonic(), mouth);
        let waits = backlog.pending_wait().is_some();
        drop(state);
        WRITING.set(false);
        count_dropped(lost);
        if waits && !waited {
            wake();
        }
    }

    /// Writes some of what waits.
    pub(super) fn flush(&self) {
        let mut state = self.lock();
        let OutputState { line_sink: mouth, backlog } = &mut *state;
        let lost = backlog.flush(clock::monotonic(), mouth);
        drop(state);
        count_dropped(lost);
    }

    /// What to wait for before `LogOutput::flush`; none while nothing waits.
    pub(super) fn pending(&self) -> Option<LogWait> {
        let state = self.lock();
        let next = state.backlog.pending_wait()?;
        Some(match (next, state.line_sink.sink.target()) {
            (BacklogWait::Writable, Some(end)) => LogWait::Writable(end),
            (BacklogWait::Writable, None) => LogWait::At(clock::monotonic()),
            (BacklogWait::At(at), _) => LogWait::At(at),
        })
    }

    /// Writes what waits, as far as that is possible within `patience`.
    pub(super) fn finish(&self, timeout: Duration) {
        let until = clock::monotonic() + timeout;
        loop {
            self.flush();
            match self.pending() {
                Some(LogWait::Writable(end)) if end.await_room(until) => {}
                _ => return,
            }
        }
    }

    /// Gives up what still waits; returns how many lines are missing that no line has reported.
    pub(super) fn abandon(&self) -> u64 {
        let mut state = self.lock();
        let lost = state.backlog.abandon();
        let unreported = state.backlog.take_unreported();
        drop(state);
        count_dropped(lost);
        unreported
    }

    /// Has the log say that lines are missing from before.
    pub(super) fn add_missing(&self, missing: u64) {
        self.lock().backlog.add_missing(missing);
    }

    /// The descriptor that a worker keeps when it closes what it inherited: a log's file may have been renamed by
    /// now, and its path would name another one.
    pub(super) fn log_fd(&self) -> Option<RawFd> {
        self.lock().line_sink.sink.descriptor()
    }

    fn lock(&self) -> MutexGuard<'_, OutputState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Finds out whether `LogOutput::open` would succeed, without making a file.
pub(super) fn check(path: &Path) -> io::Result<()> {
    if path.exists() {
        return NonblockingSink::check(path);
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match folder.metadata()?.is_dir() {
        true => Ok(()),
        false => Err(io::ErrorKind::NotADirectory.into()),
    }
}

/// Writes one event's line.
#[derive(Debug)]
pub(super) struct LogWriter<'a>(&'a LogOutput);

impl io::Write for LogWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.log(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for &'static LogOutput {
    type Writer = LogWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        LogWriter(self)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn lines(path: &Path) -> usize {
        std::fs::read_to_string(path).unwrap().lines().count()
    }

    fn open(path: &Path) -> &'static LogOutput {
        Box::leak(Box::new(LogOutput::open(Some(path), LineFormat::Json).unwrap()))
    }

    #[test]
    fn a_renamed_file_is_written_to_until_the_path_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("log"), folder.path().join("log.1"));
        let log = open(&path);
        log.make_writer().write_all(b"one\n").unwrap();
        std::fs::rename(&path, &old).unwrap();
        log.make_writer().write_all(b"two\n").unwrap();
        assert!(!path.exists());
        log.reopen().unwrap();
        log.make_writer().write_all(b"three\n").unwrap();
        assert_eq!((lines(&old), lines(&path)), (2, 1));
    }

    #[test]
    fn a_path_that_cannot_be_opened_leaves_the_old_file_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("below");
        std::fs::create_dir(&below).unwrap();
        let log = open(&below.join("log"));
        let moved = folder.path().join("moved");
        std::fs::rename(&below, &moved).unwrap();
        assert!(log.reopen().is_err());
        log.make_writer().write_all(b"still here\n").unwrap();
        assert_eq!(lines(&moved.join("log")), 1);
    }

    #[test]
    fn a_check_makes_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        check(&path).unwrap();
        assert!(!path.exists());
        assert!(check(&folder.path().join("missing/log")).is_err());
        assert!(check(folder.path()).is_err(), "a folder is no file");
    }

    #[test]
    fn a_line_in_the_middle_of_another_waits_for_no_lock() {
        let log = LogOutput::open(Some(Path::new("/dev/null")), LineFormat::Json).unwrap();
        let held = log.lock();
        WRITING.set(true);
        log.log(b"from a signal's handler\n");
        drop(held);
        WRITING.set(false);
        assert_eq!(log.lost_unlocked.load(Relaxed), 1);
        log.log(b"another\n");
        assert_eq!((log.lost_unlocked.load(Relaxed), log.abandon()), (0, 0), "it was said");
    }
}
