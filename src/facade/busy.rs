//! Why CPU work has no result.

use axum::response::{IntoResponse, Response};

use crate::http::error::RequestError;
use crate::http::offload::OffloadError;

/// Every place for CPU work is taken, 503; or the work panicked, 500.
///
/// ```
/// use regatta::{Busy, FleetHandle};
///
/// async fn primes(fleet: FleetHandle) -> Result<String, Busy> {
///     let sum = fleet.spawn_blocking(|| (0..1_000_000_u64).sum::<u64>()).await?;
///     Ok(sum.to_string())
/// }
/// /// A panic comes again with the same work; a taken place is free in a moment.
/// fn may_try_again(busy: &Busy) -> bool {
///     !busy.is_panic()
/// }
/// # let _: axum::Router = axum::Router::new().route("/", axum::routing::get(primes));
/// # let _ = may_try_again;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct Busy(OffloadError);

impl Busy {
    pub(crate) fn new(error: OffloadError) -> Self {
        Self(error)
    }

    /// Whether the work was begun, and panicked.
    pub fn is_panic(&self) -> bool {
        self.0 == OffloadError::Panicked
    }

    pub(crate) fn to_request_error(self) -> RequestError {
        self.0.into()
    }
}

impl IntoResponse for Busy {
    fn into_response(self) -> Response {
        self.to_request_error().into_response()
    }
}
