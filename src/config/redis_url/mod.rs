//! Where a Redis is: every form of `redis.url`, read into parts.
//!
//! One reader for the check at start and for the client, so that what was accepted can be connected to. What an error
//! says may be logged: it names parts of the URL and never repeats text that could belong to a password which was not
//! escaped.

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt;
use std::net::Ipv6Addr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};
use url::Host;

use crate::sys::path::SOCKET_PATH_MAX;

/// Port of a server when the URL names none.
const PORT: u16 = 6379;
/// Port of a Sentinel when the URL names none.
const SENTINEL_PORT: u16 = 26379;

/// What is said where a user or a password was probably not escaped.
const ESCAPE: &str = "it cannot be taken apart: in a user or password write @ as %40, : as %3A, / as %2F, ? as %3F, \
                      # as %23, % as %25, & as %26 and , as %2C";

/// Options of every form, each under its names in the field's libraries.
const USER: &[&str] = &["username", "user"];
const PASSWORD: &[&str] = &["password", "pass"];
const DATABASE: &[&str] = &["db", "database"];
const NODE: &[&str] = &["node"];
const SERVICE: &[&str] = &["sentinelServiceName"];
const SENTINEL_USER: &[&str] = &["sentinelUsername"];
const SENTINEL_PASSWORD: &[&str] = &["sentinelPassword"];

/// An address of `redis.url`, read; `Debug` and `Display` hide its users and passwords.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisAddress {
    /// What answers there.
    pub topology: RedisTopology,
    /// Whether connections are encrypted.
    pub tls: bool,
    /// Our login at the servers (not at Sentinels).
    pub login: RedisLogin,
    /// Number of the database, 0 to 255; 0 in a cluster.
    pub database: u8,
}

/// What answers at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisTopology {
    /// One server.
    Server(HostPort),
    /// One server, through its socket.
    Unix(PathBuf),
    /// Sentinels, which know the present primary of a service.
    Sentinel {
        /// At least one; they tell of the others.
        sentinels: Vec<HostPort>,
        /// The name under which they watch the primary.
        service: String,
        /// Our login at the Sentinels.
        login: RedisLogin,
    },
    /// Nodes of a cluster: at least one; they tell of the others.
    Cluster(Vec<HostPort>),
}

/// A host and its port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// Name or address; an IPv6 address without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// A user and a password, each of which may be missing; `Debug` hides both.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RedisLogin {
    /// An ACL user; none: the default user.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<String>,
}

impl fmt::Debug for RedisLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A password that is written without a colon before it is read as a user.
        f.write_str(if *self == Self::default() { "Login(default)" } else { "Login(***)" })
    }
}

impl fmt::Debug for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("kind", &self.topology).field("tls", &self.tls).finish_non_exhaustive()
    }
}

impl fmt::Display for RedisAddress {
    /// The address in one form, whichever it was written in, without anything that could be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts = |peers: &[HostPort]| peers.iter().map(HostPort::to_string).collect::<Vec<_>>().join(",");
        let login = if self.login == RedisLogin::default() { "" } else { "***@" };
        let tls = if self.tls { "rediss" } else { "redis" };
        match &self.topology {
            RedisTopology::Server(peer) => write!(f, "{tls}://{login}{peer}")?,
            RedisTopology::Cluster(peers) => write!(f, "{tls}-cluster://{login}{}", hosts(peers))?,
            RedisTopology::Unix(path) => write!(f, "unix://{login}{}", path.display())?,
            RedisTopology::Sentinel { sentinels, service, .. } => {
                write!(f, "{tls}-sentinel://{login}{}/{service}", hosts(sentinels))?;
            }
        }
        match (&self.topology, self.database) {
            (_, 0) => {}
            (RedisTopology::Unix(_), number) => write!(f, "?db={number}")?,
            (_, number) => write!(f, "/{number}")?,
        }
        match &self.topology {
            RedisTopology::Sentinel { login, .. } if *login != RedisLogin::default() => {
                f.write_str("?sentinelPassword=***")
            }
            _ => Ok(()),
        }
    }
}

impl RedisAddress {
    /// Reads a URL.
    ///
    /// # Errors
    /// What is wrong with it; completes the sentence "redis.url is X, but …". Nothing that could be a secret is in it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or("the scheme is missing, as in redis://host")?;
        let scheme = scheme.to_ascii_lowercase();
        let (tls, form) = match scheme.strip_prefix("rediss") {
            Some(form) => (true, form),
            None => (false, scheme.strip_prefix("redis").unwrap_or(&scheme)),
        };
        if !matches!(form, "" | "-sentinel" | "-cluster" | "unix") || (form == "unix" && scheme != "unix") {
            return Err(match is_word(&scheme) {
                true => format!("the scheme {scheme} is unknown"),
                false => "the scheme is unknown".into(),
            });
        }
        let url = UrlParts::split(rest)?;
        match form {
            "-sentinel" => sentinel(&url, tls),
            "-cluster" => cluster(&url, tls),
            "unix" => unix(&url),
            _ => server(&url, tls),
        }
        .map_err(|reason| if url.is_torn { ESCAPE.to_owned() } else { reason })
    }
}

/// The address of a Redis, which may hold a password: `Debug` and `Display` hide it.
///
/// ```
/// use regatta::RedisUrl;
///
/// let url = RedisUrl::parse("redis://ann:oars@redis.example.org/3").unwrap();
/// assert!(!format!("{url} {url:?}").contains("oars"));
/// assert!(url.expose().contains("oars"), "for a client of your own");
/// assert!(!RedisUrl::redact("redis://ann:oars@").contains("oars"), "what cannot be read is hidden as well");
/// let socket = RedisUrl::from_socket_path("/run/redis.sock".as_ref());
/// assert_eq!(socket.expose(), "unix:///run/redis.sock");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl(String);

impl RedisUrl {
    /// An address that can be read.
    ///
    /// # Errors
    /// What is wrong with it; completes the sentence "redis.url is X, but …". Nothing that could be a secret is in it.
    pub fn parse(text: &str) -> Result<Self, String> {
        RedisAddress::parse(text).map(|_| Self(text.to_owned()))
    }

    /// A server's Unix socket.
    pub fn from_socket_path(path: &std::path::Path) -> Self {
        let path = percent_encode(path.as_os_str().as_bytes(), ESCAPED_IN_PATH).to_string();
        // `@/` behind a first / would be taken for the end of a password that begins with it.
        let path = if path.starts_with('/') { path.replace("@/", "%40/") } else { path };
        Self(format!("unix://{path}"))
    }

    /// A text that may be such an address, as it may be shown.
    pub fn redact(text: &str) -> String {
        Self(text.to_owned()).to_string()
    }

    /// The URL with its password, for the client only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// What would end a path, or begin an escape.
const ESCAPED_IN_PATH: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'?').add(b'#');

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Ok(place) = RedisAddress::parse(&self.0) {
            return place.fmt(f);
        }
        // What cannot be taken apart may have its password anywhere.
        let scheme = self.0.split_once("://").map(|(scheme, _)| scheme);
        let is_scheme = |text: &&str| {
            text.len() < 20 && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
        };
        match scheme.filter(is_scheme) {
            Some(scheme) => write!(f, "{scheme}://***"),
            None => f.write_str("***"),
        }
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({self})")
    }
}

fn server(url: &UrlParts<'_>, tls: bool) -> Result<RedisAddress, String> {
    url.check_options(&[])?;
    let (login, mut peers) = url.authority(PORT)?;
    let database = url.database(url.path)?;
    match (peers.pop(), peers.is_empty()) {
        (Some(peer), true) => {
            Ok(RedisAddress { topology: RedisTopology::Server(peer), tls, login, database })
        }
        _ => Err("several hosts need redis-sentinel:// or redis-cluster://".into()),
    }
}

fn cluster(url: &UrlParts<'_>, tls: bool) -> Result<RedisAddress, String> {
    url.check_options(&[NODE])?;
    let (login, peers) = url.authority(PORT)?;
    match url.database(url.path)? {
        0 => Ok(RedisAddress { topology: RedisTopology::Cluster(peers), tls, login, database: 0 }),
        _ => Err("a cluster has no other database than 0".into()),
    }
}

/// The service and the database are `/service[/database]`, or an option and `[/database]`.
fn sentinel(url: &UrlParts<'_>, tls: bool) -> Result<RedisAddress, String> {
    url.check_options(&[NODE, SERVICE, SENTINEL_USER, SENTINEL_PASSWORD])?;
    let (login, sentinels) = url.authority(SENTINEL_PORT)?;
    let (service, number) = match url.option(SERVICE)? {
        Some(service) => (service, url.path),
        None => match url.path.split_once('/').unwrap_or((url.path, "")) {
            ("", _) => {
                return Err("the service's name is missing, as in redis-sentinel://host/mymaster".into());
            }
            (service, number) => (decode(service)?, number),
        },
    };
    let database = url.database(number)?;
    let to_sentinels =
        RedisLogin { user: url.option(SENTINEL_USER)?, password: url.option(SENTINEL_PASSWORD)? };
    Ok(RedisAddress {
        topology: RedisTopology::Sentinel { sentinels, service, login: to_sentinels },
        tls,
        login,
        database,
    })
}

/// A host may stand after the credentials, because some URL libraries insist on one; it means nothing.
///
/// `@/` in a path without credentials is what a password that begins with / leaves of them: taken for a path, it would be
/// printed.
fn unix(url: &UrlParts<'_>) -> Result<RedisAddress, String> {
    url.check_options(&[])?;
    let pair = match url.authority.rsplit_once('@') {
        // What follows a second @ may be the rest of a password, which must not be shown as a path.
        _ if url.path.contains("@/") => return Err(ESCAPE.to_owned()),
        Some((pair, _)) => pair,
        None if url.authority.is_empty() => "",
        None => return Err(format!("the socket's path must begin with /, as in unix:///run/x; or {ESCAPE}")),
    };
    if url.path.is_empty() {
        return Err("the socket's path is missing".into());
    }
    let path = [b"/".as_slice(), &bytes(url.path)?].concat();
    if path.contains(&0) {
        return Err("the socket's path has a zero byte".into());
    }
    if path.len() > SOCKET_PATH_MAX {
        return Err(format!(
            "the socket's path has {} bytes, and the kernel takes {SOCKET_PATH_MAX}",
            path.len()
        ));
    }
    let path = PathBuf::from(OsString::from_vec(path));
    let (login, database) = (url.login(pair)?, url.database("")?);
    Ok(RedisAddress { topology: RedisTopology::Unix(path), tls: false, login, database })
}

/// `[user:password@]hosts[/path][?options]`, taken apart and not decoded yet.
struct UrlParts<'a> {
    authority: &'a str,
    path: &'a str,
    options: Vec<(&'a str, &'a str)>,
    /// Whether the @ behind a user and a password seems to stand behind what ends the hosts: if anything else is
    /// wrong, that is why.
    is_torn: bool,
}

impl<'a> UrlParts<'a> {
    fn split(rest: &'a str) -> Result<Self, String> {
        let (authority, after) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let has_login = authority.contains('@');
        if after.contains('#') {
            let reason = if has_login || !after.contains('@') { "a # has no meaning there, or " } else { "" };
            return Err(format!("{reason}{ESCAPE}"));
        }
        let (path, query) = after.split_once('?').unwrap_or((after, ""));
        let options = query.split('&').filter(|pair| !pair.is_empty());
        let options = options.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).collect();
        let path = path.strip_prefix('/').unwrap_or(path);
        // A socket's path may hold an @, after no host at all.
        let in_path = path.contains('@') && !authority.is_empty();
        let is_torn = !has_login && (in_path || query.contains('@'));
        if is_torn && in_path {
            return Err(ESCAPE.to_owned());
        }
        Ok(Self { authority, path, options, is_torn })
    }

    /// The value of an option under any of its names; the same value may be given twice.
    fn option(&self, names: &[&str]) -> Result<Option<String>, String> {
        let mut found: Option<String> = None;
        for (_, value) in self.options.iter().filter(|(name, _)| names.contains(name)) {
            found = merge_values(names[0], found, non_empty(decode(value)?))?;
        }
        Ok(found)
    }

    /// Refuses every option that is neither of every form nor among `known`: one without an effect would be a promise
    /// not kept.
    fn check_options(&self, known: &[&[&str]]) -> Result<(), String> {
        let known = [USER, PASSWORD, DATABASE].iter().chain(known).flat_map(|names| names.iter());
        let known: Vec<_> = known.collect();
        match self.options.iter().any(|(name, _)| !known.contains(&name)) {
            // Its name is not repeated: behind an & that was not escaped it is the rest of a password.
            true => {
                let known: Vec<_> = known.into_iter().copied().collect();
                Err(format!("one of its options is none of {}; or {ESCAPE}", known.join(", ")))
            }
            false => Ok(()),
        }
    }

    fn login(&self, pair: &str) -> Result<RedisLogin, String> {
        let (user, password) = pair.split_once(':').unwrap_or((pair, ""));
        let user = merge_values("username", non_empty(decode(user)?), self.option(USER)?)?;
        let password = merge_values("password", non_empty(decode(password)?), self.option(PASSWORD)?)?;
        Ok(RedisLogin { user, password })
    }

    /// Credentials, the hosts between the commas and those of `node=` options, each once.
    fn authority(&self, port: u16) -> Result<(RedisLogin, Vec<HostPort>), String> {
        // What stands before that @ may be a part of a password, not a host or port.
        if self.path.contains('@') {
            return Err(ESCAPE.to_owned());
        }
        let (pair, hosts) = match self.authority.rsplit_once('@') {
            Some((pair, last)) => shared_credentials(pair, last)?,
            None => ("", self.authority.split(',').collect()),
        };
        let mut peers = Vec::new();
        let nodes = self.options.iter().filter(|(name, _)| NODE.contains(name));
        let nodes = nodes.map(|(_, value)| decode(value)).collect::<Result<Vec<_>, _>>()?;
        for text in hosts.into_iter().chain(nodes.iter().map(String::as_str)) {
            let peer = host_port(text.trim(), port)?;
            if !peers.contains(&peer) {
                peers.push(peer);
            }
        }
        Ok((self.login(pair)?, peers))
    }

    /// The database: at the end of the path, or an option.
    fn database(&self, text: &str) -> Result<u8, String> {
        let number =
            merge_values("db", non_empty(decode(text.trim_end_matches('/'))?), self.option(DATABASE)?)?;
        let number = number.map(|number| number.parse());
        number.unwrap_or(Ok(0)).map_err(|_| "the database must be a number from 0 to 255".to_owned())
    }
}

/// Credentials and hosts of a list: before the first host only, or the same ones before every host.
fn shared_credentials<'a>(pair: &'a str, last: &'a str) -> Result<(&'a str, Vec<&'a str>), String> {
    let mut pieces = pair.split('@').peekable();
    let several = pair.contains('@') && pair.split('@').skip(1).any(|piece| piece.contains(','));
    if !several {
        return Ok((pair, last.split(',').collect()));
    }
    let (first, mut hosts) = (pieces.next().unwrap_or_default(), Vec::new());
    // A user without a password before every host is more likely a part of one password.
    if first.split_once(':').is_none_or(|(_, password)| password.is_empty()) {
        return Err(ESCAPE.to_owned());
    }
    for piece in pieces {
        match piece.rsplit_once(',') {
            Some((before, again)) if again == first => hosts.extend(before.split(',')),
            _ => {
                return Err(format!(
                    "not every host has the same user and password: write them once, before the first host; or {ESCAPE}"
                ));
            }
        }
    }
    hosts.extend(last.split(','));
    Ok((first, hosts))
}

/// What two places of a URL say of one thing.
fn merge_values(what: &str, one: Option<String>, other: Option<String>) -> Result<Option<String>, String> {
    match (one, other) {
        (Some(one), Some(other)) if one != other => Err(format!("its {what} is given twice, differently")),
        (one, other) => Ok(one.or(other)),
    }
}

/// Whether a text can be repeated in an error: it has no letter that only a password would have there.
fn is_word(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-+._".contains(&byte);
    (1..=24).contains(&text.len()) && text.bytes().all(fits)
}

/// Percent-decoded; a plus is a plus (RFC 3986).
fn bytes(text: &str) -> Result<Vec<u8>, String> {
    let is_escape =
        |rest: &str| rest.as_bytes().get(..2).is_some_and(|pair| pair.iter().all(u8::is_ascii_hexdigit));
    match text.split('%').skip(1).all(is_escape) {
        true => Ok(percent_decode_str(text).collect()),
        false => Err("it has a % that begins no escape; % itself is written %25".into()),
    }
}

fn decode(text: &str) -> Result<String, String> {
    String::from_utf8(bytes(text)?).map_err(|_| "it has an escape (%) that is no text".to_owned())
}

fn non_empty(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn host_port(text: &str, default_port: u16) -> Result<HostPort, String> {
    if text.contains('@') {
        return Err(ESCAPE.to_owned());
    }
    // The colons of an IPv6 address stand in brackets.
    let at = text.rfind(']').map_or(0, |end| end + 1);
    let (host, port) = match text[at..].rfind(':') {
        None => (text, None),
        Some(colon) => (&text[..at + colon], Some(&text[at + colon + 1..])),
    };
    if host.is_empty() {
        return Err("the host is missing".into());
    }
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => ipv6_address(address).ok_or("what stands in brackets is not an IPv6 address")?,
        None if host.contains(':') => {
            return Err("an IPv6 address stands in brackets, as in [::1]:6379".into());
        }
        None => Host::parse(host).map_err(|_| "a host is neither a name nor an IP address")?.to_string(),
    };
    let port = match port.map(str::parse::<u16>) {
        None => default_port,
        Some(Ok(port)) if port > 0 => port,
        Some(_) => return Err(format!("the port of {host} must be a number from 1 to 65535")),
    };
    Ok(HostPort { host, port })
}

/// An IPv6 address, maybe with its interface behind a % or its escape (RFC 6874).
fn ipv6_address(text: &str) -> Option<String> {
    let (address, zone) = match text.split_once('%') {
        Some((address, zone)) => (address, Some(zone.strip_prefix("25").unwrap_or(zone))),
        None => (text, None),
    };
    let address: Ipv6Addr = address.parse().ok()?;
    match zone {
        None => Some(address.to_string()),
        Some(zone) => is_word(zone).then(|| format!("{address}%{zone}")),
    }
}
