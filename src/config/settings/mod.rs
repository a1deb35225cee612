//! The table of every setting, in the order of the reference: field, name, type, default, what is allowed, what a change
//! takes, and what it does.
//!
//! A component receives its own section, never the whole [`Config`]. A field's second paragraph, where it has one, is
//! what `docs/CONFIGURATION.md` says in place of the first.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use crate::config::app_settings::AppSettings;
use crate::config::error::ConfigError;
use crate::config::limits;
use crate::config::limits::LimitConfig;
pub use crate::config::redis_url::RedisUrl;
use crate::config::setting::{GivenSettings, SettingInfo, settings};
pub use crate::config::settings::admin::{AdminConfig, DashboardConfig};
pub use crate::config::settings::broadcast::BroadcastConfig;
pub use crate::config::settings::drain::DrainConfig;
pub use crate::config::settings::http::{HttpConfig, ProxyConfig, ProxyProtocolConfig};
pub use crate::config::settings::idempotency::IdempotencyConfig;
use crate::config::settings::limit_policies::LIMITS;
pub use crate::config::settings::listen::SocketFileConfig;
pub use crate::config::settings::log::LogConfig;
pub use crate::config::settings::redis::{RedisConfig, RedisCredentials};
use crate::config::settings::reference_phrases::{ADDRESSES, FLAG};
pub use crate::config::settings::session::SessionConfig;
pub use crate::config::settings::tasks::TasksConfig;
pub use crate::config::settings::websocket::WebSocketConfig;
pub use crate::config::settings::workers::{AutoscaleConfig, RecyclingConfig, WorkersConfig};
pub use crate::config::value::address::{
    AdvertisedAddress, ListenAddress, ProxyProtocolListeners, UnixSocketName,
};
pub use crate::config::value::bounds::{ClientConnectionLimit, MAX_WORKERS};
pub use crate::config::value::choice::{
    AutoscaleMode, CookieSecurity, ForwardedHeader, LogFormat, MaxMemory, ScriptingMode, SessionCreation,
    SteeringMode, WorkerCount,
};
pub use crate::config::value::secret::Secret;
use crate::config::value::{address, basic, bounds, choice};

mod admin;
mod broadcast;
mod drain;
mod http;
mod idempotency;
mod limit_policies;
mod listen;
mod log;
mod redis;
mod reference_phrases;
mod session;
mod tasks;
mod websocket;
mod workers;

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
