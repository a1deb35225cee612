//! Regatta runs an axum application as a fleet of worker processes.
pub mod config;
pub mod counter;
pub mod limiter;
pub mod listener;
pub mod redis;
pub mod scoreboard;
pub mod session;
pub mod supervisor;
pub mod sys;
pub mod telemetry;
