//! The settings section by section, each value from the layer that has the last word.

use crate::config::redis_url::{RedisAddress, RedisTopology};
use crate::config::settings::{
    AutoscaleConfig, BroadcastConfig, DashboardConfig, DrainConfig, HttpConfig, IdempotencyConfig,
    RecyclingConfig, RedisConfig, RedisCredentials, ScriptingMode, SessionConfig, TasksConfig,
    WebSocketConfig, WorkersConfig,
};
use crate::config::sources::SettingSources;
use crate::config::value::InvalidValue;
use crate::config::{ConfigError, key_prefix, limits, value};

/// A policy's name; nothing, over an application's default, means none.
fn policy(text: &str) -> Result<Option<String>, InvalidValue> {
    if text.is_empty() { Ok(None) } else { value::policy_name(text).map(Some) }
}

pub(super) fn workers(layers: &SettingSources) -> Result<WorkersConfig, ConfigError> {
    Ok(WorkersConfig {
        count: layers.required("workers.count", value::worker_count)?,
        autoscale: AutoscaleConfig {
            min: layers.optional("workers.min", value::slot_count)?,
            max: layers.optional("workers.max", value::slot_count)?,
            mode: layers.required("workers.autoscale", value::autoscale_mode)?,
            window: layers.required("workers.window", value::autoscale_window)?,
            busy_max: layers.required("workers.busy_max", value::percent)?,
            busy_min: layers.required("workers.busy_min", value::percent)?,
        },
        boot_timeout: layers.required("workers.boot_timeout", value::positive_duration)?,
        canary_period: layers.required("workers.probation", value::duration)?,
        hang_timeout: layers.required("workers.hang_timeout", value::hang_timeout)?,
        hang_kill: layers.required("workers.hang_kill", value::duration)?,
        recycling: RecyclingConfig {
            max_requests: layers.required("workers.max_requests", value::number_or_none)?,
            max_requests_jitter: layers
                .required("workers.max_requests_jitter", value::number_or_none)?
                .unwrap_or(0),
            max_age: layers.required("workers.max_age", value::duration_or_none)?,
            memory_soft: layers.required("workers.memory_soft", value::size_or_none)?,
            memory_hard: layers.required("workers.memory_hard", value::size_or_none)?,
        },
    })
}

pub(super) fn drain(layers: &SettingSources) -> Result<DrainConfig, ConfigError> {
    Ok(DrainConfig {
        grace: layers.required("drain.grace", value::duration)?,
        idle_grace: layers.required("drain.idle", value::duration)?,
        timeout: layers.required("drain.timeout", value::positive_duration)?,
        max_draining_workers: layers
            .required("drain.leaving", |text| value::number(text, 6))
            .map(|count| count as usize)?,
    })
}

pub(super) fn session(layers: &SettingSources) -> Result<SessionConfig, ConfigError> {
    Ok(SessionConfig {
        cookie: layers.required("session.cookie", value::cookie_name)?,
        secrets: layers.list("session.secrets", value::secrets)?,
        create: layers.required("session.create", value::session_creation)?,
        create_rate: layers.required("session.create_rate", limits::rate_or_off)?,
        create_burst: layers.required("session.create_burst", |text| value::number(text, 100_000))?,
        idle: layers.required("session.idle", value::positive_duration)?,
        absolute: layers.required("session.absolute", value::positive_duration)?,
        secure: layers.required("session.secure", value::cookie_security)?,
        stale_if_error: layers.required("session.stale", value::duration)?,
        max_per_user: layers.required("session.max_per_user", value::sessions_per_user)?,
        strict_fields: layers.list("session.strict", |items| Ok(items.to_vec()))?,
        encryption_keys: layers.list("session.encryption_keys", value::secrets)?,
    })
}

pub(super) fn http(layers: &SettingSources) -> Result<HttpConfig, ConfigError> {
    let connections = layers.required("http.connections", |text| value::number(text, 1_000_000))?;
    Ok(HttpConfig {
        header_timeout: layers.required("http.header_timeout", value::positive_duration)?,
        body_timeout: layers.required("http.body_timeout", value::positive_duration)?,
        body_min_rate: layers.required("http.body_min_rate", value::number_or_none)?.unwrap_or(0),
        request_timeout: layers.required("http.request_timeout", value::duration)?,
        keep_alive_timeout: layers.required("http.keep_alive", value::positive_duration)?,
        max_header_size: layers.required("http.header_limit", value::header_size)?,
        max_body_size: layers.required("http.body_limit", value::size)?,
        header_memory: layers.required("http.header_memory", value::size)?,
        connections_per_client: layers.required("http.connections_per_client", value::share)?,
        max_connections: usize::try_from(connections).unwrap_or(usize::MAX),
        rate_limit_headers: layers.required("http.limit_headers", limits::rate_limit_headers)?,
    })
}

pub(super) fn idempotency(layers: &SettingSources) -> Result<IdempotencyConfig, ConfigError> {
    Ok(IdempotencyConfig { ttl: layers.required("idempotency.ttl", value::duration)? })
}

pub(super) fn broadcast(layers: &SettingSources) -> Result<BroadcastConfig, ConfigError> {
    Ok(BroadcastConfig {
        retention_messages: layers.required("broadcast.history", |text| value::number(text, 100_000))?,
        retention: layers.required("broadcast.keep", value::positive_duration)?,
        max_message_size: layers.required("broadcast.message_limit", value::message_size)?,
        max_lag: layers.required("broadcast.buffer", |text| value::capacity(text, 65_536))?,
        max_subscribers: layers.required("broadcast.subscribers", |text| value::capacity(text, 1_000_000))?,
        max_topics: layers.required("broadcast.topics", |text| value::capacity(text, 100_000))?,
        keep_alive_interval: layers.required("broadcast.heartbeat", value::positive_duration)?,
    })
}

pub(super) fn websocket(layers: &SettingSources) -> Result<WebSocketConfig, ConfigError> {
    Ok(WebSocketConfig {
        allowed_origins: layers.list("websocket.origins", value::origins)?,
        max_message_size: layers.required("websocket.message_limit", value::message_size)?,
        max_messages_per_second: layers
            .required("websocket.messages_per_second", |text| value::number(text, 100_000))?,
        policy: layers.optional("websocket.policy", policy)?.flatten(),
    })
}

pub(super) fn tasks(layers: &SettingSources) -> Result<TasksConfig, ConfigError> {
    Ok(TasksConfig {
        concurrency: layers.required("tasks.running", value::task_concurrency)?,
        max_queued: layers.required("tasks.queue", |text| value::number(text, 1_000_000))?,
        max_attempts: layers.required("tasks.attempts", |text| value::number(text, 100))?,
        lease: layers.required("tasks.lease", value::task_lease)?,
        timeout: layers.required("tasks.timeout", value::positive_duration)?,
        retention: layers.required("tasks.keep", value::positive_duration)?,
    })
}

pub(super) fn dashboard(layers: &SettingSources) -> Result<DashboardConfig, ConfigError> {
    let dashboard = DashboardConfig {
        public: layers.required("dashboard.public", value::flag)?,
        token: layers.optional("dashboard.token", value::dashboard_token)?,
        token_file: layers.file_at("dashboard.token_file")?,
    };
    match (&dashboard.token, &dashboard.token_file) {
        (Some(_), Some(_)) => Err(layers.contradiction(
            "dashboard.token_file",
            "dashboard.token is set too; give one of them".to_owned(),
        )),
        (token, token_file) if !cfg!(feature = "dashboard") => {
            let used = [
                ("dashboard.public", dashboard.public),
                ("dashboard.token", token.is_some()),
                ("dashboard.token_file", token_file.is_some()),
            ];
            match used.into_iter().find(|(_, is_used)| *is_used) {
                Some((setting, _)) => Err(layers.contradiction(
                    setting,
                    "this program is built without the dashboard (cargo feature \"dashboard\")".to_owned(),
                )),
                None => Ok(dashboard),
            }
        }
        _ => Ok(dashboard),
    }
}

/// Where the shared state lives.
pub(super) fn redis(layers: &SettingSources) -> Result<RedisConfig, ConfigError> {
    let redis = RedisConfig {
        url: layers.optional("redis.url", value::redis_url)?,
        prefix: layers.required("redis.prefix", key_prefix::prefix)?,
        scripting: layers.required("redis.mode", value::scripting_mode)?,
        command_timeout: layers.required("redis.command_timeout", value::positive_duration)?,
        reconnect_wait: layers.required("redis.patience", value::reconnect_wait)?,
        credentials: RedisCredentials {
            password_file: layers.file_at("redis.password_file")?,
            tls_ca: layers.file_at("redis.tls_ca")?,
            tls_cert: layers.file_at("redis.tls_cert")?,
            tls_key: layers.file_at("redis.tls_key")?,
        },
    };
    check_redis_credentials(layers, &redis)?;
    Ok(redis)
}

/// Files that the address has no use for would be settings without an effect.
fn check_redis_credentials(layers: &SettingSources, redis: &RedisConfig) -> Result<(), ConfigError> {
    let RedisCredentials { password_file, tls_ca, tls_cert, tls_key } = &redis.credentials;
    let refuse = |name: &str, reason: &str| Err(layers.contradiction(name, reason.to_owned()));
    let place = redis.url.as_ref().and_then(|url| RedisAddress::parse(url.expose()).ok());
    if password_file.is_some() {
        match &place {
            None => return refuse("redis.password_file", "redis.url is not set"),
            Some(place) if place.login.password.is_some() => {
                return refuse("redis.password_file", "redis.url has a password too; give one of them");
            }
            Some(_) => {}
        }
    }
    let clustered = place.as_ref().is_some_and(|place| matches!(place.topology, RedisTopology::Cluster(_)));
    let files = [("redis.tls_ca", tls_ca), ("redis.tls_cert", tls_cert), ("redis.tls_key", tls_key)];
    if let Some((name, _)) = files.iter().find(|(_, file)| file.is_some())
        && !place.is_some_and(|place| place.tls)
    {
        return refuse(name, "redis.url does not ask for TLS; it would begin with rediss");
    }
    if redis.scripting == ScriptingMode::Plain && clustered {
        return refuse("redis.mode", "a cluster needs server-side code");
    }
    match (tls_cert, tls_key) {
        (Some(_), None) => refuse("redis.tls_cert", "its key is missing (redis.tls_key)"),
        (None, Some(_)) => refuse("redis.tls_key", "its certificate is missing (redis.tls_cert)"),
        _ => Ok(()),
    }
}
