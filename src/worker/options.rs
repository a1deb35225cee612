//! What a worker is started with.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::application::AppFactory;
use crate::config::settings::{Config, RedisUrl};
use crate::http::Worker;
use crate::listener::SlotListeners;
use crate::listener::shared_queue::SharedQueue;
use crate::scoreboard::Scoreboard;
use crate::sys::process;

/// Everything a worker needs; it inherits nothing else.
pub struct WorkerOptions {
    /// Index of its slot.
    pub slot: usize,
    /// Its cell in the slot's row.
    pub cell: usize,
    /// Generation it belongs to.
    pub generation: u64,
    /// The slot's listeners.
    pub listeners: SlotListeners,
    /// The fleet's shared queue.
    pub shared_queue: Option<SharedQueue>,
    /// Where READY, or the reason why not, is written.
    pub status_pipe: OwnedFd,
    /// Readable as soon as the supervisor is gone.
    pub lifeline: OwnedFd,
    /// The fleet's configuration.
    pub config: Arc<Config>,
    /// The shared state's address, be it configured or private.
    pub redis_url: RedisUrl,
    /// The shared table.
    pub scoreboard: Arc<Scoreboard>,
    /// The application.
    pub app: AppFactory,
}

impl WorkerOptions {
    /// Which worker this is.
    pub(super) fn identity(&self) -> Worker {
        let pid = process::pid().as_raw().unsigned_abs();
        Worker::new(pid, self.slot, self.generation, process::hostname())
    }
}

impl std::fmt::Debug for WorkerOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerOptions")
            .field("slot", &self.slot)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}
