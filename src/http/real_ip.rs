//! The client's address, and whether it used TLS, as far as trusted proxies say so.
//!
//! Pure. Guarantees that headers of a peer outside the trusted networks count for nothing, and that no hop counts past the
//! last trusted hop: headers are read from the right (RFC 7239 §8.1), never the leftmost entry, which the client writes.

use std::fmt;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Deref;

use http::header::FORWARDED;
use http::{HeaderMap, HeaderName};

use crate::config::settings::{ForwardedHeader, ProxyConfig};
use crate::http::header_names::{X_FORWARDED_FOR, X_FORWARDED_PROTO};
use crate::http::request_head::has_header;

/// Most hops that are walked past; more of them are a loop between proxies or an attack.
const MAX_HOPS: usize = 32;

/// How the client reached the nearest trusted hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientTransport {
    /// Unencrypted, unless a trusted proxy says otherwise.
    Plain,
    /// Over TLS, as a trusted proxy says.
    Tls,
}

/// The client of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientInfo {
    /// The client's address, IPv4-mapped IPv6 as IPv4.
    pub address: IpAddr,
    /// Whether it came over TLS.
    pub transport: ClientTransport,
    /// Whether the socket's peer is a trusted proxy, whose request id is taken over too.
    pub proxied: bool,
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionPeer {
    /// A socket with an address.
    Internet(SocketAddr),
    /// A Unix socket's client, which has none. Who may connect is decided by the file's permissions, and so it is
    /// trusted as a proxy is.
    UnixSocket,
}

impl ConnectionPeer {
    /// Its IP address, if it has one.
    pub fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Internet(address) => Some(address.ip()),
            Self::UnixSocket => None,
        }
    }

    /// Its IP address, IPv4-mapped IPv6 as IPv4; that of [`ClientInfo::UNKNOWN`] if it has none.
    pub(super) fn canonical_ip(self) -> IpAddr {
        self.ip().map_or(ClientInfo::UNKNOWN.address, |ip| ip.to_canonical())
    }
}

impl From<SocketAddr> for ConnectionPeer {
    fn from(address: SocketAddr) -> Self {
        Self::Internet(address)
    }
}

/// Determines the client from the socket's peer and, only if that is trusted, the one configured header.
///
/// The client of a Unix socket's peer that names none is [`ClientInfo::UNKNOWN`]'s address: all of them are one client, so
/// that limits hold too much rather than not at all.
pub fn client_from_headers(peer: ConnectionPeer, headers: &HeaderMap, proxy: &ProxyConfig) -> ClientInfo {
    let is_unix = peer == ConnectionPeer::UnixSocket;
    let peer = peer.canonical_ip();
    if !is_unix && !proxy.trusts(peer) {
        return ClientInfo { address: peer, transport: ClientTransport::Plain, proxied: false };
    }
    let is_forwarded = match proxy.header {
        ForwardedHeader::XForwardedFor => {
            has_header(headers, &X_FORWARDED_FOR) || has_header(headers, &X_FORWARDED_PROTO)
        }
        ForwardedHeader::Forwarded => has_header(headers, &FORWARDED),
    };
    if !is_forwarded {
        return ClientInfo { address: peer, transport: ClientTransport::Plain, proxied: true };
    }
    let (address, proto) = match proxy.header {
        ForwardedHeader::XForwardedFor => {
            let nodes = values(headers, X_FORWARDED_FOR).flat_map(|value| value.rsplit(','));
            let proto = values(headers, X_FORWARDED_PROTO).next();
            (
                walk_trusted_hops(peer, proxy, nodes),
                proto.and_then(|value| value.rsplit(',').next()).map(str::trim),
            )
        }
        ForwardedHeader::Forwarded => {
            // Of what the client wrote itself only the part to the left of a trusted hop's element can be bent.
            let hops: Vec<&str> = values(headers, FORWARDED).flat_map(elements_from_right).collect();
            let proto = hops.first().and_then(|hop| parameter(hop, "proto"));
            (
                walk_trusted_hops(
                    peer,
                    proxy,
                    hops.iter().map(|hop| parameter(hop, "for").unwrap_or("unknown")),
                ),
                proto,
            )
        }
    };
    let tls = proto.is_some_and(|proto| proto.eq_ignore_ascii_case("https"));
    ClientInfo {
        address,
        transport: if tls { ClientTransport::Tls } else { ClientTransport::Plain },
        proxied: true,
    }
}

impl ClientInfo {
    /// Stands for a client whose address the server does not tell.
    pub const UNKNOWN: Self = Self {
        address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        transport: ClientTransport::Plain,
        proxied: false,
    };

    /// What limits count by: an IPv4 address, or the network of this length that an IPv6 address lies in.
    pub fn limit_subject(&self, prefix: u8) -> String {
        str::to_owned(&self.limit_subject_text(prefix))
    }

    /// The same, for a request, which needs it only to make keys of it.
    pub(super) fn limit_subject_text(&self, prefix: u8) -> SubjectText {
        let mut text = SubjectText { text: [0; SUBJECT_MAX], length: 0 };
        match client_network(self.address, prefix) {
            IpAddr::V4(address) => text.v4(address),
            // It has room for the longest.
            IpAddr::V6(network) => _ = write!(text, "{network}/{prefix}"),
        }
        text
    }
}

/// Longest text of a subject: an IPv6 address, which may be written as 45 characters, and the length of a network.
const SUBJECT_MAX: usize = 49;

/// A subject's text, in its place and not on the heap.
#[derive(Debug, Clone, Copy)]
pub(super) struct SubjectText {
    text: [u8; SUBJECT_MAX],
    length: usize,
}

impl SubjectText {
    /// As `Display` writes it, which costs a request some 1,000 instructions more.
    fn v4(&mut self, address: Ipv4Addr) {
        for (at, octet) in address.octets().into_iter().enumerate() {
            if at > 0 {
                self.put(b'.');
            }
            if octet >= 100 {
                self.put(b'0' + octet / 100);
            }
            if octet >= 10 {
                self.put(b'0' + octet / 10 % 10);
            }
            self.put(b'0' + octet % 10);
        }
    }

    fn put(&mut self, byte: u8) {
        if let Some(place) = self.text.get_mut(self.length) {
            *place = byte;
            self.length += 1;
        }
    }
}

impl Write for SubjectText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| self.put(byte));
        Ok(())
    }
}

impl Deref for SubjectText {
    type Target = str;

    fn deref(&self) -> &str {
        std::str::from_utf8(&self.text[..self.length]).unwrap_or_default()
    }
}

/// An address without what its subscriber chooses: an IPv6 one is its network of this length, at most 64, of which one
/// subscriber has all addresses.
pub fn client_network(address: IpAddr, prefix: u8) -> IpAddr {
    let v4 = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)).into();
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => match address.segments() {
            // NAT64 (RFC 6052): the whole IPv4 internet lies in one /64, so the IPv4 address inside counts.
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
            // 6to4 (RFC 3056): an IPv4 address comes with the /48 made of it.
            [0x2002, high, low, ..] => v4(high, low),
            _ => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(u128::MAX);
                Ipv6Addr::from_bits(address.to_bits() & mask).into()
            }
        },
    }
}

/// A header's values, the last one first; repeated headers are one list (RFC 9110 §5.3).
fn values(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    headers.get_all(name).iter().rev().map(|value| value.to_str().unwrap_or("unknown"))
}

/// Walks from the nearest hop to the first one that no trusted proxy vouches for; a node without an address ends the walk.
fn walk_trusted_hops<'a>(peer: IpAddr, proxy: &ProxyConfig, nodes: impl Iterator<Item = &'a str>) -> IpAddr {
    let mut last_trusted = peer;
    for node in nodes.map(str::trim).filter(|node| !node.is_empty()).take(MAX_HOPS) {
        match parse_node_address(node) {
            None => break,
            Some(address) if proxy.trusts(address) => last_trusted = address,
            Some(address) => return address,
        }
    }
    last_trusted
}

/// The address of a node without port, brackets and zone; `None` for `unknown`, `_hidden` and anything else.
fn parse_node_address(node: &str) -> Option<IpAddr> {
    let host = match node.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            (port.is_empty() || port.starts_with(':')).then_some(host)?
        }
        None => match node.split_once(':') {
            Some((host, port)) if !port.contains(':') => host,
            _ => node,
        },
    };
    let host = host.split_once('%').map_or(host, |(host, _zone)| host);
    let address = host.parse::<IpAddr>().ok()?.to_canonical();
    (!address.is_unspecified()).then_some(address)
}

/// Elements of a `Forwarded` value, the last one first; commas in quotes separate nothing.
fn elements_from_right(value: &str) -> impl Iterator<Item = &str> {
    split_outside_quotes(value, ',').into_iter().rev()
}

/// The value of a parameter of a `Forwarded` element, unquoted.
fn parameter<'a>(element: &'a str, name: &str) -> Option<&'a str> {
    split_outside_quotes(element, ';').into_iter().find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        let value = value.trim();
        let unquoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value);
        key.trim().eq_ignore_ascii_case(name).then_some(unquoted)
    })
}

fn split_outside_quotes(text: &str, separator: char) -> Vec<&str> {
    let mut quoted = false;
    text.split(|c| {
        quoted ^= c == '"';
        c == separator && !quoted
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRUSTED: [&str; 4] = ["127.0.0.0/8", "10.0.0.0/8", "::1/128", "fd00::/8"];

    fn proxy(header: ForwardedHeader) -> ProxyConfig {
        ProxyConfig { trusted: TRUSTED.iter().map(|net| net.parse().unwrap()).collect(), header }
    }

    fn resolved(header: ForwardedHeader, peer: &str, lines: &[(&'static str, &str)]) -> ClientInfo {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        let peer = SocketAddr::new(peer.parse().unwrap(), 9);
        client_from_headers(peer.into(), &headers, &proxy(header))
    }

    #[test]
    fn x_forwarded_for_is_read_from_the_right_past_trusted_hops() {
        let cases: [(&str, &[&str], &str); 20] = [
            ("1.1.1.1", &[], "1.1.1.1"),
            ("1.1.1.1", &["2.2.2.2"], "1.1.1.1"),
            ("1.1.1.1", &["127.0.0.1"], "1.1.1.1"),
            ("127.0.0.1", &[], "127.0.0.1"),
            ("127.0.0.1", &["2.2.2.2"], "2.2.2.2"),
            ("127.0.0.1", &["9.9.9.9, 2.2.2.2"], "2.2.2.2"),
            ("127.0.0.1", &["9.9.9.9, 2.2.2.2, 10.0.0.7"], "2.2.2.2"),
            ("127.0.0.1", &["9.9.9.9", "2.2.2.2", "10.0.0.7"], "2.2.2.2"),
            ("127.0.0.1", &["10.0.0.1, 10.0.0.2"], "10.0.0.1"),
            ("127.0.0.1", &["2.2.2.2, garbage"], "127.0.0.1"),
            ("127.0.0.1", &["2.2.2.2, unknown, 10.0.0.2"], "10.0.0.2"),
            ("127.0.0.1", &["2.2.2.2, 0.0.0.0"], "127.0.0.1"),
            ("127.0.0.1", &["", " , ", "2.2.2.2,"], "2.2.2.2"),
            ("127.0.0.1", &["2.2.2.2:4711"], "2.2.2.2"),
            ("127.0.0.1", &["[2001:db8::1]:4711"], "2001:db8::1"),
            ("127.0.0.1", &["[2001:db8::1]"], "2001:db8::1"),
            ("127.0.0.1", &["2001:db8::1%eth0"], "2001:db8::1"),
            ("::ffff:127.0.0.1", &["::ffff:2.2.2.2"], "2.2.2.2"),
            ("::1", &["2001:db8::1, fd00::7"], "2001:db8::1"),
            ("127.0.0.1", &["2.2.2.2, [2001:db8::1]x"], "127.0.0.1"),
        ];
        for (peer, values, expected) in cases {
            let lines: Vec<_> = values.iter().map(|value| ("x-forwarded-for", *value)).collect();
            let client = resolved(ForwardedHeader::XForwardedFor, peer, &lines);
            assert_eq!(client.address, expected.parse::<IpAddr>().unwrap(), "{peer} {values:?}");
        }
    }

    #[test]
    fn forwarded_is_read_from_the_right_past_trusted_hops() {
        let cases: [(&[&str], &str); 9] = [
            (&["for=2.2.2.2"], "2.2.2.2"),
            (&["For=\"2.2.2.2:80\";proto=http"], "2.2.2.2"),
            (&["for=9.9.9.9, for=\"[2001:db8::1]:4711\";by=10.0.0.1"], "2001:db8::1"),
            (&["for=9.9.9.9, for=2.2.2.2, for=10.0.0.1"], "2.2.2.2"),
            (&["for=2.2.2.2, for=unknown"], "127.0.0.1"),
            (&["for=2.2.2.2, for=_hidden, for=10.0.0.1"], "10.0.0.1"),
            (&["for=2.2.2.2, proto=https"], "127.0.0.1"),
            (&["for=\"a, for=9.9.9.9", "for=2.2.2.2"], "2.2.2.2"),
            (&["for=\"9.9.9.9, for=8.8.8.8, for=2.2.2.2"], "127.0.0.1"),
        ];
        for (values, expected) in cases {
            let lines: Vec<_> = values.iter().map(|value| ("forwarded", *value)).collect();
            let client = resolved(ForwardedHeader::Forwarded, "127.0.0.1", &lines);
            assert_eq!(client.address, expected.parse::<IpAddr>().unwrap(), "{values:?}");
        }
    }

    #[test]
    fn a_subject_is_written_as_its_address_is() {
        let written = |address: IpAddr, prefix| {
            ClientInfo { address, transport: ClientTransport::Plain, proxied: false }.limit_subject(prefix)
        };
        for octet in 0..=255 {
            let address = Ipv4Addr::new(octet, 255 - octet, octet / 2, 9);
            assert_eq!(written(address.into(), 64), address.to_string());
        }
        let longest = Ipv6Addr::from_bits(u128::MAX);
        assert_eq!(written(longest.into(), 128), format!("{longest}/128"));
        assert!("ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255/128".len() <= SUBJECT_MAX);
    }

    #[test]
    fn only_the_configured_header_is_read() {
        let lines = [("forwarded", "for=2.2.2.2"), ("x-real-ip", "3.3.3.3"), ("cf-connecting-ip", "4.4.4.4")];
        let client = resolved(ForwardedHeader::XForwardedFor, "127.0.0.1", &lines);
        assert_eq!(client.address, "127.0.0.1".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn a_unix_sockets_peer_may_speak_for_clients_and_is_one_itself_otherwise() {
        let of = |lines: &[(&'static str, &str)]| {
            let headers = lines.iter().map(|(name, value)| {
                (HeaderName::from_static(name), value.parse::<http::HeaderValue>().unwrap())
            });
            let headers: HeaderMap = headers.collect();
            client_from_headers(ConnectionPeer::UnixSocket, &headers, &proxy(ForwardedHeader::XForwardedFor))
        };
        let named = of(&[("x-forwarded-for", "203.0.113.9"), ("x-forwarded-proto", "https")]);
        assert_eq!(named.address, "203.0.113.9".parse::<IpAddr>().unwrap());
        assert_eq!((named.transport, named.proxied), (ClientTransport::Tls, true));
        for lines in [&[][..], &[("x-forwarded-for", "unknown")], &[("x-forwarded-for", "")]] {
            let unnamed = of(lines);
            assert_eq!((unnamed.address, unnamed.proxied), (ClientInfo::UNKNOWN.address, true), "{lines:?}");
        }
    }

    #[test]
    fn only_a_trusted_peer_may_report_tls() {
        let cases = [
            ("127.0.0.1", "https", ClientTransport::Tls),
            ("127.0.0.1", "HTTPS", ClientTransport::Tls),
            ("127.0.0.1", "http", ClientTransport::Plain),
            ("127.0.0.1", "https, http", ClientTransport::Plain),
            ("1.1.1.1", "https", ClientTransport::Plain),
        ];
        for (peer, proto, expected) in cases {
            let client = resolved(ForwardedHeader::XForwardedFor, peer, &[("x-forwarded-proto", proto)]);
            assert_eq!(client.transport, expected, "{peer} {proto}");
        }
        let client =
            resolved(ForwardedHeader::Forwarded, "127.0.0.1", &[("forwarded", "for=2.2.2.2;proto=https")]);
        assert_eq!(client.transport, ClientTransport::Tls);
    }

    #[test]
    fn a_hundred_trusted_hops_end_somewhere() {
        let hops = vec!["10.0.0.1"; 100].join(", ");
        let client = resolved(ForwardedHeader::XForwardedFor, "127.0.0.1", &[("x-forwarded-for", &hops)]);
        assert_eq!(client.address, "10.0.0.1".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn limits_count_ipv6_by_its_network() {
        let of = |address: &str, prefix| {
            let address = address.parse().unwrap();
            ClientInfo { address, transport: ClientTransport::Plain, proxied: false }.limit_subject(prefix)
        };
        let subject = |address: &str| of(address, 64);
        assert_eq!(subject("2.2.2.2"), "2.2.2.2");
        for mapped in ["::ffff:1.2.3.4", "::FFFF:102:304", "0:0:0:0:0:ffff:0102:0304"] {
            assert_eq!(subject(mapped), "1.2.3.4");
        }
        let of_one_56: Vec<_> = (0..8).map(|n| of(&format!("2001:db8:1:ff0{n}::1"), 56)).collect();
        assert!(of_one_56.iter().all(|one| one == "2001:db8:1:ff00::/56"), "{of_one_56:?}");
        assert_ne!(of("2001:db8:1:fe00::1", 56), of_one_56[0]);
        assert_eq!(of("2001:db8:1:ff00::1", 48), "2001:db8:1::/48");
        assert_eq!(of("2001:db8:1:ff00::1", 32), "2001:db8::/32");
        assert_eq!(subject("2002:102:304:5::1"), "1.2.3.4");
        assert_eq!(subject("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
        assert_eq!(subject("2001:db8:1:2:ffff::"), subject("2001:db8:1:2::1"));
        assert_ne!(subject("2001:db8:1:3::1"), subject("2001:db8:1:2::1"));
        assert_eq!(subject("64:ff9b::2.2.2.2"), "2.2.2.2");
    }
}
