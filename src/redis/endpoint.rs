//! Address and login of Redis as settings of the client library, made anew for every attempt to connect.
//!
//! Password and certificates may be in files that are rotated. They are read at each attempt, so that a rotation needs
//! no restart.

use std::path::Path;
use std::time::Duration;

use fred::types::config::{
    Config, ConnectionConfig, PerformanceConfig, Server, ServerConfig, TcpConfig, UnresponsiveConfig,
};
use rand::TryRngCore;
use rand::rngs::OsRng;

use crate::config::redis_url::{HostPort, RedisAddress, RedisLogin, RedisTopology};
use crate::config::settings::{RedisCredentials, RedisUrl};
use crate::config::text;
use crate::redis::diagnosis::ProbeAddress;
use crate::redis::error::RedisError;
use crate::redis::tls;
use crate::sys;

/// Longest wait for a connection to be opened, and then for its handshake.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The address of Redis, and where its secrets are.
pub(super) struct RedisEndpoint {
    address: RedisAddress,
    credentials: RedisCredentials,
}

impl RedisEndpoint {
    /// Reads the URL; no I/O.
    ///
    /// # Errors
    /// `InvalidSetting` when the URL cannot be used.
    pub(super) fn new(url: &RedisUrl, access: &RedisCredentials) -> Result<Self, RedisError> {
        let place = RedisAddress::parse(url.expose());
        let place = place
            .map_err(|reason| RedisError::invalid_setting(format!("redis.url is {url}, but {reason}")))?;
        Ok(Self { address: place, credentials: access.clone() })
    }

    /// Number of the database.
    pub(super) fn database(&self) -> u8 {
        self.address.database
    }

    /// The configured nodes of a cluster; `None` without a cluster.
    pub(super) fn cluster_seeds(&self) -> Option<&[HostPort]> {
        match &self.address.topology {
            RedisTopology::Cluster(peers) => Some(peers),
            RedisTopology::Server(_) | RedisTopology::Unix(_) | RedisTopology::Sentinel { .. } => None,
        }
    }

    /// Longest time of one attempt; through Sentinels there is one more handshake.
    pub(super) fn connect_timeout(&self) -> Duration {
        match self.address.topology {
            RedisTopology::Sentinel { .. } => 4 * CONNECT_TIMEOUT,
            RedisTopology::Server(_) | RedisTopology::Unix(_) | RedisTopology::Cluster(_) => {
                2 * CONNECT_TIMEOUT
            }
        }
    }

    /// Explains a failed attempt whose own message is not clear.
    pub(super) fn explain(&self, error: RedisError) -> RedisError {
        match error {
            // A server without TLS waits for the end of a line that never comes.
            RedisError::Timeout if self.address.tls => RedisError::unavailable(
                "no answer to the greeting of TLS (if nothing speaks TLS there, redis.url begins with redis, not rediss)",
            ),
            other => other,
        }
    }

    /// The address to diagnose; `node` names the node of a cluster.
    pub(super) fn probe_address(&self, node: Option<&HostPort>) -> Option<ProbeAddress> {
        match (node, &self.address.topology) {
            (Some(peer), _) | (None, RedisTopology::Server(peer)) => Some(ProbeAddress::Tcp(peer.clone())),
            (None, RedisTopology::Unix(path)) => Some(ProbeAddress::Unix(path.clone())),
            (None, RedisTopology::Sentinel { sentinels: peers, .. } | RedisTopology::Cluster(peers)) => {
                peers.first().cloned().map(ProbeAddress::Tcp)
            }
        }
    }

    /// Whether connections are encrypted, and the login that they begin with.
    pub(super) fn tls_and_login(&self) -> (bool, &RedisLogin) {
        let to_sentinels = match &self.address.topology {
            RedisTopology::Sentinel { login, .. } => Some(login),
            RedisTopology::Server(_) | RedisTopology::Unix(_) | RedisTopology::Cluster(_) => None,
        };
        (self.address.tls, to_sentinels.unwrap_or(&self.address.login))
    }

    /// Settings for one attempt to connect to any server: in a cluster to a random one of the configured nodes.
    ///
    /// # Errors
    /// As [`RedisEndpoint::config`].
    pub(super) fn bootstrap_config(&self) -> Result<Config, RedisError> {
        let nodes = self.cluster_seeds().unwrap_or_default();
        let at = OsRng.try_next_u32().map_or(0, |number| number as usize) % nodes.len().max(1);
        self.config(nodes.get(at))
    }

    /// Settings for one attempt to connect; `node` names the node of a cluster.
    ///
    /// # Errors
    /// `InvalidSetting` when a file that holds a password or a certificate cannot be used.
    pub(super) fn config(&self, node: Option<&HostPort>) -> Result<Config, RedisError> {
        let server = match (node, &self.address.topology) {
            (Some(peer), _) | (None, RedisTopology::Server(peer)) => {
                ServerConfig::Centralized { server: server(peer) }
            }
            (None, RedisTopology::Unix(path)) => ServerConfig::Unix { path: path.clone() },
            (None, RedisTopology::Sentinel { sentinels, service, login }) => {
                sentinel(sentinels, service, login)
            }
            (None, RedisTopology::Cluster(peers)) => ServerConfig::Clustered {
                hosts: peers.iter().map(server).collect(),
                policy: Default::default(),
            },
        };
        let RedisLogin { user, password } = &self.address.login;
        let password = match &self.credentials.password_file {
            Some(file) => Some(read_password(file)?),
            // A user without a password has an empty one, which is not the same as the default user.
            None => password.clone().or_else(|| user.as_ref().map(|_| String::new())),
        };
        let config = Config {
            server,
            username: user.clone(),
            password,
            database: Some(self.address.database).filter(|number| *number > 0),
            // A failed attempt ends at once: this room tries again, not the client. The protocol is RESP2, whose
            // replies this client reads with 15 % less work than RESP3's (5.4 and 6.3 µs a begin).
            fail_fast: true,
            ..Config::default()
        };
        if self.address.tls { tls::encrypt(config, &self.credentials) } else { Ok(config) }
    }
}

fn server(peer: &HostPort) -> Server {
    Server::new(peer.host.as_str(), peer.port)
}

/// Rotated at every attempt: a Sentinel that hangs must not always be the first.
fn sentinel(sentinels: &[HostPort], service: &str, login: &RedisLogin) -> ServerConfig {
    let mut hosts: Vec<_> = sentinels.iter().map(server).collect();
    let first = OsRng.try_next_u32().map_or(0, |number| number as usize);
    hosts.rotate_left(first % sentinels.len().max(1));
    ServerConfig::Sentinel {
        hosts,
        service_name: service.to_owned(),
        username: login.user.clone(),
        password: login.password.clone(),
    }
}

/// The password in a file, without the line end that editors append.
fn read_password(file: &Path) -> Result<String, RedisError> {
    let shown = file.display();
    let unusable = |reason: &str| {
        RedisError::invalid_setting(format!("redis.password_file {shown} cannot be read: {reason}"))
    };
    let bytes = sys::path::read_secret(file).map_err(|error| unusable(&error.to_string()))?;
    match text::decode_utf8(bytes).map_err(unusable)?.trim_end_matches(['\r', '\n']) {
        "" => Err(RedisError::invalid_setting(format!("redis.password_file {shown} is empty"))),
        password => Ok(password.to_owned()),
    }
}

/// The client never reconnects by itself and never sends a command twice.
pub(super) fn connection_config() -> ConnectionConfig {
    ConnectionConfig {
        connection_timeout: CONNECT_TIMEOUT,
        internal_command_timeout: CONNECT_TIMEOUT,
        max_command_attempts: 1,
        // A full bounded queue can end the client's task; calls are bounded before they reach it.
        max_command_buffer_len: 0,
        unresponsive: UnresponsiveConfig { max_timeout: None, ..UnresponsiveConfig::default() },
        auto_client_setname: false,
        disable_cluster_health_check: true,
        tcp: TcpConfig { nodelay: Some(true), ..TcpConfig::default() },
        reconnect_errors: Vec::new(),
        ..ConnectionConfig::default()
    }
}

/// Settings for batching. The client has no deadline for calls: they end with their connection, see `call_tracker.rs`.
pub(super) fn performance_config() -> PerformanceConfig {
    PerformanceConfig {
        default_command_timeout: Duration::ZERO,
        max_feed_count: 200,
        ..PerformanceConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn endpoint(place: &str, access: RedisCredentials) -> RedisEndpoint {
        RedisEndpoint { address: RedisAddress::parse(place).unwrap(), credentials: access }
    }

    #[test]
    fn a_socket_made_from_a_path_is_usable() {
        let url = RedisUrl::from_socket_path(Path::new("/tmp/a b.sock"));
        let config = RedisEndpoint::new(&url, &RedisCredentials::default()).unwrap().config(None).unwrap();
        assert_eq!(config.server, ServerConfig::Unix { path: "/tmp/a b.sock".into() });
        assert_eq!((config.username, config.password, config.database), (None, None, None));
    }

    #[test]
    fn each_kind_of_url_becomes_its_own_client_configuration() {
        let of = |text: &str| endpoint(text, RedisCredentials::default()).config(None).unwrap();
        let one = of("redis://u:p@h:7/3");
        assert_eq!(one.server, ServerConfig::Centralized { server: Server::new("h", 7) });
        assert_eq!(
            (one.username.as_deref(), one.password.as_deref(), one.database),
            (Some("u"), Some("p"), Some(3))
        );
        let ServerConfig::Sentinel { hosts, service_name, .. } = of("redis-sentinel://a,b/m").server else {
            panic!("no sentinels")
        };
        assert_eq!((hosts.len(), service_name.as_str()), (2, "m"));
        let cluster = endpoint("redis-cluster://a,b", RedisCredentials::default());
        assert_eq!(cluster.cluster_seeds().map(<[HostPort]>::len), Some(2));
        let node = cluster.config(Some(&HostPort { host: "c".into(), port: 1 })).unwrap();
        assert_eq!(node.server, ServerConfig::Centralized { server: Server::new("c", 1) });
    }

    #[test]
    fn the_password_file_is_read_at_each_attempt() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let access =
            RedisCredentials { password_file: Some(file.path().into()), ..RedisCredentials::default() };
        let endpoint = endpoint("redis://u@h", access);
        let message = endpoint.config(None).unwrap_err().to_string();
        assert!(message.contains("redis.password_file") && message.contains("is empty"), "{message}");
        writeln!(file, "one two ").unwrap();
        assert_eq!(endpoint.config(None).unwrap().password.as_deref(), Some("one two "));
        for written in [b"three".as_slice(), b"three\r\n", b"\xef\xbb\xbfthree\n"] {
            std::fs::write(file.path(), written).unwrap();
            assert_eq!(endpoint.config(None).unwrap().password.as_deref(), Some("three"));
        }
        for (written, reason) in [(b"\xff\xfeh\0".as_slice(), "UTF-16"), (b"hunter22\xff", "not UTF-8")] {
            std::fs::write(file.path(), written).unwrap();
            let message = endpoint.config(None).unwrap_err().to_string();
            assert!(message.contains(reason) && message.contains("redis.password_file"), "{message}");
            assert!(!message.contains("hunter"), "{message}");
        }
        file.close().unwrap();
        assert!(endpoint.config(None).unwrap_err().to_string().contains("it is not there"));
    }
}
