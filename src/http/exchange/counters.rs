//! The request's dealings with counters that do not travel with its first call.

use std::time::Duration;

use crate::counter;
use crate::counter::Name;
use crate::counter::batched::NotTaken;
use crate::counter::batched::Reading;
use crate::counter::bounded;
use crate::counter::bounded::Wish;
use crate::counter::unique;
use crate::http::error::Error;
use crate::http::exchange::Exchange;
use crate::redis::count::Shared;
use crate::sys::time;

impl Exchange {
    /// Adds to a batched counter: without a command, unless the worker's journal is full.
    ///
    /// Without server-side code Redis could not know a batch again, so there each addition is made at once.
    pub(in crate::http) async fn batch(&self, name: &Name, by: i64) -> Result<(), Error> {
        if self.core.redis.is_plain() {
            return self.count(name, by).await.map(|_| ());
        }
        match self.core.batches.add(name, by, now_ms()) {
            Ok(()) => Ok(()),
            Err(NotTaken::Overflow) => Err(Error::CounterOverflow),
            Err(NotTaken::NoRoom) => self.count(name, by).await.map(|_| ()),
        }
    }

    /// What this worker knows of a batched counter.
    pub(in crate::http) fn batched_known(&self, name: &Name) -> Option<Reading> {
        self.core.batches.known(name, now_ms())
    }

    /// What Redis and this machine know of a batched counter; while Redis is away, what this worker knows.
    pub(in crate::http) async fn batched_value(&self, name: &Name) -> Result<Reading, Error> {
        if self.core.redis.is_plain() {
            let value = self.count(name, 0).await?;
            return Ok(Reading { value, staleness: Duration::ZERO });
        }
        self.decide().await?;
        match self.core.batches.value(name, now_ms()).await {
            Ok(reading) => Ok(reading),
            Err(error) => match self.batched_known(name) {
                Some(reading) => Ok(reading),
                None => self.heard(Err(counter::Error::from(error))).await,
            },
        }
    }

    /// Takes from a bounded counter.
    pub(in crate::http) async fn take(&self, name: &Name, max: u64, wish: Wish<'_>) -> Result<Shared, Error> {
        self.decide().await?;
        self.heard(bounded::take(&self.core.redis, &self.core.prefix, name, max, wish).await).await
    }

    /// Gives back to a bounded counter.
    pub(in crate::http) async fn give(&self, name: &Name, wish: Wish<'_>) -> Result<Shared, Error> {
        self.decide().await?;
        self.heard(bounded::give(&self.core.redis, &self.core.prefix, name, wish).await).await
    }

    /// How much is taken of a bounded counter.
    pub(in crate::http) async fn taken(&self, name: &Name) -> Result<u64, Error> {
        self.decide().await?;
        self.heard(bounded::taken(&self.core.redis, &self.core.prefix, name).await).await
    }

    /// Counts in a unique counter, or looks.
    pub(in crate::http) async fn see(
        &self,
        name: &Name,
        window: Option<Duration>,
        items: &[&[u8]],
    ) -> Result<(bool, u64), Error> {
        self.decide().await?;
        let (redis, prefix) = (&self.core.redis, &self.core.prefix);
        self.heard(unique::see(redis, prefix, name, window, items, time::unix()).await).await
    }

    /// A failure of Redis is the request's answer, whatever its handler makes of it.
    async fn heard<T>(&self, outcome: Result<T, counter::Error>) -> Result<T, Error> {
        if let Err(counter::Error::Redis(error)) = &outcome {
            self.begun().await.refusal = Some(error.into());
        }
        Ok(outcome?)
    }
}

fn now_ms() -> u64 {
    u64::try_from(time::monotonic().as_millis()).unwrap_or(u64::MAX)
}
