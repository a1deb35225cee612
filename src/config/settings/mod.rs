//! Every setting, its unit, its default and its bounds, as plain data.
//!
//! A component receives its own section, never the whole [`Config`]. Nothing here opens, binds or connects.

mod dashboard;
mod live;
mod state;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub use dashboard::DashboardConfig;
use ipnet::IpNet;
pub use live::{BroadcastConfig, TasksConfig, WebSocketConfig};
pub use state::{
    CookieSecurity, IdempotencyConfig, MaxMemory, RedisConfig, RedisCredentials, RedisUrl, ScriptingMode,
    Secret, SessionConfig, SessionCreation,
};

use crate::config::limits::{LimitConfig, RateLimitHeaderStyle};

/// The most slots one fleet can have: the scoreboard has a fixed number of rows.
pub const MAX_WORKERS: usize = 1024;

/// Everything a fleet needs to know before it starts.
#[derive(Debug, Clone)]
pub struct Config {
    /// Public addresses, at least one; port 0 lets the kernel choose.
    pub listen: Vec<SocketAddr>,
    /// How new connections are spread over the slots.
    pub steering: SteeringMode,
    /// Whether a worker that has its share of the connections passes a new one on.
    pub balance: bool,
    /// Where other machines reach the public addresses; empty: what this machine knows of itself.
    pub advertise: Vec<AdvertisedAddress>,
    /// Time between two heartbeats of this machine in Redis, 200 ms to 1 min; none: it has none.
    pub heartbeat_interval: Option<Duration>,
    /// The operators' addresses, and under which names they are asked.
    pub admin: AdminConfig,
    /// How many workers, and how patient the supervisor is with them.
    pub workers: WorkersConfig,
    /// How a worker leaves.
    pub drain: DrainConfig,
    /// Where the shared state lives.
    pub redis: RedisConfig,
    /// Memory of the private Redis.
    pub maxmemory: MaxMemory,
    /// The visitor's cookie and how long a session lives.
    pub session: SessionConfig,
    /// Rate limit policies by name, in the order of their names.
    pub limits: BTreeMap<String, LimitConfig>,
    /// Length of the network whose addresses count as one IPv6 client, 32 to 64.
    pub ipv6_prefix: u8,
    /// Which peers may speak for a client.
    pub proxy: ProxyConfig,
    /// Bounds on what a client may send, and how slowly.
    pub http: HttpConfig,
    /// Requests that are carried out once.
    pub idempotency: IdempotencyConfig,
    /// Messages to everybody who subscribes to a topic.
    pub broadcast: BroadcastConfig,
    /// Bounds on WebSockets.
    pub websocket: WebSocketConfig,
    /// Work that any worker of the fleet takes from a queue.
    pub tasks: TasksConfig,
    /// The operators' page.
    pub dashboard: DashboardConfig,
    /// Folder of the fleet's lock and control socket; private to its user.
    pub run_dir: PathBuf,
    /// Folder in which the private Redis keeps its data and its socket.
    pub data_dir: PathBuf,
    /// What is logged, and in which form.
    pub log: LogConfig,
}

/// An address by which other machines reach this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdvertisedAddress {
    /// A name or an IP address, IPv6 in brackets.
    pub host: String,
    /// The port; none: that of the first public address.
    pub port: Option<u16>,
}

/// How new connections are spread over the slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SteeringMode {
    /// By the kernel's hash of each connection; at random over the others while a slot takes none.
    Kernel,
    /// One client address always meets the same slot, except while that slot takes none.
    ClientIp,
}

/// The operators' listener (`/livez`, `/readyz`, `/metrics`, `/fleet.json`).
#[derive(Debug, Clone)]
pub struct AdminConfig {
    /// Addresses, at least one, separate from the public ones so that they are never exposed by accident.
    pub listen: Vec<SocketAddr>,
    /// Names under which they may be asked, beside IP addresses, `localhost` and the machine's own name; `*.` before
    /// one stands for all names below it.
    pub hosts: Vec<String>,
}

/// How many workers, and the supervisor's patience with them.
#[derive(Debug, Clone)]
pub struct WorkersConfig {
    /// Number of slots.
    pub count: WorkerCount,
    /// Whether and how the load changes that number.
    pub autoscale: AutoscaleConfig,
    /// A worker that is not READY after this long is killed and counts as a boot failure.
    pub boot_timeout: Duration,
    /// The first worker of a new generation serves this long before the old one leaves and the others follow.
    pub canary_period: Duration,
    /// A worker in which nothing has moved for this long gets a spare beside it; zero: no worker is watched.
    pub hang_timeout: Duration,
    /// A worker in which nothing has moved for this long is killed; zero: never.
    pub hang_kill: Duration,
    /// When a worker is renewed although it serves.
    pub recycling: RecyclingConfig,
}

/// How the load changes the number of workers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AutoscaleConfig {
    /// Fewest workers; none: as many as [`Workers::count`].
    pub min: Option<usize>,
    /// Most workers; none: as many as [`Workers::count`].
    pub max: Option<usize>,
    /// Whether decisions are carried out.
    pub mode: AutoscaleMode,
    /// Time over which busyness is averaged.
    pub window: Duration,
    /// Average busyness above which a worker is started, 0 to 1.
    pub busy_max: f64,
    /// Average busyness below which a worker may be stopped, 0 to 1.
    pub busy_min: f64,
}

impl AutoscaleConfig {
    /// Fewest workers, how many to begin with, and most, when `count` are configured or the machine allows that many.
    ///
    /// The number stays as it is where all three are the same.
    pub fn slot_bounds(&self, count: usize) -> (usize, usize, usize) {
        let min = self.min.unwrap_or_else(|| count.min(self.max.unwrap_or(count)));
        let max = self.max.unwrap_or(count).max(min);
        (min, count.clamp(min, max), max)
    }
}

/// What is done with the autoscaler's decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutoscaleMode {
    /// They are carried out.
    On,
    /// They are logged.
    DryRun,
}

/// When a worker is renewed although it serves; none: never.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecyclingConfig {
    /// After this many requests.
    pub max_requests: Option<u64>,
    /// And up to this many more.
    pub max_requests_jitter: u64,
    /// At this age.
    pub max_age: Option<Duration>,
    /// Above this much private memory, bytes, it is replaced and drained.
    pub memory_soft: Option<u64>,
    /// Above this much private memory, bytes, it is killed.
    pub memory_hard: Option<u64>,
}

/// A number of workers as configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerCount {
    /// One per core that affinity and the cgroup's quota allow.
    Auto,
    /// Exactly this many, 1 to [`MAX_WORKERS`], more than there are cores if wanted.
    Fixed(usize),
}

/// How a worker leaves (lame duck).
#[derive(Debug, Clone)]
pub struct DrainConfig {
    /// Readiness has failed already, but new connections are still accepted for this long.
    pub grace: Duration,
    /// Idle connections stay open for this long, so that a request already under way on one is answered.
    pub idle_grace: Duration,
    /// After this long in all, whatever still runs is cut and named in the log.
    pub timeout: Duration,
    /// Most workers of a slot that finish beside the one that serves, 1 to 6; the oldest is cut when there are more.
    pub max_draining_workers: usize,
}

/// Which peers may speak for a client.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// Peers whose header is believed, and the hops that are walked past from the right.
    pub trusted: Vec<IpNet>,
    /// The one header they set. A second one would be the client's to forge.
    pub header: ForwardedHeader,
}

impl ProxyConfig {
    /// Whether this address is one of the trusted proxies.
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted.iter().any(|net| net.contains(&address))
    }
}

/// The header in which a trusted proxy names the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardedHeader {
    /// `X-Forwarded-For` and `X-Forwarded-Proto`.
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// Bounds on what a client may send, and how slowly.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// A request's header must be complete after this long.
    pub header_timeout: Duration,
    /// Longest pause within a request's body.
    pub body_timeout: Duration,
    /// Bytes of its body that a client has to send in a second while it is waited for; zero: any number.
    pub body_min_rate: u64,
    /// A response must have begun after this long; zero: whenever it does.
    pub request_timeout: Duration,
    /// A connection without a request under way is closed after this long.
    pub keep_alive_timeout: Duration,
    /// Largest request header, bytes.
    pub max_header_size: usize,
    /// Largest request body, bytes.
    pub max_body_size: usize,
    /// Bytes that unfinished headers may take per worker, beyond the first 8 KiB of each.
    pub header_memory: usize,
    /// Open connections per worker; for more, idle ones are closed, and then they wait in the slot's queue.
    pub max_connections: usize,
    /// How many of them one client address may have.
    pub connections_per_client: ClientConnectionLimit,
    /// In which headers a client is told about its limits.
    pub rate_limit_headers: RateLimitHeaderStyle,
}

/// Some of all there are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ClientConnectionLimit {
    /// This part of them, 0 to 1.
    Share(f64),
    /// So many.
    Number(usize),
}

impl ClientConnectionLimit {
    /// How many of `all` that is, at least one.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "there are far fewer connections than a float has exact numbers"
    )]
    pub fn resolve(self, all: usize) -> usize {
        match self {
            Self::Share(part) => ((all as f64 * part) as usize).max(1),
            Self::Number(number) => number,
        }
    }
}

/// What is logged, and in which form.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Form of a line.
    pub format: LogFormat,
    /// `tracing` filter directives, as in `RUST_LOG`.
    pub filter: String,
    /// Where lines go; `None`: standard error. SIGUSR1 has every process open it again.
    pub file: Option<PathBuf>,
    /// How often the supervisor logs totals and rates; zero: never.
    pub stats_interval: Duration,
}

/// Form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Pretty on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Pretty,
    /// For machines: one JSON object a line.
    Json,
}
