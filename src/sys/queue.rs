//! How many connections wait on a listener for someone to accept them.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// A listener's accept queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcceptQueue {
    /// Connections that wait.
    pub waiting: u32,
    /// Most that may; beyond it the kernel ignores new ones.
    pub limit: u32,
}

/// Asks the kernel for a listener's queue: of a listening socket `TCP_INFO` (tcp(7)) tells it in the fields that
/// otherwise count segments.
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
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

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
