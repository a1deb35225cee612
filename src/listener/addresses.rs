//! The addresses that a fleet listens on, from which any number of slots can be opened.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::config::settings::{ListenAddress, SocketFileConfig};
use crate::listener::error::ListenError;
use crate::listener::slot_listeners::SlotListeners;
use crate::listener::socket::{Listener, ListeningSocket, SocketOwner};
use crate::listener::source::{BACKLOG, ListenerSource, listen_error, match_sources};
use crate::listener::systemd::ActivatedSockets;
use crate::sys::tcp_socket::{PortSharing, ServedFamilies};
use crate::sys::unix_listener::SocketFileAccess;
use crate::sys::{tcp_socket, unix_listener};

/// The settings that name addresses.
const PUBLIC_SETTING: &str = "listen";
const ADMIN_SETTING: &str = "admin.listen";

/// The addresses of a fleet, with real ports, from which any number of slots can be opened.
#[derive(Debug, Clone)]
pub struct ListenAddresses {
    public: Vec<ListenerSource>,
    admin: Vec<ListenerSource>,
}

/// What is to be listened on.
#[derive(Debug, Clone, Copy)]
pub struct ListenRequest<'a> {
    /// Public addresses.
    pub public: &'a [ListenAddress],
    /// The operators' addresses.
    pub admin: &'a [ListenAddress],
    /// Who may connect to the files of Unix sockets.
    pub socket_file: &'a SocketFileConfig,
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
    request: ListenRequest<'_>,
    activated: &ActivatedSockets,
    slots: usize,
) -> Result<(ListenAddresses, Vec<SlotListeners>), ListenError> {
    let lent = |sockets: &[ListeningSocket]| -> io::Result<Vec<ListenerSource>> {
        let lent = |socket: &ListeningSocket| {
            let listener = Listener { socket: socket.try_clone()?, owner: SocketOwner::Systemd };
            Ok(ListenerSource::Shared(Arc::new(listener)))
        };
        sockets.iter().map(lent).collect()
    };
    let mut addresses = ListenAddresses {
        public: lent(&activated.public).map_err(ListenError::Activation)?,
        admin: lent(&activated.admin).map_err(ListenError::Activation)?,
    };
    let opened = addresses.add(request).and_then(|()| (0..slots).map(|_| addresses.open_slot()).collect());
    match opened {
        Ok(listeners) => Ok((addresses, listeners)),
        Err(error) => {
            addresses.close_shared();
            Err(error)
        }
    }
}

/// The addresses of a fleet that runs, with others in place of those it has, and what of them is new and was opened.
///
/// # Errors
/// When an address is taken or refused; nothing of it stays open.
pub(super) fn open_missing(
    present: &ListenAddresses,
    wanted: ListenRequest<'_>,
) -> Result<(ListenAddresses, ListenAddresses), ListenError> {
    let named: Vec<_> =
        wanted.public.iter().chain(wanted.admin).filter_map(ListenAddress::internet).collect();
    let mut added = ListenAddresses { public: Vec::new(), admin: Vec::new() };
    let (public, missing_public) = match_sources(&present.public, wanted.public);
    let (admin, missing_admin) = match_sources(&present.admin, wanted.admin);
    let opened = check_families(public.iter().chain(&admin), &named).and_then(|()| {
        for address in &missing_public {
            added.public.extend(open_source(address, &named, PUBLIC_SETTING, wanted.socket_file)?);
        }
        for address in &missing_admin {
            added.admin.extend(open_source(address, &named, ADMIN_SETTING, wanted.socket_file)?);
        }
        Ok(())
    });
    if let Err(error) = opened {
        added.close_shared();
        return Err(error);
    }
    let after = ListenAddresses {
        public: [public, added.public.clone()].concat(),
        admin: [admin, added.admin.clone()].concat(),
    };
    Ok((after, added))
}

/// A socket that is kept cannot begin or cease to serve IPv4: it was bound for the families it has.
fn check_families<'a>(
    mut kept: impl Iterator<Item = &'a ListenerSource>,
    named: &[SocketAddr],
) -> Result<(), ListenError> {
    let changed = |source: &&ListenerSource| match source {
        ListenerSource::PerSlot { address, families } if address.is_ipv6() => {
            *families != served_families(*address, named)
        }
        ListenerSource::PerSlot { .. } | ListenerSource::Shared(_) => false,
    };
    match kept.find(changed) {
        Some(ListenerSource::PerSlot { address, .. }) => {
            Err(ListenError::FamiliesChanged { address: *address })
        }
        Some(ListenerSource::Shared(_)) | None => Ok(()),
    }
}

impl ListenAddresses {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.public.is_empty() && self.admin.is_empty()
    }

    /// Probes the addresses of the kinds of which there is none yet, and opens what all slots share.
    fn add(&mut self, request: ListenRequest<'_>) -> Result<(), ListenError> {
        let wanted = [(request.public, PUBLIC_SETTING), (request.admin, ADMIN_SETTING)];
        let kinds = [&mut self.public, &mut self.admin];
        let kinds: Vec<_> = kinds.into_iter().zip(wanted).filter(|(sources, _)| sources.is_empty()).collect();
        let named: Vec<SocketAddr> = kinds
            .iter()
            .flat_map(|(_, (addresses, _))| addresses.iter().filter_map(ListenAddress::internet))
            .collect();
        for (sources, (addresses, setting)) in kinds {
            for address in addresses {
                sources.extend(open_source(address, &named, setting, request.socket_file)?);
            }
        }
        Ok(())
    }

    /// The addresses of slots that are open already, as a supervisor needs them that takes a fleet over.
    ///
    /// # Errors
    /// When the kernel does not say where a socket listens, or no descriptor is left.
    pub fn from_slot(slot: &SlotListeners) -> io::Result<Self> {
        let sources = |listeners: &[Listener]| {
            listeners.iter().map(ListenerSource::from_open).collect::<io::Result<Vec<_>>>()
        };
        Ok(Self { public: sources(&slot.public)?, admin: sources(&slot.admin)? })
    }

    /// Opens the listeners of one more slot; they take connections at once, unless [`SlotListeners::steer`] has said
    /// before that the new last slot is closed.
    ///
    /// # Errors
    /// When an address is refused.
    pub fn open_slot(&self) -> Result<SlotListeners, ListenError> {
        let all = |sources: &[ListenerSource], setting| {
            sources.iter().map(|source| source.open(setting)).collect::<Result<_, _>>()
        };
        Ok(SlotListeners::new(all(&self.public, PUBLIC_SETTING)?, all(&self.admin, ADMIN_SETTING)?))
    }

    /// Public addresses.
    pub fn public(&self) -> Vec<ListenAddress> {
        self.public.iter().filter_map(ListenerSource::address).collect()
    }

    /// The operators' addresses.
    pub fn admin(&self) -> Vec<ListenAddress> {
        self.admin.iter().filter_map(ListenerSource::address).collect()
    }

    /// Ends listening on the sockets that all slots share and that are this fleet's own, and removes their files; for
    /// a fleet that has ended. What systemd lends goes on.
    pub fn close_shared(&self) {
        self.public.iter().chain(&self.admin).for_each(ListenerSource::close);
    }
}

/// Finds out that an address can be served; none: another one of the list serves its clients.
fn open_source(
    address: &ListenAddress,
    named: &[SocketAddr],
    setting: &'static str,
    socket_file: &SocketFileConfig,
) -> Result<Option<ListenerSource>, ListenError> {
    match address {
        ListenAddress::Internet(address) => {
            let families = served_families(*address, named);
            let real = check_available(*address, families, setting)?;
            Ok(real.map(|address| ListenerSource::PerSlot {
                address,
                families: if address.is_ipv6() { families } else { ServedFamilies::Own },
            }))
        }
        ListenAddress::Unix(name) => {
            let SocketFileConfig { mode, owner, group } = socket_file.clone();
            let opened = unix_listener::listen(name, &SocketFileAccess { mode, owner, group }, BACKLOG);
            let socket =
                opened.map_err(|source| ListenError::Unix { name: name.clone(), setting, source })?;
            let listener = Listener { socket: ListeningSocket::Unix(socket), owner: SocketOwner::Fleet };
            Ok(Some(ListenerSource::Shared(Arc::new(listener))))
        }
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
