//! The key of a request that is to be carried out once.

use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;

use http::request::Parts;

use crate::http::error::RequestError;
use crate::http::header_names::IDEMPOTENCY_KEY;
use crate::http::idempotency_key;

/// The request's `Idempotency-Key`: naming it rejects requests without one, 400; `Option<Idempotency>` rejects none.
///
/// A `POST` or `PATCH` with a key is carried out once, whether its handler names this or not: a repetition gets the first
/// response. Stored are responses with a status from 200 to 499, except 401, 403, 408, 409, 421, 425 and 429, which may be
/// others at the next try. A handler can decide otherwise; its last decision counts.
///
/// ```
/// use axum::http::StatusCode;
/// use regatta::Idempotency;
///
/// async fn pay(key: Idempotency) -> StatusCode {
///     // From here on money may have moved: whatever the result is, this is not done a second time.
///     key.store();
///     StatusCode::BAD_GATEWAY
/// }
/// # let _: axum::Router = axum::Router::new().route("/pay", axum::routing::post(pay));
/// ```
#[derive(Debug, Clone)]
pub struct Idempotency {
    key: Arc<str>,
    retention: Arc<AtomicU8>,
}

/// A handler's decision about its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResponseRetention {
    /// None: the status decides.
    ByStatus,
    Store,
    Discard,
}

impl Idempotency {
    pub(super) fn new(key: String) -> Self {
        Self { key: key.into(), retention: Arc::new(AtomicU8::new(0)) }
    }

    /// The key, as the client chose it.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The response is final, whatever its status: repetitions get it, also if it is an error.
    pub fn store(&self) {
        self.retention.store(1, Relaxed);
    }

    /// The response is not final, whatever its status: a repetition is carried out again.
    pub fn release(&self) {
        self.retention.store(2, Relaxed);
    }

    pub(super) fn retention(&self) -> ResponseRetention {
        match self.retention.load(Relaxed) {
            1 => ResponseRetention::Store,
            2 => ResponseRetention::Discard,
            _ => ResponseRetention::ByStatus,
        }
    }

    /// The one under which the request is carried out; where keys have no effect, one that is not used.
    ///
    /// # Errors
    /// `InvalidIdempotencyKey`.
    pub(crate) fn from_parts(parts: &Parts) -> Result<Option<Self>, RequestError> {
        if let Some(claimed) = parts.extensions.get::<Self>() {
            return Ok(Some(claimed.clone()));
        }
        match parts.headers.contains_key(IDEMPOTENCY_KEY) {
            false => Ok(None),
            true => idempotency_key::parse_key(&parts.headers)
                .map(|key| Some(Self::new(key)))
                .ok_or(RequestError::InvalidIdempotencyKey),
        }
    }
}
