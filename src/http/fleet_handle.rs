//! What an application may reach of its worker and fleet.

use std::sync::Arc;
use std::time::Duration;

use crate::http::drain_state::Shutdown;
use crate::http::error::{RequestError, StateError};
use crate::http::layers::rate_limit::{RateLimitLayer, UnknownPolicy};
use crate::http::offload::OffloadError;
use crate::http::services::WorkerServices;
use crate::http::services::state::TOTAL_VIEWS;
use crate::http::worker::Worker;
use crate::redis::{BreakerStates, RedisStatus, keys};
use crate::scoreboard::snapshot::ScoreboardSnapshot;
use crate::tasks::TaskQueue;

/// What a handler may reach of its worker and fleet; also an extractor.
#[derive(Debug, Clone)]
pub struct FleetHandle(pub(super) Arc<WorkerServices>);

impl FleetHandle {
    /// Which worker this is.
    pub fn worker(&self) -> &Worker {
        &self.0.worker.worker
    }

    /// Whether Redis can be used at this moment.
    pub fn redis_status(&self) -> RedisStatus {
        self.0.state.redis.status()
    }

    /// States of the breakers before Redis's reads and writes in this worker.
    pub fn breaker_states(&self) -> BreakerStates {
        self.0.state.redis.breaker_states()
    }

    /// How long this worker has been serving.
    pub fn uptime(&self) -> Duration {
        self.0.worker.uptime()
    }

    /// Memory of this worker that no file backs as of its last heartbeat, bytes; 0 before the first.
    pub fn memory_bytes(&self) -> u64 {
        self.0.worker.cell().memory_bytes()
    }

    /// Every slot of this instance and its totals.
    pub fn snapshot(&self) -> ScoreboardSnapshot {
        self.0.worker.cell.scoreboard.snapshot()
    }

    /// Views of all visitors, without counting one.
    ///
    /// # Errors
    /// [`RequestError::Unavailable`].
    pub async fn page_views(&self) -> Result<i64, RequestError> {
        let total = self.0.state.redis.increment(&keys::counter(&self.0.state.prefix, TOTAL_VIEWS), 0).await;
        total.map_err(|error| StateError::from(&error).to_request_error())
    }

    /// A layer that puts routes under the policy with this name.
    pub(crate) fn rate_limit(&self, policy: &str) -> Result<RateLimitLayer, UnknownPolicy> {
        RateLimitLayer::from_policy(&self.0.state, policy)
    }

    /// Fires when this worker begins to leave.
    pub fn shutdown(&self) -> Shutdown {
        self.0.worker.drain.shutdown()
    }

    /// The fleet's tasks.
    pub fn tasks(&self) -> TaskQueue {
        self.0.streams.tasks.clone()
    }

    /// Runs CPU work off the event loop, a bounded number of jobs at once.
    ///
    /// # Errors
    /// `OffloadError::Full` at once if all permits are taken, `OffloadError::Panicked` if the job panicked.
    ///
    /// # Cancel safety
    /// A waiting job is dropped; one that has started runs to its end and its result is dropped.
    pub async fn spawn_blocking<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, OffloadError> {
        self.0.worker.offload.run(job).await
    }
}
