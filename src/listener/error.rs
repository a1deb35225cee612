//! Why a listener could not be opened.

use std::io;
use std::net::SocketAddr;

use crate::config::settings::UnixSocketName;
use crate::sys::unix_listener::UnixListenError;

/// Why a listener could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Something listens there already.
    #[error(
        "cannot listen on {address} ({setting}): another process, or another fleet, serves that port already"
    )]
    AddressInUse {
        /// The wanted address.
        address: SocketAddr,
        /// The setting that names it.
        setting: &'static str,
    },
    /// It is an IPv6 address, and the kernel has none.
    #[error(
        "cannot listen on {address} ({setting}): this host has no IPv6, or this process may not use it; only [::] is \
         then taken for 0.0.0.0"
    )]
    Ipv6Unavailable {
        /// The wanted address.
        address: SocketAddr,
        /// The setting that names it.
        setting: &'static str,
    },
    /// It is an address of another host, or of an interface that is not up yet.
    #[error("cannot listen on {address} ({setting}): no interface of this host has this address")]
    AddressNotAvailable {
        /// The wanted address.
        address: SocketAddr,
        /// The setting that names it.
        setting: &'static str,
    },
    /// The kernel refuses the address.
    #[error("cannot listen on {address} ({setting})")]
    BindFailed {
        /// The wanted address.
        address: SocketAddr,
        /// The setting that names it.
        setting: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A socket that stays would have to serve other families than it does.
    #[error(
        "{address} cannot begin or cease to serve IPv4 while the fleet runs: stop it and start it again, or leave the IPv4 address of that port as it is"
    )]
    FamiliesChanged {
        /// The address.
        address: SocketAddr,
    },
    /// A Unix socket cannot be listened on.
    #[error("cannot listen on unix:{name} ({setting}): {source}")]
    Unix {
        /// The wanted socket.
        name: UnixSocketName,
        /// The setting that names it.
        setting: &'static str,
        /// Why, and what to do.
        source: UnixListenError,
    },
    /// A socket that systemd opened cannot be used.
    #[error("cannot use a socket that systemd lends")]
    Activation(#[source] io::Error),
}

impl ListenError {
    /// Whether another process, or another fleet, has the address now.
    pub fn is_in_use(&self) -> bool {
        match self {
            Self::AddressInUse { .. } => true,
            Self::Unix { source, .. } => matches!(source, UnixListenError::InUse { .. }),
            _ => false,
        }
    }
}
