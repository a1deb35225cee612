//! What a handler asks for by naming it among its arguments.
//!
//! `tower_sessions::Session` belongs to them; it is put into the request as it is.

mod account;
mod client;
mod counters;
mod fields;
mod idempotency;
mod limit;
mod visit;
mod worker;

pub use account::AuthSession;
pub use client::ClientIp;
pub use counters::BatchedCounter;
pub use counters::BoundedCounter;
pub use counters::Counters;
pub use counters::DistinctCounter;
pub use counters::Inserted;
pub use counters::Taken;
pub use fields::SessionFields;
pub use idempotency::Idempotency;
pub(super) use idempotency::ResponseRetention;
pub use limit::RateLimit;
pub use visit::PageView;

use std::sync::Arc;

use http::request::Parts;

use crate::http::error::RequestError;
use crate::http::exchange::RequestState;

/// This request's exchange.
fn request_state(parts: &Parts) -> Result<&Arc<RequestState>, RequestError> {
    RequestState::from_extensions(&parts.extensions).ok_or(RequestError::OutsideFleet)
}
