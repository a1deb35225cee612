//! Which worker answers, and what it shares.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::request::Parts;

use crate::facade::error::Error;
use crate::http::request_scope::RequestScope;
use crate::http::{FleetHandle, Worker};

impl<S: Sync> FromRequestParts<S> for Worker {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        Ok(RequestScope::in_fleet(parts)?.services.worker.worker.clone())
    }
}

impl<S: Sync> FromRequestParts<S> for FleetHandle {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        Ok(Self::new(Arc::clone(&RequestScope::in_fleet(parts)?.services)))
    }
}
