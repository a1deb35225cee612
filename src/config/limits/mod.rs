//! Rate limit policies: their settings, and what a policy's settings must agree on.

mod read;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub(super) use read::{ipv6_prefix, rate_limit_headers, rate_or_off, read_limit};

/// Most requests at once that a policy can allow.
pub const BURST_MAX: u64 = 1_000_000;

/// Smallest burst of a policy whose quota workers may draw in advance.
pub const PREFETCH_BURST_MIN: u64 = 100;

/// One rate limit policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitConfig {
    /// Whose requests are counted together.
    pub subject: SubjectKind,
    /// What is counted, and how much of it is allowed.
    pub kind: LimitKind,
    /// What one request counts for, 1 to the burst; a layer or handler may say otherwise.
    pub cost: u64,
    /// Where the policy applies.
    pub scope: LimitScope,
    /// Methods it applies to, in capitals; empty: all.
    pub methods: Vec<String>,
    /// Whether it denies.
    pub enforcement: Enforcement,
    /// What becomes of its requests while Redis is away.
    pub on_redis_down: OnRedisDown,
    /// What becomes of strangers' requests while Redis's memory is nearly full.
    pub on_redis_full: OnRedisFull,
    /// With [`Per::Header`]: so many times the limit one client may use under all values together; 0: any number.
    pub client_factor: u64,
}

/// What a policy counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitKind {
    /// Requests over time.
    Rate {
        /// Requests per period, sustained.
        rate: Rate,
        /// Requests that may come at once, 1 to 1,000,000.
        burst: u64,
        /// When workers draw quota in advance.
        prefetch: PrefetchMode,
    },
    /// Requests under way.
    Concurrency {
        /// Most at the same time, 1 to 100,000.
        max: u64,
        /// How long the place of a request is kept if its worker was killed, 1 s to 5 min.
        lease: Duration,
    },
}

/// When workers draw a policy's quota in advance, so that most requests need no question about it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PrefetchMode {
    /// Where the burst is at least [`LEASE_BURST_MIN`]: for subjects that come often and have more than half of it left.
    /// And, where quota comes back quickly, while more comes than it allows.
    #[default]
    Auto,
    /// Always, at most a twentieth of the burst in each worker.
    Always,
    /// Always, and so many requests at most in each worker.
    AtMost(u64),
    /// Never.
    Never,
}

/// Whose requests a policy counts together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubjectKind {
    /// One client address (IPv6: one network, see `limits.ipv6_prefix`).
    Client,
    /// One session; requests without a valid cookie count by client.
    Session,
    /// One user who is logged in; all others count by session or client.
    User,
    /// One value of this header, its name in small letters; requests without it count by client.
    Header(String),
    /// Everybody together.
    Global,
}

/// Where a policy applies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum LimitScope {
    /// Every request.
    #[default]
    Everywhere,
    /// Every request that uses state, when it first does.
    State,
    /// Paths that lie under one of these.
    Routes {
        /// Prefixes that end at a `/`.
        paths: Vec<String>,
        /// When it is decided.
        when: LimitTiming,
    },
    /// Only where the application puts a layer.
    Layer,
}

/// When a policy with routes is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitTiming {
    /// Before the handler.
    BeforeHandler,
    /// With the request's first use of state, in the same call to Redis.
    WithState,
}

/// Whether a policy denies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enforcement {
    /// It does.
    Enforced,
    /// It counts, and what it would have denied is counted and logged.
    Shadow,
    /// It is as if it were not there.
    Disabled,
}

/// What becomes of a policy's requests while Redis is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnRedisDown {
    /// Every worker allows its share of the limit.
    Local,
    /// They are allowed.
    Open,
    /// They are answered 503.
    Closed,
}

/// What becomes of a policy's requests while Redis's memory is nearly full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnRedisFull {
    /// They are carried out.
    Open,
    /// Those of clients without a session are answered 503.
    Closed,
}

/// A number of requests per period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Requests, 1 to 1,000,000.
    pub count: u64,
    /// In this time, 1 s to 31 days.
    pub period: Duration,
}

/// In which headers a client is told about its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateLimitHeaderStyle {
    /// `RateLimit-Policy` and `RateLimit`, draft-ietf-httpapi-ratelimit-headers-11.
    Draft,
    /// `X-RateLimit-Limit`, `-Remaining` and `-Reset` of the tightest policy, the last in seconds from now.
    Legacy,
    /// Both.
    Both,
    /// None; a denied client still gets `Retry-After`.
    Off,
}
