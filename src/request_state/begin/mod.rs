//! What one request asks of Redis at its start, and the reply: plain data and its wire form.
//!
//! The form is described at the head of `migrations/0021_regatta_v5.lua`. It must not know connections.

pub mod batch;
mod request;

pub use request::{BeginReply, BeginRequest, decode, encode};
