//! Programs without a fleet: a connection of their own, and layers that begin a request's state or join it.
//!
//! Guarantees that a request has one state whichever layer it meets first, so that its limits and its session are one
//! round trip, as in a worker. Inside a fleet the layers find the worker's state and add nothing to it. It must not know
//! how processes are started, and nothing here is shared between processes but Redis.

pub(crate) mod began;
pub(crate) mod connection;
pub(crate) mod in_code_limit;
pub(crate) mod quota;
pub(crate) mod redis;
pub(crate) mod state_handle;
pub(crate) mod trusted_proxies;

pub use in_code_limit::Key;
pub use quota::LimitQuota;
pub use redis::{Redis, RedisBuilder, RedisMode};
pub use trusted_proxies::{InvalidNetwork, TrustedProxies, TrustedProxiesService};
