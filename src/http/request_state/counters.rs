//! Counters that are not part of the request's first round trip.

use std::sync::Arc;
use std::time::Duration;

use crate::counters;
use crate::counters::batched::{Approximate, BatchedCounters, IncrementRejected};
use crate::counters::bounded::BoundedRequest;
use crate::counters::commands::BoundedOutcome;
use crate::counters::{CounterName, bounded, distinct};
use crate::http::error::RequestError;
use crate::http::request_state::state::RequestState;
use crate::sys::clock;

impl RequestState {
    /// What batches additions, if they are batched.
    ///
    /// Without server-side code Redis could not know a batch again, and without a fleet no shared memory outlives this
    /// process, so there each addition is made at once.
    fn batched(&self) -> Option<&Arc<BatchedCounters>> {
        self.services.batched_counters.as_ref().filter(|_| !self.services.redis.is_plain())
    }

    /// Adds to a batched counter: without a command, unless the worker's journal is full.
    pub(crate) async fn add_batched(&self, name: &CounterName, by: i64) -> Result<(), RequestError> {
        let Some(batched) = self.batched() else { return self.add_to_counter(name, by).await.map(|_| ()) };
        match batched.add(name, by, now_ms()) {
            Ok(()) => Ok(()),
            Err(IncrementRejected::Overflow) => Err(RequestError::CounterOverflow),
            Err(IncrementRejected::NoRoom) => self.add_to_counter(name, by).await.map(|_| ()),
        }
    }

    /// What this worker knows of a batched counter.
    pub(crate) fn batched_cached(&self, name: &CounterName) -> Option<Approximate> {
        self.services.batched_counters.as_ref()?.cached(name, now_ms())
    }

    /// What Redis and this instance know of a batched counter; while Redis is away, what this worker knows.
    pub(crate) async fn batched_value(&self, name: &CounterName) -> Result<Approximate, RequestError> {
        let Some(batched) = self.batched() else {
            let value = self.add_to_counter(name, 0).await?;
            return Ok(Approximate { value, staleness: Duration::ZERO });
        };
        self.decide_limits().await?;
        match batched.value(name, now_ms()).await {
            Ok(reading) => Ok(reading),
            Err(error) => match self.batched_cached(name) {
                Some(reading) => Ok(reading),
                None => self.record_failure(Err(counters::CounterError::from(error))).await,
            },
        }
    }

    /// Takes from a bounded counter.
    pub(crate) async fn take_bounded(
        &self,
        name: &CounterName,
        max: u64,
        request: BoundedRequest<'_>,
    ) -> Result<BoundedOutcome, RequestError> {
        self.decide_limits().await?;
        self.record_failure(
            bounded::take(&self.services.redis, &self.services.prefix, name, max, request).await,
        )
        .await
    }

    /// Gives back to a bounded counter.
    pub(crate) async fn give_back_bounded(
        &self,
        name: &CounterName,
        request: BoundedRequest<'_>,
    ) -> Result<BoundedOutcome, RequestError> {
        self.decide_limits().await?;
        self.record_failure(
            bounded::give_back(&self.services.redis, &self.services.prefix, name, request).await,
        )
        .await
    }

    /// How much is taken of a bounded counter.
    pub(crate) async fn bounded_taken(&self, name: &CounterName) -> Result<u64, RequestError> {
        self.decide_limits().await?;
        self.record_failure(bounded::get(&self.services.redis, &self.services.prefix, name).await).await
    }

    /// Inserts into a distinct counter, or reads it.
    pub(crate) async fn insert_distinct(
        &self,
        name: &CounterName,
        window: Option<Duration>,
        items: &[&[u8]],
    ) -> Result<(bool, u64), RequestError> {
        self.decide_limits().await?;
        let (redis, prefix) = (&self.services.redis, &self.services.prefix);
        self.record_failure(distinct::insert(redis, prefix, name, window, items, clock::wall_clock()).await)
            .await
    }

    /// A failure of Redis is recorded as the request's, whatever its handler makes of the error.
    async fn record_failure<T>(&self, outcome: Result<T, counters::CounterError>) -> Result<T, RequestError> {
        if let Err(counters::CounterError::Redis(error)) = &outcome {
            self.lock().await.failure = Some(error.into());
        }
        Ok(outcome?)
    }
}

fn now_ms() -> u64 {
    u64::try_from(clock::monotonic().as_millis()).unwrap_or(u64::MAX)
}
