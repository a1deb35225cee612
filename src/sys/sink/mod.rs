//! Writing to where a log goes without ever waiting for its reader.
//!
//! `O_NONBLOCK` belongs to the open file description, which an inherited standard error shares with the shell that
//! started this program and with everything else on that terminal: it is never set there. What each kind of file
//! offers instead is in `WriteStrategy`.

#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::MsgFlags;
use nix::sys::stat::SFlag;

use crate::sys::fd::Interest;
use crate::sys::{clock, fd};

/// Pause between two attempts on a descriptor that says it has room and takes nothing.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// Major number of the devices that never block: null, full, kmsg.
const MEMORY_DEVICES: u64 = 1;

/// Bytes that are written at once to a terminal that can only be polled for room.
const POLLED_CHUNK: usize = 256;

/// Why bytes were not taken.
#[derive(Debug)]
pub enum SinkError {
    /// There is no room now; poll(2) reports when there is.
    Full,
    /// A FIFO that no process reads; nothing reports when that changes.
    NoReader,
    /// These bytes are too many for one message.
    TooLong,
    /// The other end is gone for good.
    Closed(io::Error),
    /// Something else, such as a full disk.
    Failed(io::Error),
}

/// How bytes are written without waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WriteStrategy {
    /// write(2): a file or a device that has no reader, or a description of this program's own that never blocks.
    Plain,
    /// `RWF_NOWAIT`, pwritev2(2): inherited pipes from Linux 6.4 on.
    NoWait,
    /// `MSG_DONTWAIT`, send(2).
    Socket,
    /// `SPLICE_F_NONBLOCK`, splice(2), out of a pipe of its own: inherited pipes on older kernels that must not be
    /// opened anew, because they belong to another user.
    Splice,
    /// poll(2) and then little at once. It may wait after all when another process writes between the two.
    Polled,
}

/// What is written to.
#[derive(Debug, Clone)]
pub enum SinkTarget {
    /// The inherited standard error, shared with strangers.
    StandardError,
    /// A description of this program's own.
    Own(Arc<OwnedFd>),
}

impl AsFd for SinkTarget {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            // SAFETY: the runtime sees to it that a process has this descriptor from its first line on.
            Self::StandardError => unsafe { BorrowedFd::borrow_raw(libc::STDERR_FILENO) },
            Self::Own(fd) => fd.as_fd(),
        }
    }
}

impl SinkTarget {
    /// Waits for room, at most until then on the monotonic clock; false when that has passed.
    pub fn await_room(&self, until: Duration) -> bool {
        let left = || until.saturating_sub(clock::monotonic());
        // Some files say that they have room and take nothing: the pause keeps a caller's loop from spinning.
        std::thread::sleep(RETRY_PAUSE.min(left()));
        fd::poll(&[(self.as_fd(), Interest::Write)], Some(left())).is_ok() && !left().is_zero()
    }
}

impl AsRawFd for SinkTarget {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// Where lines go.
#[derive(Debug)]
pub struct NonblockingSink {
    /// None: a FIFO that could not be opened for want of a reader.
    target: Option<SinkTarget>,
    strategy: WriteStrategy,
    /// The path of a FIFO: its reader may come and go.
    fifo: Option<PathBuf>,
}

impl NonblockingSink {
    /// The standard error of this process, whatever is behind it.
    pub fn standard_error() -> Self {
        Self::from_inherited(SinkTarget::StandardError)
    }

    fn from_inherited(end: SinkTarget) -> Self {
        let kept = |end, way| Self { target: Some(end), strategy: way, fifo: None };
        let Ok(stat) = nix::sys::stat::fstat(&end) else { return kept(end, WriteStrategy::Plain) };
        match kind(stat.st_mode) {
            SFlag::S_IFIFO => kept(end, WriteStrategy::NoWait),
            SFlag::S_IFSOCK => kept(end, WriteStrategy::Socket),
            SFlag::S_IFCHR if nix::sys::stat::major(stat.st_rdev) != MEMORY_DEVICES => {
                let anew = reopen(&end).or_else(|refused| open_terminal(&end).ok_or(refused));
                match anew {
                    Ok(own) => kept(own, WriteStrategy::Plain),
                    Err(_) => kept(end, WriteStrategy::Polled),
                }
            }
            _ => kept(end, WriteStrategy::Plain),
        }
    }

    /// A file at a path, made if need be; a FIFO may have no reader yet.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn file(path: &Path) -> io::Result<Self> {
        match open(path, true) {
            Ok(fd) => {
                Ok(Self { target: Some(own_target(fd)), strategy: WriteStrategy::Plain, fifo: fifo(path) })
            }
            Err(error) if has_no_reader(&error, path) => {
                Ok(Self { target: None, strategy: WriteStrategy::Plain, fifo: Some(path.to_owned()) })
            }
            Err(error) => Err(error),
        }
    }

    /// Finds out whether `NonblockingSink::file` would open the file that is there, without making one.
    ///
    /// # Errors
    /// When it would not, or there is none.
    pub fn check(path: &Path) -> io::Result<()> {
        match open(path, false) {
            Err(error) if !has_no_reader(&error, path) => Err(error),
            _ => Ok(()),
        }
    }

    /// Writes as much as is taken at once.
    ///
    /// # Errors
    /// When nothing is.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, SinkError> {
        loop {
            let Some(end) = &self.target else {
                self.find_reader()?;
                continue;
            };
            match write_with(self.strategy, end, bytes) {
                Ok(0) if !bytes.is_empty() => return Err(SinkError::Full),
                Ok(written) => return Ok(written),
                Err(Errno::EINTR) => {}
                Err(refused) => match fallback_method(self.strategy, end, refused) {
                    Some((end, way)) => (self.target, self.strategy) = (Some(end), way),
                    None => return Err(self.error_from(refused)),
                },
            }
        }
    }

    /// Writes all of it, or as much as is taken within `patience`.
    pub fn write_within(&mut self, mut bytes: &[u8], patience: Duration) {
        let until = clock::monotonic() + patience;
        while !bytes.is_empty() {
            match self.write(bytes) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(SinkError::Full) if self.target.as_ref().is_some_and(|end| end.await_room(until)) => {}
                Err(_) => return,
            }
        }
    }

    /// Whether the last line in it was cut short, perhaps by another process; none where that cannot be read.
    pub fn ends_mid_line(&self) -> Option<bool> {
        let end = self.target.as_ref()?;
        let file = File::open(format!("/proc/self/fd/{}", end.as_raw_fd())).ok();
        let file = file.filter(|file| file.metadata().is_ok_and(|found| found.is_file()))?;
        let mut last = [b'\n'];
        let len = file.metadata().ok()?.len();
        file.read_at(&mut last, len.checked_sub(1)?).ok()?;
        Some(last != [b'\n'])
    }

    /// What is polled when it is full.
    pub fn target(&self) -> Option<SinkTarget> {
        self.target.clone()
    }

    /// The descriptor that a forked process keeps beside the standard ones.
    pub fn descriptor(&self) -> Option<RawFd> {
        self.target.as_ref().map(AsRawFd::as_raw_fd).filter(|fd| *fd > libc::STDERR_FILENO)
    }

    fn find_reader(&mut self) -> Result<(), SinkError> {
        let Some(path) = &self.fifo else { return Err(SinkError::Closed(Errno::EBADF.into())) };
        match open(path, true) {
            Ok(fd) => self.target = Some(own_target(fd)),
            Err(error) if has_no_reader(&error, path) => return Err(SinkError::NoReader),
            Err(error) => return Err(SinkError::Failed(error)),
        }
        Ok(())
    }

    fn error_from(&self, refused: Errno) -> SinkError {
        match refused {
            Errno::EAGAIN => SinkError::Full,
            Errno::EMSGSIZE => SinkError::TooLong,
            Errno::EPIPE if self.fifo.is_some() => SinkError::NoReader,
            Errno::EPIPE | Errno::ECONNREFUSED | Errno::ECONNRESET | Errno::ENOTCONN | Errno::EBADF => {
                SinkError::Closed(refused.into())
            }
            other => SinkError::Failed(other.into()),
        }
    }
}

fn own_target(fd: OwnedFd) -> SinkTarget {
    SinkTarget::Own(Arc::new(fd))
}

fn kind(mode: libc::mode_t) -> SFlag {
    SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits())
}

fn fifo(path: &Path) -> Option<PathBuf> {
    let is_fifo = path.metadata().is_ok_and(|found| found.file_type().is_fifo());
    is_fifo.then(|| path.to_owned())
}

/// Without `O_NONBLOCK` the open itself would wait for a FIFO's reader; without `O_NOCTTY` a terminal could become this
/// process's own, and its Ctrl-C with it.
fn open(path: &Path, create: bool) -> io::Result<OwnedFd> {
    let mut options = OpenOptions::new();
    options.append(true).create(create).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    options.open(path).map(OwnedFd::from)
}

fn has_no_reader(error: &io::Error, path: &Path) -> bool {
    error.raw_os_error() == Some(libc::ENXIO) && fifo(path).is_some()
}

/// The same file behind a description of this program's own.
fn reopen(end: &SinkTarget) -> io::Result<SinkTarget> {
    open(Path::new(&format!("/proc/self/fd/{}", end.as_raw_fd())), false).map(own_target)
}

/// A terminal that belongs to another user (after `su`) can still be opened by this name, if it is the controlling one.
fn open_terminal(end: &SinkTarget) -> Option<SinkTarget> {
    // SAFETY: asks for a number; a descriptor that is no terminal, or not this session's, is refused.
    let session = unsafe { libc::tcgetsid(end.as_raw_fd()) };
    let is_ours = nix::unistd::getsid(None).is_ok_and(|own| own.as_raw() == session);
    is_ours.then(|| open(Path::new("/dev/tty"), false).ok()).flatten().map(own_target)
}

/// What is tried next when the kernel does not know this way for this file.
fn fallback_method(
    way: WriteStrategy,
    end: &SinkTarget,
    refused: Errno,
) -> Option<(SinkTarget, WriteStrategy)> {
    let unknown =
        matches!(refused, Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::EPERM | Errno::ESPIPE);
    match way {
        WriteStrategy::NoWait if unknown => Some(match reopen(end) {
            Ok(own) => (own, WriteStrategy::Plain),
            Err(_) => (end.clone(), WriteStrategy::Splice),
        }),
        WriteStrategy::Splice if unknown => Some((end.clone(), WriteStrategy::Polled)),
        _ => None,
    }
}

fn write_with(way: WriteStrategy, end: &SinkTarget, bytes: &[u8]) -> nix::Result<usize> {
    match way {
        WriteStrategy::Plain => nix::unistd::write(end, bytes),
        WriteStrategy::NoWait => write_no_wait(end, bytes),
        WriteStrategy::Socket => {
            nix::sys::socket::send(end.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)
        }
        WriteStrategy::Splice => write_splice(end, &bytes[..bytes.len().min(libc::PIPE_BUF)]),
        WriteStrategy::Polled => write_polled(end, &bytes[..bytes.len().min(POLLED_CHUNK)]),
    }
}

fn write_no_wait(end: &SinkTarget, bytes: &[u8]) -> nix::Result<usize> {
    // A stream has no positions, which -1 stands for.
    const STREAM: libc::off_t = -1;
    let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: one part, whose bytes outlive the call and are only read.
    let written = unsafe { libc::pwritev2(end.as_raw_fd(), &raw const part, 1, STREAM, libc::RWF_NOWAIT) };
    Errno::result(written).map(isize::unsigned_abs)
}

fn write_splice(end: &SinkTarget, bytes: &[u8]) -> nix::Result<usize> {
    // What does not fit is forgotten with the pipe: the caller counts what was taken.
    let (read, write) =
        fd::pipe().map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    let len = nix::unistd::write(&write, bytes)?;
    let (from, to, none) = (read.as_raw_fd(), end.as_raw_fd(), std::ptr::null_mut());
    // SAFETY: two descriptors that live, and no positions.
    let moved = unsafe { libc::splice(from, none, to, none, len, libc::SPLICE_F_NONBLOCK) };
    Errno::result(moved).map(isize::unsigned_abs)
}

fn write_polled(end: &SinkTarget, bytes: &[u8]) -> nix::Result<usize> {
    let ready = fd::poll(&[(end.as_fd(), Interest::Write)], Some(Duration::ZERO));
    match ready.as_deref() {
        Ok([ready]) if ready.any() => nix::unistd::write(end, bytes),
        _ => Err(Errno::EAGAIN),
    }
}
