//! Tests within this process: rooms by way of `__internals`, at most a Redis beside them.

pub(crate) mod broadcasts;
pub(crate) mod control;
pub(crate) mod harness;
pub(crate) mod http;
pub(crate) mod limiter;
pub(crate) mod redis;
pub(crate) mod registry;
pub(crate) mod request_state;
pub(crate) mod sessions;
pub(crate) mod standalone;
pub(crate) mod tasks;
