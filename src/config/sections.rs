//! The settings section by section, each value from the layer that has the last word.

use crate::config::ConfigError;
use crate::config::layers::SettingSources;
use crate::config::limit;
use crate::config::parse;
use crate::config::parse::InvalidValue;
use crate::config::place::RedisAddress;
use crate::config::place::RedisTopology;
use crate::config::prefix;
use crate::config::schema::AutoscaleConfig;
use crate::config::schema::BroadcastConfig;
use crate::config::schema::DashboardConfig;
use crate::config::schema::DrainConfig;
use crate::config::schema::HttpConfig;
use crate::config::schema::IdempotencyConfig;
use crate::config::schema::RecyclingConfig;
use crate::config::schema::RedisConfig;
use crate::config::schema::RedisCredentials;
use crate::config::schema::ScriptingMode;
use crate::config::schema::SessionConfig;
use crate::config::schema::TasksConfig;
use crate::config::schema::WebSocketConfig;
use crate::config::schema::WorkersConfig;

/// A policy's name; nothing, over an application's default, means none.
fn policy(text: &str) -> Result<Option<String>, InvalidValue> {
    if text.is_empty() { Ok(None) } else { parse::policy_name(text).map(Some) }
}

pub(super) fn workers(layers: &SettingSources) -> Result<WorkersConfig, ConfigError> {
    Ok(WorkersConfig {
        count: layers.required("workers.count", parse::worker_count)?,
        autoscale: AutoscaleConfig {
            min: layers.optional("workers.min", parse::slot_count)?,
            max: layers.optional("workers.max", parse::slot_count)?,
            mode: layers.required("workers.autoscale", parse::autoscale_mode)?,
            window: layers.required("workers.window", parse::autoscale_window)?,
            busy_max: layers.required("workers.busy_max", parse::percent)?,
            busy_min: layers.required("workers.busy_min", parse::percent)?,
        },
        boot_timeout: layers.required("workers.boot_timeout", parse::positive_duration)?,
        canary_period: layers.required("workers.probation", parse::duration)?,
        hang_timeout: layers.required("workers.hang_timeout", parse::hang_timeout)?,
        hang_kill: layers.required("workers.hang_kill", parse::duration)?,
        recycling: RecyclingConfig {
            max_requests: layers.required("workers.max_requests", parse::number_or_none)?,
            max_requests_jitter: layers
                .required("workers.max_requests_jitter", parse::number_or_none)?
                .unwrap_or(0),
            max_age: layers.required("workers.max_age", parse::duration_or_none)?,
            memory_soft: layers.required("workers.memory_soft", parse::size_or_none)?,
            memory_hard: layers.required("workers.memory_hard", parse::size_or_none)?,
        },
    })
}

pub(super) fn drain(layers: &SettingSources) -> Result<DrainConfig, ConfigError> {
    Ok(DrainConfig {
        grace: layers.required("drain.grace", parse::duration)?,
        idle_grace: layers.required("drain.idle", parse::duration)?,
        timeout: layers.required("drain.timeout", parse::positive_duration)?,
        max_draining_workers: layers
            .required("drain.leaving", |text| parse::number(text, 6))
            .map(|count| count as usize)?,
    })
}

pub(super) fn session(layers: &SettingSources) -> Result<SessionConfig, ConfigError> {
    Ok(SessionConfig {
        cookie: layers.required("session.cookie", parse::cookie_name)?,
        secrets: layers.list("session.secrets", parse::secrets)?,
        create: layers.required("session.create", parse::session_creation)?,
        create_rate: layers.required("session.create_rate", limit::rate_or_off)?,
        create_burst: layers.required("session.create_burst", |text| parse::number(text, 100_000))?,
        idle: layers.required("session.idle", parse::positive_duration)?,
        absolute: layers.required("session.absolute", parse::positive_duration)?,
        secure: layers.required("session.secure", parse::cookie_security)?,
        stale_if_error: layers.required("session.stale", parse::duration)?,
        max_per_user: layers.required("session.max_per_user", parse::sessions_per_user)?,
        strict_fields: layers.list("session.strict", |items| Ok(items.to_vec()))?,
        encryption_keys: layers.list("session.encryption_keys", parse::secrets)?,
    })
}

pub(super) fn http(layers: &SettingSources) -> Result<HttpConfig, ConfigError> {
    let connections = layers.required("http.connections", |text| parse::number(text, 1_000_000))?;
    Ok(HttpConfig {
        header_timeout: layers.required("http.header_timeout", parse::positive_duration)?,
        body_timeout: layers.required("http.body_timeout", parse::positive_duration)?,
        body_min_rate: layers.required("http.body_min_rate", parse::number_or_none)?.unwrap_or(0),
        request_timeout: layers.required("http.request_timeout", parse::duration)?,
        keep_alive_timeout: layers.required("http.keep_alive", parse::positive_duration)?,
        max_header_size: layers.required("http.header_limit", parse::header_size)?,
        max_body_size: layers.required("http.body_limit", parse::size)?,
        header_memory: layers.required("http.header_memory", parse::size)?,
        connections_per_client: layers.required("http.connections_per_client", parse::share)?,
        max_connections: usize::try_from(connections).unwrap_or(usize::MAX),
        rate_limit_headers: layers.required("http.limit_headers", limit::rate_limit_headers)?,
    })
}

pub(super) fn idempotency(layers: &SettingSources) -> Result<IdempotencyConfig, ConfigError> {
    Ok(IdempotencyConfig { ttl: layers.required("idempotency.ttl", parse::duration)? })
}

pub(super) fn broadcast(layers: &SettingSources) -> Result<BroadcastConfig, ConfigError> {
    Ok(BroadcastConfig {
        retention_messages: layers.required("broadcast.history", |text| parse::number(text, 100_000))?,
        retention: layers.required("broadcast.keep", parse::positive_duration)?,
        max_message_size: layers.required("broadcast.message_limit", parse::message_size)?,
        max_lag: layers.required("broadcast.buffer", |text| parse::capacity(text, 65_536))?,
        max_subscribers: layers.required("broadcast.subscribers", |text| parse::capacity(text, 1_000_000))?,
        max_topics: layers.required("broadcast.topics", |text| parse::capacity(text, 100_000))?,
        keep_alive_interval: layers.required("broadcast.heartbeat", parse::positive_duration)?,
    })
}

pub(super) fn websocket(layers: &SettingSources) -> Result<WebSocketConfig, ConfigError> {
    Ok(WebSocketConfig {
        allowed_origins: layers.list("websocket.origins", parse::origins)?,
        max_message_size: layers.required("websocket.message_limit", parse::message_size)?,
        max_messages_per_second: layers
            .required("websocket.messages_per_second", |text| parse::number(text, 100_000))?,
        policy: layers.optional("websocket.policy", policy)?.flatten(),
    })
}

pub(super) fn tasks(layers: &SettingSources) -> Result<TasksConfig, ConfigError> {
    Ok(TasksConfig {
        concurrency: layers.required("tasks.running", parse::task_concurrency)?,
        max_queued: layers.required("tasks.queue", |text| parse::number(text, 1_000_000))?,
        max_attempts: layers.required("tasks.attempts", |text| parse::number(text, 100))?,
        lease: layers.required("tasks.lease", parse::task_lease)?,
        timeout: layers.required("tasks.timeout", parse::positive_duration)?,
        retention: layers.required("tasks.keep", parse::positive_duration)?,
    })
}

pub(super) fn dashboard(layers: &SettingSources) -> Result<DashboardConfig, ConfigError> {
    let dashboard = DashboardConfig {
        public: layers.required("dashboard.public", parse::flag)?,
        token: layers.optional("dashboard.token", parse::dashboard_token)?,
        token_file: layers.file_at("dashboard.token_file")?,
    };
    match (&dashboard.token, &dashboard.token_file) {
        (Some(_), Some(_)) => Err(layers.contradiction(
            "dashboard.token_file",
            "dashboard.token is set too; give one of them".to_owned(),
        )),
        _ => Ok(dashboard),
    }
}

/// Where the shared state lives.
pub(super) fn redis(layers: &SettingSources) -> Result<RedisConfig, ConfigError> {
    let redis = RedisConfig {
        url: layers.optional("redis.url", parse::redis_url)?,
        prefix: layers.required("redis.prefix", prefix::prefix)?,
        scripting: layers.required("redis.mode", parse::scripting_mode)?,
        command_timeout: layers.required("redis.command_timeout", parse::positive_duration)?,
        reconnect_wait: layers.required("redis.patience", parse::reconnect_wait)?,
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
