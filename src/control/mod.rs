//! The control socket: how operators reach a running fleet, and how it replies.
//!
//! One request a line, one reply a line, JSON both ways ([`protocol`]). The supervisor serves it from its one loop
//! ([`server`]), which never waits for a client; a command line sends with deadlines ([`client`]). Every request gets
//! one final reply, over an upgrade too. What a request means is the supervisor's business: this room knows no fleet.

pub mod client;
mod connection;
pub mod event_kind;
pub mod events;
pub mod protocol;
pub mod server;

use std::path::{Path, PathBuf};

/// Name of the socket in the fleet's run folder.
const SOCKET_NAME: &str = "control.sock";

/// The control socket of the fleet with this run folder.
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join(SOCKET_NAME)
}
