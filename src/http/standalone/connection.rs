//! The connection to Redis of a program without a fleet: begun by its first use inside a runtime, ended with its last handle.

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};

use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::broadcasts::BroadcastHub;
use crate::request_state::StateClient;

/// What goes on in the background for every handle of one connection.
pub(crate) struct StandaloneConnection {
    redis: StateClient,
    is_started: AtomicBool,
    is_hub_started: AtomicBool,
    /// The tasks that keep the connection. They hold the client, so that nothing but an abort ends them.
    tasks: Mutex<Vec<AbortHandle>>,
}

impl fmt::Debug for StandaloneConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StandaloneConnection").field("redis", &self.redis).finish_non_exhaustive()
    }
}

impl StandaloneConnection {
    pub(crate) fn new(redis: StateClient) -> Self {
        Self {
            redis,
            is_started: AtomicBool::new(false),
            is_hub_started: AtomicBool::new(false),
            tasks: Mutex::default(),
        }
    }

    /// Begins to connect, once. Outside a runtime nothing is done: the first use inside one does it.
    pub(crate) fn ensure_started(&self) {
        if self.is_started.load(Relaxed) || Handle::try_current().is_err() {
            return;
        }
        if !self.is_started.swap(true, Relaxed) {
            self.keep(self.redis.start());
        }
    }

    /// The same, and begins to follow broadcasts, which not every program has.
    pub(crate) fn ensure_hub_started(&self, hub: &BroadcastHub) {
        self.ensure_started();
        // The connection may have begun in a runtime that this thread is not in.
        if self.is_hub_started.load(Relaxed) || Handle::try_current().is_err() {
            return;
        }
        if !self.is_hub_started.swap(true, Relaxed) {
            self.keep(hub.start());
        }
    }

    fn keep(&self, handles: [AbortHandle; 2]) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).extend(handles);
    }
}

impl Drop for StandaloneConnection {
    fn drop(&mut self) {
        let tasks = self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner);
        tasks.iter().for_each(AbortHandle::abort);
    }
}
