//! Descriptors: pipes, waiting on several, and how many there may be.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{MsgFlags, recv, send};

/// A pipe's read end and write end, closed on exec; both ends never block.
///
/// # Errors
/// When no descriptor is left.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?)
}

/// What is waited for on a descriptor. That its other end is gone is always reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Only that.
    Nothing,
    /// Something to read.
    Read,
    /// Room to write.
    Write,
    /// Either.
    Both,
}

impl Interest {
    /// The interest in these two.
    pub fn new(read: bool, write: bool) -> Self {
        match (read, write) {
            (false, false) => Self::Nothing,
            (true, false) => Self::Read,
            (false, true) => Self::Write,
            (true, true) => Self::Both,
        }
    }

    fn flags(self) -> PollFlags {
        match self {
            Self::Nothing => PollFlags::empty(),
            Self::Read => PollFlags::POLLIN,
            Self::Write => PollFlags::POLLOUT,
            Self::Both => PollFlags::POLLIN | PollFlags::POLLOUT,
        }
    }
}

/// What a wait found out about a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Readiness {
    /// There is something to read, an end included.
    pub read: bool,
    /// There is room to write.
    pub write: bool,
    /// The other end is gone for both directions; what it sent before can still be read.
    pub gone: bool,
}

impl Readiness {
    /// Whether there is anything to do.
    pub fn any(self) -> bool {
        self.read || self.write || self.gone
    }
}

/// Waits until one of `fds` can be read or is closed at its other end, or until `timeout` has passed.
///
/// Returns for each whether it is worth reading. An interrupted wait returns early with none.
///
/// # Errors
/// When the kernel refuses to wait.
pub fn wait_readable(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<Vec<bool>> {
    let fds: Vec<_> = fds.iter().map(|fd| (*fd, Interest::Read)).collect();
    Ok(poll(&fds, timeout)?.into_iter().map(Readiness::any).collect())
}

/// Waits until one of `fds` is as wanted or gone at its other end, or until `timeout` has passed; poll(2).
///
/// Returns the answers in the same order. An interrupted wait returns early with nothing ready.
///
/// # Errors
/// When the kernel refuses to wait.
pub fn poll(fds: &[(BorrowedFd<'_>, Interest)], timeout: Option<Duration>) -> io::Result<Vec<Readiness>> {
    let mut polled: Vec<_> = fds.iter().map(|(fd, interest)| PollFd::new(*fd, interest.flags())).collect();
    let timeout = match timeout {
        // Rounded up, so that a deadline has really passed when the wait ends by it.
        Some(timeout) => {
            PollTimeout::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
        }
        None => PollTimeout::NONE,
    };
    match nix::poll::poll(&mut polled, timeout) {
        Ok(_) => {}
        Err(nix::Error::EINTR) => return Ok(vec![Readiness::default(); fds.len()]),
        Err(refused) => return Err(refused.into()),
    }
    let found = |fd: &PollFd<'_>| {
        let flags = fd.revents().unwrap_or(PollFlags::empty());
        Readiness {
            read: flags.contains(PollFlags::POLLIN),
            write: flags.contains(PollFlags::POLLOUT),
            gone: flags.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL),
        }
    };
    Ok(polled.iter().map(found).collect())
}

/// Locks a file until it, and every copy of it that a child inherited, is closed; false when another process holds it.
///
/// The standard library's lock (`flock(2)`) is used because dropping it only closes: an explicit unlock would also
/// end the lock of the child.
///
/// # Errors
/// When the file system has no locks.
pub fn try_lock(file: &File) -> io::Result<bool> {
    lock_result(file.try_lock())
}

/// Whether no process holds the lock of this file; takes a shared lock for a moment, beside others that check.
///
/// # Errors
/// When the file system has no locks.
pub fn is_unlocked(file: &File) -> io::Result<bool> {
    lock_result(file.try_lock_shared())
}

fn lock_result(answer: Result<(), TryLockError>) -> io::Result<bool> {
    match answer {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Raises the number of descriptors this process, and all it forks, may have to what it is allowed; getrlimit(2).
///
/// # Errors
/// When the kernel refuses.
pub fn raise_nofile_limit() -> io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard { Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?) } else { Ok(()) }
}

/// Descriptors this process may have.
///
/// # Errors
/// When the kernel does not say.
pub fn nofile_limit() -> io::Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.0)
}

/// Reads what has come on a socket, without waiting and whatever a reactor believes of it; `MSG_DONTWAIT`, recv(2).
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when nothing has come, or what the kernel says.
pub fn receive_now(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(recv(socket.as_fd().as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?)
}

/// Copies what has come on a socket and leaves it there, without waiting; `MSG_PEEK`, recv(2).
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when nothing has come, or what the kernel says.
pub fn receive_copy_now(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK;
    Ok(recv(socket.as_fd().as_raw_fd(), buffer, flags)?)
}

/// Gives a socket as many of these bytes as it takes, without waiting and without a signal when its other end is gone;
/// `MSG_DONTWAIT`, send(2).
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when it takes none, or what the kernel says.
pub fn send_now(socket: &impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    Ok(send(socket.as_fd().as_raw_fd(), bytes, flags)?)
}
