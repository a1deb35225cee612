//! Programs without a fleet: a connection of their own, and layers that begin a request's state or join it.
//!
//! Guarantees that a request has one state whichever layer it meets first, so that its limits and its session are one
//! round trip, as in a worker. Inside a fleet the layers find the worker's state and add nothing to it. It must not know
//! how processes are started, and nothing here is shared between processes but Redis.

pub(super) mod began;
pub(super) mod connection;
pub(super) mod in_code_limit;
pub(super) mod quota;
pub(super) mod rate_limiter;
pub(super) mod redis;
pub(super) mod session_layer;
pub(super) mod state_handle;
pub(super) mod trusted_proxies;

pub use in_code_limit::Key;
pub use quota::LimitQuota;
pub use rate_limiter::RateLimiter;
pub use redis::{Redis, RedisBuilder, RedisMode};
pub use session_layer::{SessionLayer, SessionService};
pub use trusted_proxies::{InvalidNetwork, TrustedProxies, TrustedProxiesService};
