//! The listening sockets of one slot, and which slots take new connections.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use crate::config::settings::SteeringMode;
use crate::listener::steering;
use crate::sys::bpf::BpfProgram;
use crate::sys::tcp_socket;
use crate::sys::tcp_socket::ServedFamilies;

/// What opened a listening socket, and with it whose queue it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SocketOwner {
    /// This fleet, for one slot: a place in a reuseport group, with a queue of its own.
    Slot,
    /// systemd, for all slots together: one queue. A worker that drains only stops accepting from it.
    Systemd,
}

/// A listening socket and its owner.
#[derive(Debug)]
pub struct Listener {
    /// The socket; it never blocks.
    pub socket: TcpListener,
    /// What opened it.
    pub owner: SocketOwner,
}

impl Listener {
    /// Where it listens.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Whether it serves clients of IPv4 at an address of IPv6.
    pub fn is_dual_stack(&self) -> bool {
        let six = self.local_addr().is_ok_and(|address| address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED));
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

    /// Ends listening for every process.
    fn close(&self) {
        if self.owner == SocketOwner::Slot {
            // One that was closed already is as it should be.
            let _ = tcp_socket::shut_down_listener(&self.socket);
        }
    }

    fn steer(&self, mode: SteeringMode, open: &[bool]) -> io::Result<()> {
        match (self.owner, mode) {
            (SocketOwner::Slot, _) => {}
            (SocketOwner::Systemd, SteeringMode::Kernel) => return Ok(()),
            (SocketOwner::Systemd, SteeringMode::ClientIp) => {
                return Err(io::Error::other("all slots share the queue of a socket that systemd lends"));
            }
        }
        let alike = open.windows(2).all(|pair| pair[0] == pair[1]);
        let open_places = (0..).zip(open).filter(|(_, open)| alike || **open);
        let places: Vec<u32> = open_places.map(|(at, _)| at).collect();
        match mode {
            // A kernel that cannot take a program away gets one that passes by no slot.
            SteeringMode::Kernel if alike && tcp_socket::detach_steering(&self.socket)? => Ok(()),
            SteeringMode::Kernel => {
                tcp_socket::attach_steering(&self.socket, &BpfProgram::random_choice(&places)?)
            }
            SteeringMode::ClientIp => {
                let table = steering::bucket_table(open, steering::bucket_count(open.len()));
                let program = BpfProgram::client_address_hash(tcp_socket::ip_family(&self.socket)?, &table)?;
                tcp_socket::attach_steering(&self.socket, &program)
            }
        }
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

/// The listeners of one slot.
#[derive(Debug)]
pub struct SlotListeners {
    /// One per public address, in the order of the configuration.
    pub public: Vec<Listener>,
    /// One per address of the operators, in the order of the configuration.
    pub admin: Vec<Listener>,
}

impl SlotListeners {
    /// All of them: the public ones, then the operators'.
    pub fn all(&self) -> impl Iterator<Item = &Listener> {
        self.public.iter().chain(&self.admin)
    }

    /// Descriptors of the same sockets, for the slot's next worker.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let clones = |all: &[Listener]| all.iter().map(Listener::try_clone).collect::<Result<_, _>>();
        Ok(Self { public: clones(&self.public)?, admin: clones(&self.admin)? })
    }

    /// Connections in the accept queues of the public addresses; none where the kernel does not report them.
    pub fn queued_connections(&self) -> Option<u64> {
        let waiting =
            |listener| tcp_socket::read_accept_queue(listener).ok().map(|queue| u64::from(queue.waiting));
        self.public.iter().map(waiting).sum()
    }

    /// Ends listening for every process; for a slot that has no worker and gets none any more.
    ///
    /// A slot that leaves a fleet which goes on is the last one, is steered past, and its worker has reported `closed`:
    /// what waits in a queue that is closed is reset. Closing one twice does no harm.
    pub fn close(&self) {
        self.all().for_each(Listener::close);
    }

    /// Says which slots take new connections, for the groups of all slots at once: `open[n]` is slot n's.
    ///
    /// While every slot is open, or none is, the kernel's hash or the client's address chooses among all of `open`;
    /// else closed slots are passed by: `Steering::Kernel` then chooses at random, and `Steering::ClientIp` moves
    /// the addresses of the closed slots only. Operators' connections are never sticky: theirs come from few
    /// addresses. It takes effect with the next connection, and may be called as often as one likes, on any slot.
    ///
    /// `open` may be longer or shorter than the group is at that moment, and the order of steps uses that:
    ///
    /// - One slot more: `steer` with `open` one longer and its last false, so that no connection queues at a slot without a
    ///   worker; `ListenAddresses::open_slot`; `steer` with it true once its worker is READY.
    /// - One slot less, always the last: `steer` with its place false; its worker accepts its queue dry and says
    ///   `closed`; [`Self::close`]; `steer` with `open` one shorter. Several may leave together, but no new slot is to
    ///   be opened before all of them have left: the kernel moves the last socket of a group into a gap, which would
    ///   give the new one another place than its number.
    ///
    /// # Errors
    /// When the kernel refuses the program; what was attached before stays.
    pub fn steer(&self, mode: SteeringMode, open: &[bool]) -> io::Result<()> {
        self.public.iter().try_for_each(|listener| listener.steer(mode, open))?;
        self.admin.iter().try_for_each(|listener| listener.steer(SteeringMode::Kernel, open))
    }
}
