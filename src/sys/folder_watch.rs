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

/// Most links that are followed on the way to a file, as in `path_resolution(7)`.
const LINKS_MAX: usize = 40;

/// Folders that are watched.
#[derive(Debug)]
pub struct FolderWatch {
    inotify: Inotify,
}

impl FolderWatch {
    /// Watches the folders of these files, and those of every link on the way to them; the files themselves may be missing.
    ///
    /// # Errors
    /// When the kernel has no watch left, or a folder does not exist or may not be read.
    pub fn for_files<'a>(files: impl IntoIterator<Item = &'a Path>) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        application_fds::claim_opened(&inotify);
        for file in files {
            for folder in folders_on_the_way(file) {
                inotify.add_watch(&folder, changes())?;
            }
        }
        Ok(Self { inotify })
    }

    /// Watches the folders to which a link leads that has changed; those where it led before stay watched.
    pub fn follow_links(&self, file: &Path) {
        for folder in folders_on_the_way(file) {
            // A folder that is gone is watched again when the link or the folder beside it changes.
            let _ = self.inotify.add_watch(&folder, changes());
        }
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

/// The folders in which a change may put another file in this one's place: its own, and that of each link on the way.
fn folders_on_the_way(file: &Path) -> Vec<PathBuf> {
    let mut folders = vec![folder(file)];
    let mut paths = vec![file.to_path_buf()];
    let mut links = 0;
    while let Some(path) = paths.pop() {
        for part in path.ancestors() {
            let Some(target) = fs::read_link(part).ok().filter(|_| links < LINKS_MAX) else { continue };
            links += 1;
            let beside = folder(part);
            let led_to = beside.join(target);
            folders.push(beside);
            let rest = path.strip_prefix(part).ok().filter(|rest| !rest.as_os_str().is_empty());
            let behind = rest.map_or_else(|| led_to.clone(), |rest| led_to.join(rest));
            folders.extend(Some(folder(&behind)).filter(|folder| folder.is_dir()));
            paths.push(behind);
        }
    }
    folders
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
    fn a_link_that_comes_to_lead_elsewhere_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let below = |name: &str| folder.path().join(name);
        for release in ["first", "second"] {
            fs::create_dir(below(release)).unwrap();
            fs::write(below(release).join("program"), release).unwrap();
        }
        std::os::unix::fs::symlink("first", below("current")).unwrap();
        let file = below("current").join("program");
        let watch = FolderWatch::for_files([file.as_path()]).unwrap();
        assert!(!watch.has_changed().unwrap());
        std::os::unix::fs::symlink("second", below("next")).unwrap();
        fs::rename(below("next"), below("current")).unwrap();
        assert!(watch.has_changed().unwrap(), "the link is another one");
        watch.follow_links(&file);
        fs::write(below("second").join("program"), "longer than before").unwrap();
        assert!(watch.has_changed().unwrap(), "it is watched where it leads now");
    }

    #[test]
    fn links_without_an_end_are_not_followed_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let loop_of_links = folder.path().join("loop");
        std::os::unix::fs::symlink("loop/loop", &loop_of_links).unwrap();
        assert!(folders_on_the_way(&loop_of_links).len() < 3 * LINKS_MAX);
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        assert!(FolderWatch::for_files([Path::new("/nowhere/at/all")]).is_err());
    }
}
