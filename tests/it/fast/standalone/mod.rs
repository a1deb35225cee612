//! Programs without a fleet: plain axum over a real port and a real Redis, by public names only.

pub(crate) mod handles;
pub(crate) mod limits;
pub(crate) mod missing_layers;
pub(crate) mod outage;
pub(crate) mod program;
pub(crate) mod proxies;
pub(crate) mod round_trips;
pub(crate) mod sessions;
pub(crate) mod sockets;
