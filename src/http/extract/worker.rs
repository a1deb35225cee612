//! Which worker answers, and what it shares.

use axum::extract::FromRequestParts;
use http::request::Parts;

use crate::http::error::RequestError;
use crate::http::extract::request_state;
use crate::http::service::context::{FleetHandle, Worker};

impl<S: Sync> FromRequestParts<S> for Worker {
    type Rejection = RequestError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, RequestError> {
        Ok(request_state(parts)?.core.worker.clone())
    }
}

impl<S: Sync> FromRequestParts<S> for FleetHandle {
    type Rejection = RequestError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, RequestError> {
        Ok(Self(std::sync::Arc::clone(&request_state(parts)?.core)))
    }
}
