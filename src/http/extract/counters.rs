//! Shared counters.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use http::request::Parts;

use crate::counters::CounterName;
use crate::counters::batched::Approximate;
use crate::counters::bounded::BoundedRequest;
use crate::counters::commands::BoundedOutcome;
use crate::http::error::RequestError;
use crate::http::request_scope::RequestScope;
use crate::http::standalone::redis::Redis;
use crate::http::standalone::state_handle::StateHandle;

/// Counters that all workers of all instances share, of four kinds.
///
/// | kind | an addition costs | its value |
/// |---|---|---|
/// | exact ([`add`](Self::add)) | a part of the request's one round trip | exact, at once |
/// | [`batched`](Self::batched) | nothing | at most 50 ms behind other workers; nothing lost, nothing twice |
/// | [`bounded`](Self::bounded) | a round trip | exact, and never above its bound |
/// | [`distinct`](Self::distinct) | a round trip | how many different items, ± 0.81 % |
///
/// A name has 1 to 64 of `A–Z a–z 0–9 _ - . :`. An exact and a batched counter of one name are one number.
#[derive(Debug, Clone)]
pub struct Counters(StateHandle);

impl Counters {
    /// The counters behind this connection, for what is no request: each operation is a round trip of its own, under no
    /// limit.
    pub fn new(redis: &Redis) -> Self {
        Self(StateHandle::Detached(Arc::clone(redis.services())))
    }

    /// Adds to a counter, which begins at 0, and returns the sum.
    ///
    /// # Errors
    /// [`RequestError::InvalidCounterName`], [`RequestError::CounterOverflow`] (nothing was changed), [`RequestError::Denied`],
    /// [`RequestError::Unavailable`] (after a timeout it is unknown whether it was added).
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was added.
    pub async fn add(&self, name: &str, by: i64) -> Result<i64, RequestError> {
        self.0.state().add_to_counter(&CounterName::parse(name)?, by).await
    }

    /// Reads a counter; without additions it is 0.
    ///
    /// # Errors
    /// As [`Counters::add`].
    pub async fn get(&self, name: &str) -> Result<i64, RequestError> {
        self.add(name, 0).await
    }

    /// A counter whose additions gather in the worker's shared memory and go to Redis every 50 ms, each exactly once.
    ///
    /// # Errors
    /// [`RequestError::InvalidCounterName`].
    pub fn batched(&self, name: &str) -> Result<BatchedCounter, RequestError> {
        Ok(BatchedCounter { state: self.0.clone(), name: CounterName::parse(name)? })
    }

    /// A counter of something of which there is only `max`, such as stock. The bound may differ from call to call.
    ///
    /// # Errors
    /// [`RequestError::InvalidCounterName`].
    pub fn bounded(&self, name: &str, max: u64) -> Result<BoundedCounter, RequestError> {
        Ok(BoundedCounter { state: self.0.clone(), name: CounterName::parse(name)?, max })
    }

    /// A counter of different items, such as visitors or addresses. It takes 12 KiB, however many were inserted.
    ///
    /// # Errors
    /// [`RequestError::InvalidCounterName`].
    pub fn distinct(&self, name: &str) -> Result<DistinctCounter, RequestError> {
        Ok(DistinctCounter { state: self.0.clone(), name: CounterName::parse(name)?, window: None })
    }
}

/// A batched counter.
#[derive(Debug, Clone)]
pub struct BatchedCounter {
    state: StateHandle,
    name: CounterName,
}

impl BatchedCounter {
    /// Adds. When it returns, neither a killed worker nor an outage of Redis loses the addition.
    ///
    /// It decides no limit and costs no command: a request under limits must have them decided before, see [`RateLimit`].
    /// Where more than 64 names have something pending in one worker, additions to the others are sent at once.
    ///
    /// [`RateLimit`]: crate::http::extract::RateLimit
    ///
    /// # Errors
    /// [`RequestError::CounterOverflow`]; as [`Counters::add`] for a name beyond the first 64.
    ///
    /// # Cancel safety
    /// It is added when it is first polled, except for a name beyond the first 64.
    pub async fn add(&self, by: i64) -> Result<(), RequestError> {
        self.state.state().add_batched(&self.name, by).await
    }

    /// The value in Redis and all that the workers of this instance have added to it, this request's additions
    /// included; while Redis is away, what this worker knows.
    ///
    /// # Errors
    /// [`RequestError::Denied`]; [`RequestError::Unavailable`] if this worker knows nothing.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn value(&self) -> Result<Approximate, RequestError> {
        self.state.state().batched_value(&self.name).await
    }

    /// The value without a command: as last read from Redis, with what this worker has added since; `None` before the first
    /// read.
    pub fn known(&self) -> Option<Approximate> {
        self.state.state().batched_cached(&self.name)
    }
}

/// A bounded counter.
#[derive(Debug, Clone)]
pub struct BoundedCounter {
    state: StateHandle,
    name: CounterName,
    max: u64,
}

/// The outcome of taking or giving back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Whether it was done, now or before with the same token.
    pub is_granted: bool,
    /// How much is taken in all.
    pub value: u64,
}

impl BoundedCounter {
    /// Takes `count`, or nothing if there is not so much left.
    ///
    /// # Errors
    /// [`RequestError::InvalidCounterAmount`], [`RequestError::Denied`], [`RequestError::Unavailable`] (after a timeout it is unknown whether it
    /// was taken; [`BoundedCounter::take_once`] can be repeated).
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was taken.
    pub async fn try_take(&self, count: u64) -> Result<Taken, RequestError> {
        Ok(self
            .state
            .state()
            .take_bounded(&self.name, self.max, BoundedRequest { count, token: None })
            .await?
            .into())
    }

    /// The same, and only once for this token, which the client chooses and repeats with its request. It is stored for a
    /// day.
    ///
    /// # Errors
    /// As [`BoundedCounter::try_take`], and [`RequestError::InvalidCounterToken`]; a repetition is safe.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was taken; a repetition is safe.
    pub async fn take_once(&self, count: u64, token: &str) -> Result<Taken, RequestError> {
        Ok(self
            .state
            .state()
            .take_bounded(&self.name, self.max, BoundedRequest { count, token: Some(token) })
            .await?
            .into())
    }

    /// Gives back, and never more than is taken.
    ///
    /// # Errors
    /// As [`BoundedCounter::try_take`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was given back.
    pub async fn give_back(&self, count: u64) -> Result<Taken, RequestError> {
        Ok(self
            .state
            .state()
            .give_back_bounded(&self.name, BoundedRequest { count, token: None })
            .await?
            .into())
    }

    /// The same, and only once for this token, which may be the one it was taken with.
    ///
    /// # Errors
    /// As [`BoundedCounter::take_once`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was given back; a repetition is safe.
    pub async fn give_back_once(&self, count: u64, token: &str) -> Result<Taken, RequestError> {
        Ok(self
            .state
            .state()
            .give_back_bounded(&self.name, BoundedRequest { count, token: Some(token) })
            .await?
            .into())
    }

    /// How much is taken.
    ///
    /// # Errors
    /// [`RequestError::Denied`], [`RequestError::Unavailable`].
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn get(&self) -> Result<u64, RequestError> {
        self.state.state().bounded_taken(&self.name).await
    }
}

impl From<BoundedOutcome> for Taken {
    fn from(shared: BoundedOutcome) -> Self {
        match shared {
            BoundedOutcome::Applied(value) | BoundedOutcome::AlreadyApplied(value) => {
                Self { is_granted: true, value }
            }
            BoundedOutcome::Rejected(value) => Self { is_granted: false, value },
        }
    }
}

/// A counter of different items.
#[derive(Debug, Clone)]
pub struct DistinctCounter {
    state: StateHandle,
    name: CounterName,
    window: Option<Duration>,
}

/// The outcome of an insertion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inserted {
    /// Whether an item was new, as far as the counter can tell.
    pub is_new: bool,
    /// How many different items were inserted.
    pub count: u64,
}

impl DistinctCounter {
    /// Counts only items of the present window of this length, a second at least; windows begin at multiples
    /// of it since 1970 by Redis's clock, so a day is one of UTC.
    #[must_use]
    pub fn per(self, window: Duration) -> Self {
        Self { window: Some(window), ..self }
    }

    /// Counts an item.
    ///
    /// # Errors
    /// [`RequestError::InvalidCounterAmount`] for too short a window, [`RequestError::Denied`], [`RequestError::Unavailable`]; a repetition is safe.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was counted; a repetition is safe.
    pub async fn insert(&self, item: impl AsRef<[u8]>) -> Result<Inserted, RequestError> {
        self.insert_all(&[item.as_ref()]).await
    }

    /// Counts up to a thousand items in one round trip; none only reads.
    ///
    /// # Errors
    /// As [`DistinctCounter::insert`], and [`RequestError::InvalidCounterAmount`] for more.
    ///
    /// # Cancel safety
    /// As [`DistinctCounter::insert`].
    pub async fn insert_all(&self, items: &[&[u8]]) -> Result<Inserted, RequestError> {
        let (new, value) = self.state.state().insert_distinct(&self.name, self.window, items).await?;
        Ok(Inserted { is_new: new, count: value })
    }

    /// How many different items were inserted.
    ///
    /// # Errors
    /// As [`DistinctCounter::insert`].
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn count(&self) -> Result<u64, RequestError> {
        Ok(self.insert_all(&[]).await?.count)
    }
}

impl<S: Sync> FromRequestParts<S> for Counters {
    type Rejection = RequestError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, RequestError> {
        Ok(Self(StateHandle::Request(Arc::clone(RequestScope::from_parts(parts)?.state()))))
    }
}
