//! The client's address.

use std::net::IpAddr;

use axum::extract::FromRequestParts;
use http::request::Parts;

use crate::facade::error::Error;
use crate::http::request_scope::RequestScope;

/// The client's address, as far as trusted proxies vouch for it; never what an untrusted client claims.
///
/// ```
/// use regatta::ClientIp;
///
/// async fn whoami(ClientIp(address): ClientIp) -> String {
///     format!("You are at {address}\n")
/// }
/// # let _: axum::Router = axum::Router::new().route("/", axum::routing::get(whoami));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientIp(pub IpAddr);

impl<S: Sync> FromRequestParts<S> for ClientIp {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        Ok(Self(RequestScope::from_parts(parts)?.state().client.address))
    }
}
