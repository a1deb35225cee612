//! The control socket: how operators ask a running fleet, and how it answers.
//!
//! One request a line, one reply a line, JSON both ways ([`protocol`]). The supervisor serves it from its one loop
//! ([`server`]); a command line asks with deadlines ([`client`]). What a request means is the supervisor's business.

pub mod client;
mod connection;
pub mod events;
pub mod protocol;
pub mod server;

use std::path::{Path, PathBuf};

/// Name of the socket in the fleet's run folder.
const SOCKET_NAME: &str = "control.sock";

/// Where the fleet with this run folder is asked.
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join(SOCKET_NAME)
}
