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
        Ok(RequestScope::from_parts(parts)?.services.worker.worker.clone())
    }
}

impl<S: Sync> FromRequestParts<S> for FleetHandle {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        Ok(Self(Arc::clone(&RequestScope::from_parts(parts)?.services)))
    }
}
