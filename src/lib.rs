//! Regatta runs an axum application as a fleet of worker processes.
pub mod config;
pub mod counter;
pub mod limiter;
pub mod redis;
pub mod session;
pub mod sys;
