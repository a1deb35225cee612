//! The part of the table on what lives in Redis: the connection, sessions, limits, broadcasts, tasks.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::limits::Rate;
use crate::config::redis_url::RedisUrl;
use crate::config::setting::settings;
use crate::config::settings::allowed::{DURATION, FLAG, MESSAGE};
use crate::config::value::choice::{CookieSecurity, MaxMemory, ScriptingMode, SessionCreation};
use crate::config::value::secret::Secret;
use crate::config::value::{address, basic, bounds, choice, secret};
use crate::config::{key_prefix, limits};

settings! {
    /// Where the shared state lives and how long requests wait for it.
    #[derive(Debug, Clone)]
    struct RedisConfig {
        /// The shared Redis; none: a private one.
        ///
        /// None: a private redis-server in `data_dir`; [forms](#the-address-of-redis).
        url: Option<RedisUrl> = optional(
            "redis.url", RedisUrl::parse;
            "", "redis://host:port/db, unix:///path, redis-sentinel://host:port,…/service or redis-cluster://host:port,…; rediss for TLS", Reload,
            variable = "REDIS_URL"
        );
        /// Files that are read at every attempt to connect, so that a renewed one needs no restart.
        credentials: RedisCredentials = section();
        /// First part of every key.
        ///
        /// First part of every key: fleets with the same prefix share everything, with different ones nothing. No part
        /// behind a `:` is empty, one small letter, `bt`, `dw`, `io`, `mig`, `news`, `once` or `secret`.
        prefix: String = required(
            "redis.prefix", key_prefix::parse;
            "regatta", "1 to 64 letters, digits, - _ . or :, no part behind a : being one of our own", Reload
        );
        /// How server-side code is called; plain: not at all.
        ///
        /// How server-side code is called; plain: not at all, by commands that promise less ([Without server-side
        /// code](OPERATIONS.md#without-server-side-code)); auto: functions where they are allowed, else scripts, else
        /// plain.
        scripting: ScriptingMode = required(
            "redis.mode", choice::scripting_mode; "auto", "auto, fcall, evalsha or plain", Reload
        );
        /// A connection on which calls wait and nothing is answered for this long is taken for dead.
        ///
        /// A connection on which calls wait and nothing at all is answered for this long is taken for silent: calls
        /// wait, another connection is tried beside it. No call has a deadline of its own, so this is not the longest
        /// wait for one answer.
        silence_timeout: Duration = required(
            "redis.silence_timeout", basic::positive_duration; "250ms", DURATION, Reload,
            formerly = &["redis.command_timeout"]
        );
        /// Longest absence of Redis that requests wait for; 0s: none.
        ///
        /// Longest absence of Redis that requests wait for and are then carried out, once each; after it they are
        /// answered without Redis at once, until a connection lives; `0s`: they never wait.
        reconnect_wait: Duration = required(
            "redis.patience", bounds::reconnect_wait; "2s", "0s to 1m", Reload
        );
        /// Memory of the private Redis; auto: a quarter of what the host or container has.
        ///
        /// Memory of the private Redis's data; auto: a quarter of what the host or its container (cgroup) has, at
        /// least 64 MiB; 0: any. A Redis that is named by `redis.url` has its own setting.
        maxmemory: MaxMemory = required(
            "redis.maxmemory", choice::maxmemory;
            "auto", "auto, 0 for none, or a size such as 512MiB", Restart
        );
    }

    /// Files that are read at every attempt to connect, so that a renewed one needs no restart.
    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    struct RedisCredentials {
        /// The password, read again at every attempt to connect.
        ///
        /// The password, instead of one in the URL; read again at every attempt to connect.
        password_file: Option<PathBuf> = file("redis.password_file"; "", "a file", Reload);
        /// Authorities that are trusted; none: the system's.
        tls_ca: Option<PathBuf> = file("redis.tls_ca"; "", "a PEM file", Reload);
        /// Our certificate, if the server wants one.
        ///
        /// Our certificate, if the server wants one; read again at every attempt to connect.
        tls_cert: Option<PathBuf> = file("redis.tls_cert"; "", "a PEM file", Reload);
        /// Its private key.
        tls_key: Option<PathBuf> = file("redis.tls_key"; "", "a PEM file", Reload);
    }

    /// The visitor's cookie and how long a session lives.
    #[derive(Debug, Clone)]
    struct SessionConfig {
        /// Name of the session cookie.
        ///
        /// `__Host-` is put before it when it is secure.
        cookie: String = required(
            "session.cookie", |text| basic::word(text, 32, "-_");
            "sid", "1 to 32 letters, digits, - or _", Reload
        );
        /// Cookie signing keys; the first signs.
        ///
        /// The first signs, all are accepted; none: one is generated and kept in Redis.
        secrets: Vec<Secret> = list(
            "session.secrets", secret::secrets; "", "keys of at least 32 bytes, separated by commas", Reload,
            secret = true
        );
        /// What a visitor's session is made by.
        ///
        /// `return`: a first visit gets a signed ticket and stores nothing, and its session is made when that comes
        /// back; `write`: no cookie and no session before there are data, so that each visit until then is a first one
        /// ([Sessions](#sessions)).
        create: SessionCreation = required(
            "session.create", choice::session_creation; "return", "return or write", Reload
        );
        /// New sessions that one client may have made; what exceeds it is short-lived, and writes are refused.
        ///
        /// New sessions that one client (an address, IPv6: one network, `limits.ipv6_prefix`) may have made; beyond
        /// that sessions are short-lived, and their data are answered 429.
        create_rate: Option<Rate> = required(
            "session.create_rate", limits::rate_or_off; "60/min", "off, or a number / a time", Reload
        );
        /// New sessions that one client may have made at once.
        ///
        /// As many of them at once.
        create_burst: u64 = required(
            "session.create_burst", |text| basic::number(text, 100_000); "120", "1 to 100000", Reload
        );
        /// An unused session is gone after this.
        idle: Duration = required("session.idle", basic::positive_duration; "24h", DURATION, Reload);
        /// Any session is gone after this.
        absolute: Duration = required("session.absolute", basic::positive_duration; "30d", DURATION, Reload);
        /// Whether the cookie is sent over TLS only.
        ///
        /// Auto: as a trusted proxy's `X-Forwarded-Proto` says.
        secure: CookieSecurity = required(
            "session.secure", choice::cookie_security; "auto", "auto, always or never", Reload
        );
        /// Oldest copy of a session shown while Redis is away; 0s: none.
        ///
        /// While Redis is away, GETs are shown a session's data as last read, if that was no longer ago than this when
        /// Redis was last heard, and never a count; `0s`: 503.
        stale_if_error: Duration = required(
            "session.stale_if_error", basic::duration; "60s", DURATION, Reload,
            formerly = &["session.stale"]
        );
        /// Sessions one user may have; the oldest ends at a login beyond that.
        ///
        /// Sessions one user may have: a login beyond that ends the one that would end first, and sessions that are
        /// gone do not count; 0: as many as an index holds, 1,000.
        max_per_user: u64 = required(
            "session.max_per_user", bounds::sessions_per_user;
            "0", "0 for any number, or a number up to 1000", Reload
        );
        /// Fields whose changes are never lost: of two concurrent ones the second is refused.
        ///
        /// Fields whose changes are never lost: of two concurrent requests that change the same one, the second is
        /// answered 409 and changes nothing; of other fields the last one wins ([Sessions](#sessions)).
        strict_fields: Vec<String> = list(
            "session.strict_fields", |items| Ok(items.to_vec());
            "", "names of session fields, separated by commas", Reload,
            formerly = &["session.strict"]
        );
        /// Encrypt session fields at rest; the first key encrypts, all decrypt.
        ///
        /// Session fields are encrypted at rest (AES-256-GCM): the first key encrypts, all decrypt; none: they are
        /// stored as they are.
        encryption_keys: Vec<Secret> = list(
            "session.encryption_keys", secret::secrets;
            "", "keys of at least 32 bytes, separated by commas", Reload,
            secret = true
        );
    }

    /// The fields of a policy, which [`limits`] reads.
    rows LIMITS {
        /// Whose requests are counted together.
        ///
        /// Whose requests are counted together ([Clients](#clients)). Requests without a session, or with the ticket
        /// for one, count by client, those without a user by session.
        "limits.*.per"("client", "client, session, user, header or global", Reload);
        /// The header that counts; none: client.
        ///
        /// With `per = "header"`: the header whose value counts, such as `x-api-key`; requests without it count by
        /// client.
        "limits.*.header"("", "a header's name such as x-api-key", Reload);
        /// Sustained rate.
        "limits.*.rate"(
            "", "requests per time such as 100/s, 600/min or 5000/h", Reload,
            unset = "`1000/s` for `default`"
        );
        /// Requests at once; twice the rate per second if unset.
        ///
        /// Requests that may come at once.
        "limits.*.burst"("", "a number from 1 to 1000000", Reload, unset = "two seconds' worth");
        /// What one request counts for.
        ///
        /// What one request counts for; a layer or a handler may say otherwise.
        "limits.*.cost"("1", "a number from 1 to the burst", Reload);
        /// Workers draw quota in advance: for subjects that come often, always, never, or always and so much each.
        ///
        /// Workers draw quota in advance, and most requests need no question about this limit: auto: for clients that
        /// come often and have much left, with bursts from 100, and while more comes than is allowed; true or a number:
        /// always, and so much in each worker at most, only for bursts from 100; false: never ([Limits](#limits)).
        "limits.*.prefetch"(
            "auto", "auto, true, false or a number of requests", Reload,
            formerly = &["limits.*.lease"]
        );
        /// Requests under way, instead of a rate.
        ///
        /// Requests under way at the same time; instead of a rate.
        "limits.*.concurrency"("", "a number from 1 to 100000", Reload, formerly = &["limits.*.concurrent"]);
        /// A killed worker's requests end by then.
        ///
        /// The place of a request whose worker was killed is free again after this; living workers renew theirs.
        "limits.*.concurrency_lease"(
            "10s", "a duration from 1s to 5m", Reload,
            formerly = &["limits.*.concurrent_lease"]
        );
        /// Where the policy applies; none: everywhere; state: when state is used.
        ///
        /// Where the policy applies ([Routes](#routes)).
        "limits.*.routes"(
            "", "path prefixes such as /login, separated by commas, with or without state; or layer", Reload,
            unset = "none; `state` for the built-in `default`"
        );
        /// Which methods; none: all.
        ///
        /// Methods it applies to; none: all. `GET` is HEAD, too, which the same handlers answer.
        "limits.*.methods"("", "methods such as POST, separated by commas", Reload);
        /// What happens without Redis.
        ///
        /// While Redis is away: local: every worker allows its share of the limit; open: allowed; closed: 503.
        "limits.*.on_redis_down"("local", "local, open or closed", Reload);
        /// What happens to strangers while Redis is nearly full.
        ///
        /// While more than 80 % of Redis's `maxmemory` is used: closed: requests of clients who are not logged in are
        /// answered 503 ([A full Redis](OPERATIONS.md#a-full-redis)).
        "limits.*.on_redis_full"("open", "open or closed", Reload);
        /// With a header: so many times the policy for one client under all values.
        ///
        /// With `per = "header"`: one client may use so many times the policy's rate and burst under all values
        /// together, or values could be invented without end; 0: any number, where something in front has checked them.
        "limits.*.client_factor"("10", "0 for any, or a number up to 1000", Reload);
        /// It counts and says which requests it would deny, and denies none.
        ///
        /// It counts; requests that it would deny are logged and counted, and none is denied or told so.
        "limits.*.shadow"("false", FLAG, Reload);
        /// False: as if the policy were not there.
        "limits.*.enabled"("true", FLAG, Reload);
    }

    /// Requests that are carried out once.
    #[derive(Debug, Clone)]
    struct IdempotencyConfig {
        /// Responses to requests with Idempotency-Key are kept this long.
        ///
        /// Responses to POST and PATCH with `Idempotency-Key` are kept this long
        /// ([OPERATIONS](OPERATIONS.md#requests-that-count-once)); 0s: the header means nothing. Clients that are not
        /// logged in fall under the policy `limits.idempotency`, which is there without being configured (30/min, burst
        /// 30, closed for them in a [nearly full Redis](OPERATIONS.md#a-full-redis)) and changed or switched off like
        /// any other.
        ttl: Duration = required(
            "idempotency.ttl", basic::duration; "24h", "0s for never, or a duration such as 24h", Reload
        );
    }

    /// Messages to all who subscribe to a topic.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct BroadcastConfig {
        /// Messages kept of each topic, about, for clients that come back.
        retention_messages: u64 = required(
            "broadcast.retention_messages", |text| basic::number(text, 100_000);
            "1000", "a number from 1 to 100000", Reload,
            formerly = &["broadcast.history"]
        );
        /// A topic's messages are forgotten this long after the last one.
        retention: Duration = required(
            "broadcast.retention", basic::positive_duration; "1h", DURATION, Reload,
            formerly = &["broadcast.keep"]
        );
        /// Largest message that is broadcast.
        ///
        /// Largest message that is broadcast; then 413.
        max_message_size: usize = required(
            "broadcast.max_message_size", bounds::message_size; "16KiB", MESSAGE, Reload,
            formerly = &["broadcast.message_limit"]
        );
        /// Messages a client may fall behind before it is told and dropped, and never fewer than 128.
        max_lag: usize = required(
            "broadcast.max_lag", |text| basic::capacity(text, 65_536);
            "256", "a number from 1 to 65536", Reload,
            formerly = &["broadcast.buffer"]
        );
        /// Subscribed clients per worker, and as many other streams.
        ///
        /// Subscribed clients per worker, and as many other streams of events and WebSockets; then 503.
        max_subscribers: usize = required(
            "broadcast.max_subscribers", |text| basic::capacity(text, 1_000_000);
            "10000", "a number from 1 to 1000000", Reload,
            formerly = &["broadcast.subscribers"]
        );
        /// Subscribed topics per worker.
        ///
        /// Subscribed topics per worker, as far as the largest message of each fits into 48 MiB in three forms (1018 at
        /// 16 KiB, 15 at 1 MiB); then 503.
        max_topics: usize = required(
            "broadcast.max_topics", |text| basic::capacity(text, 100_000);
            "1000", "a number from 1 to 100000", Reload,
            formerly = &["broadcast.topics"]
        );
        /// A stream with nothing to say gives a sign of life this often.
        ///
        /// A stream with nothing to say gives a sign of life this often, and a WebSocket is asked for one; shorter than
        /// `http.keep_alive_timeout` and every proxy's read timeout.
        keep_alive_interval: Duration = required(
            "broadcast.keep_alive_interval", basic::positive_duration; "15s", DURATION, Reload,
            formerly = &["broadcast.heartbeat"]
        );
    }

    /// Bounds on WebSockets.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct WebSocketConfig {
        /// Pages of other hosts that may open a WebSocket; none: the own host's only.
        allowed_origins: Vec<String> = list(
            "websocket.allowed_origins", address::origins;
            "", "origins such as https://example.org, separated by commas", Reload,
            formerly = &["websocket.origins"]
        );
        /// Limit that messages over WebSockets are charged to; none: none.
        ///
        /// What a client sends over its WebSockets is charged to this policy, a request for each KiB of a message
        /// ([Limits](#limits)).
        policy: Option<String> = custom(
            "websocket.policy", limits::read_policy_name; "", "a policy's name", Reload,
            unset = "none; `messages` in the shipped application"
        );
        /// Largest message a client may send over a WebSocket.
        ///
        /// Largest message a client may send over a WebSocket; then it is closed (1009).
        max_message_size: usize = required(
            "websocket.max_message_size", bounds::message_size; "16KiB", MESSAGE, Reload,
            formerly = &["websocket.message_limit"]
        );
        /// Messages a client may send over a WebSocket in a second.
        ///
        /// Messages a client may send over a WebSocket in a second, twice as many at once; beyond that it is told, and
        /// closed (1008) if it goes on. A socket's own bound, before `websocket.policy`. Of an application's own sockets
        /// only pings are counted.
        max_messages_per_second: u64 = required(
            "websocket.max_messages_per_second", |text| basic::number(text, 100_000);
            "20", "a number from 1 to 100000", Reload,
            formerly = &["websocket.messages_per_second"]
        );
    }

    /// Work that any worker of the fleet takes from a queue.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct TasksConfig {
        /// Tasks that run at once in a worker; 0: this instance runs none.
        concurrency: usize = required(
            "tasks.concurrency", bounds::task_concurrency; "1", "a number from 0 to 64", Reload,
            formerly = &["tasks.running"]
        );
        /// Tasks that may wait in the fleet; then 503.
        max_queued: u64 = required(
            "tasks.max_queued", |text| basic::number(text, 1_000_000);
            "1000", "a number from 1 to 1000000", Reload,
            formerly = &["tasks.queue"]
        );
        /// Times a task is begun before it is given up.
        max_attempts: u64 = required(
            "tasks.max_attempts", |text| basic::number(text, 100); "3", "a number from 1 to 100", Reload,
            formerly = &["tasks.attempts"]
        );
        /// A task whose worker was not heard of for this long is taken over.
        lease: Duration = required(
            "tasks.lease", bounds::task_lease; "3s", "a duration from 1s to 1m", Reload
        );
        /// A task that runs for longer has failed.
        timeout: Duration = required("tasks.timeout", basic::positive_duration; "10m", DURATION, Reload);
        /// A task and its result are forgotten this long after its end.
        retention: Duration = required(
            "tasks.retention", basic::positive_duration; "1h", DURATION, Reload,
            formerly = &["tasks.keep"]
        );
    }
}
