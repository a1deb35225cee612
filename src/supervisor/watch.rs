//! For development: another binary on disk is an upgrade, another configuration file a reload.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use crate::supervisor::Supervisor;
use crate::supervisor::history::happened;
use crate::supervisor::plan::Target;
use crate::sys::watch;
use crate::sys::watch::Print;

/// How long a file must have been left alone before it counts as finished.
const REST: Duration = Duration::from_millis(200);

/// When an upgrade that was refused because another one runs is asked for again.
const AGAIN: Duration = Duration::from_secs(1);

/// What a file is to the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The program it runs.
    Program,
    /// Its configuration.
    Configuration,
}

/// Files whose change the fleet follows by itself.
#[derive(Debug)]
pub struct Watched {
    watch: watch::Watch,
    files: [File; 2],
}

#[derive(Debug)]
struct File {
    kind: Kind,
    path: PathBuf,
    change: Change<Print>,
}

impl Watched {
    /// Follows the program and the configuration file from now on; the latter may be missing, and come.
    ///
    /// # Errors
    /// When a folder cannot be watched.
    pub fn new(program: &Path, configuration: &Path) -> io::Result<Self> {
        let file = |kind, path: &Path| {
            let now = Print::of(path);
            File { kind, path: path.to_path_buf(), change: Change { told: now, seen: now, due: None } }
        };
        let files = [file(Kind::Program, program), file(Kind::Configuration, configuration)];
        Ok(Self { watch: watch::Watch::over(files.iter().map(|file| file.path.as_path()))?, files })
    }

    /// The same after an upgrade: what this process runs may have been overtaken meanwhile.
    pub fn catch_up(mut self) -> Self {
        let running = Print::of(Path::new("/proc/self/exe"));
        for file in self.files.iter_mut().filter(|file| file.kind == Kind::Program) {
            let overtaken = running.zip(file.change.seen).filter(|(running, now)| !running.looks_like(now));
            if let Some((running, _)) = overtaken {
                file.change.told = Some(running);
                file.change.due = Some(Duration::ZERO);
            }
        }
        self
    }

    /// Files that have changed and have been left alone since.
    fn look(&mut self, now: Duration) -> io::Result<Vec<(Kind, PathBuf)>> {
        let stirred = self.watch.stirred()?;
        let mut changed = Vec::new();
        for file in self.files.iter_mut().filter(|file| stirred || file.change.due.is_some()) {
            if file.change.look(Print::of(&file.path), now) {
                changed.push((file.kind, file.path.clone()));
            }
        }
        Ok(changed)
    }

    /// When to look again if nothing stirs until then.
    fn due(&self) -> Option<Duration> {
        self.files.iter().filter_map(|file| file.change.due).min()
    }

    /// Nobody could follow this change yet.
    fn again(&mut self, kind: Kind, at: Duration) {
        for file in self.files.iter_mut().filter(|file| file.kind == kind) {
            (file.change.told, file.change.due) = (None, Some(at));
        }
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}

/// Something that changes now and then, in bursts; pure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Change<T> {
    /// As it was when it was last told.
    told: Option<T>,
    /// As it was at the last look.
    seen: Option<T>,
    /// When it will have rested, if it is another one than was told.
    due: Option<Duration>,
}

impl<T: Copy + PartialEq> Change<T> {
    /// Whether it is another one and has rested; one that is gone is waited for.
    fn look(&mut self, current: Option<T>, now: Duration) -> bool {
        let moved = std::mem::replace(&mut self.seen, current) != current;
        if current.is_none() || current == self.told {
            self.due = None;
        } else if moved || self.due.is_none() {
            self.due = Some(now + REST);
        } else if self.due.is_some_and(|due| due <= now) {
            self.due = None;
            self.told = current;
            return true;
        }
        false
    }
}

impl Supervisor<'_> {
    /// Has it follow these files.
    #[must_use]
    pub fn watching(mut self, watched: Option<Watched>) -> Self {
        self.watched = watched;
        self
    }

    /// Follows what changed on disk; when to look again, if something has not come to rest yet.
    pub(super) fn follow_files(&mut self, now: Duration) -> Option<Duration> {
        if self.target != Target::Serve {
            self.watched = None;
        }
        // What comes while the fleet boots is taken too, and waits with its reload or upgrade for the first READY.
        match self.watched.as_mut()?.look(now) {
            Ok(changed) => changed.into_iter().for_each(|(kind, path)| self.file_changed(kind, &path, now)),
            Err(error) => {
                tracing::warn!(%error, "files are no longer watched: {error}");
                self.watched = None;
            }
        }
        self.watched.as_ref()?.due()
    }

    fn file_changed(&mut self, kind: Kind, path: &Path, now: Duration) {
        let (verb, taken) = match kind {
            Kind::Program => ("upgrade", self.want_upgrade(None)),
            Kind::Configuration => {
                self.want_reload();
                ("reload", Ok(()))
            }
        };
        match (taken, &mut self.watched) {
            (Ok(()), _) => {
                let sentence = format!("{} has changed: {verb}", path.display());
                tracing::info!(file = %path.display(), "{sentence}");
                self.note(happened("file_changed", sentence));
            }
            (Err(reason), Some(watched)) => {
                tracing::debug!(%reason, "{verb} has to wait: {reason}");
                watched.again(kind, now + AGAIN);
            }
            (Err(_), None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(value: i32) -> Change<i32> {
        Change { told: Some(value), seen: Some(value), due: None }
    }

    #[test]
    fn a_change_is_told_once_it_has_rested() {
        let mut change = at(1);
        assert!(!change.look(Some(1), MS) && change.due.is_none());
        assert!(!change.look(Some(2), MS * 10));
        assert!(!change.look(Some(3), MS * 150), "it goes on");
        assert_eq!(change.due, Some(MS * 350));
        assert!(!change.look(Some(3), MS * 300));
        assert!(change.look(Some(3), MS * 350));
        assert!(!change.look(Some(3), MS * 600) && change.due.is_none());
    }

    #[test]
    fn what_is_deleted_is_waited_for() {
        let mut change = at(1);
        assert!(!change.look(None, MS) && change.due.is_none());
        assert!(!change.look(Some(2), MS * 1000));
        assert!(!change.look(None, MS * 1100) && change.due.is_none());
        assert!(!change.look(Some(2), MS * 1200));
        assert!(change.look(Some(2), MS * 1400));
    }

    #[test]
    fn what_is_put_back_is_no_change() {
        let mut change = at(1);
        assert!(!change.look(Some(2), MS));
        assert!(!change.look(Some(1), MS * 100) && change.due.is_none());
        assert!(!change.look(Some(1), MS * 900));
    }
}
