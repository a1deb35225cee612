//! The settings section by section, each value from the layer that has the last word.

use std::path::PathBuf;

use crate::config::Error;
use crate::config::layers::Layers;
use crate::config::limit;
use crate::config::parse;
use crate::config::parse::Reason;
use crate::config::place::Kind;
use crate::config::place::Place;
use crate::config::schema::Access;
use crate::config::schema::Broadcast;
use crate::config::schema::Dashboard;
use crate::config::schema::Drain;
use crate::config::schema::Http;
use crate::config::schema::Idempotency;
use crate::config::schema::Mode;
use crate::config::schema::Recycling;
use crate::config::schema::Redis;
use crate::config::schema::Scaling;
use crate::config::schema::Session;
use crate::config::schema::Tasks;
use crate::config::schema::WebSocket;
use crate::config::schema::Workers;

pub(super) fn path(text: &str) -> Result<PathBuf, Reason> {
    if text.is_empty() { Err("it is empty".into()) } else { Ok(PathBuf::from(text)) }
}

pub(super) fn workers(layers: &Layers) -> Result<Workers, Error> {
    Ok(Workers {
        count: layers.one("workers.count", parse::count)?,
        scaling: Scaling {
            min: layers.optional("workers.min", parse::workers)?,
            max: layers.optional("workers.max", parse::workers)?,
            mode: layers.one("workers.autoscale", parse::autoscale)?,
            window: layers.one("workers.window", parse::window)?,
            busy_max: layers.one("workers.busy_max", parse::percent)?,
            busy_min: layers.one("workers.busy_min", parse::percent)?,
        },
        boot_timeout: layers.one("workers.boot_timeout", parse::positive_duration)?,
        probation: layers.one("workers.probation", parse::duration)?,
        hang_timeout: layers.one("workers.hang_timeout", parse::hang_timeout)?,
        hang_kill: layers.one("workers.hang_kill", parse::duration)?,
        recycling: Recycling {
            max_requests: layers.one("workers.max_requests", parse::number_or_none)?,
            max_requests_jitter: layers
                .one("workers.max_requests_jitter", parse::number_or_none)?
                .unwrap_or(0),
            max_age: layers.one("workers.max_age", parse::duration_or_none)?,
            memory_soft: layers.one("workers.memory_soft", parse::size_or_none)?,
            memory_hard: layers.one("workers.memory_hard", parse::size_or_none)?,
        },
    })
}

pub(super) fn drain(layers: &Layers) -> Result<Drain, Error> {
    Ok(Drain {
        grace: layers.one("drain.grace", parse::duration)?,
        idle: layers.one("drain.idle", parse::duration)?,
        timeout: layers.one("drain.timeout", parse::positive_duration)?,
        leaving: layers.one("drain.leaving", |text| parse::number(text, 6)).map(|count| count as usize)?,
    })
}

pub(super) fn session(layers: &Layers) -> Result<Session, Error> {
    Ok(Session {
        cookie: layers.one("session.cookie", parse::cookie_name)?,
        secrets: layers.list("session.secrets", parse::secrets)?,
        create: layers.one("session.create", parse::create)?,
        create_rate: layers.one("session.create_rate", limit::rate_or_off)?,
        create_burst: layers.one("session.create_burst", |text| parse::number(text, 100_000))?,
        idle: layers.one("session.idle", parse::positive_duration)?,
        absolute: layers.one("session.absolute", parse::positive_duration)?,
        secure: layers.one("session.secure", parse::secure)?,
        stale: layers.one("session.stale", parse::duration)?,
        max_per_user: layers.one("session.max_per_user", parse::sessions)?,
        strict: layers.list("session.strict", |items| Ok(items.to_vec()))?,
        encryption_keys: layers.list("session.encryption_keys", parse::secrets)?,
    })
}

pub(super) fn http(layers: &Layers) -> Result<Http, Error> {
    let connections = layers.one("http.connections", |text| parse::number(text, 1_000_000))?;
    Ok(Http {
        header_timeout: layers.one("http.header_timeout", parse::positive_duration)?,
        body_timeout: layers.one("http.body_timeout", parse::positive_duration)?,
        body_min_rate: layers.one("http.body_min_rate", parse::number_or_none)?.unwrap_or(0),
        request_timeout: layers.one("http.request_timeout", parse::duration)?,
        keep_alive: layers.one("http.keep_alive", parse::positive_duration)?,
        header_limit: layers.one("http.header_limit", parse::header_size)?,
        body_limit: layers.one("http.body_limit", parse::size)?,
        header_memory: layers.one("http.header_memory", parse::size)?,
        connections_per_client: layers.one("http.connections_per_client", parse::share)?,
        connections: usize::try_from(connections).unwrap_or(usize::MAX),
        limit_headers: layers.one("http.limit_headers", limit::limit_headers)?,
    })
}

pub(super) fn idempotency(layers: &Layers) -> Result<Idempotency, Error> {
    Ok(Idempotency { ttl: layers.one("idempotency.ttl", parse::duration)? })
}

pub(super) fn broadcast(layers: &Layers) -> Result<Broadcast, Error> {
    Ok(Broadcast {
        history: layers.one("broadcast.history", |text| parse::number(text, 100_000))?,
        keep: layers.one("broadcast.keep", parse::positive_duration)?,
        message_limit: layers.one("broadcast.message_limit", parse::message_limit)?,
        buffer: layers.one("broadcast.buffer", |text| parse::places(text, 65_536))?,
        subscribers: layers.one("broadcast.subscribers", |text| parse::places(text, 1_000_000))?,
        topics: layers.one("broadcast.topics", |text| parse::places(text, 100_000))?,
        heartbeat: layers.one("broadcast.heartbeat", parse::positive_duration)?,
    })
}

pub(super) fn websocket(layers: &Layers) -> Result<WebSocket, Error> {
    Ok(WebSocket {
        origins: layers.list("websocket.origins", parse::origins)?,
        message_limit: layers.one("websocket.message_limit", parse::message_limit)?,
        messages_per_second: layers
            .one("websocket.messages_per_second", |text| parse::number(text, 100_000))?,
    })
}

pub(super) fn tasks(layers: &Layers) -> Result<Tasks, Error> {
    Ok(Tasks {
        running: layers.one("tasks.running", parse::running)?,
        queue: layers.one("tasks.queue", |text| parse::number(text, 1_000_000))?,
        attempts: layers.one("tasks.attempts", |text| parse::number(text, 100))?,
        lease: layers.one("tasks.lease", parse::lease)?,
        timeout: layers.one("tasks.timeout", parse::positive_duration)?,
        keep: layers.one("tasks.keep", parse::positive_duration)?,
    })
}

pub(super) fn dashboard(layers: &Layers) -> Result<Dashboard, Error> {
    let dashboard = Dashboard {
        public: layers.one("dashboard.public", parse::flag)?,
        token: layers.optional("dashboard.token", parse::token)?,
        token_file: layers.optional("dashboard.token_file", path)?,
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
pub(super) fn redis(layers: &Layers) -> Result<Redis, Error> {
    let redis = Redis {
        url: layers.optional("redis.url", parse::redis_url)?,
        prefix: layers.one("redis.prefix", parse::prefix)?,
        mode: layers.one("redis.mode", parse::mode)?,
        command_timeout: layers.one("redis.command_timeout", parse::positive_duration)?,
        patience: layers.one("redis.patience", parse::patience)?,
        access: Access {
            password_file: layers.optional("redis.password_file", path)?,
            tls_ca: layers.optional("redis.tls_ca", path)?,
            tls_cert: layers.optional("redis.tls_cert", path)?,
            tls_key: layers.optional("redis.tls_key", path)?,
        },
    };
    access_agrees(layers, &redis)?;
    Ok(redis)
}

/// Files that the address has no use for would be settings without an effect.
fn access_agrees(layers: &Layers, redis: &Redis) -> Result<(), Error> {
    let Access { password_file, tls_ca, tls_cert, tls_key } = &redis.access;
    let refuse = |name: &str, reason: &str| Err(layers.contradiction(name, reason.to_owned()));
    let place = redis.url.as_ref().and_then(|url| Place::read(url.expose()).ok());
    if password_file.is_some() {
        match &place {
            None => return refuse("redis.password_file", "redis.url is not set"),
            Some(place) if place.login.password.is_some() => {
                return refuse("redis.password_file", "redis.url has a password too; give one of them");
            }
            Some(_) => {}
        }
    }
    let clustered = place.as_ref().is_some_and(|place| matches!(place.kind, Kind::Cluster(_)));
    let files = [("redis.tls_ca", tls_ca), ("redis.tls_cert", tls_cert), ("redis.tls_key", tls_key)];
    if let Some((name, _)) = files.iter().find(|(_, file)| file.is_some())
        && !place.is_some_and(|place| place.tls)
    {
        return refuse(name, "redis.url does not ask for TLS; it would begin with rediss");
    }
    if redis.mode == Mode::Plain && clustered {
        return refuse("redis.mode", "a cluster needs server-side code");
    }
    match (tls_cert, tls_key) {
        (Some(_), None) => refuse("redis.tls_cert", "its key is missing (redis.tls_key)"),
        (None, Some(_)) => refuse("redis.tls_key", "its certificate is missing (redis.tls_cert)"),
        _ => Ok(()),
    }
}
