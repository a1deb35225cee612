//! Where a Redis is: every form of `redis.url`, read into parts.
//!
//! One reader for the check at start and for the client, so that what was accepted can be connected to.

mod parse;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;

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
        parse::parse(text)
    }
}
