//! A connection to the shared state that a program makes itself.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::broadcasts::BroadcastHub;
use crate::config;
use crate::config::settings::{Config, RedisUrl, ScriptingMode};
use crate::http::drain_state::DrainState;
use crate::http::services::WorkerServices;
use crate::http::services::app_services::AppServices;
use crate::http::services::worker::WorkerContext;
use crate::http::standalone::connection::StandaloneConnection;
use crate::http::worker::Worker;
use crate::redis::{RedisClient, RedisError, RedisStatus};
use crate::request_state::StateClient;
use crate::scoreboard::Scoreboard;
use crate::tasks::TaskQueue;

/// Name of the connection in `CLIENT LIST`.
const CLIENT_NAME: &str = "regatta-client";

/// Shortest silence after which a connection may be taken for dead: with none every call would fail.
const SILENCE_TIMEOUT_MIN: Duration = Duration::from_millis(1);

/// A connection with breakers, deadlines and the server-side code; what everything shared is made of.
///
/// Inside a fleet `FleetHandle::redis` gives the worker's. Anywhere else it is made by [`Redis::connect`]: sessions, limits,
/// counters, broadcasts and tasks need no more than it and a tokio runtime. Clones share the connection, which ends with the
/// last of them and of what was made of them. Handlers find it as `axum::Extension<Redis>`, or by any layer of this
/// library.
///
/// ```no_run
/// use axum::{Extension, Router, routing::get};
/// use regatta::Redis;
/// use regatta::counter::Counters;
///
/// async fn hit(counters: Counters) -> Result<String, regatta::counter::Error> {
///     Ok(counters.add("hits", 1).await?.to_string())
/// }
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let redis = Redis::connect("redis://127.0.0.1").await?;
/// let app: Router = Router::new().route("/", get(hit)).layer(Extension(redis));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Redis {
    services: Arc<WorkerServices>,
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("url", self.url())
            .field("prefix", &self.prefix())
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

impl Redis {
    /// A connection that needs more than a URL.
    pub fn builder() -> RedisBuilder {
        RedisBuilder::default()
    }

    /// Whether it can be used now.
    pub fn status(&self) -> RedisStatus {
        self.client().status()
    }

    /// First part of every key.
    pub fn prefix(&self) -> &str {
        self.client().prefix()
    }

    /// Its address, for a client of your own.
    pub fn url(&self) -> &RedisUrl {
        self.client().url()
    }

    pub(crate) fn from_services(services: Arc<WorkerServices>) -> Self {
        Self { services }
    }

    pub(crate) fn services(&self) -> &Arc<WorkerServices> {
        &self.services
    }

    fn client(&self) -> &RedisClient {
        &self.services.state.redis
    }
}

/// How server-side code is called.
///
/// ```
/// use regatta::{Redis, RedisMode};
///
/// let builder = Redis::builder().url("redis://127.0.0.1").mode(RedisMode::Plain);
/// # let _ = builder;
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RedisMode {
    /// Functions where they are allowed, else scripts, else plain commands.
    #[default]
    Auto,
    /// Redis functions (Redis ≥ 7, Valkey).
    Fcall,
    /// Scripts by digest (Dragonfly, `KeyDB`, Redis 6).
    Evalsha,
    /// Plain commands only, which promise less.
    Plain,
}

impl From<RedisMode> for ScriptingMode {
    fn from(mode: RedisMode) -> Self {
        match mode {
            RedisMode::Auto => Self::Auto,
            RedisMode::Fcall => Self::Fcall,
            RedisMode::Evalsha => Self::Evalsha,
            RedisMode::Plain => Self::Plain,
        }
    }
}

/// A connection to be, with what a URL does not say.
///
/// ```no_run
/// use regatta::{Redis, RedisBuilder};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let builder: RedisBuilder = Redis::builder()
///     .url("rediss://redis.example.org")
///     .prefix("shop")
///     .password_file("/run/secrets/redis")
///     .tls_ca("/etc/shop/redis-ca.pem")
///     .tls_identity("/etc/shop/redis.crt", "/etc/shop/redis.key")
///     .silence_timeout(std::time::Duration::from_millis(500))
///     .reconnect_wait(std::time::Duration::from_secs(1));
/// let redis = builder.connect().await?;
/// # drop(redis);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
#[must_use]
pub struct RedisBuilder {
    url: Option<String>,
    prefix: Option<String>,
    mode: RedisMode,
    silence_timeout: Option<Duration>,
    reconnect_wait: Option<Duration>,
    password_file: Option<PathBuf>,
    tls_ca: Option<PathBuf>,
    tls_identity: Option<(PathBuf, PathBuf)>,
}

impl fmt::Debug for RedisBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.url.as_deref().map(RedisUrl::redact);
        f.debug_struct("RedisBuilder")
            .field("url", &url)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl RedisBuilder {
    /// Where it is: `redis://host:port/db`, `unix:///path`, `redis-sentinel://host:port,…/service` or
    /// `redis-cluster://host:port,…`, and `rediss` for TLS. Without it: `redis://127.0.0.1`.
    pub fn url(self, url: &str) -> Self {
        Self { url: Some(url.to_owned()), ..self }
    }

    /// First part of every key, `regatta` if it is not set: programs with the same prefix share everything, with
    /// different ones nothing.
    pub fn prefix(self, prefix: &str) -> Self {
        Self { prefix: Some(prefix.to_owned()), ..self }
    }

    /// How server-side code is called.
    pub fn mode(self, mode: RedisMode) -> Self {
        Self { mode, ..self }
    }

    /// A connection on which calls wait and nothing is answered for this long is taken for dead; 250 ms if it is not set, and
    /// 1 ms at least.
    pub fn silence_timeout(self, time: Duration) -> Self {
        Self { silence_timeout: Some(time), ..self }
    }

    /// Longest absence of Redis that calls wait for; 2 s if it is not set, and a minute at most.
    pub fn reconnect_wait(self, time: Duration) -> Self {
        Self { reconnect_wait: Some(time), ..self }
    }

    /// The password, read again at each attempt to connect.
    pub fn password_file(self, path: impl Into<PathBuf>) -> Self {
        Self { password_file: Some(path.into()), ..self }
    }

    /// Authorities that are trusted, as PEM; the system's if it is not set. Read again at each attempt.
    pub fn tls_ca(self, path: impl Into<PathBuf>) -> Self {
        Self { tls_ca: Some(path.into()), ..self }
    }

    /// A certificate and its private key, as PEM, where the server wants them. Read again at each attempt.
    pub fn tls_identity(self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        Self { tls_identity: Some((cert.into(), key.into())), ..self }
    }

    /// Connects, applies pending migrations, and returns once the connection can be used.
    ///
    /// # Errors
    /// Why the URL cannot be used, or why the first attempt failed, after 2.5 s at most.
    ///
    /// # Cancel safety
    /// Dropping the future gives the attempt up.
    pub(crate) async fn open(self) -> Result<Redis, RedisError> {
        let redis = self.open_lazy()?;
        match redis.client().wait_for_first_attempt().await {
            RedisStatus::Up => Ok(redis),
            RedisStatus::Down { reason } => Err(RedisError::Unavailable { reason }),
            RedisStatus::Connecting => {
                Err(RedisError::Unavailable { reason: "it does not answer".to_owned() })
            }
        }
    }

    /// Connects in the background; outside a runtime the first use inside one begins it.
    ///
    /// # Errors
    /// Why the URL cannot be used.
    pub(crate) fn open_lazy(self) -> Result<Redis, RedisError> {
        let invalid = |reason: String| RedisError::InvalidSetting { reason };
        let (config, url) = self.into_config().map_err(invalid)?;
        let client = StateClient::new(RedisClient::new(&config.redis, &url, CLIENT_NAME)?);
        let services = standalone_services(config, client)
            .map_err(|error| invalid(format!("the operating system has no random bytes: {error}")))?;
        services.ensure_started();
        Ok(Redis { services: Arc::new(services) })
    }

    fn into_config(self) -> Result<(Config, RedisUrl), String> {
        let text = self.url.as_deref().unwrap_or("redis://127.0.0.1");
        let url = RedisUrl::parse(text)
            .map_err(|reason| format!("the URL {} cannot be used: {reason}", RedisUrl::redact(text)))?;
        let mut config = config::defaults().map_err(|error| error.to_string())?;
        if let Some(prefix) = &self.prefix {
            config.redis.prefix = config::key_prefix::parse(prefix)
                .map_err(|reason| format!("the prefix {prefix:?} cannot be used: {reason}"))?;
        }
        // The layer of trusted proxies names those that there are.
        config.proxy.trusted.clear();
        let redis = &mut config.redis;
        redis.url = Some(url.clone());
        redis.scripting = self.mode.into();
        if let Some(time) = self.silence_timeout {
            redis.silence_timeout = time.clamp(SILENCE_TIMEOUT_MIN, config::DURATION_MAX);
        }
        if let Some(time) = self.reconnect_wait {
            redis.reconnect_wait = time.min(config::RECONNECT_WAIT_MAX);
        }
        redis.credentials.password_file = self.password_file;
        redis.credentials.tls_ca = self.tls_ca;
        (redis.credentials.tls_cert, redis.credentials.tls_key) = self.tls_identity.unzip();
        Ok((config, url))
    }
}

/// What a worker has for its requests, without a worker: the scoreboard's one cell lies on the heap, and there is no
/// journal, so that nothing is batched.
fn standalone_services(config: Config, redis: StateClient) -> std::io::Result<WorkerServices> {
    let pid = std::process::id();
    let connection = Arc::new(StandaloneConnection::new(redis.clone()));
    let parts = AppServices {
        broadcast_hub: BroadcastHub::new(redis.redis().clone(), &config.broadcast),
        tasks: TaskQueue::for_any_kind(
            redis.redis().clone(),
            &config.tasks,
            &format!("client:{pid}"),
            Arc::clone(&connection) as _,
        ),
        config: Arc::new(config),
        redis,
        scoreboard: Arc::new(Scoreboard::on_heap(pid)?),
        worker: Worker::new(pid, 0, 1, ""),
        cell: 0,
        drain: DrainState::default(),
        instance: Arc::default(),
        batched_counters: None,
    };
    let worker = Arc::new(WorkerContext::new(&parts));
    Ok(WorkerServices::standalone(&parts, worker, connection))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_setting_is_said_without_its_password() {
        let error = Redis::builder().url("redis//:hunter2@h").open_lazy().unwrap_err().to_string();
        assert!(error.contains("URL") && !error.contains("hunter2"), "{error}");
        let prefix = Redis::builder().prefix("a:b").open_lazy().unwrap_err().to_string();
        assert!(prefix.contains("prefix \"a:b\""), "{prefix}");
    }

    #[test]
    fn times_are_bounded_as_settings_are() {
        let times = |silence, wait| {
            let builder = Redis::builder().silence_timeout(silence).reconnect_wait(wait);
            let redis = builder.into_config().unwrap().0.redis;
            (redis.silence_timeout, redis.reconnect_wait)
        };
        assert_eq!(times(Duration::ZERO, Duration::ZERO), (SILENCE_TIMEOUT_MIN, Duration::ZERO));
        let longest = (config::DURATION_MAX, config::RECONNECT_WAIT_MAX);
        assert_eq!(times(Duration::MAX, Duration::MAX), longest);
    }

    #[test]
    fn a_connection_needs_no_runtime_until_it_is_used_and_shows_no_secret() {
        let redis = Redis::builder().url("redis://ann:hunter2@127.0.0.1:1/3").open_lazy().unwrap();
        assert_eq!((redis.prefix(), redis.status()), ("regatta", RedisStatus::Connecting));
        assert!(redis.url().expose().contains("hunter2"));
        let shown = format!("{redis:?} {:?}", Redis::builder().url("redis://:hunter2@h"));
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
