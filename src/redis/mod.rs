//! The shared state in Redis: one connection a worker, one round trip a request, every failure a defined error.
//!
//! Guarantees that every call passes one guard (`client.rs`), which bounds how many wait and for how long. It is the only room
//! that knows the client library and how server-side code is called. What a session, a limit, a task or a broadcast is in
//! Redis its own room knows, in `commands.rs` and `keys.rs`.
//!
//! From the ground up: `error`, `wire` and `keys` do no I/O; `node_transport`, `cluster::router` and `transport` send;
//! `connection_state` says whether there is a connection; `client` holds the state of a worker and makes calls;
//! `connection`, `cluster`, `maintain` and `notifications` keep it connected.

mod acl_rules;
mod breakers;
mod call_tracker;
mod client;
mod cluster;
mod connection;
mod connection_state;
mod deduplication;
mod diagnosis;
mod endpoint;
mod error;
pub mod functions;
pub mod hash_slots;
mod inspect;
mod invocation_mode;
pub mod keys;
mod maintain;
pub mod migrations;
mod node_transport;
pub mod notifications;
mod one_shot;
mod outage_stats;
mod reconnect_pauses;
mod server_info;
mod signing_keys;
mod silence_detector;
mod silence_failover;
mod tls;
mod transport;
pub mod wire;

pub use breakers::{BreakerStates, BreakerStatus, CallKind};
pub use client::{CallPermit, RedisClient, RepeatPolicy};
pub use connection_state::RedisStatus;
pub use error::{RedisError, ServerRejection};
pub use invocation_mode::InvocationMode;
pub use one_shot::{call_one_shot, run_once};
pub use outage_stats::OutageStats;
pub use server_info::{ServerMemory, ServerWarning, ServerWarnings};
pub use transport::{ActiveConnection, RedisTransport};
