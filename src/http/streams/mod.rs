//! Responses that have no end of their own: streams of server-sent events, and WebSockets.
//!
//! Guarantees that each of them ends when its worker leaves, in a way that has its client come again; that a client
//! which takes nothing is dropped and holds a bounded amount of memory until then; and that nobody waits for it. What is
//! said on them is the business of their sources: broadcasts here, tasks and the fleet's state elsewhere.

pub mod broadcast;
pub mod last_event_id;
pub mod sse;

mod tasks;
pub mod websocket;
