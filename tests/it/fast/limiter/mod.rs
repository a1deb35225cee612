//! Rate limits against a real Redis.

pub(crate) mod gcra;
pub(crate) mod prefetch;
pub(crate) mod request_limiter;
