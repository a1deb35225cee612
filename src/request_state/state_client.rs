//! A worker's client for its requests: the connection, and the parts of requests that wait to be sent in one call.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::redis::RedisClient;
use crate::request_state::batching::{BeginQueue, ClusterBeginQueue, CommitQueue};
use crate::request_state::call_numbers::CallNumbers;

/// The calls of a worker's requests, which are joined with those of the same turn of the event loop; cheap to clone. Every
/// other call of [`RedisClient`] is made as it is.
#[derive(Clone)]
pub struct StateClient {
    redis: RedisClient,
    pub(super) batches: Arc<RequestBatches>,
}

/// What waits to be sent.
pub(super) struct RequestBatches {
    /// Begins of requests that wait for the next batch.
    pub(super) begins: BeginQueue,
    /// The same in a cluster, by hash slot.
    pub(super) cluster_begins: ClusterBeginQueue,
    /// Commits that wait for the next batch.
    pub(super) commits: CommitQueue,
    pub(super) call_numbers: CallNumbers,
}

impl StateClient {
    /// Over this connection; nothing is sent before it is started.
    pub fn new(redis: RedisClient) -> Self {
        let batches = RequestBatches {
            begins: BeginQueue::new(),
            cluster_begins: ClusterBeginQueue::new(),
            commits: CommitQueue::new(),
            call_numbers: CallNumbers::new(),
        };
        Self { redis, batches: Arc::new(batches) }
    }

    /// The connection.
    pub fn redis(&self) -> &RedisClient {
        &self.redis
    }
}

impl Deref for StateClient {
    type Target = RedisClient;

    fn deref(&self) -> &RedisClient {
        &self.redis
    }
}

impl fmt::Debug for StateClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StateClient").field(&self.redis).finish()
    }
}
