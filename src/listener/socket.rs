//! One listening socket of either family.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use crate::config::settings::{ListenAddress, UnixSocketName};
use crate::sys::tcp_socket;
use crate::sys::tcp_socket::ServedFamilies;

/// What opened a listening socket, and with it whose queue it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SocketOwner {
    /// This fleet, for one slot: a place in a reuseport group, with a queue of its own.
    Slot,
    /// This fleet, for all slots together: one queue, which ends with the fleet. Unix sockets have no groups.
    Fleet,
    /// systemd, for all slots together: one queue. A worker that drains only stops accepting from it.
    Systemd,
}

/// A socket that listens and never blocks.
#[derive(Debug)]
pub enum ListeningSocket {
    /// At an Internet address.
    Tcp(TcpListener),
    /// At a Unix socket's name.
    Unix(UnixListener),
}

impl ListeningSocket {
    /// Tells what a descriptor is.
    ///
    /// # Errors
    /// When it is neither.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let tcp = TcpListener::from(fd);
        if tcp.local_addr().is_ok() {
            return Ok(Self::Tcp(tcp));
        }
        let unix = UnixListener::from(OwnedFd::from(tcp));
        unix.local_addr()?;
        Ok(Self::Unix(unix))
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn address(&self) -> io::Result<ListenAddress> {
        match self {
            Self::Tcp(tcp) => tcp.local_addr().map(ListenAddress::Internet),
            Self::Unix(unix) => {
                let name = UnixSocketName::from_bound(&unix.local_addr()?);
                name.map(ListenAddress::Unix).ok_or_else(|| io::Error::other("the socket has no name"))
            }
        }
    }

    /// Another descriptor of the same socket.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(tcp) => Self::Tcp(tcp.try_clone()?),
            Self::Unix(unix) => Self::Unix(unix.try_clone()?),
        })
    }
}

impl AsFd for ListeningSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(tcp) => tcp.as_fd(),
            Self::Unix(unix) => unix.as_fd(),
        }
    }
}

impl AsRawFd for ListeningSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// A listening socket and its owner.
#[derive(Debug)]
pub struct Listener {
    /// The socket.
    pub socket: ListeningSocket,
    /// What opened it.
    pub owner: SocketOwner,
}

impl Listener {
    /// Where it listens.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn address(&self) -> io::Result<ListenAddress> {
        self.socket.address()
    }

    /// Its Internet address; none for a Unix socket.
    pub fn internet_address(&self) -> Option<SocketAddr> {
        match &self.socket {
            ListeningSocket::Tcp(tcp) => tcp.local_addr().ok(),
            ListeningSocket::Unix(_) => None,
        }
    }

    /// Whether it serves clients of IPv4 at an address of IPv6.
    pub fn is_dual_stack(&self) -> bool {
        let unspecified = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let six = self.internet_address().is_some_and(|address| address.ip() == unspecified);
        six && tcp_socket::served_families(&self.socket)
            .is_ok_and(|families| families == ServedFamilies::Both)
    }

    /// Another descriptor of the same socket.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { socket: self.socket.try_clone()?, owner: self.owner })
    }

    /// Connections in its accept queue; none where the kernel does not report them, as of Unix sockets.
    pub fn queued_connections(&self) -> Option<u32> {
        tcp_socket::read_accept_queue(&self.socket).ok().map(|queue| queue.waiting)
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
