//! Shared counters.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use http::request::Parts;

use crate::counters::CounterName;
use crate::counters::batched::Approximate as BatchedReading;
use crate::counters::bounded::BoundedRequest;
use crate::counters::commands::BoundedOutcome;
use crate::facade::counter::error::Error;
use crate::facade::error::Error as AnyError;
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
///
/// ```
/// use regatta::counter::{Counters, Error};
///
/// async fn order(counters: Counters) -> Result<String, Error> {
///     Ok(format!("order number {}\n", counters.add("orders", 1).await?))
/// }
/// # let _: axum::Router = axum::Router::new().route("/", axum::routing::post(order));
/// ```
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
    /// [`Error::InvalidName`], [`Error::Overflow`] (nothing was changed), [`Error::Denied`],
    /// [`Error::Redis`] (after a timeout it is unknown whether it was added).
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was added.
    pub async fn add(&self, name: &str, by: i64) -> Result<i64, Error> {
        Ok(self.0.state().add_to_counter(&CounterName::parse(name)?, by).await?)
    }

    /// Reads a counter; without additions it is 0.
    ///
    /// # Errors
    /// As [`Counters::add`].
    pub async fn get(&self, name: &str) -> Result<i64, Error> {
        self.add(name, 0).await
    }

    /// A counter whose additions gather in the worker's shared memory and go to Redis every 50 ms, each exactly once.
    pub fn batched(&self, name: &str) -> BatchedCounter {
        BatchedCounter { source: self.0.clone(), name: CounterName::parse(name).ok() }
    }

    /// A counter of something of which there is only `max`, such as stock. The bound may differ from call to call.
    pub fn bounded(&self, name: &str, max: u64) -> BoundedCounter {
        BoundedCounter { source: self.0.clone(), name: CounterName::parse(name).ok(), max }
    }

    /// A counter of different items, such as visitors or addresses. It takes 12 KiB, however many were inserted.
    pub fn distinct(&self, name: &str) -> DistinctCounter {
        DistinctCounter { source: self.0.clone(), name: CounterName::parse(name).ok(), window: None }
    }
}

/// A batched counter's value, with all that this worker has added.
///
/// ```
/// use regatta::counter::{Approximate, BatchedCounter};
///
/// /// For a line of the log, without a command.
/// fn line(hits: &BatchedCounter) -> String {
///     let show = |known: Approximate| format!("{} hits {:?} ago", known.value(), known.staleness());
///     hits.known().map_or("hits are not known yet".to_owned(), show)
/// }
/// # let _ = line;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Approximate(BatchedReading);

impl Approximate {
    /// The value.
    pub fn value(&self) -> i64 {
        self.0.value
    }

    /// How far it may be behind what other workers and instances have added.
    pub fn staleness(&self) -> Duration {
        self.0.staleness
    }
}

/// The name, if it is one.
fn valid(name: &Option<CounterName>) -> Result<&CounterName, Error> {
    name.as_ref().ok_or(Error::InvalidName)
}

/// A batched counter: additions that cost no command and outlive their worker.
///
/// ```
/// use regatta::counter::{Counters, Error};
///
/// async fn hit(counters: Counters) -> Result<String, Error> {
///     let hits = counters.batched("hits");
///     hits.add(1).await?;
///     let reading = hits.value().await?;
///     Ok(format!("{} hits, {:?} ago at most\n", reading.value(), reading.staleness()))
/// }
/// # let _: axum::Router = axum::Router::new().route("/", axum::routing::get(hit));
/// ```
#[derive(Debug, Clone)]
pub struct BatchedCounter {
    source: StateHandle,
    /// `None`: it is not allowed, which each method reports.
    name: Option<CounterName>,
}

impl BatchedCounter {
    /// Adds. When it returns, neither a killed worker nor an outage of Redis loses the addition.
    ///
    /// It decides no limit and costs no command: a request under limits must have them decided before, see [`RateLimit`].
    /// Where more than 64 names have something pending in one worker, additions to the others are sent at once.
    ///
    /// [`RateLimit`]: crate::rate_limit::RateLimit
    ///
    /// # Errors
    /// [`Error::Overflow`]; as [`Counters::add`] for a name beyond the first 64.
    ///
    /// # Cancel safety
    /// It is added when it is first polled, except for a name beyond the first 64.
    pub async fn add(&self, by: i64) -> Result<(), Error> {
        Ok(self.source.state().add_batched(valid(&self.name)?, by).await?)
    }

    /// The value in Redis and all that the workers of this instance have added to it, this request's additions
    /// included; while Redis is away, what this worker knows.
    ///
    /// # Errors
    /// [`Error::Denied`]; [`Error::Redis`] if this worker knows nothing.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn value(&self) -> Result<Approximate, Error> {
        Ok(Approximate(self.source.state().batched_value(valid(&self.name)?).await?))
    }

    /// The value without a command: as last read from Redis, with what this worker has added since; `None` before the first
    /// read.
    pub fn known(&self) -> Option<Approximate> {
        self.source.state().batched_cached(self.name.as_ref()?).map(Approximate)
    }
}

/// A bounded counter: stock or seats, never more than there are.
///
/// ```
/// use regatta::counter::{Counters, Error};
///
/// async fn order(counters: Counters, token: String) -> Result<String, Error> {
///     let taken = counters.bounded("boats", 12).take_once(1, &token).await?;
///     Ok(if taken.is_granted() { format!("number {}\n", taken.value()) } else { "sold out\n".to_owned() })
/// }
/// # let _: axum::Router = axum::Router::new().route("/", axum::routing::post(order));
/// ```
#[derive(Debug, Clone)]
pub struct BoundedCounter {
    source: StateHandle,
    /// `None`: it is not allowed, which each method reports.
    name: Option<CounterName>,
    max: u64,
}

/// The outcome of taking or giving back.
///
/// ```
/// use regatta::counter::{BoundedCounter, Counters, Error};
///
/// async fn seats(counters: Counters) -> Result<&'static str, Error> {
///     let seats = counters.bounded("seats", 200);
///     let taken = seats.try_take(2).await?;
///     Ok(if taken.is_granted() { "two seats\n" } else { "full\n" })
/// }
///
/// /// A guest leaves; the page may send it twice.
/// async fn leave(seats: &BoundedCounter, token: &str) -> Result<u64, Error> {
///     Ok(seats.give_back_once(1, token).await?.value())
/// }
///
/// /// The whole room is free again.
/// async fn close(seats: &BoundedCounter) -> Result<bool, Error> {
///     Ok(seats.give_back(seats.get().await?).await?.is_granted())
/// }
/// # let _: axum::Router = axum::Router::new().route("/", axum::routing::post(seats));
/// # let _ = (leave, close);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    is_granted: bool,
    value: u64,
}

impl Taken {
    /// Whether it was done, now or before with the same token.
    pub fn is_granted(&self) -> bool {
        self.is_granted
    }

    /// How much is taken in all.
    pub fn value(&self) -> u64 {
        self.value
    }
}

impl BoundedCounter {
    /// Takes `count`, or nothing if there is not so much left.
    ///
    /// # Errors
    /// [`Error::InvalidAmount`], [`Error::Denied`], [`Error::Redis`] (after a timeout it is unknown whether it
    /// was taken; [`BoundedCounter::take_once`] can be repeated).
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was taken.
    pub async fn try_take(&self, count: u64) -> Result<Taken, Error> {
        self.take(BoundedRequest { count, token: None }).await
    }

    /// The same, and only once for this token, which the client chooses and repeats with its request. It is stored for a
    /// day.
    ///
    /// # Errors
    /// As [`BoundedCounter::try_take`], and [`Error::InvalidToken`]; a repetition is safe.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was taken; a repetition is safe.
    pub async fn take_once(&self, count: u64, token: &str) -> Result<Taken, Error> {
        self.take(BoundedRequest { count, token: Some(token) }).await
    }

    /// Gives back, and never more than is taken.
    ///
    /// # Errors
    /// As [`BoundedCounter::try_take`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was given back.
    pub async fn give_back(&self, count: u64) -> Result<Taken, Error> {
        self.put_back(BoundedRequest { count, token: None }).await
    }

    /// The same, and only once for this token, which may be the one it was taken with.
    ///
    /// # Errors
    /// As [`BoundedCounter::take_once`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was given back; a repetition is safe.
    pub async fn give_back_once(&self, count: u64, token: &str) -> Result<Taken, Error> {
        self.put_back(BoundedRequest { count, token: Some(token) }).await
    }

    /// How much is taken.
    ///
    /// # Errors
    /// [`Error::Denied`], [`Error::Redis`].
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn get(&self) -> Result<u64, Error> {
        Ok(self.source.state().bounded_taken(valid(&self.name)?).await?)
    }

    async fn take(&self, request: BoundedRequest<'_>) -> Result<Taken, Error> {
        Ok(self.source.state().take_bounded(valid(&self.name)?, self.max, request).await?.into())
    }

    async fn put_back(&self, request: BoundedRequest<'_>) -> Result<Taken, Error> {
        Ok(self.source.state().give_back_bounded(valid(&self.name)?, request).await?.into())
    }
}

#[doc(hidden)]
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

/// A counter of different items, ± 0.81 %.
///
/// ```
/// use std::time::Duration;
///
/// use regatta::ClientIp;
/// use regatta::counter::{Counters, Error};
///
/// async fn visitors_today(counters: Counters, ClientIp(address): ClientIp) -> Result<String, Error> {
///     let visitors = counters.distinct("visitors").per(Duration::from_secs(24 * 60 * 60));
///     Ok(format!("{} visitors today\n", visitors.insert(address.to_string()).await?.count()))
/// }
/// # let _: axum::Router = axum::Router::new().route("/", axum::routing::get(visitors_today));
/// ```
#[derive(Debug, Clone)]
pub struct DistinctCounter {
    source: StateHandle,
    /// `None`: it is not allowed, which each method reports.
    name: Option<CounterName>,
    window: Option<Duration>,
}

/// The outcome of an insertion.
///
/// ```
/// use regatta::counter::{Counters, Error};
///
/// async fn readers(counters: Counters, name: String) -> Result<String, Error> {
///     let readers = counters.distinct("readers");
///     let inserted = readers.insert_all(&[name.as_bytes(), b"the author"]).await?;
///     let greeting = if inserted.is_new() { "welcome" } else { "welcome back" };
///     Ok(format!("{greeting}, one of {}\n", inserted.count()))
/// }
/// # let _: axum::Router = axum::Router::new().route("/", axum::routing::post(readers));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inserted {
    is_new: bool,
    count: u64,
}

impl Inserted {
    /// Whether an item was new, as far as the counter can tell.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// How many different items were inserted.
    pub fn count(&self) -> u64 {
        self.count
    }
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
    /// [`Error::InvalidAmount`] for too short a window, [`Error::Denied`], [`Error::Redis`]; a repetition is safe.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was counted; a repetition is safe.
    pub async fn insert(&self, item: impl AsRef<[u8]>) -> Result<Inserted, Error> {
        self.insert_all(&[item.as_ref()]).await
    }

    /// Counts up to a thousand items in one round trip; none only reads.
    ///
    /// # Errors
    /// As [`DistinctCounter::insert`], and [`Error::InvalidAmount`] for more.
    ///
    /// # Cancel safety
    /// As [`DistinctCounter::insert`].
    pub async fn insert_all(&self, items: &[&[u8]]) -> Result<Inserted, Error> {
        let (new, value) =
            self.source.state().insert_distinct(valid(&self.name)?, self.window, items).await?;
        Ok(Inserted { is_new: new, count: value })
    }

    /// How many different items were inserted.
    ///
    /// # Errors
    /// As [`DistinctCounter::insert`].
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn count(&self) -> Result<u64, Error> {
        Ok(self.insert_all(&[]).await?.count)
    }
}

impl<S: Sync> FromRequestParts<S> for Counters {
    type Rejection = AnyError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, AnyError> {
        Ok(Self(StateHandle::Request(Arc::clone(RequestScope::from_parts(parts)?.state()))))
    }
}
