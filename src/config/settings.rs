//! The table of every setting, in the order of the reference: field, name, type, default, what is allowed, what a change
//! takes, and what it does.
//!
//! A component receives its own section, never the whole [`Config`]. A field's second paragraph, where it has one, is
//! what `docs/CONFIGURATION.md` says in place of the first.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::config::limits::{LimitConfig, Rate, RateLimitHeaderStyle};
pub use crate::config::redis_url::RedisUrl;
use crate::config::setting::{GivenSettings, SettingInfo, settings};
pub use crate::config::value::address::AdvertisedAddress;
pub use crate::config::value::bounds::{ClientConnectionLimit, MAX_WORKERS};
pub use crate::config::value::choice::{
    AutoscaleMode, CookieSecurity, ForwardedHeader, LogFormat, MaxMemory, ScriptingMode, SessionCreation,
    SteeringMode, WorkerCount,
};
pub use crate::config::value::secret::Secret;
use crate::config::value::{address, basic, bounds, choice, secret};
use crate::config::{key_prefix, limits};

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

settings! {
    /// Everything a fleet needs to know before it starts.
    #[derive(Debug, Clone)]
    struct Config {
        /// Public addresses.
        ///
        /// Public addresses; port 0 lets the kernel choose; `[::]` is every address of IPv6 and IPv4
        /// ([Addresses](#addresses)).
        listen: Vec<SocketAddr> = list(
            "listen", address::addresses; "0.0.0.0:3000", ADDRESSES, Restart,
            variable = "PORT"
        );
        /// How connections are spread over the slots.
        ///
        /// Kernel: by its hash of each connection; client-ip: one client address always meets the same slot
        /// ([Steering](#steering)).
        steering: SteeringMode = required(
            "listen.steering", choice::steering_mode; "kernel", "kernel or client-ip", Reload
        );
        /// Whether a worker that has its share of the connections passes a new one on.
        ///
        /// Whether a worker that has its share of the connections passes a new one on to a worker that has less
        /// ([Steering](#steering)); never with `client-ip`.
        balance: bool = required("listen.balance", basic::flag; "true", FLAG, Reload);
        /// Where other machines reach the public addresses; none: as this machine knows itself.
        ///
        /// Where other machines reach the public addresses, as the heartbeat in Redis tells them ([several
        /// machines](OPERATIONS.md#several-machines)); without a port: that of the first public address. None: the
        /// address listened on, or for `0.0.0.0` and `[::]` the machine's own towards its default route.
        advertise: Vec<AdvertisedAddress> = list(
            "advertise", address::advertised_addresses;
            "", "addresses such as 10.0.0.5, web-1:3000 or [2001:db8::1]:3000, separated by commas", Reload
        );
        /// How often this machine says in Redis that it lives.
        ///
        /// How often this machine says in Redis that it lives; one that is silent five times as long is dead for
        /// `status --all` and `nginx`. 0: never.
        heartbeat_interval: Option<Duration> = required(
            "fleet.heartbeat_interval", bounds::heartbeat_interval;
            "2s", "0 for never, or a duration from 200ms to 1m", Reload,
            formerly = &["fleet.heartbeat"]
        );
        /// The operators' listener (`/livez`, `/readyz`, `/metrics`, `/fleet.json`).
        admin: AdminConfig = section();
        /// How many workers, and the supervisor's patience with them.
        workers: WorkersConfig = section();
        /// How a worker drains.
        drain: DrainConfig = section();
        /// Where the shared state lives and how long requests wait for it.
        redis: RedisConfig = section();
        /// The visitor's cookie and how long a session lives.
        session: SessionConfig = section();
        /// Rate limit policies by name, in the order of their names.
        limits: BTreeMap<String, LimitConfig> = values(limits::read_limits);
        /// Network that counts as one IPv6 client.
        ///
        /// Length of the network whose addresses are one IPv6 client, for limits, for `session.create_rate`, for
        /// `http.max_connections_per_client` and for `Idempotency-Key` ([Clients](#clients)).
        ipv6_prefix: u8 = required(
            "limits.ipv6_prefix", limits::ipv6_prefix; "56", "a length from 32 to 64", Reload
        );
        /// Which peers may speak for a client.
        proxy: ProxyConfig = section();
        /// Bounds on what a client may send, and how slowly.
        http: HttpConfig = section();
        /// Requests that are carried out once.
        idempotency: IdempotencyConfig = section();
        /// Messages to all who subscribe to a topic.
        broadcast: BroadcastConfig = section();
        /// Bounds on WebSockets.
        websocket: WebSocketConfig = section();
        /// Work that any worker of the fleet takes from a queue.
        tasks: TasksConfig = section();
        /// Where the operators' page is shown, and to whom it offers its buttons.
        dashboard: DashboardConfig = section();
        /// Lock and control socket.
        ///
        /// Lock and control socket of the running fleet; [in no other user's hands](#paths).
        run_dir: PathBuf = custom(
            "run_dir", GivenSettings::run_dir; "", "a folder", Restart,
            unset = "`$XDG_RUNTIME_DIR/regatta` if that folder is this user's, `/run/regatta` for root, else `./.regatta`"
        );
        /// The private Redis's data.
        ///
        /// The private Redis's data; [in no other user's hands](#paths); at most 96 bytes long, for the socket in it.
        data_dir: PathBuf = custom(
            "data_dir", GivenSettings::data_dir; "", "a folder", Restart,
            unset = "`$STATE_DIRECTORY`, else `./.regatta`"
        );
        /// What is logged, and in which form.
        log: LogConfig = section();
    }

    /// The operators' listener (`/livez`, `/readyz`, `/metrics`, `/fleet.json`).
    #[derive(Debug, Clone)]
    struct AdminConfig {
        /// Operators' addresses.
        ///
        /// Operators' addresses: `/livez`, `/readyz`, `/metrics`, `/fleet.json`, `/fleet`; never expose them.
        listen: Vec<SocketAddr> = list(
            "admin.listen", address::addresses; "127.0.0.1:3001", ADDRESSES, Restart
        );
        /// Names under which the operators' address may be asked, beside IP addresses and localhost.
        ///
        /// Names under which the operators' addresses may be asked, beside IP addresses, `localhost` and the machine's
        /// own name ([why](OPERATIONS.md#who-may-ask-the-operators-address)).
        allowed_hosts: Vec<String> = list(
            "admin.allowed_hosts", address::hosts;
            "", "names such as fleet.example.org or *.svc.cluster.local, separated by commas", Reload,
            formerly = &["admin.hosts", "dashboard.hosts"]
        );
    }

    /// How many workers, and the supervisor's patience with them.
    #[derive(Debug, Clone)]
    struct WorkersConfig {
        /// Number of workers.
        ///
        /// Auto: cores that affinity and the cgroup's quota allow, counted at start, reload and upgrade.
        count: WorkerCount = required(
            "workers.count", choice::worker_count; "auto", "auto, or a number from 1 to 1024", Reload,
            variable = "WEB_CONCURRENCY"
        );
        /// How the load changes the number of workers.
        autoscale: AutoscaleConfig = section();
        /// Longest time until a new worker is READY.
        ///
        /// A worker that is not READY by then is killed and counts as a boot failure.
        boot_timeout: Duration = required(
            "workers.boot_timeout", basic::positive_duration; "30s", DURATION, Reload
        );
        /// The first worker of a reload or upgrade must serve this long before the others follow.
        ///
        /// The first worker of a reload or upgrade must serve this long before its old one leaves and the other slots
        /// follow; one that dies earlier ends the rollout, and the old generation serves on.
        canary_period: Duration = required(
            "workers.canary_period", basic::duration; "1500ms", DURATION, Reload,
            formerly = &["workers.probation"]
        );
        /// A worker in which nothing moves gets a spare beside it.
        ///
        /// A worker in which nothing has moved for this long, though it was given CPU, gets a spare: a second worker in
        /// its slot that serves the slot's queue at once; the log shows where the first one stands; if that moves again
        /// it drains, and nothing is lost; 0: never, as for work with a debugger.
        hang_timeout: Duration = required(
            "workers.hang_timeout", bounds::hang_timeout; "3s", "0 for never, or a duration from 1s", Reload
        );
        /// A worker in which nothing moves is killed.
        ///
        /// A worker in which nothing has moved for this long is killed; 0: never.
        hang_kill: Duration = required("workers.hang_kill", basic::duration; "30s", HANG_KILL, Reload);
        /// When a worker is replaced although it serves; none: never.
        recycling: RecyclingConfig = section();
    }

    /// How the load changes the number of workers.
    #[derive(Debug, Clone, Copy, PartialEq)]
    struct AutoscaleConfig {
        /// Fewest workers; below workers.max the load decides how many.
        ///
        /// Fewest workers; where it is less than `workers.max`, the load decides how many there are.
        min: Option<usize> = optional(
            "workers.min", bounds::slot_count; "", COUNT, Reload,
            unset = "`workers.count`"
        );
        /// Most workers; workers.count if unset, as workers.min.
        ///
        /// Most workers.
        max: Option<usize> = optional(
            "workers.max", bounds::slot_count; "", COUNT, Reload,
            unset = "`workers.count`"
        );
        /// Follow the load between min and max, or only say so.
        ///
        /// Dry-run: decisions are logged with their reasons, and nothing is done.
        mode: AutoscaleMode = required(
            "autoscale.mode", choice::autoscale_mode; "on", "on or dry-run", Reload,
            formerly = &["workers.autoscale"]
        );
        /// Time over which the workers' busyness is averaged.
        ///
        /// Time over which the workers' busyness (the share of time their event loops are at work) is averaged.
        window: Duration = required(
            "autoscale.window", bounds::autoscale_window; "10s", "a duration from 1s", Reload,
            formerly = &["workers.window"]
        );
        /// Busier than this on average: one worker more.
        ///
        /// Busier on average: one worker more; so do more than 33 connections that wait, at once.
        busy_max: f64 = required(
            "autoscale.busy_max", basic::percent; "50%", PERCENT, Reload,
            formerly = &["workers.busy_max"]
        );
        /// Less busy for several windows: one worker less.
        ///
        /// Less busy for three windows in a row, or more if a stop was regretted: one worker less.
        busy_min: f64 = required(
            "autoscale.busy_min", basic::percent; "25%", PERCENT, Reload,
            formerly = &["workers.busy_min"]
        );
    }

    /// When a worker is replaced although it serves; none: never.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    struct RecyclingConfig {
        /// A worker is renewed after so many requests.
        ///
        /// A worker is renewed after so many requests; 0: never.
        max_requests: Option<u64> = required(
            "workers.max_requests", basic::number_or_none; "0", REQUESTS, Reload
        );
        /// Up to so many more, different for each worker.
        ///
        /// Up to so many more, different for each worker, so that they are not all renewed at once.
        max_requests_jitter: u64 = required(
            "workers.max_requests_jitter", basic::number_or_zero; "0", REQUESTS, Reload
        );
        /// A worker is renewed at this age.
        ///
        /// A worker is renewed at this age at the latest, up to a tenth earlier; 0: never.
        max_age: Option<Duration> = required(
            "workers.max_age", basic::duration_or_none;
            "0", "0 for never, or a duration such as 12h", Reload
        );
        /// Private memory at which a worker is renewed.
        ///
        /// A worker with more private memory in three samples in a row is renewed; 0: never.
        memory_soft: Option<u64> = required("workers.memory_soft", basic::size_or_none; "0", MEMORY, Reload);
        /// Private memory at which a worker is killed.
        ///
        /// A worker with more private memory is killed; 0: never.
        memory_hard: Option<u64> = required("workers.memory_hard", basic::size_or_none; "0", MEMORY, Reload);
    }

    /// How a worker drains.
    #[derive(Debug, Clone)]
    struct DrainConfig {
        /// Keep accepting this long after readiness has failed.
        ///
        /// At a stop, keep accepting this long after readiness has failed; behind a load balancer, set it to the time
        /// that takes to notice.
        grace: Duration = required("drain.grace", basic::duration; "0s", DURATION, Reload);
        /// Keep idle connections this long, for requests under way.
        ///
        /// Idle connections stay open this long, so that a request already on its way is answered.
        idle_grace: Duration = required(
            "drain.idle_grace", basic::duration; "500ms", DURATION, Reload,
            formerly = &["drain.idle"]
        );
        /// Longest drain; what still runs then is cut and logged.
        ///
        /// What still runs then is cut, counted and logged.
        timeout: Duration = required("drain.timeout", basic::positive_duration; "30s", DURATION, Reload);
        /// Leaving workers per slot; the oldest is cut when more.
        ///
        /// Leaving workers of a slot; when there are more, the oldest is told to cut what it still has.
        max_draining_workers: usize = required(
            "drain.max_draining_workers", |text| basic::capacity(text, 6);
            "3", "a number from 1 to 6", Reload,
            formerly = &["drain.leaving"]
        );
    }

    /// Where the shared state lives and how long requests wait for it.
    #[derive(Debug, Clone)]
    struct RedisConfig {
        /// The shared Redis; none: a private one.
        ///
        /// None: a private redis-server in `data_dir`; [forms](#the-address-of-redis).
        url: Option<RedisUrl> = optional(
            "redis.url", RedisUrl::read;
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
            "redis.prefix", key_prefix::prefix;
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
        /// Memory of the private Redis; auto: a quarter of what the machine or container has.
        ///
        /// Memory of the private Redis's data; auto: a quarter of what the machine or its container (cgroup) has, at
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
        /// It counts and says whom it would deny, and denies nobody.
        ///
        /// It counts, and whom it would deny is logged and counted, but no one is denied or told.
        "limits.*.shadow"("false", FLAG, Reload);
        /// False: as if the policy were not there.
        "limits.*.enabled"("true", FLAG, Reload);
    }

    /// Which peers may speak for a client.
    #[derive(Debug, Clone)]
    struct ProxyConfig {
        /// Trusted proxies.
        ///
        /// Peers whose header is believed, and hops that are walked past.
        trusted: Vec<IpNet> = list(
            "proxy.trusted", address::networks;
            "127.0.0.0/8, ::1/128", "networks such as 10.0.0.0/8, separated by commas", Reload
        );
        /// The header a trusted proxy sets.
        ///
        /// The one header they set.
        header: ForwardedHeader = required(
            "proxy.header", choice::forwarded_header;
            "x-forwarded-for", "x-forwarded-for or forwarded", Reload
        );
    }

    /// Bounds on what a client may send, and how slowly.
    #[derive(Debug, Clone)]
    struct HttpConfig {
        /// A request's header must be complete by then.
        header_timeout: Duration = required(
            "http.header_timeout", basic::positive_duration; "10s", DURATION, Reload
        );
        /// Longest pause within a request's body.
        body_timeout: Duration = required(
            "http.body_timeout", basic::positive_duration; "30s", DURATION, Reload
        );
        /// A request's body must come this fast while it is waited for, after 5 s.
        ///
        /// A request's body must come at least this fast while it is waited for, after 5 s; then 408. 0: at any rate.
        min_body_rate: u64 = required(
            "http.min_body_rate", basic::number_or_zero;
            "240", "0 for any, or a number of bytes a second", Reload,
            formerly = &["http.body_min_rate"]
        );
        /// A response must have begun by then.
        ///
        /// A response must have begun by then ([Slow clients](OPERATIONS.md#slow-clients-and-slow-handlers)); a route
        /// may say otherwise. 0s: whenever it does.
        request_timeout: Duration = required(
            "http.request_timeout", basic::duration; "0s", "0s for never, or a duration such as 30s", Reload
        );
        /// An idle connection is closed after this.
        ///
        /// An idle connection is closed after this, and so is one whose client takes what it is sent by less than 240
        /// bytes a second; a proxy in front should keep its own for less. In HTTP/2 a connection without an open stream
        /// is idle, whatever frames come.
        keep_alive_timeout: Duration = required(
            "http.keep_alive_timeout", basic::positive_duration; "75s", DURATION, Reload,
            formerly = &["http.keep_alive"]
        );
        /// Largest request header.
        ///
        /// Largest request header; then 431.
        max_header_size: usize = required(
            "http.max_header_size", bounds::header_size; "32KiB", "a size from 8KiB to 1GiB", Reload,
            formerly = &["http.header_limit"]
        );
        /// Unfinished request headers may take so much per worker, beyond 8KiB each.
        ///
        /// Unfinished headers may take so much per worker, beyond the first 8 KiB of each; then the largest are
        /// refused, 431.
        max_header_memory: usize = required(
            "http.max_header_memory", basic::size; "16MiB", SIZE, Reload,
            formerly = &["http.header_memory"]
        );
        /// Largest request body.
        ///
        /// Largest request body; then 413. As much is read and thrown away of a body that nothing reads, 1 MiB at
        /// least.
        max_body_size: usize = required(
            "http.max_body_size", basic::size; "2MiB", SIZE, Reload,
            formerly = &["http.body_limit"]
        );
        /// Open connections per worker.
        ///
        /// Open connections per worker; when there are more, those that have been idle for longest are closed, and
        /// where none is idle new ones wait in the slot's queue.
        max_connections: usize = required(
            "http.max_connections", |text| basic::capacity(text, 1_000_000);
            "16384", "a number from 1 to 1000000", Reload,
            formerly = &["http.connections"]
        );
        /// Of these, open connections of one client address; trusted proxies may have any number.
        ///
        /// Open connections per worker of one client address (IPv6: one network, `limits.ipv6_prefix`); for one more
        /// the client's own that has been idle for longest is closed, else it is refused, 503. Addresses in
        /// `proxy.trusted` may have any number.
        max_connections_per_client: ClientConnectionLimit = required(
            "http.max_connections_per_client", bounds::share;
            "50%", "a share of http.max_connections from 1% to 100%, or a number from 1 to 1000000", Reload,
            formerly = &["http.connections_per_client"]
        );
        /// Headers that tell a client its limits.
        ///
        /// Draft: `RateLimit-Policy` and `RateLimit`; legacy: `X-RateLimit-Limit`, `-Remaining`, `-Reset` (seconds from
        /// now) of the tightest policy.
        rate_limit_headers: RateLimitHeaderStyle = required(
            "http.rate_limit_headers", limits::rate_limit_headers;
            "draft", "draft, legacy, both or off", Reload,
            formerly = &["http.limit_headers"]
        );
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
        /// Subscribed clients per worker, and as many streams of other events; then 503.
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
        /// closed (1008) if it goes on. A socket's own bound, before `websocket.policy`.
        max_messages_per_second: u64 = required(
            "websocket.max_messages_per_second", |text| basic::number(text, 100_000);
            "20", "a number from 1 to 100000", Reload,
            formerly = &["websocket.messages_per_second"]
        );
    }

    /// Work that any worker of the fleet takes from a queue.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct TasksConfig {
        /// Tasks that run at once in a worker; 0: this machine takes none.
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

    /// Where the operators' page is shown, and to whom it offers its buttons.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct DashboardConfig {
        /// Visitors may open the operators' page, too.
        ///
        /// The [dashboard](OPERATIONS.md#the-dashboard) `/fleet` is served to visitors too, and not at the operators'
        /// address alone.
        public: bool = required("dashboard.public", basic::flag; "false", FLAG, Reload);
        /// What operators sign in with at their page; none: it has no buttons.
        ///
        /// What an operator signs in with to get the dashboard's buttons; none, here and in a file: it has none.
        token: Option<Secret> = optional(
            "dashboard.token", secret::dashboard_token; "", "a text of 16 to 1024 bytes", Reload,
            secret = true
        );
        /// The token, read whenever a worker starts.
        ///
        /// The token, instead of in the configuration; read whenever a worker starts, so a reload takes a new one.
        token_file: Option<PathBuf> = file("dashboard.token_file"; "", "a file", Reload);
    }

    /// What is logged, and in which form.
    #[derive(Debug, Clone)]
    struct LogConfig {
        /// Form of log lines.
        ///
        /// Auto: pretty on a terminal, JSON elsewhere.
        format: LogFormat = required(
            "log.format", choice::log_format; "auto", "auto, pretty or json", Upgrade
        );
        /// What is logged.
        ///
        /// For example `info,regatta=debug`.
        filter: String = required(
            "log.filter", |text| Ok(text.to_owned());
            "info", "tracing directives such as info or regatta=debug", Upgrade,
            variable = "RUST_LOG", formerly = &["log.level"]
        );
        /// Where lines go; none: standard error.
        ///
        /// Where lines go; none: standard error. SIGUSR1 to the supervisor has every process open it again, after a
        /// rotation has renamed it. Neither [holds a process up](OPERATIONS.md#logs--usr1); a FIFO may have no reader.
        file: Option<PathBuf> = file("log.file"; "", "a file", Upgrade);
        /// The supervisor logs totals and rates this often; 0s: never.
        ///
        /// The supervisor logs totals and rates this often; `0s`: never.
        stats_interval: Duration = required("log.stats_interval", basic::duration; "0s", DURATION, Reload);
    }
}

impl AutoscaleConfig {
    /// Fewest workers, how many to begin with, and most, when `count` are configured or the cores allow that many.
    ///
    /// The number stays as it is where all three are the same.
    pub fn slot_bounds(&self, count: usize) -> (usize, usize, usize) {
        let min = self.min.unwrap_or_else(|| count.min(self.max.unwrap_or(count)));
        let max = self.max.unwrap_or(count).max(min);
        (min, count.clamp(min, max), max)
    }
}

impl ProxyConfig {
    /// Whether this address is one of the trusted proxies.
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted.iter().any(|net| net.contains(&address))
    }
}

/// The sections of the table, in the order of the reference.
pub(super) const TABLE: &[&[SettingInfo]] = &[
    Config::ROWS,
    AdminConfig::ROWS,
    WorkersConfig::ROWS,
    AutoscaleConfig::ROWS,
    RecyclingConfig::ROWS,
    DrainConfig::ROWS,
    RedisConfig::ROWS,
    RedisCredentials::ROWS,
    SessionConfig::ROWS,
    LIMITS,
    ProxyConfig::ROWS,
    HttpConfig::ROWS,
    IdempotencyConfig::ROWS,
    BroadcastConfig::ROWS,
    WebSocketConfig::ROWS,
    TasksConfig::ROWS,
    DashboardConfig::ROWS,
    LogConfig::ROWS,
];
