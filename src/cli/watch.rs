//! `serve --watch`, for development: another binary on disk is an upgrade, another configuration file a reload.
//!
//! A process beside the fleet follows the two files and asks for the verb at the control socket, as an operator would;
//! it ends with the fleet. The supervisor knows nothing of it.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::bootstrap;
use crate::bootstrap::exit_code;
use crate::bootstrap::exit_code::CommandFailure;
use crate::config::ConfigInputs;
use crate::control::client::{ControlClient, ControlError};
use crate::control::protocol::{ControlReply, ControlRequest};
use crate::supervisor::ProbeWords;
use crate::sys::folder_watch::{FileFingerprint, FolderWatch};
use crate::sys::{clock, fd, process};

/// How long a file must have been left alone before it counts as finished.
const REST_TIME: Duration = Duration::from_millis(200);

/// When a verb that could not be asked for is asked for again: another upgrade runs, or the fleet still boots.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Longest wait for the fleet's word that it has taken a verb.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The hidden verb of the process that watches.
pub(super) const VERB: &str = "watch-files";

/// What a file is to the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WatchedFileKind {
    /// The program it runs.
    Program,
    /// Its configuration.
    Configuration,
}

/// Why files cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch the program and the configuration file (--watch)")]
struct WatchError(#[source] io::Error);

/// Starts the process that watches, beside the fleet that this process becomes.
pub(super) fn start(
    arguments: &[OsString],
    inputs: &ConfigInputs,
    run_dir: &Path,
) -> Result<(), CommandFailure> {
    let failed = |error| CommandFailure::new(exit_code::FAILED, &WatchError(error));
    let program = bootstrap::program(arguments, inputs, ProbeWords::Check).path;
    let files = [program.into_os_string(), inputs.file_path().into_os_string()];
    // What cannot be watched is an error of this start, not of a process that has not begun.
    FileWatcher::new(Path::new(&files[0]), Path::new(&files[1])).map_err(failed)?;
    let words = [VERB.into(), "--run-dir".into(), run_dir.as_os_str().to_owned(), "--".into()];
    process::spawn_companion(&files[0].clone(), words.into_iter().chain(files)).map_err(failed)
}

/// Follows the files until this process is ended with the fleet.
pub(super) fn run(run_dir: &Path, program: &Path, configuration: &Path) -> Result<u8, CommandFailure> {
    let failed = |error| CommandFailure::new(exit_code::FAILED, &WatchError(error));
    let mut files = FileWatcher::new(program, configuration).map_err(failed)?;
    loop {
        let now = clock::monotonic();
        for kind in files.changed_files(now).map_err(failed)? {
            if !ask(run_dir, kind, program) {
                files.retry(kind, now + RETRY_DELAY);
            }
        }
        let wait = files.next_check().map(|at| at.saturating_sub(clock::monotonic()));
        fd::wait_readable(&[files.watch.as_fd()], wait).map_err(failed)?;
    }
}

/// Asks the fleet to take what has changed; whether it will is all that is waited for.
fn ask(run_dir: &Path, kind: WatchedFileKind, program: &Path) -> bool {
    let request = match kind {
        // By its path: an operator may have had the fleet become another program since.
        WatchedFileKind::Program => {
            ControlRequest::Upgrade { binary: Some(program.to_path_buf()), wait: false }
        }
        WatchedFileKind::Configuration => ControlRequest::Reload { wait: false },
    };
    let answer = || -> Result<_, ControlError> {
        let deadline = clock::monotonic() + ANSWER_TIMEOUT;
        let mut client = ControlClient::connect(run_dir)?;
        client.send(&request)?;
        loop {
            if let ControlReply::Result(result) = client.receive(Some(deadline))? {
                return Ok(result);
            }
        }
    };
    answer().is_ok_and(|result| result.ok)
}

/// The two files, and what of them has changed.
#[derive(Debug)]
struct FileWatcher {
    watch: FolderWatch,
    files: [WatchedFile; 2],
}

#[derive(Debug)]
struct WatchedFile {
    kind: WatchedFileKind,
    path: PathBuf,
    change: ChangeTracker<FileFingerprint>,
}

impl FileWatcher {
    /// Follows the program and the configuration file from now on; the latter may be missing, and come.
    fn new(program: &Path, configuration: &Path) -> io::Result<Self> {
        let file = |kind, path: &Path| {
            let now = FileFingerprint::from_path(path);
            let change = ChangeTracker { reported: now, seen: now, due: None };
            WatchedFile { kind, path: path.to_path_buf(), change }
        };
        let files =
            [file(WatchedFileKind::Program, program), file(WatchedFileKind::Configuration, configuration)];
        let watch = FolderWatch::for_files(files.iter().map(|file| file.path.as_path()))?;
        Ok(Self { watch, files })
    }

    /// Files that have changed and have been left alone since.
    fn changed_files(&mut self, now: Duration) -> io::Result<Vec<WatchedFileKind>> {
        let any = self.watch.has_changed()?;
        if any {
            self.files.iter().for_each(|file| self.watch.follow_links(&file.path));
        }
        let mut changed = Vec::new();
        for file in self.files.iter_mut().filter(|file| any || file.change.due.is_some()) {
            if file.change.update(FileFingerprint::from_path(&file.path), now) {
                changed.push(file.kind);
            }
        }
        Ok(changed)
    }

    /// When to check again if nothing changes until then.
    fn next_check(&self) -> Option<Duration> {
        self.files.iter().filter_map(|file| file.change.due).min()
    }

    /// This change could not be followed yet.
    fn retry(&mut self, kind: WatchedFileKind, at: Duration) {
        for file in self.files.iter_mut().filter(|file| file.kind == kind) {
            (file.change.reported, file.change.due) = (None, Some(at));
        }
    }
}

/// Something that changes now and then, in bursts; pure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ChangeTracker<T> {
    /// As it was when it was last reported.
    reported: Option<T>,
    /// As it was at the last check.
    seen: Option<T>,
    /// When it will have rested, if it is another one than was reported.
    due: Option<Duration>,
}

impl<T: Copy + PartialEq> ChangeTracker<T> {
    /// Whether it is another one and has rested; one that is gone is waited for.
    fn update(&mut self, current: Option<T>, now: Duration) -> bool {
        let moved = std::mem::replace(&mut self.seen, current) != current;
        if current.is_none() || current == self.reported {
            self.due = None;
        } else if moved || self.due.is_none() {
            self.due = Some(now + REST_TIME);
        } else if self.due.is_some_and(|due| due <= now) {
            self.due = None;
            self.reported = current;
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(value: i32) -> ChangeTracker<i32> {
        ChangeTracker { reported: Some(value), seen: Some(value), due: None }
    }

    #[test]
    fn a_change_is_reported_once_it_has_rested() {
        let mut change = at(1);
        assert!(!change.update(Some(1), MS) && change.due.is_none());
        assert!(!change.update(Some(2), MS * 10));
        assert!(!change.update(Some(3), MS * 150), "it goes on");
        assert_eq!(change.due, Some(MS * 350));
        assert!(!change.update(Some(3), MS * 300));
        assert!(change.update(Some(3), MS * 350));
        assert!(!change.update(Some(3), MS * 600) && change.due.is_none());
    }

    #[test]
    fn what_is_deleted_is_waited_for() {
        let mut change = at(1);
        assert!(!change.update(None, MS) && change.due.is_none());
        assert!(!change.update(Some(2), MS * 1000));
        assert!(!change.update(None, MS * 1100) && change.due.is_none());
        assert!(!change.update(Some(2), MS * 1200));
        assert!(change.update(Some(2), MS * 1400));
    }

    #[test]
    fn what_is_put_back_is_no_change() {
        let mut change = at(1);
        assert!(!change.update(Some(2), MS));
        assert!(!change.update(Some(1), MS * 100) && change.due.is_none());
        assert!(!change.update(Some(1), MS * 900));
    }
}
