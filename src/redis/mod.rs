//! The shared state in Redis: one connection a worker, one round trip a request, every failure a defined error.
//!
//! Guarantees that every call passes one guard (`client.rs`), which bounds how many wait and for how long. It is the only room
//! that knows the client library, key names and server-side code; the rooms above see plain data.
//!
//! From the ground up: `error`, `wire`, `keys` and the forms of commands (`begin`, `commit`, …) do no I/O;
//! `node_transport`, `cluster::router` and `transport` send; `connection_state` says whether there is a connection;
//! `client` holds the state of a worker and makes calls; `connection`, `cluster`, `maintain` and `notifications` keep it
//! connected; the `…_operations` are what other rooms call.

mod acl_rules;
mod batching;
pub mod begin;
mod begin_cluster;
mod breakers;
pub mod broadcast_commands;
mod call_numbers;
mod call_tracker;
mod client;
mod cluster;
pub mod commit;
mod connection;
mod connection_state;
pub mod counter_commands;
mod diagnosis;
mod endpoint;
mod error;
pub mod functions;
mod hash_slots;
pub mod idempotency;
mod inspect;
pub mod instance_figures;
mod invocation_mode;
pub mod keys;
pub mod limiter_commands;
mod limiter_operations;
mod maintain;
pub mod migrations;
mod node_transport;
pub mod notifications;
mod one_shot;
mod outage_stats;
mod plain;
mod reconnect_pauses;
pub mod registry;
mod request_operations;
mod server_info;
mod session_activity;
pub mod session_commands;
pub mod session_index;
mod session_operations;
mod session_read;
mod signing_keys;
mod silence_detector;
mod silence_failover;
pub mod task;
mod tls;
mod transport;
mod wire;

pub use breakers::{BreakerStates, BreakerStatus};
pub use client::RedisClient;
pub use connection_state::RedisStatus;
pub use error::{RedisError, ServerRejection};
pub use one_shot::run_once;
pub use outage_stats::OutageStats;
pub use server_info::{ServerMemory, ServerWarning, ServerWarnings};
