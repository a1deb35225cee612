//! Event streams and WebSockets.

pub(crate) mod behind_nginx;
pub(crate) mod broadcast;
pub(crate) mod handler_sockets;
pub(crate) mod handler_streams;
pub(crate) mod page_stream;
pub(crate) mod room;
pub(crate) mod sse;
pub(crate) mod stream_faults;
pub(crate) mod stream_load;
pub(crate) mod websocket;
pub(crate) mod websocket_hostile;
