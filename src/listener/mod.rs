//! The sockets the fleet listens on: one reuseport listener per slot and address, owned by the slot.
//!
//! The supervisor opens them and never closes one while its slot lives. So the connections queued on the slot of a
//! dead worker wait for its successor instead of being reset.

use std::io;
use std::net::SocketAddr;
use std::net::TcpListener;

use crate::sys::queue;
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
}

/// The listeners of one slot.
#[derive(Debug)]
pub struct SlotListeners {
    /// One per public address, in the order of the configuration.
    pub public: Vec<TcpListener>,
    /// The operators' listener.
    pub admin: TcpListener,
}

impl SlotListeners {
    /// Descriptors of the same sockets, for the worker that takes the seat.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let public = self.public.iter().map(TcpListener::try_clone).collect::<Result<_, _>>()?;
        Ok(Self { public, admin: self.admin.try_clone()? })
    }
}

impl SlotListeners {
    /// Connections that wait on the public addresses for somebody to accept them; none where the kernel does not say.
    pub fn waiting(&self) -> Option<u64> {
        let waiting = |listener| queue::of(listener).ok().map(|queue| u64::from(queue.waiting));
        self.public.iter().map(waiting).sum()
    }

    /// Ends listening for every process; for a slot that has no worker and gets none any more.
    pub fn close(&self) {
        for listener in self.public.iter().chain([&self.admin]) {
            // One that was closed already is as it should be.
            let _ = socket::stop_listening(listener);
        }
    }

    /// Spreads the new connections of every slot's group over the slots that are `open`, evenly and at random; over
    /// all, by the kernel's hash, when all are open or none is.
    ///
    /// # Errors
    /// When the kernel refuses the program.
    pub fn steer(&self, open: &[bool]) -> io::Result<()> {
        let indices: Vec<u32> =
            (0_u32..).zip(open).filter(|(_, open)| **open).map(|(index, _)| index).collect();
        for listener in self.public.iter().chain([&self.admin]) {
            match indices.len() {
                0 => socket::unsteer(listener)?,
                all if all == open.len() => socket::unsteer(listener)?,
                _ => socket::steer(listener, &indices)?,
            }
        }
        Ok(())
    }
}

/// The addresses of a fleet, with real ports, from which any number of slots can be opened.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Addresses {
    /// Public addresses.
    pub public: Vec<SocketAddr>,
    /// The operators' address.
    pub admin: SocketAddr,
}

/// Opens the listeners of `slots` slots.
///
/// A port that anything else serves is refused, although `SO_REUSEPORT` alone would silently share it between two
/// fleets of one user: each address is first bound and listened on exclusively, as a probe.
///
/// # Errors
/// When an address is taken or refused; no listener stays open.
pub fn open(
    public: &[SocketAddr],
    admin: SocketAddr,
    slots: usize,
) -> Result<(Addresses, Vec<SlotListeners>), Error> {
    let public = public.iter().map(|address| probe(*address, "listen")).collect::<Result<_, _>>()?;
    let addresses = Addresses { public, admin: probe(admin, "admin.listen")? };
    let listeners = (0..slots).map(|_| addresses.open_slot()).collect::<Result<_, _>>()?;
    Ok((addresses, listeners))
}

impl Addresses {
    /// Opens the listeners of one more slot.
    ///
    /// # Errors
    /// When an address is refused.
    pub fn open_slot(&self) -> Result<SlotListeners, Error> {
        let one = |address: SocketAddr, setting| {
            let opened =
                socket::bind(address, Share::Group).and_then(|socket| socket::listen(socket, BACKLOG));
            opened.map_err(|source| explain(address, setting, source))
        };
        let public = self.public.iter().map(|address| one(*address, "listen")).collect::<Result<_, _>>()?;
        Ok(SlotListeners { public, admin: one(self.admin, "admin.listen")? })
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
    use super::*;

    fn any() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    #[test]
    fn all_slots_share_the_port_and_a_second_fleet_is_refused() {
        let (addresses, slots) = open(&[any()], any(), 3).unwrap();
        assert_ne!(addresses.public[0].port(), 0);
        assert!(slots.iter().all(|slot| slot.public[0].local_addr().unwrap() == addresses.public[0]));
        let refused = open(&addresses.public, any(), 1).unwrap_err();
        assert!(matches!(refused, Error::InUse { .. }), "{refused}");
    }

    #[test]
    fn a_plain_listener_of_somebody_else_is_respected() {
        let foreign = TcpListener::bind(any()).unwrap();
        let address = foreign.local_addr().unwrap();
        assert!(matches!(open(&[any()], address, 1).unwrap_err(), Error::InUse { .. }));
    }
}
