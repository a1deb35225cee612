//! The addresses that a fleet listens on, from which any number of slots can be opened.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use crate::listener::error::ListenError;
use crate::listener::slot_listeners::{Listener, SlotListeners, SocketOwner};
use crate::listener::systemd::ActivatedSockets;
use crate::sys::tcp_socket;
use crate::sys::tcp_socket::{PortSharing, ServedFamilies};

/// Connections that may wait in one listener's queue; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// The settings that name addresses.
const PUBLIC_SETTING: &str = "listen";
const ADMIN_SETTING: &str = "admin.listen";

/// The addresses of a fleet, with real ports, from which any number of slots can be opened.
#[derive(Debug, Clone)]
pub struct ListenAddresses {
    /// Public addresses.
    pub public: Vec<SocketAddr>,
    /// The operators' addresses.
    pub admin: Vec<SocketAddr>,
    /// Those that serve clients of IPv4 at an address of IPv6.
    dual_stack: BTreeSet<SocketAddr>,
    /// Sockets that systemd opened.
    activated: Arc<ActivatedSockets>,
}

/// Opens the listeners of `slots` slots; what systemd opened replaces the addresses of the same kind.
///
/// `[::]` serves clients of IPv4 too, unless an IPv4 address with the same port is named: that one has them then, and
/// a second socket for them would clash with it.
///
/// A port that anything else serves is refused, although `SO_REUSEPORT` alone would silently share it between two
/// fleets of one user: each address is first bound and listened on exclusively, as a probe.
///
/// # Errors
/// When an address is taken or refused; no listener stays open.
pub fn open_listeners(
    public: &[SocketAddr],
    admin: &[SocketAddr],
    activated: Arc<ActivatedSockets>,
    slots: usize,
) -> Result<(ListenAddresses, Vec<SlotListeners>), ListenError> {
    let mut dual = BTreeSet::new();
    let mut found = [Vec::new(), Vec::new()];
    let kinds = [(public, &activated.public, PUBLIC_SETTING), (admin, &activated.admin, ADMIN_SETTING)];
    let opened = kinds.iter().filter(|(_, lent, _)| lent.is_empty()).flat_map(|(named, ..)| *named);
    let opened: Vec<SocketAddr> = opened.copied().collect();
    for ((named, lent, setting), found) in kinds.into_iter().zip(&mut found) {
        if !lent.is_empty() {
            *found = lent
                .iter()
                .map(TcpListener::local_addr)
                .collect::<Result<_, _>>()
                .map_err(ListenError::Activation)?;
            continue;
        }
        for address in named {
            let families = served_families(*address, &opened);
            let Some(real) = check_available(*address, families, setting)? else { continue };
            if real.is_ipv6() && families == ServedFamilies::Both {
                dual.insert(real);
            }
            found.push(real);
        }
    }
    let [public, admin] = found;
    let addresses = ListenAddresses { public, admin, dual_stack: dual, activated };
    let listeners = (0..slots).map(|_| addresses.open_slot()).collect::<Result<_, _>>()?;
    Ok((addresses, listeners))
}

impl ListenAddresses {
    /// The addresses of slots that are open already, as a supervisor needs them that takes a fleet over.
    ///
    /// # Errors
    /// When the kernel does not say where a socket listens, or no descriptor is left.
    pub fn from_slot(slot: &SlotListeners) -> io::Result<Self> {
        let lent = |listeners: &[Listener]| {
            let lent = listeners.iter().filter(|listener| listener.owner == SocketOwner::Systemd);
            lent.map(|listener| listener.socket.try_clone()).collect::<Result<_, _>>()
        };
        let addresses = |listeners: &[Listener]| {
            listeners.iter().map(Listener::local_addr).collect::<Result<Vec<_>, _>>()
        };
        let dual = slot.all().filter(|listener| listener.is_dual_stack());
        Ok(Self {
            public: addresses(&slot.public)?,
            admin: addresses(&slot.admin)?,
            dual_stack: dual.map(Listener::local_addr).collect::<Result<_, _>>()?,
            activated: Arc::new(ActivatedSockets { public: lent(&slot.public)?, admin: lent(&slot.admin)? }),
        })
    }

    /// Opens the listeners of one more slot; they take connections at once, unless [`SlotListeners::steer`] has said
    /// before that the new last slot is closed.
    ///
    /// # Errors
    /// When an address is refused.
    pub fn open_slot(&self) -> Result<SlotListeners, ListenError> {
        let own = |address: SocketAddr, setting| {
            let families =
                if self.dual_stack.contains(&address) { ServedFamilies::Both } else { ServedFamilies::Own };
            let opened = tcp_socket::bind(address, families, PortSharing::ReusePort)
                .and_then(|socket| tcp_socket::listen(socket, BACKLOG));
            let opened = opened.map(|socket| Listener { socket, owner: SocketOwner::Slot });
            opened.map_err(|source| listen_error(address, setting, source))
        };
        let lent = |socket: &TcpListener| {
            let socket = socket.try_clone().map_err(ListenError::Activation)?;
            Ok(Listener { socket, owner: SocketOwner::Systemd })
        };
        let all = |addresses: &[SocketAddr], sockets: &[TcpListener], setting| match sockets {
            [] => addresses.iter().map(|address| own(*address, setting)).collect::<Result<_, _>>(),
            sockets => sockets.iter().map(lent).collect(),
        };
        Ok(SlotListeners {
            public: all(&self.public, &self.activated.public, PUBLIC_SETTING)?,
            admin: all(&self.admin, &self.activated.admin, ADMIN_SETTING)?,
        })
    }
}

/// The clients that an address serves beside these.
fn served_families(address: SocketAddr, named: &[SocketAddr]) -> ServedFamilies {
    // Where the kernel chooses the port it is another one for each.
    let same = |port: u16| port != 0 && port == address.port();
    let taken = named.iter().any(|other| other.is_ipv4() && same(other.port()));
    match address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && !taken {
        true => ServedFamilies::Both,
        false => ServedFamilies::Own,
    }
}

/// Finds out that nothing else serves the address, and which port the kernel chooses for 0.
///
/// Without IPv6 every address of the host is one of IPv4: `[::]` is then taken for `0.0.0.0`, or for nothing where
/// that is named beside it.
fn check_available(
    address: SocketAddr,
    families: ServedFamilies,
    setting: &'static str,
) -> Result<Option<SocketAddr>, ListenError> {
    let try_on = |address, families| {
        let opened = tcp_socket::bind(address, families, PortSharing::Exclusive);
        let opened = opened.and_then(|socket| tcp_socket::listen(socket, 1));
        opened.and_then(|listener| listener.local_addr())
    };
    match try_on(address, families) {
        Ok(real) => Ok(Some(real)),
        Err(source) if tcp_socket::is_without_ipv6(&source) => match ipv4_fallback(address, families) {
            Some(instead) => {
                tracing::warn!(%address, setting, "there is no IPv6 here: {address} ({setting}) serves IPv4 alone");
                let real = instead.map(|instead| try_on(instead, ServedFamilies::Own)).transpose();
                real.map_err(|source| listen_error(address, setting, source))
            }
            None => Err(ListenError::Ipv6Unavailable { address, setting }),
        },
        Err(source) => Err(listen_error(address, setting, source)),
    }
}

/// What serves an IPv6 address's clients where there is no IPv6; none if nothing does.
fn ipv4_fallback(address: SocketAddr, families: ServedFamilies) -> Option<Option<SocketAddr>> {
    let every = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let four = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
    every.then_some(if families == ServedFamilies::Both { Some(four) } else { None })
}

fn listen_error(address: SocketAddr, setting: &'static str, source: io::Error) -> ListenError {
    match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::AddressInUse { address, setting },
        io::ErrorKind::AddrNotAvailable => ListenError::AddressNotAvailable { address, setting },
        _ => ListenError::BindFailed { address, setting, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn every_address_is_of_both_families_unless_one_of_ipv4_is_named() {
        let of = |address: &str, named: &[&str]| {
            served_families(parsed(address), &named.iter().map(|text| parsed(text)).collect::<Vec<_>>())
        };
        assert_eq!(of("[::]:80", &["[::]:80", "127.0.0.1:81"]), ServedFamilies::Both);
        assert_eq!(of("[::]:80", &["0.0.0.0:80", "[::]:80"]), ServedFamilies::Own);
        assert_eq!(of("[::]:80", &["127.0.0.1:80"]), ServedFamilies::Own);
        assert_eq!(of("[::]:0", &["127.0.0.1:0"]), ServedFamilies::Both);
        assert_eq!(of("[::1]:80", &[]), ServedFamilies::Own);
        assert_eq!(of("0.0.0.0:80", &[]), ServedFamilies::Own);
    }

    #[test]
    fn without_ipv6_every_address_is_one_of_ipv4_and_no_other_is() {
        assert_eq!(ipv4_fallback(parsed("[::]:80"), ServedFamilies::Both), Some(Some(parsed("0.0.0.0:80"))));
        assert_eq!(
            ipv4_fallback(parsed("[::]:80"), ServedFamilies::Own),
            Some(None),
            "0.0.0.0 is named beside it"
        );
        assert_eq!(ipv4_fallback(parsed("[::1]:80"), ServedFamilies::Own), None);
    }
}
