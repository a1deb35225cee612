//! Which users control a path: every folder and link on the way decides what lies at its end.
//!
//! The way is walked link by link, and each part is judged before the next is looked up. When it is approved, no other
//! user can change where it leads, so that it may be used by its name from then on.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::{fs, io};

use crate::sys::path::error::PathError;

/// Links that are followed on one way; the kernel's own limit.
const LINKS_MAX: u32 = 40;

const STICKY: u32 = 0o1000;
const WORLD_WRITE: u32 = 0o002;
const GROUP_WRITE: u32 = 0o020;

/// The user for whom a path is judged. Root trusts fewer owners than others do, whose folders may be an operator's own
/// arrangement.
#[derive(Debug, Clone, Copy)]
struct OwnershipCheck {
    user: u32,
    group: u32,
    /// Whether folders that another group may write are refused too.
    check_groups: bool,
}

/// A folder of this process's own, made if need be (mode 0700, with those above it); its path without links.
///
/// It belongs to this user or to root, and no other user may write it. For root, all of that holds for the folders and
/// links on the way too, because the owner of one could put another in its place. For another user those may belong to
/// any user, but the way must not lead through a folder in which every user may replace what is there; one with the
/// sticky bit is none (`/tmp`), and a volume that a container was given is none either.
///
/// # Errors
/// [`PathError::NotPrivate`] with what to do about it.
pub fn ensure_private_folder(path: &Path) -> Result<PathBuf, PathError> {
    let check = OwnershipCheck::of_process(true);
    let real = check.resolve(path, true)?;
    let found = fs::metadata(&real)?;
    check.check_folder(&real, &found)?;
    Ok(real)
}

/// Checks that no other user controls a log's file. It may be a link, a FIFO or a device; where root writes,
/// no other user may have chosen which.
///
/// # Errors
/// As [`ensure_private_folder`].
pub fn check_log_path(path: &Path) -> Result<(), PathError> {
    let check = OwnershipCheck::of_process(false);
    // Descriptors of this process have names below these, which lead to no place.
    if path.starts_with("/dev") || path.starts_with("/proc") {
        return Ok(());
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let folder = check.resolve(folder, false)?;
    let at = folder.join(name);
    let within = fs::metadata(&folder)?;
    check.check_passage(&folder, &within)?;
    let Ok(found) = fs::symlink_metadata(&at) else { return Ok(()) };
    check.check_entry(&at, &found, &within)?;
    if found.is_file() && found.nlink() > 1 && check.user == 0 {
        let shown = at.display();
        return Err(PathError::NotPrivate(format!(
            "{shown} is another file's second name (a hard link): remove it"
        )));
    }
    Ok(())
}

impl OwnershipCheck {
    fn of_process(groups: bool) -> Self {
        Self { user: own_user(), group: nix::unistd::getegid().as_raw(), check_groups: groups }
    }

    fn trusts_owner(self, owner: u32) -> bool {
        owner == 0 || owner == self.user
    }

    /// Follows a path from the root folder on; with `make` folders that are missing are made.
    fn resolve(self, path: &Path, make: bool) -> Result<PathBuf, PathError> {
        let mut real = PathBuf::from("/");
        let mut rest: VecDeque<OsString> = parts(path);
        if !path.is_absolute() {
            let message =
                format!("{} has no beginning: the working folder is not there any more", path.display());
            return Err(PathError::Io(io::Error::new(io::ErrorKind::NotFound, message)));
        }
        let mut within = fs::metadata(&real)?;
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == ".." {
                real.pop();
                within = fs::metadata(&real)?;
                continue;
            }
            let at = real.join(name);
            let found = match fs::symlink_metadata(&at) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && make => self.create_folder(&at)?,
                found => found?,
            };
            self.check_entry(&at, &found, &within)?;
            if found.is_symlink() {
                links += 1;
                if links > LINKS_MAX {
                    return Err(io::Error::from_raw_os_error(libc::ELOOP).into());
                }
                let target = fs::read_link(&at)?;
                if target.is_absolute() {
                    real = PathBuf::from("/");
                    within = fs::metadata(&real)?;
                }
                for part in parts(&target).into_iter().rev() {
                    rest.push_front(part);
                }
                continue;
            }
            if !found.is_dir() {
                let message = format!("{} is no folder", at.display());
                return Err(io::Error::new(io::ErrorKind::NotADirectory, message).into());
            }
            // The folder at the end is judged by its own rules.
            if !rest.is_empty() {
                self.check_passage(&at, &found)?;
            }
            (real, within) = (at, found);
        }
        Ok(real)
    }

    fn create_folder(self, at: &Path) -> io::Result<Metadata> {
        match fs::DirBuilder::new().mode(0o700).create(at) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(io::Error::new(error.kind(), format!("{} cannot be made: {error}", at.display())))
            }
            _ => fs::symlink_metadata(at),
        }
    }

    /// A name in a folder: in one that all share, only its owner can replace it; for root its owner decides everywhere.
    fn check_entry(self, at: &Path, found: &Metadata, within: &Metadata) -> Result<(), PathError> {
        let shared = within.mode() & (WORLD_WRITE | GROUP_WRITE) != 0 && within.mode() & STICKY != 0;
        if self.trusts_owner(found.uid()) || !(shared || self.user == 0) {
            return Ok(());
        }
        let (shown, owner) = (at.display(), found.uid());
        Err(PathError::NotPrivate(format!(
            "{shown} belongs to the user with id {owner}, who can put something else in its place: choose another \
             path, run as that user, or chown {} {shown}",
            self.user
        )))
    }

    /// A folder on the way.
    fn check_passage(self, at: &Path, found: &Metadata) -> Result<(), PathError> {
        let mode = found.mode();
        let shown = at.display();
        if mode & STICKY != 0 || (self.trusts_owner(found.uid()) && is_volume(at)) {
            return Ok(());
        }
        if mode & WORLD_WRITE != 0 {
            return Err(PathError::NotPrivate(format!(
                "every user may write the folder {shown}, and put something else in the place of what is in it: \
                 chmod o-w {shown}, or chmod +t {shown}"
            )));
        }
        let theirs = ![0, self.group].contains(&found.gid());
        if self.check_groups && self.user == 0 && mode & GROUP_WRITE != 0 && theirs {
            return Err(PathError::NotPrivate(format!(
                "the group with id {} may write the folder {shown}, and put something else in the place of what is \
                 in it: chmod g-w {shown}, or chmod +t {shown}",
                found.gid()
            )));
        }
        Ok(())
    }

    /// The folder itself.
    fn check_folder(self, at: &Path, found: &Metadata) -> Result<(), PathError> {
        let mode = found.mode();
        let shown = at.display();
        if !self.trusts_owner(found.uid()) {
            return Err(PathError::NotPrivate(format!(
                "{shown} belongs to the user with id {}: choose another folder, run as that user, or chown {} {shown}",
                found.uid(),
                self.user
            )));
        }
        if is_volume(at) {
            return Ok(());
        }
        let theirs = ![0, self.group].contains(&found.gid());
        match (mode & WORLD_WRITE != 0, mode & GROUP_WRITE != 0 && theirs) {
            (true, _) => Err(PathError::NotPrivate(format!(
                "every user may write the folder {shown}: chmod 700 {shown}"
            ))),
            (false, true) => Err(PathError::NotPrivate(format!(
                "the group with id {} may write the folder {shown}: chmod g-w {shown}",
                found.gid()
            ))),
            (false, false) => Ok(()),
        }
    }
}

fn parts(path: &Path) -> VecDeque<OsString> {
    let name = |part: Component<'_>| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(name).collect()
}

/// Whether something is mounted exactly there, as Kubernetes does with folders that every user may write; statx(2).
fn is_volume(at: &Path) -> bool {
    let Ok(path) = std::ffi::CString::new(at.as_os_str().as_encoded_bytes()) else { return false };
    // SAFETY: all zeros is a value of this plain struct of numbers.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: the path ends with a zero and outlives the call, which fills the struct and keeps nothing.
    let result =
        unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, libc::STATX_TYPE, &raw mut found) };
    let root = u64::try_from(libc::STATX_ATTR_MOUNT_ROOT).unwrap_or(0);
    result == 0 && at != Path::new("/") && found.stx_attributes & root != 0
}

pub(super) fn own_user() -> u32 {
    nix::unistd::geteuid().as_raw()
}
