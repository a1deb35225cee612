//! Where a Redis is: every form of `redis.url`, read into parts.
//!
//! One reader for the check at start and for the client, so that what was accepted can be connected to.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use url::Host;
use url::form_urlencoded;

use crate::sys::path::SOCKET_MAX;

/// Port of a server when the URL names none.
const PORT: u16 = 6379;
/// Port of a Sentinel when the URL names none.
const SENTINEL_PORT: u16 = 26379;

/// An address of `redis.url`, read; `Debug` hides its passwords.
#[derive(Clone, PartialEq, Eq)]
pub struct Place {
    /// What answers there.
    pub kind: Kind,
    /// Whether connections are encrypted.
    pub tls: bool,
    /// Who we are to the servers (not to Sentinels).
    pub login: Login,
    /// Number of the database, 0 to 255; 0 in a cluster.
    pub database: u8,
}

/// What answers at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// One server.
    Server(Peer),
    /// One server, through its socket.
    Unix(PathBuf),
    /// Sentinels, which know the present primary of a service.
    Sentinel {
        /// At least one; they tell of the others.
        sentinels: Vec<Peer>,
        /// The name under which they watch the primary.
        service: String,
        /// Who we are to the Sentinels.
        login: Login,
    },
    /// Nodes of a cluster: at least one; they tell of the others.
    Cluster(Vec<Peer>),
}

/// A host and its port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer {
    /// Name or address; an IPv6 address without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// A user and a password, each of which may be missing; `Debug` hides the password.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Login {
    /// An ACL user; none: the default user.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<String>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({})", self.user.as_deref().unwrap_or("default"))
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("kind", &self.kind).field("tls", &self.tls).finish_non_exhaustive()
    }
}

impl Place {
    /// Reads a URL.
    ///
    /// # Errors
    /// What is wrong with it; completes the sentence "redis.url is X, but …".
    pub fn read(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or("the scheme is missing")?;
        let (tls, kind) = match scheme.strip_prefix("rediss") {
            Some(kind) => (true, kind),
            None => (false, scheme.strip_prefix("redis").unwrap_or(scheme)),
        };
        match kind {
            "" | "-sentinel" | "-cluster" => {}
            "unix" => return unix(rest),
            _ => return Err(format!("the scheme {scheme} is unknown")),
        }
        let parts = Parts::read(rest)?;
        let place = |kind, database| Self { kind, tls, login: parts.login.clone(), database };
        match kind {
            "-sentinel" => {
                let (service, database) = parts.service()?;
                let login = Login {
                    user: parts.option("sentinelUsername"),
                    password: parts.option("sentinelPassword"),
                };
                parts.only(&["node", "sentinelServiceName", "sentinelUsername", "sentinelPassword"])?;
                let sentinels = parts.peers(SENTINEL_PORT)?;
                Ok(place(Kind::Sentinel { sentinels, service, login }, database))
            }
            "-cluster" => {
                parts.only(&["node"])?;
                match database(parts.path)? {
                    0 => Ok(place(Kind::Cluster(parts.peers(PORT)?), 0)),
                    _ => Err("a cluster has no other database than 0".into()),
                }
            }
            _ => {
                parts.only(&[])?;
                let mut peers = parts.peers(PORT)?;
                match (peers.pop(), peers.is_empty()) {
                    (Some(peer), true) => Ok(place(Kind::Server(peer), database(parts.path)?)),
                    _ => Err("several hosts need redis-sentinel:// or redis-cluster://".into()),
                }
            }
        }
    }
}

/// `[user:password@]hosts[/path][?options]`, taken apart.
struct Parts<'a> {
    login: Login,
    hosts: &'a str,
    path: &'a str,
    options: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

impl<'a> Parts<'a> {
    fn read(rest: &'a str) -> Result<Self, String> {
        let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
        // A password may hold a question mark or a slash: what ends it is the last @ before any host.
        let (login, rest) = match rest.rsplit_once('@') {
            None => (Login::default(), rest),
            Some((pair, rest)) => (credentials(pair)?, rest),
        };
        let (rest, options) = rest.split_once('?').unwrap_or((rest, ""));
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let options = form_urlencoded::parse(options.as_bytes()).collect();
        Ok(Self { login, hosts, path, options })
    }

    fn option(&self, name: &str) -> Option<String> {
        let found = self.options.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.to_string()).filter(|value| !value.is_empty())
    }

    /// Refuses every option that is not among these: one without an effect would be a promise not kept.
    fn only(&self, known: &[&str]) -> Result<(), String> {
        match self.options.iter().find(|(name, _)| !known.contains(&name.as_ref())) {
            Some((name, _)) => Err(format!("its option {name} is unknown")),
            None => Ok(()),
        }
    }

    /// The hosts between the commas and those of `node=` options, each once.
    fn peers(&self, port: u16) -> Result<Vec<Peer>, String> {
        let more = self.options.iter().filter(|(name, _)| name == "node").map(|(_, value)| value.as_ref());
        let mut peers = Vec::new();
        for text in self.hosts.split(',').chain(more) {
            let peer = peer(text.trim(), port)?;
            if !peers.contains(&peer) {
                peers.push(peer);
            }
        }
        Ok(peers)
    }

    /// A Sentinel's service and the database: `/service[/database]`, or an option and `[/database]`.
    fn service(&self) -> Result<(String, u8), String> {
        let path = decode(self.path)?;
        match self.option("sentinelServiceName") {
            Some(service) => Ok((service, database(&path)?)),
            None => match path.split_once('/').unwrap_or((&path, "")) {
                ("", _) => Err("the service's name is missing, as in redis-sentinel://host/mymaster".into()),
                (service, number) => Ok((service.to_owned(), database(number)?)),
            },
        }
    }
}

fn decode(text: &str) -> Result<String, String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(Cow::into_owned).map_err(|_| "it has an escape (%) that is no text".to_owned())
}

fn filled(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn credentials(pair: &str) -> Result<Login, String> {
    let (user, password) = pair.split_once(':').unwrap_or((pair, ""));
    Ok(Login { user: filled(&decode(user)?), password: filled(&decode(password)?) })
}

fn database(text: &str) -> Result<u8, String> {
    match text.trim_end_matches('/') {
        "" => Ok(0),
        number => number.parse().map_err(|_| "the database must be a number from 0 to 255".to_owned()),
    }
}

fn peer(text: &str, default_port: u16) -> Result<Peer, String> {
    // The colons of an IPv6 address stand in brackets.
    let at = text.rfind(']').map_or(0, |end| end + 1);
    let (host, port) = match text[at..].rfind(':') {
        None => (text, None),
        Some(colon) => (&text[..at + colon], Some(&text[at + colon + 1..])),
    };
    if host.is_empty() {
        return Err("the host is missing".into());
    }
    let host = match Host::parse(host) {
        Ok(Host::Ipv6(address)) => address.to_string(),
        Ok(host) => host.to_string(),
        Err(_) => return Err(format!("{host} is not a host")),
    };
    let port = match port.map(str::parse::<u16>) {
        None => default_port,
        Some(Ok(port)) if port > 0 => port,
        Some(_) => return Err(format!("the port of {host} must be a number from 1 to 65535")),
    };
    Ok(Peer { host, port })
}

/// `[user:password@]/path[?db=number]`. The path stands as it is: nothing in it is decoded.
fn unix(rest: &str) -> Result<Place, String> {
    // Only this one ending is a query: a folder's name may hold a question mark.
    let (address, number) =
        rest.rsplit_once("?db=").map_or((rest, None), |(address, number)| (address, Some(number)));
    let (before, path) = address.split_once('/').unwrap_or((address, ""));
    if path.is_empty() {
        return Err("the socket's path is missing".into());
    }
    // A host may stand after the credentials, because some URL libraries insist on one; it means nothing.
    let login = match before.rsplit_once('@') {
        None if before.is_empty() => Login::default(),
        None => return Err("the socket's path must begin with /".into()),
        Some((pair, _)) => {
            let (user, password) = pair.split_once(':').unwrap_or((pair, ""));
            Login { user: filled(user), password: filled(password) }
        }
    };
    let database = match number {
        None => 0,
        Some(number) => number.parse().map_err(|_| "the database must be a number from 0 to 255")?,
    };
    let path = PathBuf::from(format!("/{path}"));
    if path.as_os_str().len() > SOCKET_MAX {
        let len = path.as_os_str().len();
        return Err(format!("the socket's path has {len} bytes, and the kernel takes {SOCKET_MAX}"));
    }
    Ok(Place { kind: Kind::Unix(path), tls: false, login, database })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Place {
        Place::read(text).unwrap_or_else(|reason| panic!("{text}: {reason}"))
    }

    fn peers(hosts: &[(&str, u16)]) -> Vec<Peer> {
        hosts.iter().map(|(host, port)| Peer { host: (*host).into(), port: *port }).collect()
    }

    fn login(user: &str, password: &str) -> Login {
        Login { user: filled(user), password: filled(password) }
    }

    #[test]
    fn one_server_has_a_host_a_port_and_a_database() {
        let place = read("redis://h");
        assert_eq!(
            (&place.kind, place.database, place.tls),
            (&Kind::Server(peers(&[("h", 6379)])[0].clone()), 0, false)
        );
        let place = read("rediss://us%65r:p%40ss@10.0.0.1:7/3");
        assert_eq!(place.kind, Kind::Server(peers(&[("10.0.0.1", 7)])[0].clone()));
        assert_eq!((place.login, place.database, place.tls), (login("user", "p@ss"), 3, true));
        assert_eq!(read("redis://[::1]:7/").kind, Kind::Server(peers(&[("::1", 7)])[0].clone()));
        assert_eq!(read("redis://:a/b?c@h").login, login("", "a/b?c"));
    }

    #[test]
    fn sentinels_come_with_a_service_in_both_spellings() {
        let ours = read("rediss-sentinel://u:p@a,b:1/mymaster/2");
        let sentinels = peers(&[("a", 26379), ("b", 1)]);
        let kind = Kind::Sentinel { sentinels, service: "mymaster".into(), login: Login::default() };
        assert_eq!((&ours.kind, ours.database, ours.tls), (&kind, 2, true));
        let theirs = "redis-sentinel://u:p@a/2?sentinelServiceName=mymaster&node=b:1&sentinelPassword=x%20y";
        let Place { kind: Kind::Sentinel { sentinels, service, login: to_sentinels }, database, .. } =
            read(theirs)
        else {
            panic!("no sentinels")
        };
        assert_eq!(
            (sentinels, service.as_str(), database),
            (peers(&[("a", 26379), ("b", 1)]), "mymaster", 2)
        );
        assert_eq!(to_sentinels, login("", "x y"));
    }

    #[test]
    fn a_cluster_has_nodes_and_one_database() {
        let place = read("redis-cluster://:p@a:7000,b,[::1]:7002/0?node=b");
        assert_eq!(place.kind, Kind::Cluster(peers(&[("a", 7000), ("b", 6379), ("::1", 7002)])));
        assert!(Place::read("redis-cluster://a/1").unwrap_err().contains("no other database"));
    }

    #[test]
    fn sockets_carry_path_credentials_and_database() {
        assert_eq!(read("unix:///tmp/r.sock").kind, Kind::Unix("/tmp/r.sock".into()));
        let place = read("unix://u:p@h/run/a?b.sock?db=3");
        assert_eq!((place.kind, place.database), (Kind::Unix("/run/a?b.sock".into()), 3));
        assert_eq!(place.login, login("u", "p"));
    }

    #[test]
    fn mistakes_are_told() {
        let cases = [
            ("h:6379", "scheme is missing"),
            ("http://h", "scheme http is unknown"),
            ("redis-foo://h", "scheme redis-foo is unknown"),
            ("redis://", "host is missing"),
            ("redis://:p@/", "host is missing"),
            ("redis://h/x", "database"),
            ("redis://h/300", "database"),
            ("redis://h:99999", "port of h"),
            ("redis://h:0", "port of h"),
            ("redis://a,b", "redis-sentinel:// or redis-cluster://"),
            ("redis://a b", "not a host"),
            ("redis://h?timeout=3", "option timeout"),
            ("redis-sentinel://a:1", "service's name"),
            ("redis-sentinel://a:1/m/x", "database"),
            ("redis-cluster://a,,b", "host is missing"),
            ("redis-cluster://a?db=1", "option db"),
            ("redis://%ff:p@h", "escape"),
            ("unix://", "path is missing"),
            ("unix://relative/x.sock", "begin with /"),
            ("unix:///x?db=999", "database"),
        ];
        let long = format!("unix:///{}", "x".repeat(SOCKET_MAX));
        for (url, reason) in cases.into_iter().chain([(long.as_str(), "has 108 bytes")]) {
            let told = Place::read(url).expect_err(url);
            assert!(told.contains(reason), "{url}: {told}");
        }
    }

    #[test]
    fn passwords_never_print() {
        let place = read("redis-sentinel://u:hunter22@a/m?sentinelPassword=hunter33");
        let printed = format!("{place:?}");
        assert!(!printed.contains("hunter"), "{printed}");
    }
}
