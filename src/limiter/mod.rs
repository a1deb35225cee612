//! Rate limits: which policies a request falls under, what they ask of Redis, and how the answer is told.
//!
//! The arithmetic is GCRA in whole microseconds. Redis decides, so that all workers and machines decide the same. What
//! a worker keeps itself never allows more: what it knows to be denied ([`denials`]), what it drew in advance and Redis
//! has charged ([`advance`]), and its share of a limit while Redis is away ([`insurance`]). Nothing here knows HTTP
//! beyond the text of headers.

pub mod applied_limits;
mod background;
mod demand_sketch;
pub mod denial_cache;
pub mod gcra;
pub mod headers;
pub mod hot_limit;
pub mod local_fallback;
mod message_charge;
pub mod message_meter;
pub mod pending;
pub mod permit;
pub mod policy;
pub mod prefetch;
pub mod quota;
mod reclaim;
pub mod request_limiter;
mod route;

pub use applied_limits::AppliedLimits;
pub use policy::{LimitSubject, PolicyTable};
pub use request_limiter::RequestLimiter;
