//! The request's `Idempotency-Key` as an argument of a handler.

use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use http::request::Parts;

use crate::facade::error::Error;
use crate::http::error::RequestError;
use crate::http::idempotency::Idempotency;

impl<S: Sync> FromRequestParts<S> for Idempotency {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        Self::from_parts(parts)?.ok_or_else(|| RequestError::MissingIdempotencyKey.into())
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for Idempotency {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Option<Self>, Error> {
        Ok(Self::from_parts(parts)?)
    }
}
