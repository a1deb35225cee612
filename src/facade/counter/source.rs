//! Where counters are read and changed: as part of a request, or by a worker for itself.

use std::sync::Arc;
use std::time::Duration;

use crate::counters;
use crate::counters::batched::{Approximate, IncrementRejected};
use crate::counters::bounded::BoundedRequest;
use crate::counters::{CounterName, bounded, distinct};
use crate::facade::counter::error::Error;
use crate::http::request_state::RequestState;
use crate::http::services::state::StateServices;
use crate::redis::counter_commands::BoundedOutcome;
use crate::sys::clock;

/// A request, whose limits are decided before anything is counted; or a worker, which is under no limit.
#[derive(Debug, Clone)]
pub(crate) enum CounterSource {
    /// The request's one round trip is used where it is still to be made.
    Request(Arc<RequestState>),
    /// Each call is a round trip of its own.
    Worker(Arc<StateServices>),
}

impl CounterSource {
    pub(super) async fn add(&self, name: &CounterName, by: i64) -> Result<i64, Error> {
        match self {
            Self::Request(state) => Ok(state.add_to_counter(name, by).await?),
            Self::Worker(services) => Ok(counters::add(&services.redis, &services.prefix, name, by).await?),
        }
    }

    pub(super) async fn add_batched(&self, name: &CounterName, by: i64) -> Result<(), Error> {
        let services = match self {
            Self::Request(state) => return Ok(state.add_batched(name, by).await?),
            Self::Worker(services) => services,
        };
        if services.redis.is_plain() {
            return self.add(name, by).await.map(|_| ());
        }
        match services.batched_counters.add(name, by, now_ms()) {
            Ok(()) => Ok(()),
            Err(IncrementRejected::Overflow) => Err(Error::Overflow),
            Err(IncrementRejected::NoRoom) => self.add(name, by).await.map(|_| ()),
        }
    }

    pub(super) fn batched_cached(&self, name: &CounterName) -> Option<Approximate> {
        match self {
            Self::Request(state) => state.batched_cached(name),
            Self::Worker(services) => services.batched_counters.cached(name, now_ms()),
        }
    }

    pub(super) async fn batched_value(&self, name: &CounterName) -> Result<Approximate, Error> {
        let services = match self {
            Self::Request(state) => return Ok(state.batched_value(name).await?),
            Self::Worker(services) => services,
        };
        if services.redis.is_plain() {
            return Ok(Approximate { value: self.add(name, 0).await?, staleness: Duration::ZERO });
        }
        match services.batched_counters.value(name, now_ms()).await {
            Ok(reading) => Ok(reading),
            Err(error) => self.batched_cached(name).ok_or_else(|| counters::CounterError::from(error).into()),
        }
    }

    pub(super) async fn take_bounded(
        &self,
        name: &CounterName,
        max: u64,
        request: BoundedRequest<'_>,
    ) -> Result<BoundedOutcome, Error> {
        match self {
            Self::Request(state) => Ok(state.take_bounded(name, max, request).await?),
            Self::Worker(services) => {
                Ok(bounded::take(&services.redis, &services.prefix, name, max, request).await?)
            }
        }
    }

    pub(super) async fn give_back_bounded(
        &self,
        name: &CounterName,
        request: BoundedRequest<'_>,
    ) -> Result<BoundedOutcome, Error> {
        match self {
            Self::Request(state) => Ok(state.give_back_bounded(name, request).await?),
            Self::Worker(services) => {
                Ok(bounded::give_back(&services.redis, &services.prefix, name, request).await?)
            }
        }
    }

    pub(super) async fn bounded_taken(&self, name: &CounterName) -> Result<u64, Error> {
        match self {
            Self::Request(state) => Ok(state.bounded_taken(name).await?),
            Self::Worker(services) => Ok(bounded::get(&services.redis, &services.prefix, name).await?),
        }
    }

    pub(super) async fn insert_distinct(
        &self,
        name: &CounterName,
        window: Option<Duration>,
        items: &[&[u8]],
    ) -> Result<(bool, u64), Error> {
        match self {
            Self::Request(state) => Ok(state.insert_distinct(name, window, items).await?),
            Self::Worker(services) => {
                let (redis, prefix) = (&services.redis, &services.prefix);
                Ok(distinct::insert(redis, prefix, name, window, items, clock::wall_clock()).await?)
            }
        }
    }
}

fn now_ms() -> u64 {
    u64::try_from(clock::monotonic().as_millis()).unwrap_or(u64::MAX)
}
