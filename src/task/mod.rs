//! Work that is queued in Redis and done by any worker of any machine, and finished once.

use std::sync::Arc;

use crate::config::schema;
use crate::redis::Redis;

/// A worker's part in the fleet's tasks; clones are the same one.
#[derive(Debug, Clone)]
pub struct Tasks {
    redis: Redis,
    prefix: Arc<str>,
    settings: Arc<schema::Tasks>,
    worker: Arc<str>,
}

impl Tasks {
    /// Over this connection, with all keys below `prefix`; `worker` is what people know this worker by: host and pid.
    pub fn new(redis: Redis, prefix: &str, settings: &schema::Tasks, worker: &str) -> Self {
        let (prefix, worker) = (Arc::from(prefix), Arc::from(worker));
        Self { redis, prefix, settings: Arc::new(settings.clone()), worker }
    }

    /// Begins to take tasks of the kinds that were registered; to be called once.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(&self) {
        tracing::trace!(prefix = %self.prefix, worker = %self.worker, redis = ?self.redis, settings = ?self.settings, "tasks");
    }

    /// Takes no more tasks, lets those that run end, and gives back what does not end while it is awaited.
    ///
    /// # Cancel safety
    /// Whoever stops waiting gives the rest back with [`Tasks::give_back`].
    pub async fn leave(&self) {}

    /// Gives back what still runs, for another worker.
    pub async fn give_back(&self) {}
}
