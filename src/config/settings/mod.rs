//! The table of every setting, in the order of the reference: field, name, type, default, what is allowed, what a change
//! takes, and what it does.
//!
//! A component receives its own section, never the whole [`Config`]. A field's second paragraph, where it has one, is
//! what `docs/CONFIGURATION.md` says in place of the first.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

pub use crate::config::app_settings::AppSettings;
use crate::config::error::ConfigError;
use crate::config::limits;
use crate::config::limits::{LimitConfig, RateLimitHeaderStyle};
pub use crate::config::redis_url::RedisUrl;
use crate::config::setting::{GivenSettings, SettingInfo, settings};
pub use crate::config::value::address::{
    AdvertisedAddress, ListenAddress, ProxyProtocolListeners, UnixSocketName,
};
pub use crate::config::value::bounds::{ClientConnectionLimit, MAX_WORKERS};
pub use crate::config::value::choice::{
    AutoscaleMode, CookieSecurity, ForwardedHeader, LogFormat, MaxMemory, ScriptingMode, SessionCreation,
    SteeringMode, WorkerCount,
};
pub use crate::config::value::secret::Secret;
use crate::config::value::{address, basic, bounds, choice, secret};

mod allowed;
mod state;

use allowed::{ADDRESSES, COUNT, DURATION, FLAG, HANG_KILL, MEMORY, PERCENT, REQUESTS, SIZE};
use state::LIMITS;
pub use state::{
    BroadcastConfig, IdempotencyConfig, RedisConfig, RedisCredentials, SessionConfig, TasksConfig,
    WebSocketConfig,
};

settings! {
    /// Everything a fleet needs to know before it starts.
    #[derive(Debug, Clone)]
    struct Config {
        /// Public addresses.
        ///
        /// Public addresses; port 0 lets the kernel choose; `[::]` is every address of IPv6 and IPv4; `unix:/run/shop.sock`
        /// and `unix:@shop` are Unix sockets ([Addresses](#addresses)).
        listen: Vec<ListenAddress> = list(
            "listen", address::addresses; "0.0.0.0:3000", ADDRESSES, Reload,
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
        /// Who may connect to the files of Unix sockets.
        socket_file: SocketFileConfig = section();
        /// Where other hosts reach the public addresses; none: as this host knows itself.
        ///
        /// Where other hosts reach the public addresses, as the heartbeat in Redis tells them ([several
        /// instances](OPERATIONS.md#several-machines)); without a port: that of the first public address. None: the
        /// address listened on, or for `0.0.0.0` and `[::]` the host's own towards its default route.
        advertise: Vec<AdvertisedAddress> = list(
            "advertise", address::advertised_addresses;
            "", "addresses such as 10.0.0.5, web-1:3000 or [2001:db8::1]:3000, separated by commas", Reload
        );
        /// How often this instance sends its heartbeat to Redis.
        ///
        /// How often this instance sends its heartbeat to Redis; one that is silent five times as long is dead for
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
        /// Which public addresses speak the PROXY protocol.
        proxy_protocol: ProxyProtocolConfig = section();
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
        /// The program's own settings.
        app: AppSettings = values(|given: &GivenSettings| Ok::<_, ConfigError>(given.app.clone()));
    }

    /// Who may connect to the files of Unix sockets that `listen` and `admin.listen` name.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct SocketFileConfig {
        /// Permissions of the files of Unix sockets.
        ///
        /// Permissions of the files of Unix sockets; to connect takes the right to write
        /// ([Unix sockets](guide/sockets.md)).
        mode: u32 = required(
            "listen.socket_mode", address::file_mode; "0660", "permissions in octal, such as 0660 or 0666", Restart
        );
        /// Owner of the files of Unix sockets.
        ///
        /// Owner of the files of Unix sockets, by name or number; only root may give them to another user.
        owner: Option<String> = optional(
            "listen.socket_owner", address::account; "", "a user, such as www-data or 33", Restart,
            unset = "the user that starts the fleet"
        );
        /// Group of the files of Unix sockets.
        ///
        /// Group of the files of Unix sockets, by name or number, such as the proxy's; one that the user who starts the
        /// fleet is a member of, unless that is root.
        group: Option<String> = optional(
            "listen.socket_group", address::account; "", "a group, such as www-data or 33", Restart,
            unset = "the group of the user that starts the fleet"
        );
    }

    /// The operators' listener (`/livez`, `/readyz`, `/metrics`, `/fleet.json`).
    #[derive(Debug, Clone)]
    struct AdminConfig {
        /// Operators' addresses.
        ///
        /// Operators' addresses: `/livez`, `/readyz`, `/metrics`, `/fleet.json`, `/fleet`; never expose them.
        listen: Vec<ListenAddress> = list(
            "admin.listen", address::addresses; "127.0.0.1:3001", ADDRESSES, Reload
        );
        /// Names under which the operators' address may be asked, beside IP addresses and localhost.
        ///
        /// Names under which the operators' addresses may be asked, beside IP addresses, `localhost` and the host's
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
        /// Less busy for three windows in a row, or for more if stopped workers were soon wanted again: one worker less.
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
        /// Longest time for the application's hooks of the end, after the drain.
        ///
        /// All hooks `on_exit` of the application, which run after the drain; what still runs then is abandoned and
        /// logged.
        exit: Duration = required("drain.exit", basic::duration; "2s", DURATION, Reload);
        /// Leaving workers per slot; the oldest is cut when more.
        ///
        /// Leaving workers of a slot; when there are more, the oldest is told to cut what it still has.
        max_draining_workers: usize = required(
            "drain.max_draining_workers", |text| basic::capacity(text, 6);
            "3", "a number from 1 to 6", Reload,
            formerly = &["drain.leaving"]
        );
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

    /// Which public addresses speak the PROXY protocol.
    #[derive(Debug, Clone)]
    struct ProxyProtocolConfig {
        /// Addresses whose connections begin with a header of the PROXY protocol.
        ///
        /// Addresses of `listen` whose connections begin with a header of the PROXY protocol, version 1 or 2, which
        /// names the client; only from `proxy.trusted`; a connection that begins otherwise is closed
        /// ([PROXY protocol](guide/sockets.md#proxy-protocol)).
        listeners: ProxyProtocolListeners = list(
            "proxy.protocol", address::proxy_protocol_listeners;
            "none", "none, all, or addresses of listen, separated by commas", Reload
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
    SocketFileConfig::ROWS,
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
    ProxyProtocolConfig::ROWS,
    HttpConfig::ROWS,
    IdempotencyConfig::ROWS,
    BroadcastConfig::ROWS,
    WebSocketConfig::ROWS,
    TasksConfig::ROWS,
    DashboardConfig::ROWS,
    LogConfig::ROWS,
];
