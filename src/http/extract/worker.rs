//! Which worker answers, and what it shares.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::request::Parts;

use crate::http::error::RequestError;
use crate::http::fleet_handle::FleetHandle;
use crate::http::request_scope::RequestScope;
use crate::http::worker::Worker;

impl<S: Sync> FromRequestParts<S> for Worker {
    type Rejection = RequestError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, RequestError> {
        Ok(RequestScope::in_fleet(parts)?.services.worker.worker.clone())
    }
}

impl<S: Sync> FromRequestParts<S> for FleetHandle {
    type Rejection = RequestError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, RequestError> {
        Ok(Self::new(Arc::clone(&RequestScope::in_fleet(parts)?.services)))
    }
}
