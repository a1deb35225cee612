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

pub use account::Account;
pub use client::ClientAddr;
pub use counters::Batched;
pub use counters::Bounded;
pub use counters::Counters;
pub use counters::Seen;
pub use counters::Taken;
pub use counters::Unique;
pub use fields::Fields;
pub use idempotency::Idempotency;
pub(super) use idempotency::Verdict;
pub use limit::Limit;
pub use visit::Visit;

use std::sync::Arc;

use http::request::Parts;

use crate::http::error::Error;
use crate::http::exchange::Exchange;

/// This request's exchange.
fn exchange(parts: &Parts) -> Result<&Arc<Exchange>, Error> {
    Exchange::of(&parts.extensions).ok_or(Error::NoFleet)
}
