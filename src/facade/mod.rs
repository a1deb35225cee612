//! The public face of the library: what programs name, by subject.
//!
//! Guarantees that a public name keeps its shape whatever happens in the rooms below: fields are private, enums may grow,
//! and each error says what it came from. Layers begin a request's state or join it, and
//! streams poll it; what is decided is decided by `http` and the rooms of state. It must not know processes.

pub mod broadcast;
pub mod counter;
pub mod rate_limit;
pub mod session;
pub mod task;
pub mod ws;

mod busy;
mod client_ip;
mod error;
#[cfg(feature = "fleet")]
mod fleet;
mod idempotency;
mod problem;
mod redis;
mod redis_error;
mod refusal;
mod stepwise;
#[cfg(test)]
mod tests;

pub use busy::Busy;
pub use client_ip::ClientIp;
pub use error::{Error, ErrorKind};
#[cfg(feature = "fleet")]
pub use fleet::snapshot::{FleetSnapshot, SlotSnapshot, WorkerState};
pub use problem::Problem;
pub use redis_error::{RedisError, RedisErrorKind};
pub use refusal::Refusal;

pub use crate::http::idempotency::Idempotency;
pub use crate::http::request_timeout::RequestTimeout;
pub use crate::http::same_origin::SameOrigin;
pub use crate::http::streams::last_event_id::LastEventId;
pub use crate::http::streams::on_drain::OnDrain;
pub use crate::http::{FleetHandle, Worker};
pub use crate::redis::RedisStatus;
