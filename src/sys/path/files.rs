//! Files by their path: how they are opened, and what is wrong when they are not there.

use std::fs::{File, Metadata, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

/// Longest path the kernel takes for a socket, bytes; `sun_path` in unix(7), less its end mark.
pub const SOCKET_PATH_MAX: usize = 107;

/// Which file a path led to: its device and its inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FileId(u64, u64);

impl FileId {
    /// Of what lies there; a link is itself.
    ///
    /// # Errors
    /// When nothing does, or it may not be looked at.
    pub fn from_entry(path: &Path) -> io::Result<Self> {
        fs::symlink_metadata(path).map(|found| Self::from_metadata(&found))
    }

    /// Of what a path leads to, links followed.
    ///
    /// # Errors
    /// As `Identity::at`.
    pub fn from_path(path: &Path) -> io::Result<Self> {
        fs::metadata(path).map(|found| Self::from_metadata(&found))
    }

    /// Of an open file.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn from_file(file: &File) -> io::Result<Self> {
        file.metadata().map(|found| Self::from_metadata(&found))
    }

    fn from_metadata(found: &Metadata) -> Self {
        Self(found.dev(), found.ino())
    }
}

/// What stands in a file, and where it really was.
#[derive(Debug)]
pub struct FileContent {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its path without links, as the kernel names what was opened.
    pub real: PathBuf,
    /// Whether every user may write it.
    pub is_world_writable: bool,
}

/// Reads a file that is given by its path. It never waits: a FIFO, a folder or a device is refused, but for
/// `/dev/null`, which is the customary empty file.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] only when nothing at all is there; a link that leads nowhere is another error. More than
/// `most` bytes are refused.
pub fn read(path: &Path, most: u64) -> io::Result<FileContent> {
    let mut options = OpenOptions::new();
    // Without O_NONBLOCK the open of a FIFO waits for its writer, and the supervisor with it.
    options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path).map_err(|error| name_dangling_link(path, error))?;
    let found = file.metadata()?;
    let real = real_path(&file).unwrap_or_else(|| path.to_owned());
    if is_null(&found) {
        return Ok(FileContent { bytes: Vec::new(), real, is_world_writable: false });
    }
    if !found.is_file() {
        return Err(io::Error::other(format!("it is {}, and no file", file_kind(&found))));
    }
    let too_long = |len: u64| io::Error::other(format!("it has {len} bytes, more than {most}"));
    if found.len() > most {
        return Err(too_long(found.len()));
    }
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(too_long(bytes.len() as u64));
    }
    Ok(FileContent { bytes, real, is_world_writable: found.mode() & 0o002 != 0 })
}

/// Reads a file that holds a secret; as [`read`], but one that every user may write is refused. The mode is that of the
/// file that was read: its path may lead to another one by now.
///
/// # Errors
/// As [`read`], and when every user may write it.
pub fn read_secret(path: &Path) -> io::Result<Vec<u8>> {
    const MOST: u64 = 4 << 20;
    let found = read(path, MOST).map_err(|error| io::Error::other(error_detail(path, &error)))?;
    match found.is_world_writable {
        true => Err(io::Error::other(format!("every user may write it: chmod o-w {}", path.display()))),
        false => Ok(found.bytes),
    }
}

/// Where an open file really is.
fn real_path(file: &impl AsFd) -> Option<PathBuf> {
    fs::read_link(proc_fd_path(file)).ok()
}

/// A name under which this process can open the same file again; `/proc/self/fd`, proc(5).
pub fn proc_fd_path(file: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()))
}

/// A path for people: as it is written, and where it led if that is elsewhere.
pub fn display_path(written: &Path, real: &Path) -> String {
    match written == real {
        true => written.display().to_string(),
        false => format!("{} ({})", written.display(), real.display()),
    }
}

/// Why a path could not be opened, with the part of it that is to blame.
pub fn error_detail(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => missing_part(path).unwrap_or_else(|| error.to_string()),
        io::ErrorKind::PermissionDenied => match inaccessible_folder(path) {
            Some(folder) => format!("{error} (in the folder {})", folder.display()),
            None => error.to_string(),
        },
        _ => error.to_string(),
    }
}

/// The first part of a path that is not there, if one is missing.
fn missing_part(path: &Path) -> Option<String> {
    let mut parts: Vec<&Path> = path.ancestors().filter(|part| !part.as_os_str().is_empty()).collect();
    parts.reverse();
    let part = parts.into_iter().find(|part| part.metadata().is_err())?;
    let shown = part.display();
    match fs::read_link(part) {
        Ok(target) => Some(format!("the link {shown} leads to {}, which is not there", target.display())),
        Err(_) if part == path => Some("it is not there".to_owned()),
        Err(_) => Some(format!("the folder {shown} is not there")),
    }
}

/// The folder on the way that may not be passed, if that is why.
fn inaccessible_folder(path: &Path) -> Option<PathBuf> {
    let denied = |part: &&Path| {
        part.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    };
    path.ancestors().filter(denied).last()?.parent().map(Path::to_owned)
}

/// A link that leads nowhere is not the same as nothing: something is meant to be there.
fn name_dangling_link(path: &Path, error: io::Error) -> io::Error {
    let is_link = || fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
    match error.kind() {
        io::ErrorKind::NotFound if is_link() => io::Error::other(error_detail(path, &error)),
        _ => error,
    }
}

fn is_null(found: &Metadata) -> bool {
    const NULL: (u32, u32) = (1, 3);
    let device = (libc::major(found.rdev()), libc::minor(found.rdev()));
    found.file_type().is_char_device() && device == NULL
}

pub(super) fn file_kind(found: &Metadata) -> &'static str {
    match found.file_type() {
        kind if kind.is_dir() => "a folder",
        kind if kind.is_fifo() => "a pipe",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    }
}
