//! The key of a request that is to be carried out once.

use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;

use axum::extract::FromRequestParts;
use axum::extract::OptionalFromRequestParts;
use http::request::Parts;

use crate::http::error::Error;
use crate::http::idempotency::key;

/// The request's `Idempotency-Key`: naming it refuses requests without one, 400; `Option<Idempotency>` refuses none.
///
/// A `POST` or `PATCH` with a key is carried out once, whether its handler names this or not: a repetition gets the first
/// response. Kept are responses with a status from 200 to 499, except 401, 403, 408, 409, 421, 425 and 429, which may be
/// others at the next try. A handler that knows better says so, and what it says last counts.
///
/// ```
/// use axum::http::StatusCode;
/// use regatta::Idempotency;
///
/// async fn pay(key: Idempotency) -> StatusCode {
///     // From here on money may have moved: whatever comes of it, this is not done a second time.
///     key.keep();
///     StatusCode::BAD_GATEWAY
/// }
/// # let _: axum::Router = axum::Router::new().route("/pay", axum::routing::post(pay));
/// ```
#[derive(Debug, Clone)]
pub struct Idempotency {
    key: Arc<str>,
    verdict: Arc<AtomicU8>,
}

/// What a handler said of its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) enum Verdict {
    /// Nothing: its status decides.
    Undecided,
    Keep,
    Release,
}

impl Idempotency {
    pub(in crate::http) fn new(key: String) -> Self {
        Self { key: key.into(), verdict: Arc::new(AtomicU8::new(0)) }
    }

    /// The key, as the client chose it.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The response is final, whatever its status: repetitions get it, also if it says that something failed.
    pub fn keep(&self) {
        self.verdict.store(1, Relaxed);
    }

    /// The response is not final, whatever its status: a repetition is carried out again.
    pub fn release(&self) {
        self.verdict.store(2, Relaxed);
    }

    pub(in crate::http) fn verdict(&self) -> Verdict {
        match self.verdict.load(Relaxed) {
            1 => Verdict::Keep,
            2 => Verdict::Release,
            _ => Verdict::Undecided,
        }
    }

    /// The one under which the request is carried out; where keys mean nothing, one of which nothing follows.
    fn of(parts: &Parts) -> Result<Option<Self>, Error> {
        if let Some(admitted) = parts.extensions.get::<Self>() {
            return Ok(Some(admitted.clone()));
        }
        match parts.headers.contains_key(key::HEADER) {
            false => Ok(None),
            true => key::read(&parts.headers).map(|key| Some(Self::new(key))).ok_or(Error::IdempotencyKey),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Idempotency {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        Self::of(parts)?.ok_or(Error::IdempotencyKeyMissing)
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for Idempotency {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Option<Self>, Error> {
        Self::of(parts)
    }
}
