//! The PROXY protocol, versions 1 and 2: what a proxy says of its client before the first byte of HTTP.
//!
//! Pure. As the specification (`proxy-protocol.txt`) has it: a receiver is told which connections begin with a header, never guesses,
//! and closes one that begins with anything else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Begins a header of version 2 (§2.2); it is no text of HTTP, and of no other common protocol.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Begins a header of version 1 (§2.1).
const PREFIX: &[u8; 6] = b"PROXY ";

/// Longest header of version 1, with its CRLF (§2.1).
pub const LINE_MAX: usize = 107;

/// Longest header of version 2 that is taken, as in nginx. The format allows 65,551 bytes, but nothing that is of use here
/// follows the addresses.
pub const HEADER_MAX: usize = 4096;

/// Bytes of a header of version 2 before its addresses.
const FIXED: usize = 16;

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxiedClient {
    /// The client of the connection that the proxy has accepted.
    Internet(SocketAddr),
    /// None that is of use: the proxy speaks for itself (LOCAL), or does not know the client (UNKNOWN), or the client is
    /// one of a datagram or a Unix socket. The connection's own peer is the client.
    Unspecified,
}

/// How far the bytes that have come are a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyHeader {
    /// They begin with one.
    Complete {
        /// What it says.
        client: ProxiedClient,
        /// Its length in bytes; what follows is HTTP.
        length: usize,
    },
    /// All of them may belong to one.
    Incomplete,
    /// They are none, whatever follows.
    Invalid,
}

/// Reads the header at the beginning of a connection's bytes.
pub fn parse(bytes: &[u8]) -> ProxyHeader {
    if begins_like(bytes, SIGNATURE) {
        return if bytes.len() < FIXED { parse_partial_fixed(bytes) } else { parse_binary(bytes) };
    }
    if begins_like(bytes, PREFIX) { parse_line(bytes) } else { ProxyHeader::Invalid }
}

/// Whether `bytes` and `beginning` are the same as far as both go.
fn begins_like(bytes: &[u8], beginning: &[u8]) -> bool {
    bytes.iter().zip(beginning).all(|(one, other)| one == other)
}

fn parse_line(bytes: &[u8]) -> ProxyHeader {
    let within = &bytes[..bytes.len().min(LINE_MAX)];
    let Some(end) = within.windows(2).position(|pair| pair == b"\r\n") else {
        // A bare line feed ends no header, and must not be taken for a part of one.
        let is_wrong = bytes.len() >= LINE_MAX || within.contains(&b'\n');
        return if is_wrong { ProxyHeader::Invalid } else { ProxyHeader::Incomplete };
    };
    let line = Some(&within[..end]).filter(|line| !line.contains(&b'\n'));
    let line = line.and_then(|line| std::str::from_utf8(line).ok()?.strip_prefix("PROXY "));
    match line.and_then(client_of_line) {
        Some(client) => ProxyHeader::Complete { client, length: end + 2 },
        None => ProxyHeader::Invalid,
    }
}

/// `TCP4 203.0.113.9 192.0.2.1 56324 443`; one space between two words.
fn client_of_line(line: &str) -> Option<ProxiedClient> {
    let mut words = line.split(' ');
    let family = words.next()?;
    if family == "UNKNOWN" {
        return Some(ProxiedClient::Unspecified);
    }
    let [source, destination, source_port, destination_port] = [(); 4].map(|()| words.next());
    if words.next().is_some() {
        return None;
    }
    let address = |text: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::from),
            "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::from),
            _ => None,
        }
    };
    address(destination?)?;
    port(destination_port?)?;
    Some(ProxiedClient::Internet(SocketAddr::new(address(source?)?, port(source_port?)?)))
}

/// Digits alone, without leading zeros (§2.1).
fn port(text: &str) -> Option<u16> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if is_plain { text.parse().ok() } else { None }
}

/// The command and the family are looked at as soon as they are there.
fn parse_partial_fixed(bytes: &[u8]) -> ProxyHeader {
    let command = bytes.get(SIGNATURE.len()).copied().is_none_or(is_command);
    let family = bytes.get(SIGNATURE.len() + 1).copied().is_none_or(is_family);
    if command && family { ProxyHeader::Incomplete } else { ProxyHeader::Invalid }
}

const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;

/// Version 2 in the upper half, and one of the two commands.
fn is_command(byte: u8) -> bool {
    byte == LOCAL || byte == PROXY
}

/// UNSPEC, INET, INET6, UNIX in the upper half; UNSPEC, STREAM, DGRAM in the lower one.
fn is_family(byte: u8) -> bool {
    byte >> 4 <= 3 && byte & 0xf <= 2
}

/// `bytes` are at least the fixed part.
fn parse_binary(bytes: &[u8]) -> ProxyHeader {
    let (command, family) = (bytes[12], bytes[13]);
    let length = FIXED + usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    if !is_command(command) || !is_family(family) || length > HEADER_MAX {
        return ProxyHeader::Invalid;
    }
    let addresses = match (command, family) {
        (PROXY, 0x11) => 12,
        (PROXY, 0x21) => 36,
        // What is said of any other client is of no use, and of LOCAL it is to be ignored (§2.2).
        _ => 0,
    };
    if length < FIXED + addresses {
        return ProxyHeader::Invalid;
    }
    let Some(body) = bytes.get(FIXED..length) else { return ProxyHeader::Incomplete };
    let client = match addresses {
        12 => v4_client(body),
        36 => v6_client(body),
        _ => Some(ProxiedClient::Unspecified),
    };
    // What follows the addresses (TLVs, a checksum among them) is skipped.
    client.map_or(ProxyHeader::Invalid, |client| ProxyHeader::Complete { client, length })
}

fn v4_client(body: &[u8]) -> Option<ProxiedClient> {
    let octets: [u8; 4] = body.get(..4)?.try_into().ok()?;
    let port: [u8; 2] = body.get(8..10)?.try_into().ok()?;
    Some(ProxiedClient::Internet(SocketAddr::new(octets.into(), u16::from_be_bytes(port))))
}

fn v6_client(body: &[u8]) -> Option<ProxiedClient> {
    let octets: [u8; 16] = body.get(..16)?.try_into().ok()?;
    let port: [u8; 2] = body.get(32..34)?.try_into().ok()?;
    Some(ProxiedClient::Internet(SocketAddr::new(octets.into(), u16::from_be_bytes(port))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn complete(client: &str, length: usize) -> ProxyHeader {
        ProxyHeader::Complete { client: ProxiedClient::Internet(client.parse().unwrap()), length }
    }

    fn unspecified(length: usize) -> ProxyHeader {
        ProxyHeader::Complete { client: ProxiedClient::Unspecified, length }
    }

    fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([command, family]);
        bytes.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn lines_are_read() {
        let tcp4 = b"PROXY TCP4 203.0.113.9 192.0.2.1 56324 443\r\nGET / HTTP/1.1\r\n";
        assert_eq!(parse(tcp4), complete("203.0.113.9:56324", 44));
        let tcp6 = b"PROXY TCP6 2001:db8::9 2001:db8::1 1 443\r\n";
        assert_eq!(parse(tcp6), complete("[2001:db8::9]:1", tcp6.len()));
        assert_eq!(parse(b"PROXY UNKNOWN\r\nGET"), unspecified(15));
        assert_eq!(parse(b"PROXY UNKNOWN ffff::1 whatever 1 2 3\r\n"), unspecified(38));
        let longest = "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
        assert_eq!((longest.len(), parse(longest.as_bytes())), (LINE_MAX, unspecified(LINE_MAX)));
    }

    #[test]
    fn what_is_no_line_is_refused_and_never_taken_for_http() {
        for wrong in [
            "GET / HTTP/1.1\r\n\r\n",
            "PROXY\r\n",
            "PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.256 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n\r\n",
            "PROXY UNKNOWN a\nb\r\n",
            "proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
            "\r\n\r\n\0\r\nQUIX",
            "\0",
        ] {
            assert_eq!(parse(wrong.as_bytes()), ProxyHeader::Invalid, "{wrong:?}");
        }
        let endless = format!("PROXY UNKNOWN {}", "x".repeat(200));
        assert_eq!(parse(&endless.as_bytes()[..LINE_MAX - 1]), ProxyHeader::Incomplete);
        assert_eq!(parse(endless.as_bytes()), ProxyHeader::Invalid);
    }

    #[test]
    fn binary_headers_are_read_and_what_follows_the_addresses_is_skipped() {
        let v4 = [203, 0, 113, 9, 192, 0, 2, 1, 0xdc, 4, 1, 0xbb];
        assert_eq!(parse(&binary(PROXY, 0x11, &v4)), complete("203.0.113.9:56324", 28));
        let tlvs = [&v4[..], &[0x03, 0, 4, 0xde, 0xad, 0xbe, 0xef, 0x04, 0, 2, 0, 0]].concat();
        assert_eq!(parse(&binary(PROXY, 0x11, &tlvs)), complete("203.0.113.9:56324", 40));
        let mut v6 = [0; 36];
        (v6[0], v6[1], v6[15], v6[33]) = (0x20, 0x01, 9, 7);
        assert_eq!(parse(&binary(PROXY, 0x21, &v6)), complete("[2001::9]:7", 52));
        for (command, family) in [(LOCAL, 0), (LOCAL, 0x11), (PROXY, 0), (PROXY, 0x12), (PROXY, 0x31)] {
            assert_eq!(parse(&binary(command, family, &[])), unspecified(16), "{command:x} {family:x}");
        }
        assert_eq!(parse(&binary(LOCAL, 0x11, &[1, 2, 3])), unspecified(19));
    }

    #[test]
    fn binary_headers_that_are_none_are_refused() {
        for (command, family, body) in [
            (0x11, 0x11, &[0; 12][..]),
            (0x22, 0x11, &[0; 12]),
            (PROXY, 0x41, &[0; 12]),
            (PROXY, 0x13, &[0; 12]),
            (PROXY, 0x11, &[0; 11]),
            (PROXY, 0x21, &[0; 35]),
            (LOCAL, 0, &[0; HEADER_MAX]),
        ] {
            let bytes = binary(command, family, body);
            assert_eq!(parse(&bytes), ProxyHeader::Invalid, "{command:x} {family:x} {}", body.len());
            assert_eq!(parse(&bytes[..FIXED]), ProxyHeader::Invalid, "known before the rest comes");
        }
        assert_eq!(parse(&binary(LOCAL, 0, &[0; HEADER_MAX - FIXED])), unspecified(HEADER_MAX));
    }

    fn address() -> impl Strategy<Value = SocketAddr> {
        let v4 = (any::<[u8; 4]>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip.into(), port));
        let v6 = (any::<[u8; 16]>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip.into(), port));
        v4.boxed().prop_union(v6.boxed())
    }

    fn as_line(source: SocketAddr) -> Vec<u8> {
        let (family, ip, port) = (if source.is_ipv4() { 4 } else { 6 }, source.ip(), source.port());
        format!("PROXY TCP{family} {ip} {ip} {port} 443\r\n").into_bytes()
    }

    fn as_binary(source: SocketAddr, tlvs: &[u8]) -> Vec<u8> {
        let (family, ip) = match source.ip() {
            IpAddr::V4(ip) => (0x11, ip.octets().to_vec()),
            IpAddr::V6(ip) => (0x21, ip.octets().to_vec()),
        };
        let port = source.port().to_be_bytes();
        binary(PROXY, family, &[&ip[..], &ip, &port, &[1, 0xbb], tlvs].concat())
    }

    proptest! {
        #[test]
        fn what_a_proxy_writes_is_read_in_whatever_pieces_it_comes(
            source in address(),
            tlvs in proptest::collection::vec(any::<u8>(), 0..200),
            rest in proptest::collection::vec(any::<u8>(), 0..50),
        ) {
            for header in [as_line(source), as_binary(source, &tlvs)] {
                let length = header.len();
                for cut in 0..length {
                    prop_assert_eq!(parse(&header[..cut]), ProxyHeader::Incomplete, "{} of {}", cut, length);
                }
                let expected =
                    ProxyHeader::Complete { client: ProxiedClient::Internet(source), length };
                prop_assert_eq!(parse(&header), expected);
                prop_assert_eq!(parse(&[header, rest.clone()].concat()), expected);
            }
        }

        #[test]
        fn what_was_read_stands_whatever_follows(
            bytes in proptest::collection::vec(any::<u8>(), 0..60),
            begins in 0..3_usize,
            more in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let beginning: &[u8] = [&b""[..], PREFIX, SIGNATURE][begins];
            let bytes = [beginning, &bytes].concat();
            let first = parse(&bytes);
            if first != ProxyHeader::Incomplete {
                prop_assert_eq!(parse(&[bytes.clone(), more].concat()), first);
            }
            if let ProxyHeader::Complete { length, .. } = first {
                prop_assert!(length <= bytes.len() && length <= HEADER_MAX);
                prop_assert_eq!(parse(&bytes[..length]), first);
            }
        }
    }
}
