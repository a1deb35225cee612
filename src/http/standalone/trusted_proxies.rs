//! Whom to believe about a client's address, outside a fleet.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::extract::ConnectInfo;
use axum::extract::connect_info::MockConnectInfo;
use bytes::Bytes;
use futures_util::future::{Either, Ready, ready};
use http::request::Parts;
use http::{Request, Response};
use ipnet::IpNet;
use tower::{Layer, Service};

use crate::config;
use crate::config::settings::{ForwardedHeader, ProxyConfig};
use crate::http::error::RequestError;
use crate::http::real_ip::{self, ClientInfo};
use crate::http::standalone::began::HasBegun;

/// Which peers are proxies whose header is believed; a layer for programs without a fleet, whose configuration has
/// `[proxy]` instead.
///
/// Without it no header is believed, and a client's address is that of the connection. It goes outside of every other
/// layer of this library, which means that it is added last: what comes before it has read the address already, and the
/// request is answered 500. Headers are read from the right, never the leftmost entry, which the client writes itself.
///
/// ```
/// use regatta::{ForwardedHeader, TrustedProxies};
///
/// # fn main() -> Result<(), regatta::InvalidNetwork> {
/// let proxies = TrustedProxies::new(["10.0.0.0/8", "2001:db8::7"])?.header(ForwardedHeader::Forwarded);
/// # let _: axum::Router = axum::Router::new().layer(proxies);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct TrustedProxies(Arc<ProxyConfig>);

/// A network that cannot be read, such as one without an address.
///
/// ```
/// let error = regatta::TrustedProxies::new(["10.0.0.0/99"]).unwrap_err();
/// assert!(error.to_string().contains("10.0.0.0/99"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{network:?} is no network such as 10.0.0.0/8, and no address")]
pub struct InvalidNetwork {
    network: String,
}

impl TrustedProxies {
    /// These networks, each as `10.0.0.0/8` or as one address. `X-Forwarded-For` is the header.
    ///
    /// # Errors
    /// [`InvalidNetwork`].
    pub fn new<I: IntoIterator<Item: AsRef<str>>>(networks: I) -> Result<Self, InvalidNetwork> {
        let trusted: Result<_, _> =
            networks.into_iter().map(|network| parse_network(network.as_ref())).collect();
        Ok(Self(Arc::new(ProxyConfig { trusted: trusted?, header: ForwardedHeader::XForwardedFor })))
    }

    /// A proxy on this host.
    pub fn loopback() -> Self {
        let trusted = ["127.0.0.0/8", "::1"].into_iter().filter_map(config::parse_network).collect();
        Self(Arc::new(ProxyConfig { trusted, header: ForwardedHeader::XForwardedFor }))
    }

    /// The one header that they set; the other one means nothing.
    #[must_use]
    pub fn header(self, header: ForwardedHeader) -> Self {
        Self(Arc::new(ProxyConfig { trusted: self.0.trusted.clone(), header }))
    }
}

fn parse_network(text: &str) -> Result<IpNet, InvalidNetwork> {
    config::parse_network(text.trim()).ok_or_else(|| InvalidNetwork { network: text.to_owned() })
}

/// The client of a request outside a fleet; none: the server did not tell the peer's address.
pub(crate) fn client(parts: &Parts) -> Option<ClientInfo> {
    let peer = match parts.extensions.get::<ConnectInfo<SocketAddr>>() {
        Some(ConnectInfo(peer)) => *peer,
        None => parts.extensions.get::<MockConnectInfo<SocketAddr>>()?.0,
    };
    let trusted = parts.extensions.get::<TrustedProxies>();
    let untrusting = ProxyConfig { trusted: Vec::new(), header: ForwardedHeader::XForwardedFor };
    let proxy = trusted.map_or(&untrusting, |TrustedProxies(proxy)| &**proxy);
    Some(real_ip::client_from_headers(peer.into(), &parts.headers, proxy))
}

impl<S> Layer<S> for TrustedProxies {
    type Service = TrustedProxiesService<S>;

    fn layer(&self, inner: S) -> TrustedProxiesService<S> {
        TrustedProxiesService { inner, proxies: self.clone() }
    }
}

/// A service whose proxies are believed, see [`TrustedProxies`].
#[derive(Debug, Clone)]
pub struct TrustedProxiesService<S> {
    inner: S,
    proxies: TrustedProxies,
}

impl<S, B, R> Service<Request<B>> for TrustedProxiesService<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: From<Bytes>,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Either<Ready<Result<Response<R>, S::Error>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if request.extensions().get::<HasBegun>().is_some() {
            let problem = RequestError::TrustedProxiesTooLate.to_problem();
            return Either::Left(ready(Ok(problem.into_response_of())));
        }
        request.extensions_mut().insert(self.proxies.clone());
        Either::Right(self.inner.call(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_as_networks_or_addresses() {
        let proxies = TrustedProxies::new(["10.0.0.0/8", " 2001:db8::7 ", "192.0.2.1"]).unwrap();
        let trusts = |address: &str| proxies.0.trusts(address.parse().unwrap());
        assert!(trusts("10.9.9.9") && trusts("2001:db8::7") && trusts("192.0.2.1"));
        assert!(!trusts("2001:db8::8") && !trusts("192.0.2.2"));
        for bad in ["", "10.0.0.0/33", "localhost", "::/129"] {
            let error = TrustedProxies::new([bad]).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
        assert!(TrustedProxies::loopback().0.trusts("127.8.8.8".parse().unwrap()));
        assert!(TrustedProxies::loopback().0.trusts("::1".parse().unwrap()));
        assert!(!TrustedProxies::loopback().0.trusts("10.0.0.1".parse().unwrap()));
    }
}
