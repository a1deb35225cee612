//! Extractors: what a handler gets by naming it among its arguments.
//!
//! `tower_sessions::Session` belongs to them; it is put into the request as it is.

mod auth_session;
mod client_ip;
mod counters;
mod idempotency;
mod page_view;
mod rate_limit;
mod session_fields;
mod worker;

pub use auth_session::AuthSession;
pub use client_ip::ClientIp;
pub use counters::{BatchedCounter, BoundedCounter, Counters, DistinctCounter, Inserted, Taken};
pub use idempotency::Idempotency;
pub(super) use idempotency::ResponseRetention;
pub use page_view::PageView;
pub use rate_limit::RateLimit;
pub use session_fields::SessionFields;
