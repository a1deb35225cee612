//! Rate limits: which policies a request falls under, what they ask of Redis, and what the client is sent.
//!
//! The arithmetic is GCRA in whole microseconds. Redis decides, so that all workers and instances decide alike. What a
//! worker decides itself never allows more: denials it knows ([`denial_cache`]), quota it prefetched and Redis has
//! charged ([`prefetch`]), and its share of a limit while Redis is unavailable ([`local_fallback`]). The room must not
//! know HTTP beyond the text of headers, nor sessions: the caller sends a request's checks together with its session.

mod background;
pub mod commands;
mod demand_sketch;
pub mod denial_cache;
pub mod gcra;
pub mod headers;
pub mod hot_limit;
pub mod keys;
pub mod local_fallback;
mod message_charge;
pub mod message_meter;
mod operations;
pub mod pending;
pub mod permit;
pub mod plain;
pub mod policy;
pub mod prefetch;
mod reclaim;
pub mod request_limiter;
mod route;
mod state;

pub use policy::{AppliedLimits, LimitSubject, PolicyTable};
pub use request_limiter::RequestLimiter;
