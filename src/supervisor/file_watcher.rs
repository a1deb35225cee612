//! For development: another binary on disk is an upgrade, another configuration file a reload.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::supervisor::Supervisor;
use crate::supervisor::effects::event_now;
use crate::supervisor::slots::plan::DesiredState;
use crate::sys::folder_watch;
use crate::sys::folder_watch::FileFingerprint;

/// How long a file must have been left alone before it counts as finished.
const REST_TIME: Duration = Duration::from_millis(200);

/// When an upgrade that was refused because another one runs is asked for again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// What a file is to the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WatchedFileKind {
    /// The program it runs.
    Program,
    /// Its configuration.
    Configuration,
}

/// Files whose change the fleet follows by itself.
#[derive(Debug)]
pub struct FileWatcher {
    watch: folder_watch::FolderWatch,
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
    ///
    /// # Errors
    /// When a folder cannot be watched.
    pub fn new(program: &Path, configuration: &Path) -> io::Result<Self> {
        let file = |kind, path: &Path| {
            let now = FileFingerprint::from_path(path);
            WatchedFile {
                kind,
                path: path.to_path_buf(),
                change: ChangeTracker { reported: now, seen: now, due: None },
            }
        };
        let files =
            [file(WatchedFileKind::Program, program), file(WatchedFileKind::Configuration, configuration)];
        Ok(Self {
            watch: folder_watch::FolderWatch::for_files(files.iter().map(|file| file.path.as_path()))?,
            files,
        })
    }

    /// The same after an upgrade: what this process runs may have been overtaken meanwhile.
    pub fn catch_up(mut self) -> Self {
        let running = FileFingerprint::from_path(Path::new("/proc/self/exe"));
        for file in self.files.iter_mut().filter(|file| file.kind == WatchedFileKind::Program) {
            let overtaken =
                running.zip(file.change.seen).filter(|(running, now)| !running.has_same_content(now));
            if let Some((running, _)) = overtaken {
                file.change.reported = Some(running);
                file.change.due = Some(Duration::ZERO);
            }
        }
        self
    }

    /// Files that have changed and have been left alone since.
    fn changed_files(&mut self, now: Duration) -> io::Result<Vec<(WatchedFileKind, PathBuf)>> {
        let stirred = self.watch.has_changed()?;
        let mut changed = Vec::new();
        for file in self.files.iter_mut().filter(|file| stirred || file.change.due.is_some()) {
            if file.change.update(FileFingerprint::from_path(&file.path), now) {
                changed.push((file.kind, file.path.clone()));
            }
        }
        Ok(changed)
    }

    /// When to look again if nothing stirs until then.
    fn next_check(&self) -> Option<Duration> {
        self.files.iter().filter_map(|file| file.change.due).min()
    }

    /// Nobody could follow this change yet.
    fn retry(&mut self, kind: WatchedFileKind, at: Duration) {
        for file in self.files.iter_mut().filter(|file| file.kind == kind) {
            (file.change.reported, file.change.due) = (None, Some(at));
        }
    }
}

impl AsFd for FileWatcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}

/// Something that changes now and then, in bursts; pure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ChangeTracker<T> {
    /// As it was when it was last told.
    reported: Option<T>,
    /// As it was at the last look.
    seen: Option<T>,
    /// When it will have rested, if it is another one than was told.
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

impl Supervisor<'_> {
    /// Has it follow these files.
    #[must_use]
    pub fn with_file_watcher(mut self, watched: Option<FileWatcher>) -> Self {
        self.file_watcher = watched;
        self
    }

    /// Follows what changed on disk; when to look again, if something has not come to rest yet.
    pub(super) fn check_files(&mut self, now: Duration) -> Option<Duration> {
        if self.lifecycle.desired_state != DesiredState::Running {
            self.file_watcher = None;
        }
        // What comes while the fleet boots is taken too, and waits with its reload or upgrade for the first READY.
        match self.file_watcher.as_mut()?.changed_files(now) {
            Ok(changed) => changed.into_iter().for_each(|(kind, path)| self.file_changed(kind, &path, now)),
            Err(error) => {
                tracing::warn!(%error, "files are no longer watched: {error}");
                self.file_watcher = None;
            }
        }
        self.file_watcher.as_ref()?.next_check()
    }

    fn file_changed(&mut self, kind: WatchedFileKind, path: &Path, now: Duration) {
        let (verb, taken) = match kind {
            WatchedFileKind::Program => ("upgrade", self.request_upgrade(None)),
            WatchedFileKind::Configuration => {
                self.request_reload();
                ("reload", Ok(()))
            }
        };
        match (taken, &mut self.file_watcher) {
            (Ok(()), _) => {
                let message = format!("{} has changed: {verb}", path.display());
                tracing::info!(file = %path.display(), "{message}");
                self.record_event(event_now("file_changed", message));
            }
            (Err(reason), Some(watched)) => {
                tracing::debug!(%reason, "{verb} has to wait: {reason}");
                watched.retry(kind, now + RETRY_DELAY);
            }
            (Err(_), None) => {}
        }
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
