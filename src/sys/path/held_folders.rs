//! Folders and files that are held open: their descriptors go on to lead there whatever becomes of the name.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

/// Opens a folder, to hold it: its lock, or the way back to it.
///
/// # Errors
/// When it is none, or may not be read.
pub fn open_folder(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW);
    options.open(path)
}

/// Has an open file stand for another one from now on, under the same number; dup3(2).
///
/// # Errors
/// When the kernel refuses.
pub fn replace_descriptor(file: &File, other: &File) -> io::Result<()> {
    // SAFETY: both are open, and their owners keep the numbers: only what the first stands for is another file then.
    match unsafe { libc::dup3(other.as_raw_fd(), file.as_raw_fd(), libc::O_CLOEXEC) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The working folder of this process, wherever its name leads by now.
///
/// # Errors
/// When it may not be opened.
pub fn open_working_folder() -> io::Result<OwnedFd> {
    Ok(nix::fcntl::open(".", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Makes a folder the working one.
///
/// # Errors
/// When it is not there.
pub fn set_working_folder(folder: &Path) -> io::Result<()> {
    Ok(nix::unistd::chdir(folder)?)
}

/// Makes a folder that was held the working one again.
///
/// # Errors
/// When it may not be entered any more.
pub fn restore_working_folder(folder: &impl AsFd) -> io::Result<()> {
    Ok(nix::unistd::fchdir(folder)?)
}
