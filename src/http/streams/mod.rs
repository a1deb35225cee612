//! Responses that have no end of their own: streams of server-sent events, and WebSockets.
//!
//! Guarantees that each of them ends when its worker drains, in a way that has its client connect again; that a client
//! which reads nothing is dropped and takes a bounded amount of memory until then; and that no drain waits for one. It
//! must not know what the events mean: that belongs to their sources.

pub mod broadcast;
pub(crate) mod event_position;
pub mod event_stream;
pub mod last_event_id;
pub mod on_drain;
pub mod sse;
pub mod websocket;
pub(crate) mod worker_streams;
