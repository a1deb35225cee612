//! WebSockets (RFC 6455) over tungstenite: the handshake, the open socket, and a topic's messages over it.
//!
//! Guarantees that no page of another site opens one with a visitor's cookies, that every client is bounded in what it
//! sends and in how long it may read nothing, and that a socket ends with the code for its reason.

pub(crate) mod broadcast_socket;
pub(crate) mod client;
pub mod handshake;
pub(in crate::http::streams) mod message_rate;
pub(crate) mod socket;
