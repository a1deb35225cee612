//! The listening sockets of one slot, and which slots take new connections.

use std::io;

use crate::config::settings::{ListenAddress, SteeringMode};
use crate::listener::socket::{Listener, ListeningSocket, SocketOwner};
use crate::listener::steering;
use crate::sys::bpf::BpfProgram;
use crate::sys::tcp_socket;

impl Listener {
    /// Ends listening for every process.
    fn close(&self) {
        if self.owner == SocketOwner::Slot {
            // One that was closed already is as it should be.
            let _ = tcp_socket::shut_down_listener(&self.socket);
        }
    }

    fn steer(&self, mode: SteeringMode, open: &[bool]) -> io::Result<()> {
        let tcp = match (self.owner, mode, &self.socket) {
            (SocketOwner::Slot, _, ListeningSocket::Tcp(tcp)) => tcp,
            (_, SteeringMode::Kernel, _) => return Ok(()),
            (_, SteeringMode::ClientIp, _) => {
                return Err(io::Error::other("all slots share the queue of this socket"));
            }
        };
        let alike = open.windows(2).all(|pair| pair[0] == pair[1]);
        let open_places = (0..).zip(open).filter(|(_, open)| alike || **open);
        let places: Vec<u32> = open_places.map(|(at, _)| at).collect();
        match mode {
            // A kernel that cannot take a program away gets one that passes by no slot.
            SteeringMode::Kernel if alike && tcp_socket::detach_steering(tcp)? => Ok(()),
            SteeringMode::Kernel => tcp_socket::attach_steering(tcp, &BpfProgram::random_choice(&places)?),
            SteeringMode::ClientIp => {
                let table = steering::bucket_table(open, steering::bucket_count(open.len()));
                let program = BpfProgram::client_address_hash(tcp_socket::ip_family(tcp)?, &table)?;
                tcp_socket::attach_steering(tcp, &program)
            }
        }
    }
}

/// The listeners of one slot.
#[derive(Debug)]
pub struct SlotListeners {
    /// One per public address, in the order of the configuration.
    pub public: Vec<Listener>,
    /// One per address of the operators, in the order of the configuration.
    pub admin: Vec<Listener>,
    /// Sockets that the configuration names no more: what is in their queues is still accepted.
    retired: Vec<(ListenAudience, Listener)>,
}

/// Who connects to a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenAudience {
    /// Visitors.
    Public,
    /// Operators.
    Admin,
}

impl SlotListeners {
    /// Those of a slot, none of which ends.
    pub fn new(public: Vec<Listener>, admin: Vec<Listener>) -> Self {
        Self { public, admin, retired: Vec::new() }
    }

    /// Those that end.
    pub fn retired(&self) -> impl Iterator<Item = &(ListenAudience, Listener)> {
        self.retired.iter()
    }

    /// Takes those that end out.
    pub(super) fn take_retired(&mut self) -> impl Iterator<Item = Listener> + use<> {
        std::mem::take(&mut self.retired).into_iter().map(|(_, listener)| listener)
    }

    /// All of them by themselves.
    pub(super) fn into_all(self) -> impl Iterator<Item = Listener> {
        let retired = self.retired.into_iter().map(|(_, listener)| listener);
        self.public.into_iter().chain(self.admin).chain(retired)
    }

    /// Sets those at these addresses apart, as they end.
    pub(super) fn retire(&mut self, public: &[ListenAddress], admin: &[ListenAddress]) {
        let kinds = [
            (&mut self.public, public, ListenAudience::Public),
            (&mut self.admin, admin, ListenAudience::Admin),
        ];
        for (listeners, addresses, audience) in kinds {
            let ends = |one: &mut Listener| one.address().is_ok_and(|address| addresses.contains(&address));
            self.retired.extend(listeners.extract_if(.., ends).map(|listener| (audience, listener)));
        }
    }

    /// Adds those of another set.
    pub(super) fn extend(&mut self, other: Self) {
        self.public.extend(other.public);
        self.admin.extend(other.admin);
        self.retired.extend(other.retired);
    }

    /// Public ones, those that end behind the others, and the same of the operators'.
    pub fn into_audiences(self) -> [Vec<Listener>; 2] {
        let Self { mut public, mut admin, retired } = self;
        for (audience, listener) in retired {
            match audience {
                ListenAudience::Public => public.push(listener),
                ListenAudience::Admin => admin.push(listener),
            }
        }
        [public, admin]
    }

    /// All of them: the public ones, the operators', and those that end.
    pub fn all(&self) -> impl Iterator<Item = &Listener> {
        self.public.iter().chain(&self.admin).chain(self.retired.iter().map(|(_, listener)| listener))
    }

    /// Descriptors of the same sockets, for the slot's next worker.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let clones = |all: &[Listener]| all.iter().map(Listener::try_clone).collect::<Result<_, _>>();
        let retired = self.retired.iter().map(|(audience, listener)| Ok((*audience, listener.try_clone()?)));
        Ok(Self {
            public: clones(&self.public)?,
            admin: clones(&self.admin)?,
            retired: retired.collect::<io::Result<_>>()?,
        })
    }

    /// Connections in the accept queues of the public addresses; none where the kernel does not report them.
    pub fn queued_connections(&self) -> Option<u64> {
        let mut own =
            self.public.iter().filter(|one| matches!(one.socket, ListeningSocket::Tcp(_))).peekable();
        own.peek()?;
        own.map(|listener| listener.queued_connections().map(u64::from)).sum()
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
