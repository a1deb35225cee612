//! Addresses to listen on, addresses by which others reach us, networks, hosts and origins.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::{Component, Path, PathBuf};
use std::{fmt, fs};

use ipnet::IpNet;
use url::Url;

use crate::config::value::basic::InvalidValue;
use crate::sys::path::SOCKET_PATH_MAX;
pub use crate::sys::unix_socket_name::UnixSocketName;

/// Where a fleet listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListenAddress {
    /// An Internet address with its port.
    Internet(SocketAddr),
    /// A Unix socket.
    Unix(UnixSocketName),
}

impl ListenAddress {
    /// The Internet address, if it is one.
    pub fn internet(&self) -> Option<SocketAddr> {
        match self {
            Self::Internet(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Internet(address)
    }
}

/// As it is written in a configuration.
impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Internet(address) => address.fmt(f),
            Self::Unix(name) => write!(f, "unix:{name}"),
        }
    }
}

/// An Internet address with its port, `unix:/run/shop.sock`, or `unix:@shop`.
fn listen_address(text: &str) -> Result<ListenAddress, InvalidValue> {
    match text.strip_prefix("unix:") {
        Some(name) => unix_socket_name(name).map(ListenAddress::Unix),
        None => address(text).map(ListenAddress::Internet),
    }
}

fn unix_socket_name(text: &str) -> Result<UnixSocketName, InvalidValue> {
    // As in a URL: unix:///run/shop.sock, where a host would stand behind two slashes.
    let is_host = text.starts_with("//") && !text.starts_with("///");
    let text = text.strip_prefix("//").filter(|path| path.starts_with('/')).unwrap_or(text);
    if text.len() > SOCKET_PATH_MAX {
        return Err(format!(
            "a Unix socket's path has at most {SOCKET_PATH_MAX} bytes, and this one {}: choose a shorter one, as below /run",
            text.len()
        ));
    }
    match text.strip_prefix('@') {
        Some("") => Err("the abstract name is missing, as in unix:@shop".into()),
        Some(name) => Ok(UnixSocketName::Abstract(name.to_owned())),
        None if !text.starts_with('/') || is_host => {
            Err("a Unix socket is named by an absolute path, as in unix:/run/shop.sock, or as unix:@shop"
                .into())
        }
        None if text.ends_with('/')
            || Path::new(text).components().any(|part| part == Component::ParentDir) =>
        {
            Err("that path names a folder and no file in it".into())
        }
        // Without doubled slashes, so that one socket has one name.
        None => Ok(UnixSocketName::Path(Path::new(text).components().collect::<PathBuf>())),
    }
}

/// Which of the public addresses take connections that begin with a header of the PROXY protocol, and no others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ProxyProtocolListeners {
    /// None.
    #[default]
    None,
    /// All, those that systemd lends included.
    All,
    /// These.
    Some(Vec<ListenAddress>),
}

impl ProxyProtocolListeners {
    /// Whether what connects to this address has to begin with a header.
    pub fn includes(&self, address: &ListenAddress) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Some(listed) => listed.contains(address),
        }
    }
}

pub(in crate::config) fn proxy_protocol_listeners(
    items: &[String],
) -> Result<ProxyProtocolListeners, InvalidValue> {
    match items {
        [] => Ok(ProxyProtocolListeners::None),
        [only] if only == "all" => Ok(ProxyProtocolListeners::All),
        [only] if only == "none" => Ok(ProxyProtocolListeners::None),
        listed => addresses(listed).map(ProxyProtocolListeners::Some),
    }
}

/// Permissions of a file as chmod(1) takes them, in octal.
pub(in crate::config) fn file_mode(text: &str) -> Result<u32, InvalidValue> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 && mode & 0o600 == 0o600 => Ok(mode),
        Ok(_) => Err("its owner must be able to read and write, and there are no bits beyond 0777".into()),
        Err(_) => Err("that is no number in octal".into()),
    }
}

/// A user or a group, by name or number; whether there is one is found out when it is used.
pub(in crate::config) fn account(text: &str) -> Result<String, InvalidValue> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._$@\\".contains(&byte);
    match (1..=256).contains(&text.len()) && text.bytes().all(fits) && !text.starts_with('-') {
        true => Ok(text.to_owned()),
        false => Err("that is no name of a user or group".into()),
    }
}

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
        "that is not an IP address with a port; a URL is not listened on, and a Unix socket is written as unix:/run/shop.sock"
    } else if text.contains(|c: char| c.is_ascii_alphabetic()) && text.contains(':') && !text.starts_with('[')
    {
        "a name is not an IP address: write 127.0.0.1 and [::1] for localhost"
    } else {
        "that is not an IP address with a port"
    };
    reason.into()
}

/// Where to listen, separated by commas or spaces.
pub(in crate::config) fn addresses(items: &[String]) -> Result<Vec<ListenAddress>, InvalidValue> {
    let words = items.iter().flat_map(|item| item.split_ascii_whitespace());
    let addresses: Vec<_> = words.map(listen_address).collect::<Result<_, _>>()?;
    for (index, address) in addresses.iter().enumerate() {
        let is_chosen_by_kernel = address.internet().is_some_and(|address| address.port() == 0);
        if !is_chosen_by_kernel && addresses[..index].contains(address) {
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
            ("/run/x", "unix:/run/shop.sock"),
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
    fn a_unix_socket_has_a_path_or_an_abstract_name() {
        let read = |text: &str| listen_address(text).map(|address| address.to_string());
        for (text, expected) in [
            ("unix:/run/shop.sock", "unix:/run/shop.sock"),
            ("unix:///run/shop.sock", "unix:/run/shop.sock"),
            ("unix:/run//./shop.sock", "unix:/run/shop.sock"),
            ("unix:@shop", "unix:@shop"),
            ("[::]:80", "[::]:80"),
        ] {
            assert_eq!(read(text).unwrap(), expected, "{text}");
        }
        let long = format!("unix:/{}", "x".repeat(SOCKET_PATH_MAX));
        for (text, reason) in [
            ("unix:", "absolute path"),
            ("unix:shop.sock", "absolute path"),
            ("unix://host/shop.sock", "absolute path"),
            ("unix:@", "abstract name is missing"),
            ("unix:/run/", "names a folder"),
            ("unix:/run/../etc/x", "names a folder"),
            (long.as_str(), "at most 107 bytes"),
        ] {
            assert!(read(text).unwrap_err().contains(reason), "{text}: {:?}", read(text));
        }
        let list = |texts: &[&str]| addresses(&texts.iter().map(|text| text.to_string()).collect::<Vec<_>>());
        assert_eq!(list(&["0.0.0.0:80 unix:/run/a", "unix:@a"]).unwrap().len(), 3);
        assert!(list(&["unix:/run/a", "unix:/run//a"]).unwrap_err().contains("twice"));
    }

    #[test]
    fn a_mode_is_octal_and_leaves_its_owner_in() {
        assert_eq!((file_mode("0660"), file_mode("666")), (Ok(0o660), Ok(0o666)));
        for wrong in ["", "0o660", "660x", "1777", "0060", "-1", "888"] {
            assert!(file_mode(wrong).is_err(), "{wrong}");
        }
        assert!(account("www-data").is_ok() && account("33").is_ok());
        assert!(account("").is_err() && account("a b").is_err() && account("-r").is_err());
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
