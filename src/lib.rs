//! Regatta runs an axum application as a fleet of worker processes.
pub mod config;
pub mod counter;
pub mod http;
pub mod limiter;
pub mod listener;
pub mod redis;
pub mod scoreboard;
pub mod session;
pub mod supervisor;
pub mod sys;
pub mod telemetry;

// The names an application is written with: one import each, whatever room they live in.
pub use http::error::Error;
pub use http::extract::ClientAddr;
pub use http::extract::Counters;
pub use http::extract::Limit;
pub use http::extract::Visit;
pub use http::state::State;
pub use http::state::Worker;
pub use redis::Health as RedisHealth;
pub use scoreboard::snapshot::SlotSnapshot;
pub use tower_sessions::Session;
