//! Listening sockets with the options std has no word for.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, RawFd};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use crate::sys::bpf::{BpfProgram, IpFamily};
use crate::sys::{application_fds, is_missing, named};

/// Whether other sockets of this user may serve the same address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortSharing {
    /// This socket alone.
    Exclusive,
    /// One of a group between which the kernel spreads connections; `SO_REUSEPORT`, socket(7).
    ReusePort,
}

/// Which clients an IPv6 socket serves; `IPV6_V6ONLY`, ipv6(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServedFamilies {
    /// Those of its address's own family.
    Own,
    /// Those of IPv4 too, whose addresses come as `::ffff:1.2.3.4` (dual stack).
    Both,
}

/// Binds a TCP socket without listening on it yet; it never blocks and is closed on exec.
///
/// # Errors
/// When the address is taken, not of this host, or not allowed.
pub fn bind(address: SocketAddr, families: ServedFamilies, sharing: PortSharing) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // Set in either case: the kernel's own default is a setting of the host (net.ipv6.bindv6only).
        socket.set_only_v6(families == ServedFamilies::Own)?;
    }
    if sharing == PortSharing::ReusePort {
        socket.set_reuse_port(true).map_err(named("SO_REUSEPORT"))?;
    }
    set_nodelay(&socket)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Has small answers sent at once. Accepted connections inherit it (tcp(7)), which spares a system call for each; a
/// kernel without it only makes some answers later.
fn set_nodelay(socket: &Socket) -> io::Result<()> {
    ignore_unsupported(socket.set_tcp_nodelay(true))
}

/// That the kernel does not know an option is no error.
fn ignore_unsupported(set: io::Result<()>) -> io::Result<()> {
    set.or_else(|error| if is_missing(&error) { Ok(()) } else { Err(error) })
}

/// Starts listening; connections queue from now on.
///
/// # Errors
/// When the address is taken by a listener that came between.
pub fn listen(socket: Socket, backlog: i32) -> io::Result<TcpListener> {
    socket.listen(backlog)?;
    Ok(socket.into())
}

/// Takes over a listening socket that this process was started with; it never blocks and is closed on exec from now on.
///
/// To be called once for a number, before anything else uses it.
///
/// # Errors
/// When there is no such descriptor, or it is no listening TCP socket.
pub fn from_inherited(number: RawFd) -> io::Result<TcpListener> {
    // SAFETY: fcntl(2) on a number that is no descriptor fails with EBADF and does nothing else.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and by the contract above nothing else in this process owns it.
    let socket = unsafe { Socket::from_raw_fd(number) };
    let wrong = |what| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    match socket.local_addr().map(|address| address.as_socket()) {
        Err(_) => return wrong("it is no socket"),
        Ok(None) => return wrong("it is no Internet socket"),
        Ok(Some(_)) => {}
    }
    if socket.r#type()? != Type::STREAM || !socket.is_listener()? {
        return wrong("it is no TCP socket that listens");
    }
    socket.set_cloexec(true)?;
    socket.set_nonblocking(true)?;
    application_fds::claim(number);
    set_nodelay(&socket)?;
    Ok(socket.into())
}

/// Bounds what the kernel keeps for each client of a listener.
///
/// So many bytes that were not sent yet; and for so long, what was sent and is not acknowledged, or what cannot be sent
/// because the client takes nothing.
///
/// Without it a client that reads nothing holds some megabytes, and one whose host is gone a quarter of an hour of
/// retransmissions. Accepted connections inherit both; `TCP_NOTSENT_LOWAT` and `TCP_USER_TIMEOUT`, tcp(7).
///
/// # Errors
/// When the kernel does not take one of them; the other holds all the same.
pub fn limit_send_queue(listener: &impl AsFd, unsent: u32, unacknowledged: Duration) -> io::Result<()> {
    let socket = SockRef::from(listener);
    let bytes = socket.set_tcp_notsent_lowat(unsent).map_err(named("TCP_NOTSENT_LOWAT"));
    let time = socket.set_tcp_user_timeout(Some(unacknowledged)).map_err(named("TCP_USER_TIMEOUT"));
    bytes.and(time)
}

/// Which clients an IPv6 socket serves.
///
/// # Errors
/// When it is no IPv6 socket.
pub fn served_families(listener: &impl AsFd) -> io::Result<ServedFamilies> {
    Ok(if SockRef::from(listener).only_v6()? { ServedFamilies::Own } else { ServedFamilies::Both })
}

/// Whether a socket was refused because the kernel has no IPv6, or this process may not use it.
pub fn is_without_ipv6(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

/// Which addresses a socket serves; a dual-stack one counts as IPv6.
///
/// # Errors
/// When it is no bound socket.
pub fn ip_family(listener: &TcpListener) -> io::Result<IpFamily> {
    Ok(if listener.local_addr()?.is_ipv6() { IpFamily::V6 } else { IpFamily::V4 })
}

/// Has the kernel ignore new connections on a listener, while those already queued can still be accepted.
///
/// Closing a listener resets what waits in its queue. A classic BPF program that drops every packet that begins a
/// connection lets the queue run dry first; `SO_ATTACH_FILTER`, socket(7). A dropped client tries again after
/// a second and finds either another listener or a closed port.
///
/// # Errors
/// When the kernel refuses the program.
pub fn drop_new_connections(listener: &impl AsFd) -> io::Result<()> {
    attach_program(listener, libc::SO_ATTACH_FILTER, &BpfProgram::drop_new_connections())
        .map_err(named("SO_ATTACH_FILTER"))
}

/// Ends listening for every process that shares the socket: from now on connections are refused, not ignored.
///
/// What waits in the queue is reset, so empty it first; `tcp(7)`, `shutdown(2)`.
///
/// # Errors
/// When the socket does not listen.
pub fn shut_down_listener(listener: &impl AsFd) -> io::Result<()> {
    SockRef::from(listener).shutdown(Shutdown::Both)
}

/// The other end of a connection; none: it is a Unix socket's.
///
/// # Errors
/// When it is not connected any more.
pub fn peer_address(connection: &impl AsFd) -> io::Result<Option<SocketAddr>> {
    SockRef::from(connection).peer_addr().map(|address| address.as_socket())
}

/// Whether accepting failed because the listener was shut down, by any process that shares it; accept(2).
pub fn is_shut_down(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINVAL)
}

/// Says on a connection that nothing more will be sent, while its other end may go on sending; shutdown(2).
///
/// # Errors
/// When its other end is gone.
pub fn shut_down_write(connection: &impl AsFd) -> io::Result<()> {
    SockRef::from(connection).shutdown(Shutdown::Write)
}

/// Lets a program choose among the sockets of a reuseport group, for each new connection.
///
/// What it answers is a socket's place in the order in which the group began to listen; the last one moves into the
/// place of one that leaves, and an answer that is no place leaves the choice to the kernel's hash. It holds for the
/// whole group, whichever of its sockets is named, from the next connection on; `SO_ATTACH_REUSEPORT_CBPF`, socket(7).
///
/// # Errors
/// When the kernel refuses the program, or the socket is of no group.
pub fn attach_steering(listener: &impl AsFd, program: &BpfProgram) -> io::Result<()> {
    attach_program(listener, libc::SO_ATTACH_REUSEPORT_CBPF, program)
        .map_err(named("SO_ATTACH_REUSEPORT_CBPF"))
}

/// Takes the program away again: the kernel's hash decides. False where the kernel knows no way to do so (before Linux
/// 5.3); what was attached stays then.
///
/// # Errors
/// When the kernel refuses; that there is no program is no error.
pub fn detach_steering(listener: &impl AsFd) -> io::Result<bool> {
    match set_option(listener, libc::SO_DETACH_REUSEPORT_BPF, &0_i32) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(true),
        Err(error) if is_missing(&error) => Ok(false),
        other => other.map(|()| true).map_err(named("SO_DETACH_REUSEPORT_BPF")),
    }
}

fn attach_program(listener: &impl AsFd, option: i32, program: &BpfProgram) -> io::Result<()> {
    program.with_raw(|raw| set_option(listener, option, raw))?
}

fn set_option<T>(listener: &impl AsFd, option: i32, value: &T) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    let fd = listener.as_fd().as_raw_fd();
    // SAFETY: the kernel reads `size` bytes of `value`, and of a program what it points to; both outlive the call.
    let answer =
        unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, std::ptr::from_ref(value).cast(), size) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Connects from an address of the caller's choice.
/// A listener's accept queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcceptQueue {
    /// Connections that wait.
    pub waiting: u32,
    /// Most that may; beyond it the kernel ignores new ones.
    pub limit: u32,
}

/// A listener's queue: of a listening socket `TCP_INFO` (tcp(7)) reports it in the fields that otherwise count segments.
///
/// # Errors
/// When the descriptor is no TCP socket that listens.
pub fn read_accept_queue(listener: &impl AsFd) -> io::Result<AcceptQueue> {
    const LISTEN: u8 = 10;
    // SAFETY: a struct of integers, for which all zero is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut size = libc::socklen_t::try_from(size_of_val(&info)).map_err(io::Error::other)?;
    let fd = listener.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `size` bytes into `info`, which is that large and outlives the call.
    let answer = unsafe {
        libc::getsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            std::ptr::from_mut(&mut info).cast(),
            std::ptr::from_mut(&mut size),
        )
    };
    match answer {
        0 if info.tcpi_state == LISTEN => {
            Ok(AcceptQueue { waiting: info.tcpi_unacked, limit: info.tcpi_sacked })
        }
        0 => Err(io::Error::from(io::ErrorKind::NotConnected)),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
pub(crate) fn connect_from(from: SocketAddr, to: SocketAddr) -> io::Result<std::net::TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.bind(&from.into())?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_listener_that_refuses_new_connections_still_gives_out_its_queue() {
        let socket =
            bind("127.0.0.1:0".parse().unwrap(), ServedFamilies::Own, PortSharing::ReusePort).unwrap();
        let listener = listen(socket, 16).unwrap();
        let address = listener.local_addr().unwrap();
        let queued: Vec<_> = (0..5).map(|_| TcpStream::connect(address).unwrap()).collect();
        drop_new_connections(&listener).unwrap();
        assert!(TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_err());
        for _ in &queued {
            assert!(listener.accept().is_ok());
        }
        assert!(listener.accept().is_err());
    }

    #[test]
    fn steered_connections_meet_only_the_named_sockets() {
        let bound = |address| {
            listen(bind(address, ServedFamilies::Own, PortSharing::ReusePort).unwrap(), 64).unwrap()
        };
        let first = bound("127.0.0.1:0".parse().unwrap());
        let address = first.local_addr().unwrap();
        let group: Vec<_> = std::iter::once(first).chain((0..3).map(|_| bound(address))).collect();
        let waiting = |group: &[TcpListener]| -> Vec<usize> {
            group.iter().map(|socket| std::iter::from_fn(|| socket.accept().ok()).count()).collect()
        };
        let connect = || (0..60).map(|_| TcpStream::connect(address).unwrap()).collect::<Vec<_>>();
        detach_steering(&group[0]).unwrap();
        attach_steering(&group[2], &BpfProgram::random_choice(&[0, 3]).unwrap()).unwrap();
        let held = connect();
        let counts = waiting(&group);
        assert!(counts[0] > 0 && counts[3] > 0 && counts[1] + counts[2] == 0, "{counts:?}");
        drop(held);
        detach_steering(&group[1]).unwrap();
        let held = connect();
        assert!(waiting(&group).iter().all(|count| *count > 0));
        drop(held);
    }

    #[test]
    fn a_queue_grows_by_connections_and_shrinks_by_accepts() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(read_accept_queue(&listener).unwrap().waiting, 0);
        let clients: Vec<_> = (0..5).map(|_| TcpStream::connect(address).unwrap()).collect();
        let queue = read_accept_queue(&listener).unwrap();
        assert_eq!(queue.waiting, 5);
        assert!(queue.limit >= 5, "{queue:?}");
        drop(listener.accept().unwrap());
        assert_eq!(read_accept_queue(&listener).unwrap().waiting, 4);
        assert!(read_accept_queue(&clients[0]).is_err(), "a connection has no queue");
    }
}
