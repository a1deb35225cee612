//! One round trip as a sum of parts: limits, session, view and counters of a request, joined with those of the other
//! requests of a turn.

pub mod auth;
mod batching;
pub mod begin;
mod begin_cluster;
mod begin_plain;
mod call_numbers;
pub mod commit_batch;
mod field_update;
pub mod keys;
mod round_trip;
mod state_client;
mod tower_record;
pub mod tracked_session;

pub use state_client::StateClient;
