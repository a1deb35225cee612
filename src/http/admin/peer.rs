//! Who sent a request to the admin listener.

use crate::http::real_ip::ClientInfo;

/// The socket's peer, whatever headers say: an extension of each request to the admin listener.
#[derive(Debug, Clone)]
pub(in crate::http) struct AdminPeer(pub(in crate::http) ClientInfo);
