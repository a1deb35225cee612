//! What one request asks of Redis at its start, and the reply: plain data and its wire form.
//!
//! The form is described at the head of `migrations/0021_regatta_v5.lua`. It must not know connections.

pub mod batch;
mod request;
mod session_query;

pub use request::{
    BeginReply, BeginRequest, CounterIncrement, LimitParameters, RateLimitCheck, RateLimitDecision,
};
pub(super) use request::{decode, encode};
pub use session_query::{
    NewSessionLimit, PROVISIONAL_SESSION_TTL, ProvisionalSessionQuery, SessionAccess, SessionAttributes,
    SessionLookup, SessionQuery,
};
pub(super) use session_query::{split_reserved_fields, stored_name};
