//! The client's address.

use std::net::IpAddr;

use axum::extract::FromRequestParts;
use http::request::Parts;

use crate::http::error::RequestError;
use crate::http::request_scope::RequestScope;

/// The client's address, as far as trusted proxies vouch for it; never what an untrusted client claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientIp(pub IpAddr);

impl<S: Sync> FromRequestParts<S> for ClientIp {
    type Rejection = RequestError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, RequestError> {
        let state = RequestScope::from_client(parts)?;
        Ok(Self(state.address))
    }
}
