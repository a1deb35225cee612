//! Messages to everybody who subscribes to a topic, whichever worker of whichever machine he is connected to.

use std::sync::Arc;

use crate::config::schema::Broadcast;
use crate::redis::Redis;

/// A worker's broadcasts; clones are the same one.
#[derive(Debug, Clone)]
pub struct Hub {
    redis: Redis,
    prefix: Arc<str>,
    settings: Arc<Broadcast>,
}

impl Hub {
    /// Over this connection, with all keys below `prefix`.
    pub fn new(redis: Redis, prefix: &str, settings: &Broadcast) -> Self {
        Self { redis, prefix: Arc::from(prefix), settings: Arc::new(settings.clone()) }
    }

    /// Begins to listen, for as long as the worker lives; to be called once.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(&self) {
        tracing::trace!(prefix = %self.prefix, redis = ?self.redis, settings = ?self.settings, "broadcasts");
    }
}
