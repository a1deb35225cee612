//! What clients send and get, over real sockets.

pub(crate) mod addresses;
pub(crate) mod bounds;
pub(crate) mod browser;
pub(crate) mod cookies;
pub(crate) mod demo;
pub(crate) mod early_answers;
pub(crate) mod exact_views;
pub(crate) mod half_closed;
pub(crate) mod http2;
pub(crate) mod idempotency;
pub(crate) mod idempotency_callers;
pub(crate) mod odd_requests;
pub(crate) mod overload;
pub(crate) mod proxy;
pub(crate) mod proxy_protocol;
pub(crate) mod rate_limit_answers;
pub(crate) mod rate_limit_strangers;
pub(crate) mod rate_limits;
pub(crate) mod saturation;
pub(crate) mod slow_clients;
pub(crate) mod standalone_examples;
pub(crate) mod unix_sockets;
