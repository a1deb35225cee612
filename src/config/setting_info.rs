//! The table of every setting: the one place that knows its name, default and what is allowed.

/// One setting as an operator sees it.
#[derive(Debug, Clone, Copy)]
pub struct SettingInfo {
    /// Dotted path, as in the file: `workers.count`. A `*` stands for a name of the operator's choice.
    pub path: &'static str,
    /// Value when nobody sets it; empty when there is none.
    pub default: &'static str,
    /// What may be given, for error messages and the printed reference.
    pub allowed: &'static str,
    /// One line of what it does.
    pub doc: &'static str,
}

const fn setting(
    path: &'static str,
    default: &'static str,
    allowed: &'static str,
    about: &'static str,
) -> SettingInfo {
    SettingInfo { path, default, allowed, doc: about }
}

const DURATION: &str = "a duration such as 250ms, 3s, 5m or 24h";
const ADDRESSES: &str = "addresses such as 0.0.0.0:3000 or [::]:3000, separated by commas";
const COUNT: &str = "a number from 1 to 1024";
const PERCENT: &str = "a share from 1% to 100%";
const REQUESTS: &str = "0 for none, or a number up to 1000000000000";
const HANG_KILL: &str = "0 for never, or a duration longer than workers.hang_timeout";
const MEMORY: &str = "0 for none, or a size such as 512MiB or 2GiB";
const FLAG: &str = "true or false";
const MESSAGE: &str = "a size up to 1MiB, such as 16KiB";
const SIZE: &str = "a size in bytes such as 65536, 64KiB or 2MiB";

/// Every setting there is; an unknown name is an error.
pub const SETTINGS: &[SettingInfo] = &[
    setting("listen", "0.0.0.0:3000", ADDRESSES, "public addresses"),
    setting("listen.steering", "kernel", "kernel or client-ip", "how connections are spread over the slots"),
    setting(
        "listen.balance",
        "true",
        FLAG,
        "whether a worker that has its share of the connections passes a new one on",
    ),
    setting(
        "advertise",
        "",
        "addresses such as 10.0.0.5, web-1:3000 or [2001:db8::1]:3000, separated by commas",
        "where other machines reach the public addresses; none: as this machine knows itself",
    ),
    setting(
        "fleet.heartbeat_interval",
        "2s",
        "0 for never, or a duration from 200ms to 1m",
        "how often this machine says in Redis that it lives",
    ),
    setting("admin.listen", "127.0.0.1:3001", ADDRESSES, "operators' addresses"),
    setting(
        "admin.allowed_hosts",
        "",
        "names such as fleet.example.org or *.svc.cluster.local, separated by commas",
        "names under which the operators' address may be asked, beside IP addresses and localhost",
    ),
    setting("workers.count", "auto", "auto, or a number from 1 to 1024", "number of workers"),
    setting("workers.min", "", COUNT, "fewest workers; below workers.max the load decides how many"),
    setting("workers.max", "", COUNT, "most workers; workers.count if unset, as workers.min"),
    setting("autoscale.mode", "on", "on or dry-run", "follow the load between min and max, or only say so"),
    setting(
        "autoscale.window",
        "10s",
        "a duration from 1s",
        "time over which the workers' busyness is averaged",
    ),
    setting("autoscale.busy_max", "50%", PERCENT, "busier than this on average: one worker more"),
    setting("autoscale.busy_min", "25%", PERCENT, "less busy for several windows: one worker less"),
    setting("workers.boot_timeout", "30s", DURATION, "longest time until a new worker is READY"),
    setting(
        "workers.canary_period",
        "1500ms",
        DURATION,
        "the first worker of a reload or upgrade must serve this long before the others follow",
    ),
    setting(
        "workers.hang_timeout",
        "3s",
        "0 for never, or a duration from 1s",
        "a worker in which nothing moves gets a spare beside it",
    ),
    setting("workers.hang_kill", "30s", HANG_KILL, "a worker in which nothing moves is killed"),
    setting("workers.max_requests", "0", REQUESTS, "a worker is renewed after so many requests"),
    setting("workers.max_requests_jitter", "0", REQUESTS, "up to so many more, different for each worker"),
    setting(
        "workers.max_age",
        "0",
        "0 for never, or a duration such as 12h",
        "a worker is renewed at this age",
    ),
    setting("workers.memory_soft", "0", MEMORY, "private memory at which a worker is renewed"),
    setting("workers.memory_hard", "0", MEMORY, "private memory at which a worker is killed"),
    setting("drain.grace", "0s", DURATION, "keep accepting this long after readiness has failed"),
    setting("drain.idle_grace", "500ms", DURATION, "keep idle connections this long, for requests under way"),
    setting("drain.timeout", "30s", DURATION, "longest drain; what still runs then is cut and logged"),
    setting(
        "drain.max_draining_workers",
        "3",
        "a number from 1 to 6",
        "leaving workers per slot; the oldest is cut when more",
    ),
    setting(
        "redis.url",
        "",
        "redis://host:port/db, unix:///path, redis-sentinel://host:port,…/service or redis-cluster://host:port,…; rediss for TLS",
        "the shared Redis; none: a private one",
    ),
    setting("redis.password_file", "", "a file", "the password, read again at every attempt to connect"),
    setting("redis.tls_ca", "", "a PEM file", "authorities that are trusted; none: the system's"),
    setting("redis.tls_cert", "", "a PEM file", "our certificate, if the server wants one"),
    setting("redis.tls_key", "", "a PEM file", "its private key"),
    setting(
        "redis.prefix",
        "regatta",
        "1 to 64 letters, digits, - _ . or :, no part behind a : being one of our own",
        "first part of every key",
    ),
    setting(
        "redis.mode",
        "auto",
        "auto, fcall, evalsha or plain",
        "how server-side code is called; plain: not at all",
    ),
    setting(
        "redis.silence_timeout",
        "250ms",
        DURATION,
        "a connection on which calls wait and nothing is answered for this long is taken for dead",
    ),
    setting("redis.patience", "2s", "0s to 1m", "longest absence of Redis that requests wait for; 0s: none"),
    setting(
        "redis.maxmemory",
        "auto",
        "auto, 0 for none, or a size such as 512MiB",
        "memory of the private Redis; auto: a quarter of what the machine or container has",
    ),
    setting("session.cookie", "sid", "1 to 32 letters, digits, - or _", "name of the session cookie"),
    setting(
        "session.secrets",
        "",
        "keys of at least 32 bytes, separated by commas",
        "cookie signing keys; the first signs",
    ),
    setting("session.create", "return", "return or write", "what a visitor's session is made by"),
    setting(
        "session.create_rate",
        "60/min",
        "off, or a number / a time",
        "new sessions that one client may have made; what exceeds it is short-lived, and writes are refused",
    ),
    setting(
        "session.create_burst",
        "120",
        "1 to 100000",
        "new sessions that one client may have made at once",
    ),
    setting("session.idle", "24h", DURATION, "an unused session is gone after this"),
    setting("session.absolute", "30d", DURATION, "any session is gone after this"),
    setting("session.secure", "auto", "auto, always or never", "whether the cookie is sent over TLS only"),
    setting(
        "session.stale_if_error",
        "60s",
        DURATION,
        "oldest copy of a session shown while Redis is away; 0s: none",
    ),
    setting(
        "session.max_per_user",
        "0",
        "0 for any number, or a number up to 1000",
        "sessions one user may have; the oldest ends at a login beyond that",
    ),
    setting(
        "session.strict_fields",
        "",
        "names of session fields, separated by commas",
        "fields whose changes are never lost: of two concurrent ones the second is refused",
    ),
    setting(
        "session.encryption_keys",
        "",
        "keys of at least 32 bytes, separated by commas",
        "encrypt session fields at rest; the first key encrypts, all decrypt",
    ),
    setting("limits.ipv6_prefix", "56", "a length from 32 to 64", "network that counts as one IPv6 client"),
    setting(
        "limits.*.per",
        "client",
        "client, session, user, header or global",
        "whose requests are counted together",
    ),
    setting(
        "limits.*.header",
        "",
        "a header's name such as x-api-key",
        "the header that counts; none: client",
    ),
    setting("limits.*.rate", "", "requests per time such as 100/s, 600/min or 5000/h", "sustained rate"),
    setting(
        "limits.*.burst",
        "",
        "a number from 1 to 1000000",
        "requests at once; twice the rate per second if unset",
    ),
    setting("limits.*.cost", "1", "a number from 1 to the burst", "what one request counts for"),
    setting(
        "limits.*.prefetch",
        "auto",
        "auto, true, false or a number of requests",
        "workers draw quota in advance: for subjects that come often, always, never, or always and so much each",
    ),
    setting("limits.*.concurrency", "", "a number from 1 to 100000", "requests under way, instead of a rate"),
    setting(
        "limits.*.concurrency_lease",
        "10s",
        "a duration from 1s to 5m",
        "a killed worker's requests end by then",
    ),
    setting(
        "limits.*.routes",
        "",
        "path prefixes such as /login, separated by commas, with or without state; or layer",
        "where the policy applies; none: everywhere; state: when state is used",
    ),
    setting("limits.*.methods", "", "methods such as POST, separated by commas", "which methods; none: all"),
    setting("limits.*.on_redis_down", "local", "local, open or closed", "what happens without Redis"),
    setting(
        "limits.*.on_redis_full",
        "open",
        "open or closed",
        "what happens to strangers while Redis is nearly full",
    ),
    setting(
        "limits.*.client_factor",
        "10",
        "0 for any, or a number up to 1000",
        "with a header: so many times the policy for one client under all values",
    ),
    setting("limits.*.shadow", "false", FLAG, "it counts and says whom it would deny, and denies nobody"),
    setting("limits.*.enabled", "true", FLAG, "false: as if the policy were not there"),
    setting(
        "proxy.trusted",
        "127.0.0.0/8, ::1/128",
        "networks such as 10.0.0.0/8, separated by commas",
        "trusted proxies",
    ),
    setting(
        "proxy.header",
        "x-forwarded-for",
        "x-forwarded-for or forwarded",
        "the header a trusted proxy sets",
    ),
    setting("http.header_timeout", "10s", DURATION, "a request's header must be complete by then"),
    setting("http.body_timeout", "30s", DURATION, "longest pause within a request's body"),
    setting(
        "http.min_body_rate",
        "240",
        "0 for any, or a number of bytes a second",
        "a request's body must come this fast while it is waited for, after 5 s",
    ),
    setting(
        "http.request_timeout",
        "0s",
        "0s for never, or a duration such as 30s",
        "a response must have begun by then",
    ),
    setting("http.keep_alive_timeout", "75s", DURATION, "an idle connection is closed after this"),
    setting("http.max_header_size", "32KiB", "a size from 8KiB to 1GiB", "largest request header"),
    setting(
        "http.max_header_memory",
        "16MiB",
        SIZE,
        "unfinished request headers may take so much per worker, beyond 8KiB each",
    ),
    setting("http.max_body_size", "2MiB", SIZE, "largest request body"),
    setting("http.max_connections", "16384", "a number from 1 to 1000000", "open connections per worker"),
    setting(
        "http.max_connections_per_client",
        "50%",
        "a share of http.max_connections from 1% to 100%, or a number from 1 to 1000000",
        "of these, open connections of one client address; trusted proxies may have any number",
    ),
    setting(
        "http.rate_limit_headers",
        "draft",
        "draft, legacy, both or off",
        "headers that tell a client its limits",
    ),
    setting(
        "idempotency.ttl",
        "24h",
        "0s for never, or a duration such as 24h",
        "responses to requests with Idempotency-Key are kept this long",
    ),
    setting(
        "broadcast.retention_messages",
        "1000",
        "a number from 1 to 100000",
        "messages kept of each topic, about, for clients that come back",
    ),
    setting(
        "broadcast.retention",
        "1h",
        DURATION,
        "a topic's messages are forgotten this long after the last one",
    ),
    setting("broadcast.max_message_size", "16KiB", MESSAGE, "largest message that is broadcast"),
    setting(
        "broadcast.max_lag",
        "256",
        "a number from 1 to 65536",
        "messages a client may fall behind before it is told and dropped, and never fewer than 128",
    ),
    setting(
        "broadcast.max_subscribers",
        "10000",
        "a number from 1 to 1000000",
        "subscribed clients per worker, and as many other streams",
    ),
    setting("broadcast.max_topics", "1000", "a number from 1 to 100000", "subscribed topics per worker"),
    setting(
        "broadcast.keep_alive_interval",
        "15s",
        DURATION,
        "a stream with nothing to say gives a sign of life this often",
    ),
    setting(
        "websocket.allowed_origins",
        "",
        "origins such as https://example.org, separated by commas",
        "pages of other hosts that may open a WebSocket; none: the own host's only",
    ),
    setting(
        "websocket.policy",
        "",
        "a policy's name",
        "limit that messages over WebSockets are charged to; none: none",
    ),
    setting(
        "websocket.max_message_size",
        "16KiB",
        MESSAGE,
        "largest message a client may send over a WebSocket",
    ),
    setting(
        "websocket.max_messages_per_second",
        "20",
        "a number from 1 to 100000",
        "messages a client may send over a WebSocket in a second",
    ),
    setting(
        "tasks.concurrency",
        "1",
        "a number from 0 to 64",
        "tasks that run at once in a worker; 0: this machine takes none",
    ),
    setting(
        "tasks.max_queued",
        "1000",
        "a number from 1 to 1000000",
        "tasks that may wait in the fleet; then 503",
    ),
    setting(
        "tasks.max_attempts",
        "3",
        "a number from 1 to 100",
        "times a task is begun before it is given up",
    ),
    setting(
        "tasks.lease",
        "3s",
        "a duration from 1s to 1m",
        "a task whose worker was not heard of for this long is taken over",
    ),
    setting("tasks.timeout", "10m", DURATION, "a task that runs for longer has failed"),
    setting("tasks.retention", "1h", DURATION, "a task and its result are forgotten this long after its end"),
    setting("dashboard.public", "false", FLAG, "visitors may open the operators' page, too"),
    setting(
        "dashboard.token",
        "",
        "a text of 16 to 1024 bytes",
        "what operators sign in with at their page; none: it has no buttons",
    ),
    setting("dashboard.token_file", "", "a file", "the token, read whenever a worker starts"),
    setting("run_dir", "", "a folder", "lock and control socket"),
    setting("data_dir", "", "a folder", "the private Redis's data"),
    setting("log.format", "auto", "auto, pretty or json", "form of log lines"),
    setting("log.filter", "info", "tracing directives such as info or regatta=debug", "what is logged"),
    setting("log.file", "", "a file", "where lines go; none: standard error"),
    setting(
        "log.stats_interval",
        "0s",
        DURATION,
        "the supervisor logs totals and rates this often; 0s: never",
    ),
];

/// The entry for a dotted path, matching `*` against one part.
pub fn lookup(path: &str) -> Option<&'static SettingInfo> {
    SETTINGS.iter().find(|key| matches(key.path, path))
}

fn matches(pattern: &str, path: &str) -> bool {
    let mut expected = pattern.split('.');
    let mut given = path.split('.');
    loop {
        match (expected.next(), given.next()) {
            (None, None) => return true,
            (Some("*"), Some(name)) if !name.is_empty() => {}
            (Some(part), Some(name)) if part == name => {}
            _ => return false,
        }
    }
}

/// Settings whose value is never shown.
pub fn is_secret(path: &str) -> bool {
    matches!(path, "session.secrets" | "session.encryption_keys" | "dashboard.token")
}

/// Settings that there were, and what to do without them.
const REMOVED: &[(&str, &str)] = &[(
    "redis.commit_timeout",
    "calls have no deadline of their own any more: redis.command_timeout says when a silent connection is taken \
         for dead, and redis.patience how long requests wait for Redis",
)];

/// What replaces a setting that there was; `None` if there never was one of this name.
pub fn removal_hint(path: &str) -> Option<&'static str> {
    REMOVED.iter().find(|(known, _)| *known == path).map(|(_, instead)| *instead)
}

/// Former names of settings, and the present ones.
pub(super) const RENAMED: &[(&str, &str)] = &[
    ("admin.hosts", "admin.allowed_hosts"),
    ("broadcast.buffer", "broadcast.max_lag"),
    ("broadcast.heartbeat", "broadcast.keep_alive_interval"),
    ("broadcast.history", "broadcast.retention_messages"),
    ("broadcast.keep", "broadcast.retention"),
    ("broadcast.message_limit", "broadcast.max_message_size"),
    ("broadcast.subscribers", "broadcast.max_subscribers"),
    ("broadcast.topics", "broadcast.max_topics"),
    ("dashboard.hosts", "admin.allowed_hosts"),
    ("drain.idle", "drain.idle_grace"),
    ("drain.leaving", "drain.max_draining_workers"),
    ("fleet.heartbeat", "fleet.heartbeat_interval"),
    ("http.body_limit", "http.max_body_size"),
    ("http.body_min_rate", "http.min_body_rate"),
    ("http.connections", "http.max_connections"),
    ("http.connections_per_client", "http.max_connections_per_client"),
    ("http.header_limit", "http.max_header_size"),
    ("http.header_memory", "http.max_header_memory"),
    ("http.keep_alive", "http.keep_alive_timeout"),
    ("http.limit_headers", "http.rate_limit_headers"),
    ("limits.*.concurrent", "limits.*.concurrency"),
    ("limits.*.concurrent_lease", "limits.*.concurrency_lease"),
    ("limits.*.lease", "limits.*.prefetch"),
    ("log.level", "log.filter"),
    ("redis.command_timeout", "redis.silence_timeout"),
    ("session.stale", "session.stale_if_error"),
    ("session.strict", "session.strict_fields"),
    ("tasks.attempts", "tasks.max_attempts"),
    ("tasks.keep", "tasks.retention"),
    ("tasks.queue", "tasks.max_queued"),
    ("tasks.running", "tasks.concurrency"),
    ("websocket.message_limit", "websocket.max_message_size"),
    ("websocket.messages_per_second", "websocket.max_messages_per_second"),
    ("websocket.origins", "websocket.allowed_origins"),
    ("workers.autoscale", "autoscale.mode"),
    ("workers.busy_max", "autoscale.busy_max"),
    ("workers.busy_min", "autoscale.busy_min"),
    ("workers.probation", "workers.canary_period"),
    ("workers.window", "autoscale.window"),
];

/// The present name of a setting that had this one.
pub fn present_name(path: &str) -> Option<String> {
    let (former, present) = RENAMED.iter().find(|(former, _)| matches(former, path))?;
    // The part of the path that the operator chose is the same in both names.
    let chosen = former.split('.').zip(path.split('.')).find(|(part, _)| *part == "*");
    Some(chosen.map_or((*present).to_owned(), |(_, chosen)| present.replacen('*', chosen, 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_limits_are_free() {
        assert!(lookup("limits.login.rate").is_some());
        assert!(lookup("limits.rate").is_none());
        assert!(lookup("workers.count.x").is_none());
    }
}
