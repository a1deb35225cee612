//! The host's own addresses in its network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use nix::ifaddrs::getifaddrs;

use crate::sys::bpf::IpFamily;

/// The address by which others reach this host, as far as the host can know: the one it would use towards the
/// world, else the first of an interface that is no loopback; none where there is neither.
pub fn outbound_address(family: IpFamily) -> Option<IpAddr> {
    address_of_default_route(family).or_else(|| address_of_interface(family)).filter(is_routable)
}

/// The source address of the default route. Connecting a datagram socket asks the routing table and sends nothing.
fn address_of_default_route(family: IpFamily) -> Option<IpAddr> {
    // Documentation addresses (RFC 5737, RFC 3849): no host has them, so that they are reached by the default route.
    let (any, world): (IpAddr, IpAddr) = match family {
        IpFamily::V4 => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into()),
        IpFamily::V6 => (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    socket.connect(SocketAddr::new(world, 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// The first one; getifaddrs(3).
fn address_of_interface(family: IpFamily) -> Option<IpAddr> {
    let addresses = getifaddrs().ok()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    addresses.filter(|ip| ip.is_ipv6() == (family == IpFamily::V6)).find(is_routable)
}

/// Neither of this host alone nor of one link.
fn is_routable(ip: &IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(ip.is_loopback() || ip.is_unspecified() || link_local)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_this_host_alone_is_never_its_outbound_address() {
        for family in [IpFamily::V4, IpFamily::V6] {
            if let Some(ip) = outbound_address(family) {
                assert!(is_routable(&ip) && ip.is_ipv6() == (family == IpFamily::V6), "{ip}");
            }
        }
        for ip in ["127.0.0.1", "169.254.1.1", "0.0.0.0", "::1", "fe80::1"] {
            assert!(!is_routable(&ip.parse().unwrap()), "{ip}");
        }
    }
}
