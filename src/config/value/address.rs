//! Addresses to listen on, addresses by which others reach us, networks, hosts and origins.

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use ipnet::IpNet;
use url::Url;

use crate::config::value::basic::InvalidValue;

/// An address and a port. An IPv4 address that is written as an IPv6 one (`::ffff:127.0.0.1`) is the IPv4 one.
pub(in crate::config) fn address(text: &str) -> Result<SocketAddr, InvalidValue> {
    let address = match text.parse::<SocketAddr>() {
        Ok(address) => address,
        Err(_) => with_interface(text)?.ok_or_else(|| wrong_address(text))?,
    };
    match address {
        SocketAddr::V6(six) if six.ip().is_unicast_link_local() && six.scope_id() == 0 => {
            Err("a link-local address needs its interface, as in [fe80::1%eth0]:3000".into())
        }
        SocketAddr::V6(six) => match six.ip().to_ipv4_mapped() {
            Some(four) => Ok(SocketAddr::new(four.into(), six.port())),
            None => Ok(address),
        },
        SocketAddr::V4(_) => Ok(address),
    }
}

/// `[fe80::1%eth0]:3000`: the standard library knows numbers of interfaces only.
fn with_interface(text: &str) -> Result<Option<SocketAddr>, InvalidValue> {
    let parts = || {
        let (inside, port) = text.strip_prefix('[')?.split_once("]:")?;
        let (ip, name) = inside.split_once('%')?;
        Some((ip.parse::<Ipv6Addr>().ok()?, name, port.parse().ok()?))
    };
    let Some((ip, name, port)) = parts() else { return Ok(None) };
    let plain = !name.is_empty() && name != "." && name != ".." && !name.contains('/');
    let index = if plain { fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).ok() } else { None };
    match index.and_then(|index| index.trim().parse().ok()) {
        Some(index) => Ok(Some(SocketAddrV6::new(ip, port, 0, index).into())),
        None => Err("this machine has no such interface".into()),
    }
}

/// What is wrong with a text that is no address.
fn wrong_address(text: &str) -> InvalidValue {
    let reason = if text.starts_with(':') && !text.starts_with("::") || text.starts_with("*:") {
        "the address is missing: [::] is every one of this machine, 0.0.0.0 every one of IPv4"
    } else if text.parse::<Ipv6Addr>().is_ok() {
        "an IPv6 address stands in brackets with the port behind, as in [::1]:3000"
    } else if text.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        "the port is missing"
    } else if text.contains('/') {
        "that is not an IP address with a port; Unix sockets and URLs are not listened on"
    } else if text.contains(|c: char| c.is_ascii_alphabetic()) && text.contains(':') && !text.starts_with('[')
    {
        "a name is not an IP address: write 127.0.0.1 and [::1] for localhost"
    } else {
        "that is not an IP address with a port"
    };
    reason.into()
}

pub(in crate::config) fn addresses(items: &[String]) -> Result<Vec<SocketAddr>, InvalidValue> {
    let addresses: Vec<_> = items.iter().map(|item| address(item)).collect::<Result<_, _>>()?;
    for (index, address) in addresses.iter().enumerate() {
        if address.port() != 0 && addresses[..index].contains(address) {
            return Err(format!("{address} stands there twice"));
        }
    }
    if addresses.is_empty() { Err("at least one is needed".into()) } else { Ok(addresses) }
}

/// Names of hosts, without a port; `*.` before one stands for all names below it.
pub(in crate::config) fn hosts(items: &[String]) -> Result<Vec<String>, InvalidValue> {
    let host = |item: &String| {
        let name = item.strip_prefix("*.").unwrap_or(item);
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        match (1..=253).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(fits) {
            true => Ok(item.trim_end_matches('.').to_ascii_lowercase()),
            false => Err(format!("{item} is no name of a host (without scheme and port)")),
        }
    };
    items.iter().map(host).collect()
}

/// An address by which other machines reach this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdvertisedAddress {
    /// A name or an IP address, IPv6 in brackets.
    pub host: String,
    /// The port; none: that of the first public address.
    pub port: Option<u16>,
}

pub(in crate::config) fn advertised_addresses(
    items: &[String],
) -> Result<Vec<AdvertisedAddress>, InvalidValue> {
    items
        .iter()
        .map(|item| advertised_address(item).ok_or_else(|| format!("{item} is no such address")))
        .collect()
}

pub(in crate::config) fn networks(items: &[String]) -> Result<Vec<IpNet>, InvalidValue> {
    let network = |item: &String| parse_network(item).ok_or_else(|| format!("{item} is not a network"));
    items.iter().map(network).collect()
}

/// A network, or one address.
pub fn parse_network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn advertised_address(text: &str) -> Option<AdvertisedAddress> {
    let reachable = |ip: IpAddr| (!ip.is_unspecified()).then(|| SocketAddr::new(ip, 0));
    if let Ok(address) = text.parse::<SocketAddr>() {
        reachable(address.ip())?;
        let host = text.rsplit_once(':')?.0.to_owned();
        return (address.port() > 0).then_some(AdvertisedAddress { host, port: Some(address.port()) });
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        // As it stands before a port.
        let host = reachable(ip)?.to_string();
        return Some(AdvertisedAddress { host: host.rsplit_once(':')?.0.to_owned(), port: None });
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port.parse().ok().filter(|port| *port > 0)?)),
        None => (text, None),
    };
    let letters = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
    (letters && (1..=253).contains(&host.len())).then(|| AdvertisedAddress { host: host.to_owned(), port })
}

/// Origins as browsers send them: scheme, host, and a port that is not the scheme's own (RFC 6454 §6.2).
pub(in crate::config) fn origins(items: &[String]) -> Result<Vec<String>, InvalidValue> {
    let origin = |item: &String| match Url::parse(item).map(|url| url.origin().ascii_serialization()) {
        Ok(origin) if origin == item.trim_end_matches('/') && origin != "null" => Ok(origin),
        _ => Err(format!("{item} is no origin")),
    };
    items.iter().map(origin).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_mistakes_are_reported() {
        let read = |text: &str| address(text).map(|address| address.to_string());
        for (text, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("[::]:80", "[::]:80"),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80"),
            ("[::ffff:0.0.0.0]:80", "0.0.0.0:80"),
            ("[fe80::1%1]:80", "[fe80::1%1]:80"),
        ] {
            assert_eq!(read(text).unwrap(), expected, "{text}");
        }
        if fs::exists("/sys/class/net/lo").unwrap() {
            assert_eq!(read("[fe80::1%lo]:80").unwrap(), "[fe80::1%1]:80");
        }
        for (text, reason) in [
            (":3000", "address is missing"),
            ("*:3000", "address is missing"),
            ("::1", "in brackets"),
            ("::1:3000", "in brackets"),
            ("127.0.0.1", "port is missing"),
            ("[::1]", "port is missing"),
            ("localhost:3000", "a name is not"),
            ("example.org:80", "a name is not"),
            ("unix:/run/x", "Unix sockets"),
            ("tcp://0.0.0.0:80", "not an IP address with a port"),
            ("[fe80::1]:80", "needs its interface"),
            ("[fe80::1%nothing-here]:80", "no such interface"),
            ("[fe80::1%../lo]:80", "no such interface"),
            ("127.0.0.1:99999", "not an IP address with a port"),
            ("", "not an IP address with a port"),
        ] {
            assert!(read(text).unwrap_err().contains(reason), "{text}: {:?}", read(text));
        }
    }

    #[test]
    fn an_address_stands_in_a_list_once_however_it_is_written() {
        let list = |texts: &[&str]| addresses(&texts.iter().map(|text| text.to_string()).collect::<Vec<_>>());
        assert!(list(&["127.0.0.1:80", "[::ffff:127.0.0.1]:80"]).unwrap_err().contains("twice"));
        assert!(list(&["[::1]:80", "[0:0::1]:80"]).unwrap_err().contains("twice"));
        assert_eq!(list(&["127.0.0.1:0", "127.0.0.1:0"]).unwrap().len(), 2);
        assert!(list(&[]).is_err());
    }

    #[test]
    fn hosts_are_names_without_a_port() {
        let items = ["Fleet.Example.org".into(), "*.svc.".into(), "my_app".into()];
        assert_eq!(hosts(&items).unwrap(), ["fleet.example.org", "*.svc", "my_app"]);
        for wrong in ["", "a:80", "http://a", "a b", "*", "*.", "a.*", "..", "é.org"] {
            assert!(hosts(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_advertised_is_a_host_with_or_without_a_port() {
        let read = |text: &str| advertised_address(text).map(|one| (one.host, one.port));
        let expected = |host: &str, port| Some((host.to_owned(), port));
        assert_eq!(read("10.0.0.5"), expected("10.0.0.5", None));
        assert_eq!(read("web-1.example.com:3000"), expected("web-1.example.com", Some(3000)));
        assert_eq!(read("[2001:db8::1]:80"), expected("[2001:db8::1]", Some(80)));
        assert_eq!(read("2001:db8::1"), expected("[2001:db8::1]", None));
        for bad in ["", ":80", "web:0", "web:x", "0.0.0.0:80", "::", "a b", "a;b", "web:1:2", "10.0.0.5:0"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn origins_are_as_browsers_send_them() {
        let read = |text: &str| origins(&[text.to_owned()]);
        assert_eq!(read("https://example.org/").unwrap(), ["https://example.org"]);
        assert_eq!(read("http://localhost:8080").unwrap(), ["http://localhost:8080"]);
        for wrong in ["example.org", "https://example.org/path", "https://example.org:443", "*", "file:///x"]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
