//! What an application may reach of its worker and fleet.

use crate::counters::keys;
use crate::facade::broadcast::Broadcast;
use crate::facade::busy::Busy;
use crate::facade::counter::Counters;
use crate::facade::fleet::snapshot::FleetSnapshot;
use crate::facade::rate_limit::UnknownPolicy;
use crate::facade::rate_limit::layer::RateLimitLayer;
use crate::facade::redis_error::RedisError;
use crate::facade::task::TaskQueue;
use crate::http::services::state::TOTAL_VIEWS;
use crate::http::{FleetHandle, Shutdown, Worker};
use crate::redis::{BreakerStates, RedisStatus};

impl FleetHandle {
    /// Which worker this is.
    pub fn worker(&self) -> &Worker {
        &self.services().worker.worker
    }

    /// Whether Redis can be used at this moment.
    pub fn redis_status(&self) -> RedisStatus {
        self.services().state.redis.status()
    }

    /// States of the breakers before Redis's reads and writes in this worker.
    #[doc(hidden)]
    pub fn breaker_states(&self) -> BreakerStates {
        self.services().state.redis.breaker_states()
    }

    /// Every slot of this machine that is in use, and the totals; from shared memory, without a message.
    pub fn snapshot(&self) -> FleetSnapshot {
        FleetSnapshot::new(self.services().worker.cell.scoreboard.snapshot())
    }

    /// Views of all visitors, without counting one.
    ///
    /// # Errors
    /// Redis did not do it.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn page_views(&self) -> Result<i64, RedisError> {
        let state = &self.services().state;
        let total = state.redis.read_counter(&keys::counter(&state.prefix, TOTAL_VIEWS)).await;
        total.map_err(|error| RedisError::new(&error))
    }

    /// A layer that puts routes under the policy with this name.
    pub(crate) fn rate_limit(&self, policy: &str) -> Result<RateLimitLayer, UnknownPolicy> {
        RateLimitLayer::configured(self.services(), policy)
    }

    /// Fires when this worker begins to leave.
    pub fn shutdown(&self) -> Shutdown {
        self.services().worker.drain.shutdown()
    }

    /// Counters for code outside a handler: under no limit, and each call is a round trip. Handlers extract
    /// [`Counters`].
    pub fn counters(&self) -> Counters {
        Counters::new(self.redis())
    }

    /// This worker's broadcasts, for code outside a handler; handlers extract [`Broadcast`].
    pub fn broadcast(&self) -> Broadcast {
        Broadcast::new_in(&self.services().streams)
    }

    /// The fleet's tasks, for code outside a handler; handlers extract [`TaskQueue`]. Handlers of tasks: `App::task`.
    pub fn tasks(&self) -> TaskQueue {
        TaskQueue::new_in(&self.services().streams)
    }

    /// Runs work beside the requests, as what a handler starts and its answer does not wait for: a worker that leaves waits
    /// for it, until `drain.timeout`. What runs longer is abandoned, which is logged, and so is a panic. Work that has to
    /// survive its worker is a [task](crate::task).
    ///
    /// ```
    /// # async fn send_mail(address: String) {}
    /// async fn sign_up(fleet: regatta::FleetHandle, address: String) -> &'static str {
    ///     fleet.spawn(send_mail(address));
    ///     "a mail is on its way\n"
    /// }
    /// # let _: axum::Router = axum::Router::new().route("/", axum::routing::post(sign_up));
    /// ```
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.services().worker.drain.work().spawn(work);
    }

    /// Runs CPU work off the event loop, a bounded number of jobs at once.
    ///
    /// # Errors
    /// At once if all places are taken; or the work panicked.
    ///
    /// # Cancel safety
    /// Waiting work is dropped; what has started runs to its end and its result is dropped.
    pub async fn spawn_blocking<T, F>(&self, work: F) -> Result<T, Busy>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.services().worker.offload.run(work).await.map_err(Busy::new)
    }
}
