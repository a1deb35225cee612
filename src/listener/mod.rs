//! The sockets the fleet listens on: one reuseport listener per slot and address, owned by the slot.
//!
//! The supervisor opens them and never closes one while its slot lives. So the connections queued on the slot of a
//! dead worker wait for its successor instead of being reset. Sockets that systemd lends are the exception: one queue
//! for all slots, which the fleet neither closes nor steers.

pub mod activation;
pub mod steering;

use std::io;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::RawFd;
use std::sync::Arc;

use crate::sys::queue;
use activation::Lent;

use crate::config::schema::Steering;
use crate::sys::bpf::Program;
use crate::sys::socket;
use crate::sys::socket::Share;

/// Connections that may wait in one listener's queue; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Why a listener could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something listens there already.
    #[error(
        "cannot listen on {address} ({setting}): another process, or another fleet, serves that port already"
    )]
    InUse {
        /// The wanted address.
        address: SocketAddr,
        /// The setting that names it.
        setting: &'static str,
    },
    /// The kernel refuses the address.
    #[error("cannot listen on {address} ({setting})")]
    Refused {
        /// The wanted address.
        address: SocketAddr,
        /// The setting that names it.
        setting: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A socket that systemd lends cannot be used.
    #[error("cannot use a socket that systemd lends")]
    Lent(#[source] io::Error),
}

/// Who opened a listening socket, and with it whose queue it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// This fleet, for one slot: a place in a reuseport group, with a queue of its own.
    Slot,
    /// systemd, for all slots together: one queue. Whoever leaves it only stops accepting.
    Systemd,
}

/// A listening socket and its owner.
#[derive(Debug)]
pub struct Listener {
    /// The socket; it never blocks.
    pub socket: TcpListener,
    /// Who opened it.
    pub owner: Owner,
}

impl Listener {
    /// Where it listens.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
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
        if self.owner == Owner::Slot {
            // One that was closed already is as it should be.
            let _ = socket::stop_listening(&self.socket);
        }
    }

    fn steer(&self, mode: Steering, open: &[bool]) -> io::Result<()> {
        match (self.owner, mode) {
            (Owner::Slot, _) => {}
            (Owner::Systemd, Steering::Kernel) => return Ok(()),
            (Owner::Systemd, Steering::ClientIp) => {
                return Err(io::Error::other("all slots share the queue of a socket that systemd lends"));
            }
        }
        let alike = open.windows(2).all(|pair| pair[0] == pair[1]);
        let open_places = (0..).zip(open).filter(|(_, open)| alike || **open);
        let places: Vec<u32> = open_places.map(|(at, _)| at).collect();
        match mode {
            // A kernel that cannot take a program away gets one that passes by no slot.
            Steering::Kernel if alike && socket::unsteer(&self.socket)? => Ok(()),
            Steering::Kernel => socket::steer(&self.socket, &Program::at_random(&places)?),
            Steering::ClientIp => {
                let table = steering::table(open, steering::buckets(open.len()));
                let program = Program::by_client(socket::family(&self.socket)?, &table)?;
                socket::steer(&self.socket, &program)
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
    /// The operators' listener.
    pub admin: Listener,
}

impl SlotListeners {
    /// All of them: the public ones, then the operators'.
    pub fn all(&self) -> impl Iterator<Item = &Listener> {
        self.public.iter().chain([&self.admin])
    }

    /// Descriptors of the same sockets, for the worker that takes the seat.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let public = self.public.iter().map(Listener::try_clone).collect::<Result<_, _>>()?;
        Ok(Self { public, admin: self.admin.try_clone()? })
    }

    /// Connections that wait on the public addresses for somebody to accept them; none where the kernel does not say.
    pub fn waiting(&self) -> Option<u64> {
        let waiting = |listener| queue::of(listener).ok().map(|queue| u64::from(queue.waiting));
        self.public.iter().map(waiting).sum()
    }

    /// Ends listening for every process; for a slot that has no worker and gets none any more.
    ///
    /// A slot that leaves a fleet which goes on is the last one, is steered past, and its worker has said `closed`:
    /// what waits in a queue that is closed is reset. Closing one twice does no harm.
    pub fn close(&self) {
        self.all().for_each(Listener::close);
    }

    /// Says which slots take new connections, for the groups of all slots at once: `open[n]` is slot n's.
    ///
    /// While every slot is open, or none is, the kernel's hash or the client's address chooses among all of `open`;
    /// else closed slots are passed by: [`Steering::Kernel`] then chooses at random, and [`Steering::ClientIp`] moves
    /// the addresses of the closed slots only. Operators' connections are never sticky: theirs come from few
    /// addresses. It takes effect with the next connection, and may be called as often as one likes, on any slot.
    ///
    /// `open` may be longer or shorter than the group is at that moment, and the order of steps uses that:
    ///
    /// - One slot more: `steer` with `open` one longer and its last false, so that nobody queues at a slot without a
    ///   worker; [`Addresses::open_slot`]; `steer` with it true once its worker is READY.
    /// - One slot less, always the last: `steer` with its place false; its worker accepts its queue dry and says
    ///   `closed`; [`Self::close`]; `steer` with `open` one shorter. Several may leave together, but no new slot is to
    ///   be opened before all of them have left: the kernel moves the last socket of a group into a gap, which would
    ///   give the new one another place than its number.
    ///
    /// # Errors
    /// When the kernel refuses the program; what was attached before stays.
    pub fn steer(&self, mode: Steering, open: &[bool]) -> io::Result<()> {
        self.public.iter().try_for_each(|listener| listener.steer(mode, open))?;
        self.admin.steer(Steering::Kernel, open)
    }
}

/// The addresses of a fleet, with real ports, from which any number of slots can be opened.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// Public addresses.
    pub public: Vec<SocketAddr>,
    /// The operators' address.
    pub admin: SocketAddr,
    /// Sockets that are lent and not opened.
    lent: Arc<Lent>,
}

/// Opens the listeners of `slots` slots; what is lent replaces the addresses of the same kind.
///
/// A port that anything else serves is refused, although `SO_REUSEPORT` alone would silently share it between two
/// fleets of one user: each address is first bound and listened on exclusively, as a probe.
///
/// # Errors
/// When an address is taken or refused; no listener stays open.
pub fn open(
    public: &[SocketAddr],
    admin: SocketAddr,
    lent: Arc<Lent>,
    slots: usize,
) -> Result<(Addresses, Vec<SlotListeners>), Error> {
    let public = match lent.public.as_slice() {
        [] => public.iter().map(|address| probe(*address, "listen")).collect::<Result<_, _>>()?,
        lent => lent.iter().map(TcpListener::local_addr).collect::<Result<_, _>>().map_err(Error::Lent)?,
    };
    let admin = match &lent.admin {
        None => probe(admin, "admin.listen")?,
        Some(lent) => lent.local_addr().map_err(Error::Lent)?,
    };
    let addresses = Addresses { public, admin, lent };
    let listeners = (0..slots).map(|_| addresses.open_slot()).collect::<Result<_, _>>()?;
    Ok((addresses, listeners))
}

impl Addresses {
    /// The addresses of slots that are open already, as a supervisor needs them that takes a fleet over.
    ///
    /// # Errors
    /// When the kernel does not say where a socket listens, or no descriptor is left.
    pub fn of(slot: &SlotListeners) -> io::Result<Self> {
        let lent = |listener: &Listener| match listener.owner {
            Owner::Slot => Ok(None),
            Owner::Systemd => listener.socket.try_clone().map(Some),
        };
        let public = slot.public.iter().map(Listener::local_addr).collect::<Result<_, _>>()?;
        let borrowed = slot.public.iter().filter_map(|listener| lent(listener).transpose());
        let lent = Lent { public: borrowed.collect::<Result<_, _>>()?, admin: lent(&slot.admin)? };
        Ok(Self { public, admin: slot.admin.local_addr()?, lent: Arc::new(lent) })
    }

    /// Opens the listeners of one more slot; they take connections at once, unless [`SlotListeners::steer`] has said
    /// before that the new last slot is closed.
    ///
    /// # Errors
    /// When an address is refused.
    pub fn open_slot(&self) -> Result<SlotListeners, Error> {
        let own = |address: SocketAddr, setting| {
            let opened =
                socket::bind(address, Share::Group).and_then(|socket| socket::listen(socket, BACKLOG));
            let opened = opened.map(|socket| Listener { socket, owner: Owner::Slot });
            opened.map_err(|source| explain(address, setting, source))
        };
        let lent = |socket: &TcpListener| {
            let socket = socket.try_clone().map_err(Error::Lent)?;
            Ok(Listener { socket, owner: Owner::Systemd })
        };
        let public = match self.lent.public.as_slice() {
            [] => self.public.iter().map(|address| own(*address, "listen")).collect::<Result<_, _>>()?,
            sockets => sockets.iter().map(lent).collect::<Result<_, _>>()?,
        };
        let admin = match &self.lent.admin {
            None => own(self.admin, "admin.listen")?,
            Some(socket) => lent(socket)?,
        };
        Ok(SlotListeners { public, admin })
    }
}

/// Finds out that nobody serves the address, and which port the kernel chooses for 0.
fn probe(address: SocketAddr, setting: &'static str) -> Result<SocketAddr, Error> {
    let opened = socket::bind(address, Share::Exclusive).and_then(|socket| socket::listen(socket, 1));
    let bound = opened.and_then(|listener| listener.local_addr());
    bound.map_err(|source| explain(address, setting, source))
}

fn explain(address: SocketAddr, setting: &'static str, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::AddrInUse => Error::InUse { address, setting },
        _ => Error::Refused { address, setting, source },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::TcpStream;

    use super::*;

    fn any() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    fn nothing() -> Arc<Lent> {
        Arc::new(Lent::default())
    }

    /// Connects from each of these addresses; whose queue each was put in.
    fn slots_of(slots: &[SlotListeners], clients: impl Iterator<Item = u8>) -> Vec<usize> {
        let to = slots[0].public[0].local_addr().unwrap();
        let connect = |last: u8| {
            let from = if to.is_ipv6() {
                "[::1]:0".parse().unwrap()
            } else {
                SocketAddr::from(([127, 0, 0, last], 0))
            };
            let _held: TcpStream = socket::connect_from(from, to).unwrap();
            slots.iter().position(|slot| slot.public[0].socket.accept().is_ok()).unwrap()
        };
        clients.map(connect).collect()
    }

    #[test]
    fn all_slots_share_the_port_and_a_second_fleet_is_refused() {
        let (addresses, slots) = open(&[any()], any(), nothing(), 3).unwrap();
        assert_ne!(addresses.public[0].port(), 0);
        assert!(slots.iter().all(|slot| slot.public[0].local_addr().unwrap() == addresses.public[0]));
        let refused = open(&addresses.public, any(), nothing(), 1).unwrap_err();
        assert!(matches!(refused, Error::InUse { .. }), "{refused}");
    }

    #[test]
    fn a_plain_listener_of_somebody_else_is_respected() {
        let foreign = TcpListener::bind(any()).unwrap();
        let address = foreign.local_addr().unwrap();
        assert!(matches!(open(&[any()], address, nothing(), 1).unwrap_err(), Error::InUse { .. }));
    }

    #[test]
    fn an_address_keeps_its_slot_and_only_those_of_a_closed_slot_move() {
        let (_, slots) = open(&[any()], any(), nothing(), 4).unwrap();
        let steer = |open: &[bool]| slots[0].steer(Steering::ClientIp, open).unwrap();
        steer(&[true; 4]);
        let first = slots_of(&slots, 2..250);
        assert_eq!(slots_of(&slots, 2..250), first);
        assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 4);
        steer(&[true, false, true, true]);
        let meanwhile = slots_of(&slots, 2..250);
        assert!(!meanwhile.contains(&1));
        assert!(first.iter().zip(&meanwhile).all(|(before, after)| before == after || *before == 1));
        steer(&[true; 4]);
        assert_eq!(slots_of(&slots, 2..250), first);
    }

    #[test]
    fn an_ipv6_address_keeps_its_slot_too() {
        let Ok((_, slots)) = open(&["[::1]:0".parse().unwrap()], any(), nothing(), 8) else { return };
        slots[0].steer(Steering::ClientIp, &[true; 8]).unwrap();
        let met: BTreeSet<_> = slots_of(&slots, 0..20).into_iter().collect();
        assert_eq!(met.len(), 1);
    }

    #[test]
    fn a_new_slot_gets_nothing_before_it_is_opened_and_the_last_one_leaves_the_others_their_places() {
        let (addresses, mut slots) = open(&[any()], any(), nothing(), 2).unwrap();
        for mode in [Steering::Kernel, Steering::ClientIp] {
            slots[0].steer(mode, &[true, true, false]).unwrap();
            slots.push(addresses.open_slot().unwrap());
            assert!(!slots_of(&slots, 2..100).contains(&2));
            slots[0].steer(mode, &[true; 3]).unwrap();
            assert_eq!(slots_of(&slots, 2..100).iter().collect::<BTreeSet<_>>().len(), 3);
            slots[0].steer(mode, &[true, true, false]).unwrap();
            slots[2].close();
            slots.pop();
            slots[0].steer(mode, &[true, false]).unwrap();
            assert!(slots_of(&slots, 2..100).iter().all(|slot| *slot == 0));
        }
    }

    #[test]
    fn a_lent_socket_is_one_queue_that_nobody_closes_or_steers() {
        let socket = TcpListener::bind(any()).unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = socket.local_addr().unwrap();
        let lent = Arc::new(Lent { public: vec![socket], admin: None });
        let (addresses, slots) = open(&[any()], any(), lent, 2).unwrap();
        assert_eq!((addresses.public[0], slots[1].public[0].owner), (address, Owner::Systemd));
        slots[0].steer(Steering::Kernel, &[true, false]).unwrap();
        assert!(slots[0].steer(Steering::ClientIp, &[true, true]).is_err());
        slots[0].close();
        let again = Addresses::of(&slots[1]).unwrap();
        assert_eq!((again.public[0], again.admin), (address, addresses.admin));
        let _held = TcpStream::connect(address).unwrap();
        assert!(slots[1].public[0].socket.accept().is_ok());
        assert_eq!(again.open_slot().unwrap().public[0].owner, Owner::Systemd);
    }
}
