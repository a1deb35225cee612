//! Tower layers for routes of an application.

pub mod rate_limit;
pub mod request_timeout;
