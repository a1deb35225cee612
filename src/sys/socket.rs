//! Listening sockets with the options std has no word for.

use std::io;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;

use socket2::Domain;
use socket2::SockFilter;
use socket2::SockRef;
use socket2::Socket;
use socket2::Type;

/// Whether other sockets of this user may serve the same address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// This socket alone.
    Exclusive,
    /// One of a group between which the kernel spreads connections; `SO_REUSEPORT`, socket(7).
    Group,
}

/// Binds a TCP socket without listening on it yet; it never blocks and is closed on exec.
///
/// # Errors
/// When the address is taken, not of this machine, or not allowed.
pub fn bind(address: SocketAddr, share: Share) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // Both families are named explicitly in the configuration; a dual-stack socket would clash with the other.
        socket.set_only_v6(true)?;
    }
    if share == Share::Group {
        socket.set_reuse_port(true)?;
    }
    // Accepted connections inherit it (tcp(7)), which spares a system call for each.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Starts listening; connections queue from now on.
///
/// # Errors
/// When the address is taken by a listener that came between.
pub fn listen(socket: Socket, backlog: i32) -> io::Result<TcpListener> {
    socket.listen(backlog)?;
    Ok(socket.into())
}

/// Has the kernel ignore new connections on a listener, while those already queued can still be accepted.
///
/// Closing a listener resets what waits in its queue. A classic BPF program that drops every packet that begins a
/// connection lets the queue run dry first; `SO_ATTACH_FILTER`, socket(7). A dropped client tries again after
/// a second and finds either another listener or a closed port.
///
/// # Errors
/// When the kernel refuses the program.
pub fn refuse_new(listener: &impl AsFd) -> io::Result<()> {
    const FLAGS_BYTE: u32 = 13;
    const SYN: u32 = 0x02;
    const SYN_AND_ACK: u32 = 0x12;
    const KEEP_ALL: u32 = u32::MAX;
    // The program sees the packet from its TCP header on; RFC 9293 §3.1 has the flags.
    let op = |code: u32, jt: u8, jf: u8, k: u32| SockFilter::new(code as u16, jt, jf, k);
    let program = [
        op(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, FLAGS_BYTE),
        op(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, SYN_AND_ACK),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, SYN),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, KEEP_ALL),
    ];
    SockRef::from(listener).attach_filter(&program)
}

/// Ends listening for every process that shares the socket: from now on connections are refused, not ignored.
///
/// What waits in the queue is reset, so empty it first; `tcp(7)`, `shutdown(2)`.
///
/// # Errors
/// When the socket does not listen.
pub fn stop_listening(listener: &impl AsFd) -> io::Result<()> {
    SockRef::from(listener).shutdown(Shutdown::Both)
}

/// Sends the new connections of a reuseport group to the sockets with these indices, evenly and at random.
///
/// A socket's index is its place in the order in which the group began to listen. The classic BPF program holds for the
/// whole group, whichever of its sockets is named, and needs no privilege; `SO_ATTACH_REUSEPORT_CBPF`, socket(7).
///
/// # Errors
/// When there are no indices, too many for a program, or the kernel refuses it.
pub fn steer(listener: &impl AsFd, indices: &[u32]) -> io::Result<()> {
    let count = u32::try_from(indices.len()).ok().filter(|count| *count > 0);
    let count = count.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let op = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let random = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM) as u32;
    let mut program = vec![
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, random),
        op(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, 0, 0, count),
    ];
    for (nth, index) in (0_u32..).zip(indices) {
        program.push(op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, nth));
        program.push(op(libc::BPF_RET | libc::BPF_K, 0, 0, *index));
    }
    program.push(op(libc::BPF_RET | libc::BPF_K, 0, 0, indices[0]));
    let len = u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    set(listener, libc::SO_ATTACH_REUSEPORT_CBPF, &program)
}

/// Takes the program away again: the kernel's hash decides.
///
/// # Errors
/// When the kernel refuses; that there is no program is no error.
pub fn unsteer(listener: &impl AsFd) -> io::Result<()> {
    match set(listener, libc::SO_DETACH_REUSEPORT_BPF, &0_i32) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn set<T>(listener: &impl AsFd, option: i32, value: &T) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    let fd = listener.as_fd().as_raw_fd();
    // SAFETY: the kernel reads `size` bytes of `value`, and of a program what it points to; both outlive the call.
    let answer =
        unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, std::ptr::from_ref(value).cast(), size) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_listener_that_refuses_new_connections_still_gives_out_its_queue() {
        let socket = bind("127.0.0.1:0".parse().unwrap(), Share::Group).unwrap();
        let listener = listen(socket, 16).unwrap();
        let address = listener.local_addr().unwrap();
        let queued: Vec<_> = (0..5).map(|_| TcpStream::connect(address).unwrap()).collect();
        refuse_new(&listener).unwrap();
        assert!(TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_err());
        for _ in &queued {
            assert!(listener.accept().is_ok());
        }
        assert!(listener.accept().is_err());
    }

    #[test]
    fn steered_connections_meet_only_the_named_sockets() {
        let first = listen(bind("127.0.0.1:0".parse().unwrap(), Share::Group).unwrap(), 64).unwrap();
        let address = first.local_addr().unwrap();
        let group: Vec<_> = std::iter::once(first)
            .chain((0..3).map(|_| listen(bind(address, Share::Group).unwrap(), 64).unwrap()))
            .collect();
        let waiting = |group: &[TcpListener]| -> Vec<usize> {
            group.iter().map(|socket| std::iter::from_fn(|| socket.accept().ok()).count()).collect()
        };
        let connect = || (0..60).map(|_| TcpStream::connect(address).unwrap()).collect::<Vec<_>>();
        unsteer(&group[0]).unwrap();
        steer(&group[2], &[0, 3]).unwrap();
        let held = connect();
        let counts = waiting(&group);
        assert!(counts[0] > 0 && counts[3] > 0 && counts[1] + counts[2] == 0, "{counts:?}");
        drop(held);
        unsteer(&group[1]).unwrap();
        let held = connect();
        assert!(waiting(&group).iter().all(|count| *count > 0));
        drop(held);
    }
}
