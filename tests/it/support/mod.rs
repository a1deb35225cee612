//! What every promise is tested with: a real fleet, a real Redis, a plain client, and deadlines.

pub(crate) mod broadcasts;
pub(crate) mod browser;
pub(crate) mod burners;
pub(crate) mod client;
pub(crate) mod clock;
#[allow(dead_code, reason = "the benchmark of overload uses all of it")]
pub(crate) mod crowd;
pub(crate) mod events;
pub(crate) mod exposition;
pub(crate) mod fleet;
pub(crate) mod front;
pub(crate) mod host;
pub(crate) mod load;
pub(crate) mod process;
pub(crate) mod property;
pub(crate) mod proxy;
pub(crate) mod redis;
pub(crate) mod redis_cluster;
pub(crate) mod redis_sentinel;
pub(crate) mod redis_tcp;
pub(crate) mod server;
pub(crate) mod soak;
pub(crate) mod sockets;
pub(crate) mod stage;
pub(crate) mod stream;
pub(crate) mod terminal;
pub(crate) mod tls;
pub(crate) mod volley;
pub(crate) mod wait;
