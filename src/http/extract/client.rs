//! Who asks.

use std::net::IpAddr;

use axum::extract::FromRequestParts;
use http::request::Parts;

use crate::http::error::Error;
use crate::http::extract::exchange;

/// The client's address, as far as trusted proxies vouch for it; never what an untrusted client claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddr(pub IpAddr);

impl<S: Sync> FromRequestParts<S> for ClientAddr {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        Ok(Self(exchange(parts)?.client.address))
    }
}
