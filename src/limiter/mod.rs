//! Rate limits: which policies a request falls under, what they ask of Redis, and how the answer is told.
//!
//! The arithmetic is GCRA in whole microseconds. Redis decides, so that all workers and machines decide the same. What
//! a worker keeps itself never allows more: what it knows to be denied ([`denials`]), what it drew in advance and Redis
//! has charged ([`advance`]), and its share of a limit while Redis is away ([`insurance`]). Nothing here knows HTTP
//! beyond the text of headers.

pub mod advance;
pub mod asked;
mod demand;
pub mod denials;
pub mod desk;
mod errands;
pub mod gcra;
pub mod headers;
pub mod hot;
pub mod insurance;
mod messages;
pub mod meter;
pub mod place;
pub mod policy;
pub mod quota;
mod recall;
mod route;
pub mod set;
mod terms;

pub use desk::RequestLimiter;
pub use policy::LimitSubject;
pub use policy::PolicyTable;
pub use set::AppliedLimits;
