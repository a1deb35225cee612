//! What every promise is tested with: a real fleet, a real Redis, a plain client, and deadlines.

pub(crate) mod broadcasts;
pub(crate) mod browser;
pub(crate) mod burners;
pub(crate) mod client;
#[allow(dead_code, reason = "the benchmark of overload uses all of it")]
pub(crate) mod client_swarm;
pub(crate) mod clock;
pub(crate) mod delivery_scenario;
pub(crate) mod events;
pub(crate) mod exposition;
pub(crate) mod fault_proxy;
pub(crate) mod fleet;
pub(crate) mod load_generator;
pub(crate) mod nginx;
pub(crate) mod parallel_clients;
pub(crate) mod process;
pub(crate) mod property;
pub(crate) mod redis;
pub(crate) mod redis_cluster;
pub(crate) mod redis_sentinel;
pub(crate) mod redis_tcp;
pub(crate) mod scripted_supervisor;
pub(crate) mod server;
pub(crate) mod soak;
pub(crate) mod sockets;
pub(crate) mod stream;
pub(crate) mod terminal;
pub(crate) mod tls;
pub(crate) mod wait;
