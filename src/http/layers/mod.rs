//! Layers.

pub mod rate_limit;
pub mod request_timeout;
