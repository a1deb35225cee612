//! Why a listener could not be opened.

use std::io;
use std::net::SocketAddr;

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
    /// A socket that systemd opened cannot be used.
    #[error("cannot use a socket that systemd lends")]
    Activation(#[source] io::Error),
}
