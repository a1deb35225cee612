//! The private Redis beside the workers: started first, restarted, stopped last.

mod control;
pub mod server;

use std::time::Duration;

use crate::supervisor::private_redis::server::PrivateRedisServer;
use crate::supervisor::slots::backoff::RestartBackoff;
use crate::sys::path::FileId;
use crate::sys::process::Pid;

/// How long after its start it has a socket at the latest.
const SOCKET_BOOT_TIMEOUT: Duration = Duration::from_secs(10);

/// The private Redis, if the fleet has one.
#[derive(Debug)]
pub(super) struct PrivateRedis {
    pub(super) server: PrivateRedisServer,
    /// Its process; none while it is stopped or waits to be restarted.
    pub(super) pid: Option<Pid>,
    pub(super) restart_at: Duration,
    pub(super) backoff: RestartBackoff,
    pub(super) started: Duration,
    /// Its socket's file, once it was seen; it makes that once, and a new process is needed for another.
    socket: Option<FileId>,
    /// Whether it was ordered to exit, to make its socket anew.
    is_restarting: bool,
    /// What keeps that from being done; it is reported once.
    reported: Option<&'static str>,
}

impl PrivateRedis {
    pub(super) fn new(server: PrivateRedisServer) -> Self {
        Self {
            server,
            pid: None,
            restart_at: Duration::ZERO,
            backoff: RestartBackoff::default(),
            started: Duration::ZERO,
            socket: None,
            is_restarting: false,
            reported: None,
        }
    }

    /// The same in another program that goes on with it.
    pub(super) fn restore(
        server: PrivateRedisServer,
        pid: Option<Pid>,
        (started, restart_at): (Duration, Duration),
        backoff: RestartBackoff,
    ) -> Self {
        Self { pid, started, restart_at, backoff, ..Self::new(server) }
    }

    /// Whether its socket's file is gone, so that no new connection finds it, and what keeps it from being started again.
    fn check_socket(&mut self, now: Duration) -> Option<Result<Pid, &'static str>> {
        let pid = self.pid.filter(|_| !self.is_restarting)?;
        match (FileId::from_entry(&self.server.socket_path()), self.socket) {
            (Ok(file), None) => {
                self.socket = Some(file);
                None
            }
            (Ok(file), Some(seen)) if file == seen => None,
            (Ok(_), Some(_)) => Some(Err("another socket or file is in its place: remove it")),
            // It is not so far yet.
            (Err(_), None) if now < self.started + SOCKET_BOOT_TIMEOUT => None,
            (Err(_), _) if self.server.has_data_files() => Some(Ok(pid)),
            (Err(_), _) => Some(Err(
                "its data was removed too, and is in its memory only: it is not started again, because it would forget \
                 everything",
            )),
        }
    }
}
