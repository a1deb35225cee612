//! Regatta runs an axum application as a fleet of worker processes.
pub mod config;
pub mod http;
pub mod listener;
pub mod scoreboard;
pub mod supervisor;
pub mod sys;
