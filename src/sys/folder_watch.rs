//! Files that change on disk, as the kernel reports it: inotify(7).
//!
//! Folders are watched, not files: an editor writes another file and renames it over the first one, a compiler deletes
//! and creates. What happened is not trusted; it only makes the caller look at the file itself.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::sys::application_fds;

/// Folders that are watched.
#[derive(Debug)]
pub struct FolderWatch {
    inotify: Inotify,
}

impl FolderWatch {
    /// Watches the folders of these files, and those that links lead to; the files themselves may be missing.
    ///
    /// # Errors
    /// When the kernel has no watch left, or a folder does not exist or may not be read.
    pub fn for_files<'a>(files: impl IntoIterator<Item = &'a Path>) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        application_fds::claim_opened(&inotify);
        for file in files {
            let real = fs::canonicalize(file).ok();
            for path in [Some(file.to_path_buf()), real].into_iter().flatten() {
                inotify.add_watch(&folder(&path), changes())?;
            }
        }
        Ok(Self { inotify })
    }

    /// Whether anything happened in the folders since the last call.
    ///
    /// # Errors
    /// When the descriptor cannot be read.
    pub fn has_changed(&self) -> io::Result<bool> {
        let mut any = false;
        loop {
            match self.inotify.read_events() {
                Ok(events) => any |= !events.is_empty(),
                Err(nix::Error::EAGAIN) => return Ok(any),
                Err(nix::Error::EINTR) => {}
                Err(refused) => return Err(refused.into()),
            }
        }
    }
}

impl AsFd for FolderWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

fn folder(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

fn changes() -> AddWatchFlags {
    AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_ATTRIB
}

/// What distinguishes a file from the one that was in its place before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileFingerprint {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    mode: u32,
}

impl FileFingerprint {
    /// Whether the other one's file holds the same, as far as size and time of change show; it may be a copy.
    pub fn has_same_content(&self, other: &Self) -> bool {
        (self.size, self.modified) == (other.size, other.modified)
    }

    /// Of the file at `path`, links followed; none when there is none.
    pub fn from_path(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
        Some(Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            mode: found.mode(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_renames_and_files_made_anew_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("watched");
        let watch = FolderWatch::for_files([file.as_path()]).unwrap();
        assert!(!watch.has_changed().unwrap() && FileFingerprint::from_path(&file).is_none());
        fs::write(&file, "one").unwrap();
        assert!(watch.has_changed().unwrap());
        let first = FileFingerprint::from_path(&file).unwrap();
        assert!(!watch.has_changed().unwrap());
        fs::write(folder.path().join("other"), "two").unwrap();
        fs::rename(folder.path().join("other"), &file).unwrap();
        assert!(watch.has_changed().unwrap());
        let second = FileFingerprint::from_path(&file).unwrap();
        assert_ne!(first, second);
        fs::remove_file(&file).unwrap();
        assert!(watch.has_changed().unwrap() && FileFingerprint::from_path(&file).is_none());
    }

    #[test]
    fn a_link_is_watched_where_it_leads() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (link, real) = (here.path().join("link"), there.path().join("real"));
        fs::write(&real, "one").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let watch = FolderWatch::for_files([link.as_path()]).unwrap();
        fs::write(&real, "longer").unwrap();
        assert!(watch.has_changed().unwrap());
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        assert!(FolderWatch::for_files([Path::new("/nowhere/at/all")]).is_err());
    }
}
