//! The worker's connections: what each does and until when it may, its bytes, its requests, its end.
//!
//! Deadlines cost nothing per request: an event stores the next state of its connection in one word
//! ([`state::ConnectionState`]), and one sweep a tick closes the connections whose deadline has passed, after a last look
//! into the kernel. hyper's own header timer would allocate and arm a timer for every request, and would count the idle
//! time between two requests as slow header.
//!
//! A connection is never cut while a request is under way unless its client takes nothing, and an answer is never lost to
//! a reset because something of its request was left unread. Which requests may begin is `admission`'s, what answers them
//! is `http`'s.

mod eviction;
mod guard;
mod half_closed;
mod http2_frames;
mod in_flight;
pub(in crate::worker) mod incoming_body;
mod linger;
mod packed_state;
mod pending_response;
mod proxy_header;
mod read_pace;
mod record;
mod refusals;
pub(in crate::worker) mod serve;
mod state;
mod stream;
mod table;
#[cfg(test)]
mod tests;

pub(in crate::worker) use linger::DiscardLimit;
pub(in crate::worker) use record::ConnectionCommand;
pub(in crate::worker) use refusals::RefusalResponses;
pub(in crate::worker) use state::TICK;
pub(in crate::worker) use table::{ConnectionLimits, ConnectionTable};
