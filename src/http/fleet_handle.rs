//! What an application may reach of its worker and fleet.

use std::sync::Arc;
use std::time::Duration;

use crate::counters::keys;
use crate::http::error::{RequestError, StateError};
use crate::http::layers::rate_limit::RateLimitLayer;
use crate::http::offload::OffloadError;
use crate::http::services::WorkerServices;
use crate::http::services::state::TOTAL_VIEWS;
use crate::http::standalone::redis::Redis;
use crate::http::worker::Worker;
use crate::redis::{BreakerStates, RedisStatus};
use crate::scoreboard::snapshot::ScoreboardSnapshot;
use crate::tasks::TaskQueue;

/// Builds the application's routes in each worker.
pub type AppFactory = Arc<dyn Fn(FleetHandle) -> axum::Router + Send + Sync>;

/// What a handler may reach of its worker and fleet; also an extractor.
#[derive(Debug, Clone)]
pub struct FleetHandle(pub(super) Arc<WorkerServices>, Redis);

impl FleetHandle {
    pub(super) fn new(services: Arc<WorkerServices>) -> Self {
        let redis = Redis::from_services(Arc::clone(&services));
        Self(services, redis)
    }

    /// The worker's Redis, for layers and for what runs beside the requests.
    pub fn redis(&self) -> &Redis {
        &self.1
    }

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
        let total = self.0.state.redis.read_counter(&keys::counter(&self.0.state.prefix, TOTAL_VIEWS)).await;
        total.map_err(|error| StateError::from(&error).to_request_error())
    }

    /// A layer that puts routes under the policy with this name, decided in the request's one call with all others.
    ///
    /// ```no_run
    /// use axum::Router;
    /// use axum::routing::post;
    ///
    /// # async fn login() {}
    /// regatta::Fleet::new(|fleet: regatta::FleetHandle| {
    ///     // [limits.login]: rate = "20/min", routes = "layer"
    ///     Router::new().route("/login", post(login).layer(fleet.rate_limit("login").cost(5))).with_state(fleet)
    /// });
    /// ```
    ///
    /// A policy that is switched off (`enabled = false`) gives a layer that does nothing.
    ///
    /// # Panics
    /// When no policy has this name: the worker then reports it and the fleet does not start.
    pub fn rate_limit(&self, policy: &str) -> RateLimitLayer {
        RateLimitLayer::configured(&self.0, policy)
    }

    /// The fleet's tasks: jobs are registered while the routes are built.
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
