//! Websocket.

pub(in crate::http::streams) mod broadcast_socket;
pub(in crate::http::streams) mod client;
pub mod handshake;
pub(in crate::http::streams) mod message_rate;
pub(in crate::http::streams) mod socket;
