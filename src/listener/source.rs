//! Where the listeners of all slots at one address come from.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::config::settings::{ListenAddress, UnixSocketName};
use crate::listener::error::ListenError;
use crate::listener::socket::{Listener, ListeningSocket, SocketOwner};
use crate::sys::tcp_socket::{PortSharing, ServedFamilies};
use crate::sys::{tcp_socket, unix_listener};

/// Connections that may wait in one listener's queue; the kernel caps it at `net.core.somaxconn`.
pub(super) const BACKLOG: i32 = 4096;

/// Where a slot's listener at one address comes from.
#[derive(Debug, Clone)]
pub(super) enum ListenerSource {
    /// Each slot opens its own, in one reuseport group.
    PerSlot { address: SocketAddr, families: ServedFamilies },
    /// All slots share one.
    Shared(Arc<Listener>),
}

impl ListenerSource {
    /// What opened it.
    pub(super) fn owner(&self) -> SocketOwner {
        match self {
            Self::PerSlot { .. } => SocketOwner::Slot,
            Self::Shared(listener) => listener.owner,
        }
    }

    /// Where it is.
    pub(super) fn address(&self) -> Option<ListenAddress> {
        match self {
            Self::PerSlot { address, .. } => Some(ListenAddress::Internet(*address)),
            Self::Shared(listener) => listener.address().ok(),
        }
    }

    /// The same for a listener of a slot that is open already.
    pub(super) fn from_open(listener: &Listener) -> io::Result<Self> {
        match listener.internet_address().filter(|_| listener.owner == SocketOwner::Slot) {
            Some(address) => {
                let both = listener.is_dual_stack();
                let families = if both { ServedFamilies::Both } else { ServedFamilies::Own };
                Ok(Self::PerSlot { address, families })
            }
            None => Ok(Self::Shared(Arc::new(listener.try_clone()?))),
        }
    }

    /// Opens a slot's listener.
    pub(super) fn open(&self, setting: &'static str) -> Result<Listener, ListenError> {
        match self {
            Self::PerSlot { address, families } => {
                let opened = tcp_socket::bind(*address, *families, PortSharing::ReusePort)
                    .and_then(|socket| tcp_socket::listen(socket, BACKLOG));
                let opened = opened.map(|socket| Listener {
                    socket: ListeningSocket::Tcp(socket),
                    owner: SocketOwner::Slot,
                });
                opened.map_err(|source| listen_error(*address, setting, source))
            }
            Self::Shared(listener) => listener.try_clone().map_err(ListenError::Activation),
        }
    }

    /// Ends listening where all slots share a socket that is this fleet's own, and removes its file.
    pub(super) fn close(&self) {
        let Self::Shared(listener) = self else { return };
        if listener.owner != SocketOwner::Fleet {
            return;
        }
        // Its workers may have ended it already.
        let _ = tcp_socket::shut_down_listener(&listener.socket);
        if let Ok(ListenAddress::Unix(UnixSocketName::Path(path))) = listener.address()
            && let Err(error) = unix_listener::remove_socket_file(&path)
        {
            let path = path.display();
            tracing::warn!(%path, %error, "the file of a socket that is closed stays there: {error}");
        }
    }
}

/// The listeners that a new configuration has in common with those there are, in its order, and what is missing.
pub(super) fn match_sources(
    present: &[ListenerSource],
    wanted: &[ListenAddress],
) -> (Vec<ListenerSource>, Vec<ListenAddress>) {
    let is_lent = |source: &&ListenerSource| source.owner() == SocketOwner::Systemd;
    // What systemd lends stands in the place of the setting.
    if present.iter().any(|source| is_lent(&source)) {
        return (present.to_vec(), Vec::new());
    }
    let addresses: Vec<_> = present.iter().map(ListenerSource::address).collect();
    let mut is_free = vec![true; present.len()];
    let (mut kept, mut missing) = (Vec::new(), Vec::new());
    for address in wanted {
        let exact = |known: &Option<ListenAddress>| known.as_ref() == Some(address);
        let chosen = |known: &Option<ListenAddress>| {
            let known = known.as_ref().and_then(ListenAddress::internet);
            is_same_host(address.internet(), known) && known.is_some_and(|known| !is_named(wanted, known))
        };
        let found = |fits: &dyn Fn(&Option<ListenAddress>) -> bool| {
            addresses.iter().zip(&is_free).position(|(known, free)| *free && fits(known))
        };
        match found(&exact).or_else(|| found(&chosen)) {
            Some(place) => {
                is_free[place] = false;
                kept.push(present[place].clone());
            }
            None => missing.push(address.clone()),
        }
    }
    (kept, missing)
}

/// Whether port 0 is wanted at the host of `known`: the kernel has chosen that port for it.
fn is_same_host(wanted: Option<SocketAddr>, known: Option<SocketAddr>) -> bool {
    match (wanted, known) {
        (Some(wanted), Some(known)) => wanted.port() == 0 && wanted.ip() == known.ip(),
        _ => false,
    }
}

fn is_named(wanted: &[ListenAddress], known: SocketAddr) -> bool {
    wanted.iter().any(|one| one.internet() == Some(known))
}

/// The same error with its address and setting.
pub(super) fn listen_error(address: SocketAddr, setting: &'static str, source: io::Error) -> ListenError {
    match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::AddressInUse { address, setting },
        io::ErrorKind::AddrNotAvailable => ListenError::AddressNotAvailable { address, setting },
        _ => ListenError::BindFailed { address, setting, source },
    }
}
