//! Where Redis is and who we are there, as the client's settings: made anew for every attempt to connect.
//!
//! Password and certificates may lie in files that somebody renews. They are read each time, so that a rotation needs
//! no restart: whoever is refused tries again with what the file says by then.

use std::path::Path;
use std::time::Duration;

use fred::types::config::Config;
use fred::types::config::ConnectionConfig;
use fred::types::config::PerformanceConfig;
use fred::types::config::Server;
use fred::types::config::ServerConfig;
use fred::types::config::TcpConfig;
use fred::types::config::UnresponsiveConfig;
use rand::TryRngCore;
use rand::rngs::OsRng;

use crate::config::place::Kind;
use crate::config::place::Login;
use crate::config::place::Peer;
use crate::config::place::Place;
use crate::config::schema::Access;
use crate::config::schema::RedisUrl;
use crate::config::text;
use crate::redis::error::Error;
use crate::redis::greeting::Door;
use crate::redis::tls;
use crate::sys;

/// Longest wait for a connection to be made, and then for its greeting.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Where Redis is, and where the secrets lie that it wants.
pub(super) struct Endpoint {
    place: Place,
    access: Access,
}

impl Endpoint {
    /// Reads the URL; no I/O.
    ///
    /// # Errors
    /// [`Error::Setting`] when the URL cannot be used.
    pub(super) fn new(url: &RedisUrl, access: &Access) -> Result<Self, Error> {
        let place = Place::read(url.expose());
        let place = place.map_err(|reason| Error::setting(format!("redis.url is {url}, but {reason}")))?;
        Ok(Self { place, access: access.clone() })
    }

    /// Number of the database.
    pub(super) fn database(&self) -> u8 {
        self.place.database
    }

    /// The nodes of a cluster that are known from the start; `None` when there is no cluster.
    pub(super) fn cluster(&self) -> Option<&[Peer]> {
        match &self.place.kind {
            Kind::Cluster(peers) => Some(peers),
            Kind::Server(_) | Kind::Unix(_) | Kind::Sentinel { .. } => None,
        }
    }

    /// Longest time one attempt may take: through Sentinels it is a greeting more.
    pub(super) fn patience(&self) -> Duration {
        match self.place.kind {
            Kind::Sentinel { .. } => 4 * CONNECT_TIMEOUT,
            Kind::Server(_) | Kind::Unix(_) | Kind::Cluster(_) => 2 * CONNECT_TIMEOUT,
        }
    }

    /// What a failed attempt means, where its own words do not tell.
    pub(super) fn explained(&self, error: Error) -> Error {
        match error {
            // A server without TLS waits for the end of a line that never comes.
            Error::Timeout if self.place.tls => Error::unavailable(
                "no answer to the greeting of TLS (if nothing speaks TLS there, redis.url begins with redis, not rediss)",
            ),
            other => other,
        }
    }

    /// Where whatever answers can be asked what it is; `node` names the node of a cluster.
    pub(super) fn door(&self, node: Option<&Peer>) -> Option<Door> {
        match (node, &self.place.kind) {
            (Some(peer), _) | (None, Kind::Server(peer)) => Some(Door::Tcp(peer.clone())),
            (None, Kind::Unix(path)) => Some(Door::Unix(path.clone())),
            (None, Kind::Sentinel { sentinels: peers, .. } | Kind::Cluster(peers)) => {
                peers.first().cloned().map(Door::Tcp)
            }
        }
    }

    /// Whether connections are encrypted, and the login that they begin with.
    pub(super) fn manner(&self) -> (bool, &Login) {
        let to_sentinels = match &self.place.kind {
            Kind::Sentinel { login, .. } => Some(login),
            Kind::Server(_) | Kind::Unix(_) | Kind::Cluster(_) => None,
        };
        (self.place.tls, to_sentinels.unwrap_or(&self.place.login))
    }

    /// Settings for one attempt to connect to any server: where there is a cluster, one of the nodes that are known from
    /// the start, at random.
    ///
    /// # Errors
    /// As [`Endpoint::config`].
    pub(super) fn any(&self) -> Result<Config, Error> {
        let nodes = self.cluster().unwrap_or_default();
        let at = OsRng.try_next_u32().map_or(0, |number| number as usize) % nodes.len().max(1);
        self.config(nodes.get(at))
    }

    /// Settings for one attempt to connect; `node` names the node of a cluster.
    ///
    /// # Errors
    /// [`Error::Setting`] when a file that holds a password or a certificate cannot be used.
    pub(super) fn config(&self, node: Option<&Peer>) -> Result<Config, Error> {
        let server = match (node, &self.place.kind) {
            (Some(peer), _) | (None, Kind::Server(peer)) => {
                ServerConfig::Centralized { server: server(peer) }
            }
            (None, Kind::Unix(path)) => ServerConfig::Unix { path: path.clone() },
            (None, Kind::Sentinel { sentinels, service, login }) => sentinel(sentinels, service, login),
            (None, Kind::Cluster(peers)) => ServerConfig::Clustered {
                hosts: peers.iter().map(server).collect(),
                policy: Default::default(),
            },
        };
        let Login { user, password } = &self.place.login;
        let password = match &self.access.password_file {
            Some(file) => Some(secret(file)?),
            // A user without one has an empty password, and is not the default user.
            None => password.clone().or_else(|| user.as_ref().map(|_| String::new())),
        };
        let tls = if self.place.tls { Some(tls::config(&self.access)?.into()) } else { None };
        Ok(Config {
            server,
            username: user.clone(),
            password,
            database: Some(self.place.database).filter(|number| *number > 0),
            tls,
            // An attempt that fails ends at once: trying again is this room's task and not the client's. The protocol
            // stays RESP2, whose replies this client reads with 15 % less work than RESP3's (5.4 and 6.3 µs a begin).
            fail_fast: true,
            ..Config::default()
        })
    }
}

fn server(peer: &Peer) -> Server {
    Server::new(peer.host.as_str(), peer.port)
}

/// Every attempt begins with another one: a Sentinel that hangs must not be the first each time.
fn sentinel(sentinels: &[Peer], service: &str, login: &Login) -> ServerConfig {
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

/// The password in a file, without the line's end that editors leave.
fn secret(file: &Path) -> Result<String, Error> {
    let shown = file.display();
    let unusable =
        |reason: &str| Error::setting(format!("redis.password_file {shown} cannot be read: {reason}"));
    let bytes = sys::path::read_secret(file).map_err(|error| unusable(&error.to_string()))?;
    match text::of_bytes(bytes).map_err(unusable)?.trim_end_matches(['\r', '\n']) {
        "" => Err(Error::setting(format!("redis.password_file {shown} is empty"))),
        password => Ok(password.to_owned()),
    }
}

/// How the client treats its connection. It never reconnects by itself and never sends a command twice.
pub(super) fn connection() -> ConnectionConfig {
    ConnectionConfig {
        connection_timeout: CONNECT_TIMEOUT,
        internal_command_timeout: CONNECT_TIMEOUT,
        max_command_attempts: 1,
        // A bounded queue can end the client's task when it is full; calls are bounded before they reach it.
        max_command_buffer_len: 0,
        unresponsive: UnresponsiveConfig { max_timeout: None, ..UnresponsiveConfig::default() },
        auto_client_setname: false,
        disable_cluster_health_check: true,
        tcp: TcpConfig { nodelay: Some(true), ..TcpConfig::default() },
        reconnect_errors: Vec::new(),
        ..ConnectionConfig::default()
    }
}

/// How the client batches. It has no deadline for calls: they end with their connection, see `line.rs`.
pub(super) fn performance() -> PerformanceConfig {
    PerformanceConfig {
        default_command_timeout: Duration::ZERO,
        max_feed_count: 200,
        ..PerformanceConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn endpoint(place: &str, access: Access) -> Endpoint {
        Endpoint { place: Place::read(place).unwrap(), access }
    }

    #[test]
    fn a_socket_made_from_a_path_is_usable() {
        let url = RedisUrl::unix(Path::new("/tmp/a b.sock"));
        let config = Endpoint::new(&url, &Access::default()).unwrap().config(None).unwrap();
        assert_eq!(config.server, ServerConfig::Unix { path: "/tmp/a b.sock".into() });
        assert_eq!((config.username, config.password, config.database), (None, None, None));
    }

    #[test]
    fn each_form_becomes_its_own_kind_of_client() {
        let of = |text: &str| endpoint(text, Access::default()).config(None).unwrap();
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
        let cluster = endpoint("redis-cluster://a,b", Access::default());
        assert_eq!(cluster.cluster().map(<[Peer]>::len), Some(2));
        let node = cluster.config(Some(&Peer { host: "c".into(), port: 1 })).unwrap();
        assert_eq!(node.server, ServerConfig::Centralized { server: Server::new("c", 1) });
    }

    #[test]
    fn the_password_s_file_is_read_each_time() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let access = Access { password_file: Some(file.path().into()), ..Access::default() };
        let endpoint = endpoint("redis://u@h", access);
        let told = endpoint.config(None).unwrap_err().to_string();
        assert!(told.contains("redis.password_file") && told.contains("is empty"), "{told}");
        writeln!(file, "one two ").unwrap();
        assert_eq!(endpoint.config(None).unwrap().password.as_deref(), Some("one two "));
        for written in [b"three".as_slice(), b"three\r\n", b"\xef\xbb\xbfthree\n"] {
            std::fs::write(file.path(), written).unwrap();
            assert_eq!(endpoint.config(None).unwrap().password.as_deref(), Some("three"));
        }
        for (written, reason) in [(b"\xff\xfeh\0".as_slice(), "UTF-16"), (b"hunter22\xff", "not UTF-8")] {
            std::fs::write(file.path(), written).unwrap();
            let told = endpoint.config(None).unwrap_err().to_string();
            assert!(told.contains(reason) && told.contains("redis.password_file"), "{told}");
            assert!(!told.contains("hunter"), "{told}");
        }
        file.close().unwrap();
        assert!(endpoint.config(None).unwrap_err().to_string().contains("it is not there"));
    }
}
