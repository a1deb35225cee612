//! Private Unix sockets: the peer's credentials, a socket file that no other user may open, descriptors across an exec.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag};
use nix::sys::stat::Mode;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::sys::application_fds;
use crate::sys::path::SOCKET_PATH_MAX;

/// Connections that may wait to be accepted; connect(2) blocks beyond.
const BACKLOG: i32 = 128;

/// The process at the other end of a connection, as the kernel reports it; `SO_PEERCRED`, unix(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Its effective user when it connected.
    pub uid: u32,
    /// Its process then.
    pub pid: i32,
}

/// The process that connected.
///
/// # Errors
/// When the kernel does not say.
pub fn peer_credentials(stream: &UnixStream) -> io::Result<PeerCredentials> {
    let found = nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::PeerCredentials)?;
    Ok(PeerCredentials { uid: found.uid(), pid: found.pid() })
}

/// The user this process acts as.
pub fn own_user() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// Listens on a new socket file that only its owner may open, from its first moment on; it never blocks.
///
/// The mode is set on the socket before it has a name, and Linux makes the file with it (unix(7)); no process can connect
/// before it listens. The process-wide umask is left alone.
///
/// # Errors
/// When the file exists, or its folder does not or may not be written.
pub fn listen_private(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    nix::sys::stat::fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let short = ShortPath::from_path(path)?;
    socket.bind(&SockAddr::unix(short.path())?)?;
    // A file system with modes of its own may have ignored the socket's.
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Connects to a socket file; waits for room in its queue no longer than `patience`.
///
/// # Errors
/// When nothing listens there, it may not be opened, or (`WouldBlock`) nothing accepts in time.
pub fn connect(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_write_timeout(Some(timeout))?;
    let short = ShortPath::from_path(path)?;
    socket.connect(&SockAddr::unix(short.path())?)?;
    Ok(socket.into())
}

/// A path short enough for the kernel: a long one is named from its opened folder.
struct ShortPath {
    path: PathBuf,
    _folder: Option<File>,
}

impl ShortPath {
    fn from_path(path: &Path) -> io::Result<Self> {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if path.as_os_str().len() <= SOCKET_PATH_MAX {
            return Ok(Self { path: path.to_owned(), _folder: None });
        }
        let folder = File::open(folder)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
        Ok(Self { path, _folder: Some(folder) })
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// Decides whether a descriptor stays open across an exec.
///
/// # Errors
/// When it is not open.
pub fn set_inheritable(fd: &impl AsFd, keep: bool) -> io::Result<()> {
    let flags = if keep { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    nix::fcntl::fcntl(fd, FcntlArg::F_SETFD(flags))?;
    Ok(())
}

/// Takes over a descriptor that came across an exec, known by its number; from now on it is closed on exec again.
///
/// Each number may be taken over once, by the part that the program before the exec meant it for.
///
/// # Errors
/// When it is not open.
pub fn adopt_fd(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: it is borrowed for one call, which says whether it is open at all.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    set_inheritable(&borrowed, false)?;
    application_fds::claim(number);
    // SAFETY: it is open, as just checked; nothing else in this program owns it, as the contract above demands.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_socket_file_is_its_owners_alone_and_may_have_a_long_path() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("x".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        for path in [folder.path().join("door"), deep.join("door")] {
            let listener = listen_private(&path).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
            assert!(listen_private(&path).is_err(), "it exists");
            let client = connect(&path, Duration::from_secs(5)).unwrap();
            let (served, _) = listener.accept().unwrap();
            let own = PeerCredentials { uid: own_user(), pid: std::process::id().cast_signed() };
            assert_eq!((peer_credentials(&served).unwrap(), peer_credentials(&client).unwrap()), (own, own));
        }
    }

    #[test]
    fn a_full_queue_is_waited_for_only_so_long() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("door");
        let _listener = listen_private(&path).unwrap();
        let patience = Duration::from_millis(20);
        let connected: Vec<_> = (0..=BACKLOG + 1).map(|_| connect(&path, patience)).collect();
        let last = connected.last().unwrap().as_ref().unwrap_err();
        assert_eq!(last.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn only_an_open_descriptor_is_adopted() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let number = theirs.into_raw_fd();
        drop(adopt_fd(number).unwrap());
        assert_eq!(io::Read::read(&mut &ours, &mut [0]).unwrap(), 0, "it was owned, and closed");
        assert!(adopt_fd(-1).is_err());
        assert!(adopt_fd(1_000_000).is_err());
    }
}
