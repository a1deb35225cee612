//! WebSockets (RFC 6455) over tungstenite: the handshake, sockets for handlers of an application, and a topic's messages.
//!
//! Guarantees that no page of another site opens one with a visitor's cookies, that every client is bounded in what it
//! sends and in how long it may read nothing, and that a socket ends with the code for its reason.

pub(crate) mod broadcast_socket;
pub(crate) mod client;
mod conversation;
pub mod error;
pub mod handshake;
mod link;
mod message;
pub(in crate::http::streams) mod message_rate;
mod metered_io;
pub mod open_socket;
mod pump;
pub(crate) mod socket;
pub(crate) mod terms;
