//! Which worker answers, and what it shares.

use axum::extract::FromRequestParts;
use http::request::Parts;

use crate::http::error::Error;
use crate::http::extract::exchange;
use crate::http::state::State;
use crate::http::state::Worker;

impl<S: Sync> FromRequestParts<S> for Worker {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        Ok(exchange(parts)?.core.worker.clone())
    }
}

impl<S: Sync> FromRequestParts<S> for State {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        Ok(Self(std::sync::Arc::clone(&exchange(parts)?.core)))
    }
}
