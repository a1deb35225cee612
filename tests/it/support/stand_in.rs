//! Addresses that stand for something else: a Unix socket, or an address where a connection begins with a header of the
//! PROXY protocol. So every client of these tests can be sent there.

use std::io::Write;
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::support::client::TIMEOUT;

#[derive(Debug, Clone)]
enum Target {
    Unix(PathBuf),
    Begun { address: SocketAddr, bytes: Vec<u8> },
}

static TARGETS: Mutex<Vec<Target>> = Mutex::new(Vec::new());

/// For documentation, and so never reached (RFC 3849).
const NETWORK: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

fn stand_in(target: Target) -> SocketAddr {
    let mut targets = TARGETS.lock().unwrap();
    targets.push(target);
    SocketAddr::new(NETWORK.into(), u16::try_from(targets.len() - 1).unwrap())
}

/// Stands for a Unix socket.
pub(crate) fn unix(path: &Path) -> SocketAddr {
    stand_in(Target::Unix(path.to_owned()))
}

/// Stands for an address, or a stand-in, where each connection begins with these bytes.
pub(crate) fn begun(address: SocketAddr, bytes: &[u8]) -> SocketAddr {
    stand_in(Target::Begun { address, bytes: bytes.to_vec() })
}

/// Connects, through a stand-in if it is one.
pub(crate) fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    if address.ip() != NETWORK {
        return TcpStream::connect_timeout(&address, TIMEOUT);
    }
    let target = TARGETS.lock().unwrap()[usize::from(address.port())].clone();
    match target {
        // Sending and receiving are the same for any stream socket.
        Target::Unix(path) => Ok(OwnedFd::from(UnixStream::connect(path)?).into()),
        Target::Begun { address, bytes } => {
            let mut stream = connect(address)?;
            stream.write_all(&bytes)?;
            Ok(stream)
        }
    }
}

/// Whether it is one.
pub(crate) fn is_one(address: SocketAddr) -> bool {
    address.ip() == NETWORK
}
