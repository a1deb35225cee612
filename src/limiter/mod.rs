//! Rate limits: which policies a request falls under, what they ask of Redis, and how the answer is told.
//!
//! The arithmetic is GCRA in whole microseconds. Redis decides, so that all workers and machines decide the same;
//! nothing here keeps state or knows HTTP beyond the text of three headers.

pub mod gcra;
pub mod headers;
pub mod policy;
pub mod quota;

pub use policy::Policies;
pub use policy::Set;
