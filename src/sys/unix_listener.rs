//! Unix sockets that a service listens on: files with an owner, a group and a mode, and abstract names (unix(7)).

use std::fs::{File, Permissions};
use std::os::fd::{AsFd, FromRawFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, fs, io};

use nix::sys::stat::Mode;
use nix::unistd::{Gid, Group, Uid, User};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::sys::fd::Interest;
use crate::sys::unix_socket_name::UnixSocketName;
use crate::sys::{application_fds, clock, fd, unix_socket};

/// How long the listener of an existing file may take to accept the connection that asks whether there is one. With a
/// full queue it is taken for a living one.
const PROBE_TIMEOUT: Duration = Duration::from_millis(200);

/// How long another process's lock of a folder is waited for; what it protects takes a moment.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);

const LOCK_INTERVAL: Duration = Duration::from_millis(5);

impl UnixSocketName {
    /// The name of a bound socket; none for one without a name.
    pub fn from_bound(address: &SocketAddr) -> Option<Self> {
        match (address.as_pathname(), address.as_abstract_name()) {
            (Some(path), _) => Some(Self::Path(path.to_owned())),
            (None, Some(name)) => Some(Self::Abstract(String::from_utf8_lossy(name).into_owned())),
            (None, None) => None,
        }
    }

    fn address(&self) -> io::Result<SockAddr> {
        match self {
            Self::Path(path) => SockAddr::unix(path),
            // The kernel's form of an abstract name: a zero byte before it.
            Self::Abstract(name) => SockAddr::unix(format!("\0{name}")),
        }
    }
}

/// Who may connect to a socket file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketFileAccess {
    /// Its permissions, such as 0o660; to connect takes the right to write.
    pub mode: u32,
    /// Its owner, by name or number; none: this process's user.
    pub owner: Option<String>,
    /// Its group, by name or number; none: this process's group.
    pub group: Option<String>,
}

/// The process that listens on a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketHolder {
    pid: i32,
    program: String,
}

impl SocketHolder {
    fn from_pid(pid: i32) -> Self {
        let program = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Self { pid, program: program.trim().to_owned() }
    }
}

impl fmt::Display for SocketHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.program.as_str() {
            "" => write!(f, "process {}", self.pid),
            program => write!(f, "process {} ({program})", self.pid),
        }
    }
}

/// Why a Unix socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnixListenError {
    /// A living process listens there.
    #[error("{holder} serves it already: stop that one, or name another socket")]
    InUse {
        /// Which.
        holder: String,
    },
    /// There is a file of another kind, which may be worth something.
    #[error("there is a file that is no socket: remove it, or name another path")]
    NotASocket,
    /// There is no folder for the file.
    #[error("there is no folder {}: make it first (systemd: RuntimeDirectory=)", .0.display())]
    FolderMissing(PathBuf),
    /// This process may not make a file there.
    #[error("this user may not make a file in {}: allow it (write and search), or name another folder", .0.display())]
    FolderForbidden(PathBuf),
    /// There is no such user or group.
    #[error("there is no {kind} {name} on this host: make it, or change {setting}")]
    UnknownName {
        /// `user` or `group`.
        kind: &'static str,
        /// As it is configured.
        name: String,
        /// The setting that names it.
        setting: &'static str,
    },
    /// This process may not give the file away.
    #[error(
        "this user may not give the socket to {name}: start as root, join that group, or change {setting}"
    )]
    OwnerForbidden {
        /// As it is configured.
        name: String,
        /// The setting that names it.
        setting: &'static str,
    },
    /// The kernel refuses it for another reason.
    #[error(transparent)]
    Refused(#[from] io::Error),
}

/// Listens on a Unix socket; it never blocks and is closed on exec.
///
/// A file that a dead process has left is replaced; one that a living process listens on is not. The folder is locked
/// meanwhile, so that of two processes which find the same leftover only one replaces it. No connection can come before
/// the file has its owner and mode: only then the socket listens.
///
/// # Errors
/// When another process listens there, the folder is missing or forbidden, or the owner or mode cannot be given.
pub fn listen(
    name: &UnixSocketName,
    access: &SocketFileAccess,
    backlog: i32,
) -> Result<UnixListener, UnixListenError> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    match name {
        UnixSocketName::Abstract(_) => {
            bind(&socket, name)?;
            socket.listen(backlog)?;
        }
        UnixSocketName::Path(path) => {
            let owner = access.owner.as_deref().map(find_user).transpose()?;
            let group = access.group.as_deref().map(find_group).transpose()?;
            let _lock = lock_folder(path)?;
            remove_leftover(path)?;
            // unix(7): the file gets the socket's mode, less the umask; nothing connects before it listens.
            nix::sys::stat::fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR).map_err(io::Error::from)?;
            bind(&socket, name)?;
            if let Err(error) = give_access(path, access, owner, group) {
                let _ = fs::remove_file(path);
                return Err(error);
            }
            // Within the lock: what does not listen yet would be taken for a leftover.
            socket.listen(backlog)?;
        }
    }
    Ok(socket.into())
}

/// Removes the file of a socket on which no process listens any more; any other is left alone.
///
/// # Errors
/// When the file cannot be removed.
pub fn remove_socket_file(path: &Path) -> io::Result<()> {
    match lock_folder(path) {
        Err(UnixListenError::Refused(error)) => Err(error),
        Err(_) => Ok(()),
        Ok(_lock) => match remove_leftover(path) {
            Err(UnixListenError::Refused(error)) => Err(error),
            Ok(()) | Err(_) => Ok(()),
        },
    }
}

/// Takes over a listening Unix socket that this process was started with; it never blocks and is closed on exec from now
/// on.
///
/// To be called once for a number, before anything else uses it.
///
/// # Errors
/// When there is no such descriptor, or it is no listening Unix socket of streams.
pub fn from_inherited(number: RawFd) -> io::Result<UnixListener> {
    // SAFETY: fcntl(2) on a number that is no descriptor fails with EBADF and does nothing else.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and by the contract above nothing else in this process owns it.
    let socket = unsafe { Socket::from_raw_fd(number) };
    if !socket.local_addr()?.is_unix() || socket.r#type()? != Type::STREAM || !socket.is_listener()? {
        // It is given back: it may be a socket of another kind.
        let _: RawFd = std::os::fd::IntoRawFd::into_raw_fd(socket);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no Unix socket that listens"));
    }
    socket.set_cloexec(true)?;
    socket.set_nonblocking(true)?;
    application_fds::claim(number);
    Ok(socket.into())
}

/// Whether a listener was shut down, by any process that shares it. Its queue may still have connections: accept(2) of one
/// that never blocks does not say.
pub fn is_shut_down(listener: &impl AsFd) -> bool {
    let polled = fd::poll(&[(listener.as_fd(), Interest::Read)], Some(Duration::ZERO));
    polled.is_ok_and(|polled| polled.iter().any(|found| found.gone))
}

/// A connection that is queued at a listener that never blocks, as the kernel says; none: its queue is empty.
///
/// # Errors
/// accept(2)'s, such as that no descriptor is left.
pub fn accept_queued(listener: &impl AsFd) -> io::Result<Option<UnixStream>> {
    match SockRef::from(listener).accept() {
        Ok((socket, _)) => {
            socket.set_nonblocking(true)?;
            Ok(Some(socket.into()))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Connects to a Unix socket; waits for room in its queue no longer than `timeout`.
///
/// # Errors
/// When nothing listens there, it may not be opened, or (`WouldBlock`) its queue stays full.
pub fn connect(name: &UnixSocketName, timeout: Duration) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_write_timeout(Some(timeout))?;
    socket.connect(&name.address()?)?;
    Ok(socket.into())
}

fn bind(socket: &Socket, name: &UnixSocketName) -> Result<(), UnixListenError> {
    match socket.bind(&name.address()?) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(in_use(name)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => match name {
            UnixSocketName::Path(path) => Err(UnixListenError::FolderForbidden(folder(path))),
            UnixSocketName::Abstract(_) => Err(error.into()),
        },
        other => Ok(other?),
    }
}

fn folder(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("/")).to_owned()
}

/// Locks the folder until the file is closed: a process that makes or removes socket files there the same way waits.
fn lock_folder(path: &Path) -> Result<File, UnixListenError> {
    let folder = folder(path);
    let opened = File::open(&folder).and_then(|opened| match opened.metadata()?.is_dir() {
        true => Ok(opened),
        false => Err(io::ErrorKind::NotADirectory.into()),
    });
    let opened = opened.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => UnixListenError::FolderMissing(folder),
        io::ErrorKind::PermissionDenied => UnixListenError::FolderForbidden(folder),
        _ => error.into(),
    })?;
    // Any user who may read the folder can lock it, and keep it locked; a file system may have no locks. Without one only
    // the race is open.
    let until = clock::monotonic() + LOCK_TIMEOUT;
    while matches!(fd::try_lock(&opened), Ok(false)) && clock::monotonic() < until {
        std::thread::sleep(LOCK_INTERVAL);
    }
    Ok(opened)
}

/// Removes a socket file on which no process listens.
fn remove_leftover(path: &Path) -> Result<(), UnixListenError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(UnixListenError::FolderForbidden(folder(path)));
        }
        Err(error) => return Err(error.into()),
        Ok(found) if !found.file_type().is_socket() => return Err(UnixListenError::NotASocket),
        Ok(_) => {}
    }
    let name = UnixSocketName::Path(path.to_owned());
    match connect(&name, PROBE_TIMEOUT) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        // It may have been removed meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(_) | Err(_) => return Err(in_use(&name)),
    }
    fs::remove_file(path).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => UnixListenError::FolderForbidden(folder(path)),
        _ => error.into(),
    })
}

/// The kernel tells of a listener the process that began to listen.
fn in_use(name: &UnixSocketName) -> UnixListenError {
    let query = || -> io::Result<SocketHolder> {
        let stream = connect(name, PROBE_TIMEOUT)?;
        Ok(SocketHolder::from_pid(unix_socket::peer_credentials(&stream)?.pid))
    };
    let holder = query().map_or_else(|_| "another process".to_owned(), |holder| holder.to_string());
    UnixListenError::InUse { holder }
}

const OWNER_SETTING: &str = "listen.socket_owner";
const GROUP_SETTING: &str = "listen.socket_group";

fn find_user(name: &str) -> Result<Uid, UnixListenError> {
    if let Ok(number) = name.parse() {
        return Ok(Uid::from_raw(number));
    }
    let found = User::from_name(name).map_err(io::Error::from)?;
    let unknown =
        || UnixListenError::UnknownName { kind: "user", name: name.to_owned(), setting: OWNER_SETTING };
    found.map(|user| user.uid).ok_or_else(unknown)
}

fn find_group(name: &str) -> Result<Gid, UnixListenError> {
    if let Ok(number) = name.parse() {
        return Ok(Gid::from_raw(number));
    }
    let found = Group::from_name(name).map_err(io::Error::from)?;
    let unknown =
        || UnixListenError::UnknownName { kind: "group", name: name.to_owned(), setting: GROUP_SETTING };
    found.map(|group| group.gid).ok_or_else(unknown)
}

/// Gives the file its owner, group and mode, in this order: chown(2) clears bits of the mode.
fn give_access(
    path: &Path,
    access: &SocketFileAccess,
    owner: Option<Uid>,
    group: Option<Gid>,
) -> Result<(), UnixListenError> {
    let forbidden = |name: &Option<String>, setting: &'static str| {
        let name = name.clone().unwrap_or_default();
        move |error: nix::Error| match error {
            nix::Error::EPERM => UnixListenError::OwnerForbidden { name, setting },
            other => io::Error::from(other).into(),
        }
    };
    if group.is_some() {
        nix::unistd::chown(path, None, group).map_err(forbidden(&access.group, GROUP_SETTING))?;
    }
    if owner.is_some() {
        nix::unistd::chown(path, owner, None).map_err(forbidden(&access.owner, OWNER_SETTING))?;
    }
    Ok(fs::set_permissions(path, Permissions::from_mode(access.mode))?)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::sys::tcp_socket;

    fn access(mode: u32) -> SocketFileAccess {
        SocketFileAccess { mode, owner: None, group: None }
    }

    fn named(folder: &tempfile::TempDir, name: &str) -> UnixSocketName {
        UnixSocketName::Path(folder.path().join(name))
    }

    fn path(name: &UnixSocketName) -> &Path {
        match name {
            UnixSocketName::Path(path) => path,
            UnixSocketName::Abstract(_) => panic!("no path"),
        }
    }

    #[test]
    fn a_leftover_is_replaced_and_a_living_listener_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let name = named(&folder, "shop.sock");
        let first = listen(&name, &access(0o660), 8).unwrap();
        assert_eq!(fs::metadata(path(&name)).unwrap().mode() & 0o7777, 0o660);
        let refused = listen(&name, &access(0o660), 8).unwrap_err().to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        remove_socket_file(path(&name)).unwrap();
        assert!(path(&name).exists(), "it is served");
        drop(first);
        let second = listen(&name, &access(0o600), 8).unwrap();
        let _client = UnixStream::connect(path(&name)).unwrap();
        assert!(second.accept().is_ok());
        drop(second);
        remove_socket_file(path(&name)).unwrap();
        assert!(!path(&name).exists());
        remove_socket_file(path(&name)).unwrap();
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_next_step() {
        let folder = tempfile::tempdir().unwrap();
        let file = named(&folder, "file");
        fs::write(path(&file), "worth something").unwrap();
        assert!(matches!(listen(&file, &access(0o660), 8), Err(UnixListenError::NotASocket)));
        remove_socket_file(path(&file)).unwrap();
        assert_eq!(fs::read(path(&file)).unwrap(), b"worth something");
        for missing in ["none/shop.sock", "file/shop.sock"] {
            let missing = listen(&named(&folder, missing), &access(0o660), 8);
            assert!(matches!(missing, Err(UnixListenError::FolderMissing(_))), "{missing:?}");
        }
        let owner = Some("no-such-user-here".to_owned());
        let unknown = listen(&named(&folder, "a"), &SocketFileAccess { owner, ..access(0o660) }, 8);
        assert!(unknown.unwrap_err().to_string().contains("listen.socket_owner"));
        assert!(!folder.path().join("a").exists(), "nothing is left");
    }

    #[test]
    fn a_locked_folder_holds_up_no_start_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let held = File::open(folder.path()).unwrap();
        held.lock().unwrap();
        assert!(listen(&named(&folder, "shop.sock"), &access(0o660), 8).is_ok());
    }

    #[test]
    fn an_abstract_name_is_free_as_soon_as_its_socket_is_closed() {
        let name = UnixSocketName::Abstract(format!("regatta-test-{}", std::process::id()));
        let first = listen(&name, &access(0o660), 8).unwrap();
        let address = first.local_addr().unwrap();
        assert_eq!(UnixSocketName::from_bound(&address).as_ref(), Some(&name));
        let _client = UnixStream::connect_addr(&address).unwrap();
        assert!(matches!(listen(&name, &access(0o660), 8), Err(UnixListenError::InUse { .. })));
        drop(first);
        assert!(listen(&name, &access(0o660), 8).is_ok());
    }

    /// The drain of a shared socket rests on this: what was connected before is still given out.
    #[test]
    fn a_listener_that_was_shut_down_refuses_new_clients_and_gives_out_its_queue() {
        let folder = tempfile::tempdir().unwrap();
        let name = named(&folder, "shop.sock");
        let listener = listen(&name, &access(0o660), 8).unwrap();
        let other = listener.try_clone().unwrap();
        let mut queued: Vec<_> = (0..3).map(|_| UnixStream::connect(path(&name)).unwrap()).collect();
        assert!(!is_shut_down(&listener));
        tcp_socket::shut_down_listener(&other).unwrap();
        let refused = UnixStream::connect(path(&name)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        for client in &mut queued {
            drop(accept_queued(&listener).unwrap().unwrap());
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
        }
        assert!(accept_queued(&listener).unwrap().is_none() && is_shut_down(&listener));
    }

    #[test]
    fn only_a_unix_socket_that_listens_is_taken_over() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let number = std::os::fd::IntoRawFd::into_raw_fd(ours);
        assert!(from_inherited(number).is_err());
        // SAFETY: it was refused, and is owned by no one else.
        drop(unsafe { std::os::fd::OwnedFd::from_raw_fd(number) });
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(from_inherited(tcp.as_raw_fd()).is_err());
        assert!(tcp.local_addr().is_ok(), "it is still open");
    }
}
